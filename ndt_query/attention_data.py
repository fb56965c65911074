"""Attention as questions take it: patterns or their summaries, of one layer or of all, and means over groups."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, Final, ParamSpec

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.layers import OneLayer, PerLayer, StoreLike
from ndt_store.dims import (
    ATTENTIONS,
    CHECKPOINT,
    EXAMPLE,
    HEAD,
    KEY,
    LAYER,
    LAYERS_GROUP,
    MEAN_PATTERN,
    QUERY,
    SUMMARY_KINDS,
)
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["GROUP", "attention_layers", "deal", "group_means", "patterns_of", "per_attention", "summary_of"]

P = ParamSpec("P")
F64 = NDArray[np.float64]

GROUP: Final = "group"
_ORDER: Final = (CHECKPOINT, EXAMPLE, HEAD, QUERY, KEY)
_ADVICE: Final = "select fewer heads or fewer groups"


def per_attention(question: Callable[Concatenate[OneLayer, P], xr.Dataset]) -> PerLayer[P]:
    """Let a question about the attention of one layer be asked of a store, answered with a ``layer`` dimension.

    Layers that differ in their heads or tokens are padded with NaN.
    """

    @functools.wraps(question)
    def ask(data: Any, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        if isinstance(data, xr.DataArray | xr.Dataset):
            return question(data, *args, **kwargs)
        answers = {layer: question(one, *args, **kwargs) for layer, one in attention_layers(data)}
        parts = [one.drop_vars([name for name in one.coords if name not in one.dims]) for one in answers.values()]
        # Padding goes by labels.
        parts = [one.assign_coords({dim: np.arange(one.sizes[dim]) for dim in one.dims if dim not in one.indexes})
                 for one in parts]  # fmt: skip
        names = xr.Variable(LAYER, list(answers))
        stacked = xr.concat(parts, names, data_vars="all", coords="minimal", compat="override", join="outer",
                            combine_attrs="override")  # fmt: skip
        for name, variable in parts[0].data_vars.items():
            lead = [CHECKPOINT] if CHECKPOINT in variable.dims else []
            stacked[name] = stacked[name].transpose(*lead, LAYER, ...)
        stacked.attrs.pop("layer", None)
        return stacked

    return ask


def attention_layers(data: Any) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield the layers of a store, DataTree or mapping that hold attention: patterns or summaries.

    Raises
    ------
    NotFoundError
        There is none.
    """
    if isinstance(data, xr.DataTree):
        if LAYERS_GROUP not in data.children:
            raise NotFoundError(f"The DataTree has no group {LAYERS_GROUP!r}: pass the root of a store's tree.")
        root = data.children[LAYERS_GROUP]
        labels = {name: data[name].variable for name in ("label", "split") if name in data.dataset.variables}
        layers = {node.relative_to(root): node.to_dataset().assign_coords(labels) for node in root.descendants}
    elif isinstance(data, Mapping):
        layers = {name: one.to_dataset(name=ATTENTIONS) if isinstance(one, xr.DataArray) else one
                  for name, one in data.items()}  # fmt: skip
    elif isinstance(data, StoreLike):
        layers = {name: data[name] for name in data.layers}
    else:
        raise InvalidInputError(
            f"Attention of several layers is that of a Store, a DataTree or a mapping of layers: got "
            f"{type(data).__name__}; a DataArray or a layer's Dataset is one layer alone."
        )
    found = {name: one for name, one in layers.items() if ATTENTIONS in one or MEAN_PATTERN in one}
    if not found:
        raise NotFoundError("No layer holds attention: capture the kind attentions, or attention_summaries.")
    yield from found.items()


def patterns_of(data: OneLayer) -> xr.DataArray:
    """Return the attention patterns of a layer in the order (checkpoint, example, head, query, key).

    A missing ``checkpoint`` stays missing.

    Raises
    ------
    NotFoundError
        The Dataset has no patterns.
    DimensionError
        The array has other dimensions.
    """
    if isinstance(data, xr.Dataset):
        if ATTENTIONS not in data:
            why = "it has summaries alone, which do not answer this" if MEAN_PATTERN in data else "it has no attention"
            raise NotFoundError(f"The Dataset has no {ATTENTIONS} ({why}): capture the kind {ATTENTIONS}.")
        data = data[ATTENTIONS]
    wanted = [dim for dim in _ORDER if dim != CHECKPOINT or dim in data.dims]
    if set(data.dims) != set(wanted):
        raise DimensionError(
            f"The array has dims {data.dims}: expected example, head, query and key, and at most checkpoint beside "
            "them; pass attention patterns."
        )
    return data if data.dims == tuple(wanted) else data.transpose(*wanted)


