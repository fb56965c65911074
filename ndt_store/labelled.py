"""xarray objects over a store: labelled, lazy, and made only when asked for.

Every variable reads through `BlockArray`, so that what xarray or dask touches is checked against the commit records.
With dask a chunk is several blocks of one checkpoint, or, where a layer is small, several whole checkpoints: a task
costs about 0.2 ms, and a chunk should cost much more than its task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ndt_store.blocks import BlockArray
from ndt_store.catalogue import Catalogue
from ndt_store.dims import (
    CHECKPOINT,
    EXAMPLE,
    EXPERIMENTS_GROUP,
    HEAD,
    LABEL_COORDS,
    LAYER,
    LAYERS_GROUP,
    TRAINING_GROUP,
    UNIT,
)
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.layout import CHECKPOINT_ATTRS, CHUNK_NBYTES, block_nbytes, block_shape, n_blocks, root_attributes
from ndt_store.schema import ArraySpec, layer_path
from ndt_store.storage import Storage
from ndt_store.supplement_data import catalogue_of, read_series, require_record
from ndt_store.traced import Part, TracedArray

__all__ = [
    "cube",
    "dask_chunks",
    "group_dataset",
    "group_paths",
    "label_coords",
    "layer_dataset",
    "require_group",
    "supplement_dataset",
    "tree",
]


class _LazyBlocks(BackendArray):
    """Adapts `BlockArray` to xarray's indexing, for use without dask."""

    def __init__(self, blocks: BlockArray) -> None:
        self.blocks = blocks
        self.shape = blocks.shape
        self.dtype = blocks.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self.blocks.__getitem__
        )


