"""How alike two representations are: debiased linear CKA of the same examples, with its interval and its null."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention_data import deal
from ndt_query.budget import Projection, allowed_nbytes, check
from ndt_query.inputs import one_of, require_count
from ndt_query.intervals import jackknife, null_p_value, require_level
from ndt_query.kernels.similarity import permuted, u_centred
from ndt_query.layers import OneLayer, activations_of, software
from ndt_query.products import ADVICE, POSITIONS, require_enough, sample_products
from ndt_store.dims import CHECKPOINT, EXAMPLE
from ndt_store.errors import DimensionError

__all__ = ["cka"]

F64 = NDArray[np.float64]


def cka(
    a: OneLayer,
    b: OneLayer,
    *,
    positions: str = "flatten",
    n_groups: int = 10,
    n_permutations: int = 199,
    confidence: float = 0.95,
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
        Groups of examples that are left out one at a time, for the interval.
    n_permutations : int
        Of the examples of `a` against those of `b`, for the null.
    confidence : float
        Level of the interval.
    seed : int
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
        There are fewer than eight examples.
    MemoryBudgetError
        The products of samples exceed the budget.

    Notes
    -----
    One pass over each, or none where a Gram view is there. ``n^2`` products for each interval group and permutation,
    and ``24 n^2`` bytes. The biased estimate of independent data is near ``d / (d + n)`` rather than 0.

    References
    ----------
    S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019; L. Song et al., "Feature
    selection via dependence maximization", JMLR 13, 2012 (the unbiased estimate); A. Szekely, M. Rizzo, "Partial
    distance correlation with methods for dissimilarities", Annals of Statistics 42, 2014.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> one = xr.DataArray(rng.standard_normal((50, 8)), dims=("example", "unit"))
    >>> turned = one.copy(data=one.values @ np.linalg.qr(rng.standard_normal((8, 8)))[0] * 3 + 1)
    >>> round(float(cka(one, turned)["cka"]), 6)
    1.0
    """
    one_of("positions", positions, POSITIONS)
    require_count("n_groups", n_groups, 2)
    require_count("n_permutations", n_permutations, 1)
    level = require_level(confidence)
    first, second = _aligned(activations_of(a), activations_of(b))
    n = first.sizes[EXAMPLE]
    steps, pairs = _pairs(first, second)
    check("cka", Projection(0, 0, 0.0, 1, 8 * n * n, 4, 0), allowed_nbytes(memory), ADVICE)
    groups = deal(n, min(n_groups, n // 4), seed)
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(n) for _ in range(n_permutations)])
    rows = []
    for x, y in pairs:
        grams = [sample_products(one, positions, memory) for one in (x, y)]
        rows.append(_compared(grams[0], grams[1], groups, orders, level))
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    parameters = {"positions": positions, "n_groups": n_groups, "n_permutations": n_permutations, "seed": seed}
    attrs = {
        "what": "debiased linear CKA",
        "n_examples": n,
        "parameters": json.dumps(parameters),
        "software": software(),
    }
    if steps is None:
        return xr.Dataset({name: ((), values[0]) for name, values in found.items()}, attrs=attrs)
    return xr.Dataset({name: (CHECKPOINT, values) for name, values in found.items()}, {CHECKPOINT: steps}, attrs)


def _aligned(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both on the same examples in the order of the first."""
    require_enough(a.sizes.get(EXAMPLE, 0))
    if EXAMPLE in a.indexes and EXAMPLE in b.indexes and not a.indexes[EXAMPLE].equals(b.indexes[EXAMPLE]):
        if set(a.indexes[EXAMPLE]) != set(b.indexes[EXAMPLE]):
            raise DimensionError("The two have other examples: select those that both have.")
        b = b.sel({EXAMPLE: a[EXAMPLE].values})
    if a.sizes[EXAMPLE] != b.sizes.get(EXAMPLE):
        raise DimensionError(f"The two have {a.sizes[EXAMPLE]} and {b.sizes.get(EXAMPLE, 0)} examples: give the same.")
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


def _compared(a: F64, b: F64, groups: NDArray[np.int64], orders: NDArray[np.intp], level: float) -> dict[str, float]:
    """CKA of two Gram matrices, with groups of samples left out and samples permuted."""

    def of(rows: NDArray[np.intp]) -> float:
        some = np.ix_(rows, rows)
        one, other = u_centred(a[some].copy()), u_centred(b[some].copy())
        return float(_own(one, other))

    left_out = np.array([of(np.flatnonzero(groups != group)) for group in range(groups.max() + 1)])
    one, other = u_centred(a.copy()), u_centred(b.copy())
    estimate = _own(one, other)
    interval = jackknife(left_out, estimate, confidence=level)
    null = permuted(one, other, orders)
    reached = (null >= estimate - 1e-12).sum()
    return {
        "cka": float(estimate),
        "cka_low": float(interval.low),
        "cka_high": float(np.minimum(interval.high, 1.0)),
        "null_95": float(np.quantile(null, 0.95)),
        "p_value": float(null_p_value(reached, len(null))) if np.isfinite(estimate) else math.nan,
    }


def _own(one: F64, other: F64) -> float:
    size = math.sqrt(float(np.vdot(one, one)) * float(np.vdot(other, other)))
    return float(np.vdot(one, other)) / size if size > 0 else math.nan
