"""How alike all layers and checkpoints are, of one run or of two: debiased linear CKA as one matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ndt_query.budget import Projection, allowed_nbytes, check
from ndt_query.inputs import canonical, one_of
from ndt_query.kernels.similarity import dependence, ratio, u_centred
from ndt_query.layers import OneLayer, Whole, activations_of, each_layer, software
from ndt_query.products import ADVICE, POSITIONS, require_enough, sample_products
from ndt_store.dims import CHECKPOINT, EXAMPLE, LAYER
from ndt_store.errors import DimensionError

__all__ = ["cka_matrix"]


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
    require_enough(n)
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
            gram = u_centred(sample_products(side[name].isel({CHECKPOINT: step}), positions, memory))
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
