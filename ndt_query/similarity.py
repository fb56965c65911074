"""How alike two representations are: debiased linear CKA of the same examples, with its interval and its null."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention_data import deal
from ndt_query.budget import Projection, allowed_nbytes, check
from ndt_query.inputs import one_of, require_count
from ndt_query.intervals import jackknife, null_p_value, require_level
from ndt_query.kernels.similarity import Dependence, deal_batches
from ndt_query.layers import OneLayer, activations_of, software
from ndt_query.products import (
    ADVICE,
    BATCH_SIZE,
    MAX_BATCHES,
    POSITIONS,
    batch_products,
    one_blas_thread,
    other_labels,
    read_together,
    require_batches,
    require_enough,
    samples_nbytes,
)
from ndt_store.dims import CHECKPOINT, EXAMPLE
from ndt_store.errors import DimensionError
from ndt_store.views.samples import unpacked

__all__ = ["cka"]

F64 = NDArray[np.float64]

NAMES: Final = ("store", "layer", "kind")


def cka(
    a: OneLayer,
    b: OneLayer,
    *,
    positions: str = "flatten",
    n_groups: int = 10,
    n_permutations: int = 199,
    confidence: float = 0.95,
    batch_size: int = BATCH_SIZE,
    max_batches: int | None = MAX_BATCHES,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Debiased linear CKA between two representations of the same examples.

    Parameters
    ----------
    a, b : DataArray or Dataset ([checkpoint,] example, [token,] unit[, y, x])
        Activations, of the same examples in any order; at the same checkpoints, or either at one.
    positions : {"flatten", "mean"}
        What becomes of conv positions or tokens: features of the example, or their mean.
    n_groups : int
        Groups of examples that are left out one at a time, of every batch at once, for the interval.
    n_permutations : int
        Of the examples of `a` against those of `b`, within each batch, for the null.
    confidence : float
        Level of the interval.
    batch_size : int
        Most examples whose products are made at once, 16 or more. More examples are dealt at random into batches of
        about equal size.
    max_batches : int, optional
        Most batches: of more examples than they hold, as many as they hold are drawn at random. None for all.
    seed : int
        Of the batches, groups and permutations.
    memory : int or str, optional
        Budget, see `ndt_query.budget`.

    Returns
    -------
    Dataset ([checkpoint])
        ``cka``: 1 for representations that differ by a rotation, a scale and a shift, 0 on average for independent
        ones, and so at times negative; ``cka_low``, ``cka_high`` by a jackknife over groups; ``null_95``, what 95% of
        shuffled examples stay below, and ``p_value``. NaN where one does not vary or holds a NaN.

    Raises
    ------
    DimensionError
        They have no examples in common order, or other checkpoints.
    InvalidInputError
        There are fewer than eight examples, or an option is out of its range.
    MemoryBudgetError
        The products of the samples of a batch exceed the budget.

    Notes
    -----
    Unbiased HSIC terms of the batches are added up, and the ratio is taken of their sums. With n examples in batches of
    b, time is that of ``n b`` products for each interval group and permutation, and memory that of one batch: ``48
    b^2`` bytes, and of each side up to 128 MB of samples of up to four batches, or up to 192 MB of one. Up to b
    examples are one batch, read once or not at all where a Gram view is there; of more, a block is read once for all
    batches whose samples are held together. Batches are few unless all examples are asked for, and twice the examples
    take at most twice the time. The biased estimate of independent data is near ``d / (d + n)`` rather than 0.

    References
    ----------
    S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019; L. Song et al., "Feature
    selection via dependence maximization", JMLR 13, 2012 (the unbiased estimate); T. Nguyen, M. Raghu, S. Kornblith,
    "Do wide and deep networks learn the same things?", ICLR 2021 (batches); A. Szekely, M. Rizzo, "Partial distance
    correlation with methods for dissimilarities", Annals of Statistics 42, 2014.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> one = xr.DataArray(rng.standard_normal((50, 8)), dims=("example", "unit"))
    >>> turned = one.copy(data=one.values @ np.linalg.qr(rng.standard_normal((8, 8)))[0] * 3 + 1)
    >>> round(float(cka(one, turned)["cka"]), 6)
    1.0
    """
    one_of("positions", positions, POSITIONS)
    n_groups = require_count("n_groups", n_groups, 2)
    n_permutations, seed = require_count("n_permutations", n_permutations, 1), require_count("seed", seed, 0)
    batch_size, max_batches = require_batches(batch_size, max_batches)
    level = require_level(confidence)
    first, second = _aligned(activations_of(a), activations_of(b))
    n = first.sizes[EXAMPLE]
    steps, pairs = _pairs(first, second)
    batches = deal_batches(n, batch_size, seed, max_batches)
    largest = max(map(len, batches))
    source = samples_nbytes((first, second), largest)
    check("cka", Projection(source, source, 0.0, 1, 8 * largest**2, 6, 0), allowed_nbytes(memory), ADVICE)

    rows_of = []
    with one_blas_thread():
        for x, y in pairs:
            rng = np.random.default_rng(seed)
            n_left_out = min(n_groups, min(map(len, batches)) // 4)
            sums = Dependence(n_left_out, n_permutations)
            for some in read_together(batches, (x, y), positions, memory):
                of = (batch_products(one, some, positions, memory) for one in (x, y))
                for rows, of_x, of_y in zip(some, *of, strict=True):
                    n_rows = len(rows)
                    orders = np.stack([rng.permutation(n_rows) for _ in range(n_permutations)])
                    left_out = deal(n_rows, n_left_out, seed)
                    sums.add(unpacked(of_x, n_rows), unpacked(of_y, n_rows), left_out, orders)
            rows_of.append(_told(*sums.found(), level))
    found = {name: np.array([row[name] for row in rows_of]) for name in rows_of[0]}
    parameters = {
        "positions": positions, "n_groups": n_groups, "n_permutations": n_permutations, "confidence": level,
        "batch_size": batch_size, "max_batches": max_batches, "seed": seed,
    }  # fmt: skip
    attrs = {
        "what": "debiased linear CKA",
        **{key: first.attrs[key] for key in NAMES if key in first.attrs},
        **{f"other_{key}": second.attrs[key] for key in NAMES if key in second.attrs},
        "n_examples": n,
        "n_batches": len(batches),
        "n_in_batches": sum(map(len, batches)),
        "parameters": json.dumps(parameters),
        "software": software(),
    }
    if steps is None:
        return xr.Dataset({name: ((), values[0]) for name, values in found.items()}, attrs=attrs)
    return xr.Dataset({name: (CHECKPOINT, values) for name, values in found.items()}, {CHECKPOINT: steps}, attrs)


def _aligned(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both on the same examples in the order of the first."""
    for one in (a, b):
        empty = [str(dim) for dim in one.dims if not one.sizes[dim]]
        if empty:
            raise DimensionError(
                f"One of the two is empty along {', '.join(empty)}: select at least one entry of each."
            )
    require_enough(a.sizes.get(EXAMPLE, 0))
    if EXAMPLE in a.indexes and EXAMPLE in b.indexes and not a.indexes[EXAMPLE].equals(b.indexes[EXAMPLE]):
        if set(a.indexes[EXAMPLE]) != set(b.indexes[EXAMPLE]):
            raise DimensionError("The two have other examples: select those that both have.")
        b = b.sel({EXAMPLE: a[EXAMPLE].values})
    if a.sizes[EXAMPLE] != b.sizes.get(EXAMPLE):
        raise DimensionError(f"The two have {a.sizes[EXAMPLE]} and {b.sizes.get(EXAMPLE, 0)} examples: give the same.")
    if other_labels(a, b):
        raise DimensionError("The two have other labels of the same examples: compare the same probe set.")
    return a, b


def _pairs(a: xr.DataArray, b: xr.DataArray) -> tuple[NDArray[Any] | None, list[tuple[xr.DataArray, xr.DataArray]]]:
    both = [one for one in (a, b) if CHECKPOINT in one.dims]
    if not both:
        return None, [(a, b)]
    steps = both[0][CHECKPOINT].values
    if any(not np.array_equal(one[CHECKPOINT].values, steps) for one in both):
        raise DimensionError("The two have other checkpoints: select the same, or one of either.")

    def at(one: xr.DataArray, place: int) -> xr.DataArray:
        return one.isel({CHECKPOINT: place}) if CHECKPOINT in one.dims else one

    return steps, [(at(a, place), at(b, place)) for place in range(len(steps))]


def _told(estimate: float, left_out: F64, null: F64, level: float) -> dict[str, float]:
    """Return CKA with its interval from CKA without each group, and with its null from permuted samples."""
    interval = jackknife(left_out, np.float64(estimate), confidence=level)
    reached = (null >= estimate - 1e-12).sum()
    return {
        "cka": estimate,
        "cka_low": float(np.maximum(interval.low, -1.0)),
        "cka_high": float(np.minimum(interval.high, 1.0)),
        "null_95": float(np.quantile(null, 0.95)),
        "p_value": float(null_p_value(reached, len(null))) if np.isfinite(estimate) else math.nan,
    }
