"""How alike two representations are: debiased linear CKA between layers, checkpoints and runs, on the same examples."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.asked import asked_of
from ndt_query.attention_data import deal
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.intervals import jackknife, null_p_value, require_level
from ndt_query.kernels.similarity import dependence, permuted, ratio, u_centred
from ndt_query.layers import OneLayer, Whole, activations_of, each_layer, software
from ndt_store.dims import CHECKPOINT, EXAMPLE, LAYER, UNIT
from ndt_store.errors import DimensionError, InvalidInputError, StorageError
from ndt_store.views.blocks import as_block, as_float
from ndt_store.views.gram import SampleGram, sample_gram
from ndt_store.views.gram_build import RUN_NBYTES, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, too_large
from ndt_store.views.samples import on_samples, sample_rows, unpacked
from ndt_store.views.shelf import keep, load

__all__ = ["cka", "cka_matrix"]

F64 = NDArray[np.float64]

POSITIONS: Final = ("flatten", "mean")
ADVICE: Final = "select fewer examples, layers or checkpoints"


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
        grams = [_gram(one, positions, memory) for one in (x, y)]
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


def cka_matrix(
    data: Whole | OneLayer,
    other: Whole | OneLayer | None = None,
    *,
    positions: str = "flatten",
    memory: int | str | None = None,
) -> xr.Dataset:
    """Debiased linear CKA between all layers and checkpoints, of one run or of two.

    Parameters
    ----------
    data : Store, DataTree, mapping of layers, or one layer (checkpoint, example, ...)
        Activations.
    other : the same, optional
        Another run, on the same examples; without it `data` is compared with itself.
    positions : {"flatten", "mean"}
        As in `cka`.
    memory : int or str, optional
        Budget, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        ``cka`` (layer, checkpoint, other_layer, other_checkpoint); see `cka`. ``n_examples`` in the attributes.

    Raises
    ------
    DimensionError
        Layers or runs differ in their examples.
    InvalidInputError
        There are fewer than eight examples.
    MemoryBudgetError
        The products of all samples exceed the budget.

    Notes
    -----
    Each layer and checkpoint is read once, or not at all where its Gram view is there (`ndt index --gram flatten`);
    then all pairs are one matrix product. ``2 n^2`` bytes for each layer and checkpoint. No intervals: ask `cka` of
    pairs that matter.
    """
    one_of("positions", positions, POSITIONS)
    sides = [_items(data)] + ([] if other is None else [_items(other)])
    first = next(iter(sides[0].values()))
    n = first.sizes[EXAMPLE]
    _require_enough(n)
    for side in sides:
        for name, acts in side.items():
            if acts.sizes[EXAMPLE] != n or not np.array_equal(acts[EXAMPLE].values, first[EXAMPLE].values):
                raise DimensionError(f"Layer {name!r} has other examples than the first: compare the same examples.")
    places = [[(name, step) for name, acts in side.items() for step in range(acts.sizes[CHECKPOINT])] for side in sides]
    n_items = sum(map(len, places))
    entries = n * (n - 1) // 2
    check("cka_matrix", Projection(0, 0, 0.0, 1, 8 * n * n, 3, 4 * n_items * entries), allowed_nbytes(memory), ADVICE)
    matrices, upper = np.empty((n_items, entries), np.float32), np.triu_indices(n, 1)
    row = 0
    for side, wanted in zip(sides, places, strict=True):
        for name, step in wanted:
            gram = u_centred(_gram(side[name].isel({CHECKPOINT: step}), positions, memory))
            matrices[row] = gram[upper]
            row += 1
    found = ratio(dependence(matrices))
    split = len(places[0])
    block = found if other is None else found[:split, split:]
    rows, columns = sides[0], sides[-1]
    shape = [(len(side), max(acts.sizes[CHECKPOINT] for acts in side.values())) for side in (rows, columns)]
    cube = block.reshape(*shape[0], *shape[1])
    coords = {
        LAYER: list(rows), CHECKPOINT: next(iter(rows.values()))[CHECKPOINT].values,
        "other_layer": list(columns), "other_checkpoint": next(iter(columns.values()))[CHECKPOINT].values,
    }  # fmt: skip
    attrs = {"what": "debiased linear CKA", "n_examples": n, "positions": positions, "software": software()}
    return xr.Dataset({"cka": ((LAYER, CHECKPOINT, "other_layer", "other_checkpoint"), cube)}, coords, attrs)


def _items(data: Any) -> dict[str, xr.DataArray]:
    layers = {"": activations_of(data)} if isinstance(data, xr.DataArray | xr.Dataset) else dict(each_layer(data))
    found = {}
    for name, acts in layers.items():
        ordered, squeezed = canonical(acts)
        if squeezed:
            ordered = ordered.assign_coords({CHECKPOINT: [int(acts[CHECKPOINT]) if CHECKPOINT in acts.coords else 0]})
        found[name or str(acts.attrs.get("layer", "layer"))] = acts if not squeezed else ordered
    steps = [one[CHECKPOINT].values for one in found.values()]
    if any(not np.array_equal(steps[0], one) for one in steps):
        raise DimensionError("Layers have other checkpoints than the first: select the same of each.")
    return found


def _aligned(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return both on the same examples in the order of the first."""
    _require_enough(a.sizes.get(EXAMPLE, 0))
    if EXAMPLE in a.indexes and EXAMPLE in b.indexes and not a.indexes[EXAMPLE].equals(b.indexes[EXAMPLE]):
        if set(a.indexes[EXAMPLE]) != set(b.indexes[EXAMPLE]):
            raise DimensionError("The two have other examples: select those that both have.")
        b = b.sel({EXAMPLE: a[EXAMPLE].values})
    if a.sizes[EXAMPLE] != b.sizes.get(EXAMPLE):
        raise DimensionError(f"The two have {a.sizes[EXAMPLE]} and {b.sizes.get(EXAMPLE, 0)} examples: give the same.")
    return a, b


def _require_enough(n: int) -> None:
    if n < 8:
        raise InvalidInputError(f"There are {n} examples: the debiased estimate needs eight or more.")


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


def _gram(acts: xr.DataArray, positions: str, memory: int | str | None) -> F64:
    """Products of the samples of one checkpoint about their mean, (sample, sample): from a view where there is one."""
    asked, _ = asked_of(acts)
    ordered, _ = canonical(acts)
    if asked is not None and asked.in_order and len(asked.units) == asked.frame.n_units:
        kind = GRAM_VIEWS[positions]
        shape = asked.frame.n_examples, asked.frame.n_units * (asked.frame.n_positions if positions == "flatten" else 1)
        if on_samples(*shape):
            step = asked.steps[0]
            view = load(asked.catalogue, asked.frame, step, kind)[0]
            if view is None and asked.all_examples:
                view = make_gram(
                    asked.catalogue, asked.spec, step, positions,
                    nbytes=min(RUN_NBYTES, allowed_nbytes(memory) // 4), n_threads=n_threads(),
                )  # fmt: skip
                if not too_large(kind, asked.frame):
                    with suppress(StorageError):
                        keep(asked.catalogue, asked.frame, step, view)
            if view is not None and isinstance(view.state, SampleGram):
                kept = None if asked.all_examples else np.asarray(asked.rows)
                return unpacked(view.state.products, view.state.n, kept)
    axes = [str(dim) for dim in ordered.dims]
    values = np.asarray(ordered.compute().values)
    rows = sample_rows(as_float(as_block(values, axes.index(UNIT) - 2)), positions)
    samples = rows.reshape(rows.shape[1], -1)
    return unpacked(sample_gram(samples).products, len(samples))


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