def summary_of(data: OneLayer, name: str) -> xr.DataArray | None:
    """Return a summary that was kept in place of patterns, None where the patterns are there."""
    held = isinstance(data, xr.Dataset) and ATTENTIONS not in data and name in data
    assert name in SUMMARY_KINDS, name
    return data[name] if held and isinstance(data, xr.Dataset) else None


def deal(n_examples: int, n_groups: int, seed: int) -> NDArray[np.int64]:
    """Deal examples into groups of equal size, at random: the group of each example."""
    groups = np.arange(n_examples) % min(n_groups, n_examples)
    return np.random.default_rng(seed).permutation(groups)


def group_means(
    patterns: xr.DataArray, groups: NDArray[np.int64], *, what: str, memory: int | str | None = None
) -> xr.DataArray:
    """Average patterns over groups of examples.

    Parameters
    ----------
    patterns : DataArray ([checkpoint,] example, head, query, key)
        From `patterns_of`.
    groups : ndarray of int64 (example,)
        From `deal`.
    what, memory
        As for `ndt_query.budget.check`.

    Returns
    -------
    DataArray ([checkpoint,] group, head, query, key)
        float64, lazy where the patterns are; the coordinate ``group_size`` counts examples.

    Raises
    ------
    MemoryBudgetError
        The sums of a few checkpoints exceed the budget.

    Notes
    -----
    One pass. Chunks of a checkpoint are added one after the other to one array of sums, so that memory is that of the
    sums and a chunk for each thread.
    """
    sizes = np.bincount(groups)
    lead = [CHECKPOINT] if CHECKPOINT in patterns.dims else []
    data = patterns.data if lead else patterns.data[None]
    if patterns.chunks is None:
        sums: Any = _add(None, np.asarray(data), groups, len(sizes))
    else:
        sums = _folded(data, groups, len(sizes), what, allowed_nbytes(memory))
    means = sums / sizes[:, None, None, None]
    dims = (*lead, GROUP, HEAD, QUERY, KEY)
    kept = {name: one for name, one in patterns.coords.items() if EXAMPLE not in one.dims}
    return xr.DataArray(means if lead else means[0], {**kept, "group_size": (GROUP, sizes)}, dims)


def _folded(data: da.Array, groups: NDArray[np.int64], n_groups: int, what: str, allowed: int) -> da.Array:
    data = data.rechunk(dict.fromkeys((2, 3, 4), -1))
    state = max(data.chunks[0]) * n_groups * int(np.prod(data.shape[2:])) * 8
    piece = int(np.prod([max(sizes) for sizes in data.chunks])) * data.dtype.itemsize
    threads = min(n_threads(), len(data.chunks[0]))
    result = state * len(data.chunks[0])
    check(what, Projection(piece, piece, 0.0, threads, state, 2 * threads, result), allowed, _ADVICE)
    name = f"attention-groups-{tokenize(data.name, data.chunks, groups)}"
    starts = np.cumsum([0, *data.chunks[1]])
    graph: dict[Any, Any] = {}
    for c in range(data.numblocks[0]):
        before: Any = None
        for e in range(data.numblocks[1]):
            last = e == data.numblocks[1] - 1
            key = (name, c, 0, 0, 0, 0) if last else (f"{name}-part", c, e)
            part = groups[starts[e] : starts[e + 1]]
            graph[key] = (_add, before, (data.name, c, e, 0, 0, 0), part, n_groups)
            before = key
    chunks = (data.chunks[0], (n_groups,), *((size,) for size in data.shape[2:]))
    layered = HighLevelGraph({**data.dask.layers, name: graph}, {**data.dask.dependencies, name: {data.name}})
    return da.Array(layered, name, chunks=chunks, dtype=np.float64)


def _add(sums: F64 | None, block: NDArray[Any], groups: NDArray[np.int64], n_groups: int) -> F64:
    """Add a block (checkpoint, example, ...) to the sums of its groups, in place: no other task has them."""
    if sums is None:
        sums = np.zeros((block.shape[0], n_groups, *block.shape[2:]))
    for at, group in enumerate(groups):
        sums[:, group] += block[:, at]
    return sums