def dask_chunks(spec: ArraySpec, n_checkpoints: int, target_nbytes: int = CHUNK_NBYTES) -> tuple[int, ...]:
    """Choose dask's chunk shape: whole blocks, and as many as fit the target."""
    per_chunk = max(1, target_nbytes // block_nbytes(spec))
    rows = () if not spec.sizes else (min(spec.sizes[0], per_chunk * spec.rows), *spec.sizes[1:])
    if not spec.is_cube:
        return rows
    return (max(1, min(n_checkpoints, per_chunk // n_blocks(spec))), *rows)


def group_dataset(
    catalogue: Catalogue,
    group: str,
    chunk_nbytes: int | None = CHUNK_NBYTES,
    inherited: Mapping[str, xr.Variable] | None = None,
) -> xr.Dataset:
    """Open one group of a store.

    Parameters
    ----------
    catalogue : Catalogue
        The snapshot to read.
    group : str
        Path of the group, "" for the root.
    chunk_nbytes : int or None
        Size at which dask's chunks aim; None gives lazy variables without dask.
    inherited : mapping of str to Variable, optional
        Coordinates from above.
    """
    require_group(catalogue, group)
    if group in catalogue.supplements:
        return supplement_dataset(catalogue.storage, group, chunk_nbytes)
    variables: dict[str, xr.Variable] = {}
    if not group:
        steps = np.asarray(catalogue.committed, dtype=np.int64)
        variables[CHECKPOINT] = xr.Variable((CHECKPOINT,), steps, dict(CHECKPOINT_ATTRS))
    for spec in catalogue.schema.arrays:
        if spec.group == group:
            variables[spec.name] = _variable(catalogue, spec, chunk_nbytes)
    attrs = catalogue.schema.groups.get(group, {})
    if not group:
        attrs = root_attributes(catalogue.schema, catalogue.provenance)
    return _dataset(variables, attrs, inherited)


def supplement_dataset(storage: Storage, group: str, chunk_nbytes: int | None = CHUNK_NBYTES) -> xr.Dataset:
    """Open what lies beside the cubes: a series in memory as of now, and what was written once lazily.

    Raises
    ------
    NotFoundError
        There is no such supplement.
    """
    record = require_record(storage, group)
    if record.dim:
        record, arrays = read_series(storage, group)
        variables = {s.name: xr.Variable(s.dims, arrays[s.path], dict(s.attrs)) for s in record.schema.arrays}
    else:
        catalogue = catalogue_of(storage, record)
        variables = {spec.name: _variable(catalogue, spec, chunk_nbytes) for spec in record.schema.arrays}
    return _dataset(variables, record.attrs)


def _dataset(
    variables: Mapping[str, xr.Variable], attrs: Mapping[str, Any], inherited: Mapping[str, xr.Variable] | None = None
) -> xr.Dataset:
    attrs = dict(attrs)
    labels = set(str(attrs.pop("coordinates", "")).split())
    coords = {name: v for name, v in variables.items() if v.dims == (name,) or name in labels}
    data = {name: v for name, v in variables.items() if name not in coords}
    return xr.Dataset(data, {**coords, **(inherited or {})}, attrs)


def group_paths(catalogue: Catalogue) -> tuple[str, ...]:
    """Paths of every group of a store, of its schema and beside it; "" is the root."""
    above = {EXPERIMENTS_GROUP} if any(group != TRAINING_GROUP for group in catalogue.supplements) else set()
    return tuple(sorted({*catalogue.schema.group_paths(), *catalogue.supplements, *above}))


def require_group(catalogue: Catalogue, group: str) -> None:
    """Check that the store has a group.

    Raises
    ------
    NotFoundError
        Names those that are there.
    """
    if group not in group_paths(catalogue):
        known = ", ".join(path for path in group_paths(catalogue) if path)
        raise NotFoundError(f"{catalogue.storage.path} has no group {group!r}: its groups are {known}.")


def label_coords(catalogue: Catalogue) -> dict[str, xr.Variable]:
    """Read what labels checkpoints and examples; every layer carries it."""
    steps = np.asarray(catalogue.committed, dtype=np.int64)
    coords = {CHECKPOINT: xr.Variable((CHECKPOINT,), steps, dict(CHECKPOINT_ATTRS))}
    specs = (catalogue.schema.find(name) for name in (EXAMPLE, *LABEL_COORDS))
    return coords | {spec.name: _variable(catalogue, spec, None) for spec in specs if spec is not None}


def layer_dataset(
    catalogue: Catalogue, layer: str, labels: dict[str, xr.Variable], chunk_nbytes: int | None = CHUNK_NBYTES
) -> xr.Dataset:
    """Open one layer with the labels of its checkpoints and examples attached, see `label_coords`."""
    dataset = group_dataset(catalogue, f"{LAYERS_GROUP}/{layer}", chunk_nbytes, labels)
    for kind, array in dataset.data_vars.items():
        array.attrs.update(store=catalogue.storage.path, layer=layer, kind=str(kind))
    return dataset


def tree(catalogue: Catalogue, chunk_nbytes: int | None = CHUNK_NBYTES) -> xr.DataTree:
    """Open the whole store; children inherit the root's ``checkpoint`` and ``example`` coordinates."""
    groups = {f"/{path}": group_dataset(catalogue, path, chunk_nbytes) for path in group_paths(catalogue)}
    return xr.DataTree.from_dict(groups)


def cube(catalogue: Catalogue, kind: str, reduce: str, chunk_nbytes: int | None = CHUNK_NBYTES) -> xr.DataArray:
    """Stack one kind of every layer to (checkpoint, layer, example, unit).

    Positions are reduced by the xarray method named `reduce`; units are padded with NaN to the widest layer. What each
    head of attention puts out is left out.
    """
    if reduce not in ("mean", "max", "min", "sum"):
        raise InvalidInputError(f"A cube reduces positions by mean, max, min or sum: got reduce={reduce!r}.")
    specs = {name: catalogue.schema.find(layer_path(name, kind)) for name in catalogue.schema.layers}
    found = [name for name, spec in specs.items() if spec is not None and UNIT in spec.dims and HEAD not in spec.dims]
    labels = label_coords(catalogue)
    arrays = [layer_dataset(catalogue, name, labels, chunk_nbytes)[kind] for name in found]
    if not arrays:
        raise NotFoundError(f"{catalogue.storage.path} holds no {kind} with units, so that there is no cube of them.")
    width = max(array.sizes[UNIT] for array in arrays)
    flat = []
    for array in arrays:
        positions = [dim for dim in array.dims if dim not in (CHECKPOINT, EXAMPLE, UNIT)]
        narrow = getattr(array, reduce)(positions, skipna=False) if positions else array
        narrow = narrow.drop_vars(UNIT, errors="ignore")
        flat.append(narrow.pad({UNIT: (0, width - array.sizes[UNIT])}, constant_values=np.nan))
    stacked = xr.concat(flat, dim=xr.Variable(LAYER, found), coords="minimal", compat="override", join="override")
    stacked.attrs = {"store": catalogue.storage.path, "kind": kind, "reduce": reduce}
    return stacked.transpose(CHECKPOINT, LAYER, EXAMPLE, UNIT)


def _variable(catalogue: Catalogue, spec: ArraySpec, chunk_nbytes: int | None) -> xr.Variable:
    blocks = BlockArray(catalogue, spec)
    is_label = spec.dims == (spec.name,) or (not spec.group and spec.name in LABEL_COORDS)
    # dask makes a plain text of a single string.
    if is_label or not blocks.shape or math.prod(blocks.shape) == 0:
        values = blocks[...]
        # Layers share their labels: what one of them could change would change in all.
        values.setflags(write=False)
        return xr.Variable(spec.dims, values, dict(spec.attrs))
    if chunk_nbytes is None:
        lazy = xr.Variable(spec.dims, indexing.LazilyIndexedArray(_LazyBlocks(blocks)), dict(spec.attrs))
        on_disk = ((1,) if spec.is_cube else ()) + block_shape(spec)
        lazy.encoding["preferred_chunks"] = dict(zip(spec.dims, on_disk, strict=True))
        return lazy
    shape = dask_chunks(spec, blocks.shape[0] if spec.is_cube else 1, chunk_nbytes)
    if spec.is_cube:
        array = TracedArray(Part.whole(blocks), da.core.normalize_chunks(shape, blocks.shape))
    else:
        array = da.from_array(blocks, chunks=shape, asarray=False, meta=np.empty((0,) * blocks.ndim, blocks.dtype))
    return xr.Variable(spec.dims, array, dict(spec.attrs))
