"""How alike all layers and checkpoints are, of one run or of two: debiased linear CKA as one matrix product."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.budget import Projection, allowed_nbytes, check, projected_nbytes
from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.kernels.similarity import deal_batches, dependence, ratio, u_centred_triangle
from ndt_query.layers import OneLayer, Whole, activations_of, each_layer, software
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
from ndt_store.dims import CHECKPOINT, EXAMPLE, LAYER
from ndt_store.errors import DimensionError

__all__ = ["cka_matrix"]


def cka_matrix(
    data: Whole | OneLayer,
    other: Whole | OneLayer | None = None,
    *,
    positions: str = "flatten",
    batch_size: int = BATCH_SIZE,
    max_batches: int | None = MAX_BATCHES,
    seed: int = 0,
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
    batch_size, max_batches, seed
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
        There are fewer than eight examples, or an option is out of its range.
    MemoryBudgetError
        The products of the samples of a batch, of all layers and checkpoints, exceed the budget.

    Notes
    -----
    Up to `batch_size` examples, each layer and checkpoint is read once, or not at all where its Gram view is there
    (`ndt index --gram flatten`); then all pairs are one matrix product. More examples are dealt into batches as in
    `cka`, with one matrix product for each: time grows with the examples, and memory does not. ``2 b^2`` bytes for each
    layer and checkpoint with b examples in a batch, of up to four batches while that is 256 MB or less, and samples as
    in `cka`. No intervals: ask `cka` of pairs that matter.
    """
    one_of("positions", positions, POSITIONS)
    batch_size, max_batches = require_batches(batch_size, max_batches)
    seed = require_count("seed", seed, 0)
    sides = [_items(data)] + ([] if other is None else [_items(other)])
    first = next(iter(sides[0].values()))
    n = first.sizes[EXAMPLE]
    require_enough(n)
    for side in sides:
        for name, acts in side.items():
            if acts.sizes[EXAMPLE] != n or not np.array_equal(acts[EXAMPLE].values, first[EXAMPLE].values):
                raise DimensionError(f"Layer {name!r} has other examples than the first: compare the same examples.")
            if other_labels(acts, first):
                raise DimensionError(f"Layer {name!r} has other labels of its examples: compare the same probe set.")
    places = [[(name, step) for name, acts in side.items() for step in range(acts.sizes[CHECKPOINT])] for side in sides]
    arrays = [acts for side in sides for acts in side.values()]
    batches = deal_batches(n, batch_size, seed, max_batches)
    n_items, largest = sum(map(len, places)), max(map(len, batches))
    held_nbytes, source = 2 * n_items * largest * (largest - 1), samples_nbytes(arrays, largest)
    terms = Projection(source, source, 0.0, 1, 8 * largest**2, 3, held_nbytes)
    check("cka_matrix", terms, allowed_nbytes(memory), ADVICE)
    spare_nbytes = allowed_nbytes(memory) - projected_nbytes(terms)
    runs = read_together(batches, arrays, positions, memory, held_nbytes, spare_nbytes)
    items = [side[name].isel({CHECKPOINT: step}) for side, wanted in zip(sides, places, strict=True)
             for name, step in wanted]  # fmt: skip
    found = ratio(_added_up(items, runs, positions, memory))
    split = len(places[0])
    block = found if other is None else found[:split, split:]
    down, across = sides[0], sides[-1]
    shape = [(len(side), max(acts.sizes[CHECKPOINT] for acts in side.values())) for side in (down, across)]
    cube = block.reshape(*shape[0], *shape[1])
    coords = {
        LAYER: list(down), CHECKPOINT: next(iter(down.values()))[CHECKPOINT].values,
        "other_layer": list(across), "other_checkpoint": next(iter(across.values()))[CHECKPOINT].values,
    }  # fmt: skip
    attrs = {
        "what": "debiased linear CKA", "n_examples": n, "n_batches": len(batches),
        "n_in_batches": sum(map(len, batches)), "n_runs": len(sides),
        "positions": positions,
        "parameters": json.dumps(
            {"positions": positions, "batch_size": batch_size, "max_batches": max_batches, "seed": seed}
        ),
        "software": software(),
    }  # fmt: skip
    return xr.Dataset({"cka": ((LAYER, CHECKPOINT, "other_layer", "other_checkpoint"), cube)}, coords, attrs)


def _added_up(
    items: list[xr.DataArray], runs: list[Sequence[NDArray[np.intp]]], positions: str, memory: int | str | None
) -> NDArray[np.float64]:
    """Add up the unbiased HSIC of every two items (item, item) over batches, in units of each item that cancel."""
    n_together, largest = max(map(len, runs)), max(len(rows) for run in runs for rows in run)
    kept = np.empty((n_together, len(items), largest * (largest - 1) // 2), np.float32)
    found, sizes, units = np.zeros((len(items),) * 2), np.zeros((n_together, len(items))), np.zeros(len(items))

    with one_blas_thread():
        for run in runs:
            for place, acts in enumerate(items):
                for at, triangle in enumerate(batch_products(acts, run, positions, memory)):
                    n = len(run[at])
                    sizes[at, place] = u_centred_triangle(triangle, n, kept[at, place, : n * (n - 1) // 2])
            for at, rows in enumerate(run):
                n = len(rows)
                # The first batch's sizes are the units: squares of the sizes themselves could overflow.
                units = np.where(units == 0, sizes[at], units)
                weights = np.divide(sizes[at], units, out=np.zeros(len(items)), where=units != 0)
                share = np.outer(weights, weights) / (n * (n - 3))
                found += share * dependence(kept[at, :, : n * (n - 1) // 2])
    return found


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
