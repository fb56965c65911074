"""From a mergeable kernel to lazy, labelled results: reductions over ``example``, chunk by chunk.

A reduction is any object with the four methods of `Reduction`. `reduce_examples` makes of it

1. one task for each chunk, which turns the chunk into a state,
2. a tree of merges over the chunks of the same checkpoints, always in the same order, so that results repeat exactly,
3. one task that joins the last states and turns them into arrays, and one array for each result.

Chunks are named by the data alone, so that results computed together share them and each is read once. Data without
dask are reduced at once, by the same code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ndt_query.budget import Projection, allowed_nbytes, check, n_threads, projected_nbytes
from ndt_query.threads import TASK_PREFIX, install
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import Array, Block, as_block

__all__ = ["ADVICE", "Output", "Reduction", "reduce_examples"]

FAN_IN: Final = 8
"""States merged by one task."""

ADVICE: Final = "select fewer examples or units, open the store with smaller chunks"

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a reduction.

    Parameters
    ----------
    dims : tuple of str
        Dimensions after ``checkpoint``; `UNIT` among them is cut as the data are.
    sizes : tuple of int
        Extents of `dims`; that of `UNIT` is ignored.
    dtype : str
        numpy name.
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str


class Reduction(Protocol[State]):
    """A mergeable reduction of blocks (checkpoint, example, token, unit, position) over examples."""

    @property
    def by_unit(self) -> bool:
        """Whether units can be reduced apart from each other."""
        ...

    @property
    def working_factor(self) -> float:
        """Temporaries of `update` over the bytes of its block."""
        ...

    def update(self, block: Block, start: int) -> State:
        """State of one block whose first example has position `start` in the data; it keeps nothing of its memory."""
        ...

    def merge(self, left: State, right: State) -> State:
        """Join the states of neighbouring runs of examples."""
        ...

    def finalise(self, state: State) -> Mapping[str, Array]:
        """Arrays by the names of `outputs`, each (checkpoint, *dims)."""
        ...

    def outputs(self) -> Mapping[str, Output]:
        """Describe what `finalise` returns."""
        ...

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Bytes of the state of that many checkpoints, examples and units."""
        ...


def reduce_examples(
    acts: xr.DataArray,
    reduction: Reduction[Any],
    *,
    what: str,
    memory: int | str | None = None,
    advice: str = ADVICE,
) -> dict[str, xr.Variable]:
    """Reduce activations over ``example`` and positions.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x])
        In the order that `ndt_query.inputs.canonical` gives.
    reduction : Reduction
        The kernel with its parameters.
    what : str
        The question, for messages.
    memory : int or str, optional
        As for `ndt_query.budget.allowed_nbytes`; only lazy data are held to it.
    advice : str
        What to do where the budget is too small, for messages.

    Returns
    -------
    dict of str to Variable
        By the names of ``reduction.outputs()``, dims (checkpoint, *dims); lazy where `acts` is.

    Raises
    ------
    MemoryBudgetError
        The projection exceeds the budget, even in the smallest pieces.
    """
    axes = [str(dim) for dim in acts.dims]
    n_before = axes.index(UNIT) - 2
    if acts.chunks is None:
        state = reduction.update(as_block(np.asarray(acts.data), n_before), 0)
        arrays: Mapping[str, Any] = reduction.finalise(state)
    else:
        data = _rechunked(acts.data, axes, reduction, what, allowed_nbytes(memory), advice)
        arrays = _graph(data, n_before, reduction)
    outputs = reduction.outputs().items()
    return {name: xr.Variable((CHECKPOINT, *output.dims), arrays[name]) for name, output in outputs}


def _rechunked(
    data: da.Array, axes: Sequence[str], reduction: Reduction[Any], what: str, allowed: int, advice: str
) -> da.Array:
    """Join what a kernel needs whole, and cut examples where whole chunks would not fit the budget."""
    if any(0 in sizes for sizes in data.chunks):
        data = data.rechunk(tuple(tuple(size for size in sizes if size) for sizes in data.chunks))
    whole = [*POSITION_DIMS] if reduction.by_unit else [*POSITION_DIMS, UNIT]
    source_nbytes = _largest_nbytes(data)
    joined = _cut(data, {axes.index(dim): -1 for dim in whole if dim in axes})
    terms = _projection(joined, axes, reduction, source_nbytes)
    if projected_nbytes(terms) > allowed:
        example = axes.index(EXAMPLE)
        longest = max(joined.chunks[example])
        spare = allowed - projected_nbytes(replace(terms, piece_nbytes=0))
        row_nbytes = terms.n_threads * (1 + reduction.working_factor) * terms.piece_nbytes / longest
        fitting = int(spare // row_nbytes)
        if 1 <= fitting < longest:
            joined = _cut(joined, {example: fitting})
            terms = _projection(joined, axes, reduction, source_nbytes)
    check(what, terms, allowed, advice)
    return joined


def _cut(data: da.Array, chunks: Mapping[int, int]) -> da.Array:
    cut: da.Array = data.rechunk(dict(chunks))
    return cut


def _largest_nbytes(data: da.Array) -> int:
    return int(math.prod(max(sizes) for sizes in data.chunks) * data.dtype.itemsize)


def _projection(data: da.Array, axes: Sequence[str], reduction: Reduction[Any], source_nbytes: int) -> Projection:
    c, e, u = (axes.index(dim) for dim in (CHECKPOINT, EXAMPLE, UNIT))
    n_checkpoints, n_units = max(data.chunks[c]), max(data.chunks[u])
    n_parts = len(data.chunks[e])
    n_rows, n_examples = max(data.chunks[e]), data.shape[e]
    one = reduction.state_nbytes(n_checkpoints, n_rows, n_units)
    final = reduction.state_nbytes(n_checkpoints, n_examples, n_units)
    threads = min(n_threads(), data.npartitions)
    # Checkpoints (and unit chunks) under way at once, each with its tree of partial states and what is being merged.
    under_way = min(math.ceil(threads / n_parts) + 1, len(data.chunks[c]) * len(data.chunks[u]))
    peak = max(under_way * n_waiting(n_parts) * one, 2 * under_way * final)
    piece = _largest_nbytes(data)
    # A chunk that is handed to the kernel as it was read is not there twice.
    working = reduction.working_factor + (piece != source_nbytes)
    n_states = max(1, math.ceil(peak / max(1, one)))
    result = result_nbytes(reduction, data.shape[c], data.shape[u])
    return Projection(source_nbytes, piece, working, threads, one, n_states, result)


def result_nbytes(reduction: Reduction[Any], n_checkpoints: int, n_units: int) -> int:
    """Size of the arrays that a reduction ends in, in bytes."""
    return n_checkpoints * sum(
        math.prod(n_units if dim == UNIT else size for dim, size in zip(output.dims, output.sizes, strict=True))
        * np.dtype(output.dtype).itemsize
        for output in reduction.outputs().values()
    )


def n_waiting(n_parts: int) -> int:
    """Count the states of one result that wait to be merged, at most, where it is made of so many parts."""
    return min(n_parts, FAN_IN * max(1, math.ceil(math.log(n_parts, FAN_IN))))


def _update(block: Array, reduction: Reduction[Any], n_before: int, start: int) -> Any:
    return reduction.update(as_block(block, n_before), start)


def _merge(reduction: Reduction[Any], states: Sequence[Any]) -> Any:
    return functools.reduce(reduction.merge, states)


def _finalise(reduction: Reduction[Any], states: Sequence[Any]) -> Mapping[str, Array]:
    found: Mapping[str, Array] = reduction.finalise(_merge(reduction, states))
    return found


def pick(results: Mapping[str, Array], name: str) -> Array:
    """Return one result of a reduction."""
    return results[name]


def add_merges(graph: dict[Any, Any], level: list[Any], name: tuple[Any, ...], merge: tuple[Any, ...]) -> list[Any]:
    """Add a tree of merges to a graph until at most `FAN_IN` states are left, and return their keys.

    Parameters
    ----------
    graph : dict
        Takes the tasks.
    level : list
        Keys of the states, in order.
    name : tuple
        Start of the keys of merges.
    merge : tuple
        A task that still lacks its last argument, the states.
    """
    depth = 0
    while len(level) > FAN_IN:
        groups = [level[i : i + FAN_IN] for i in range(0, len(level), FAN_IN)]
        level = [(*name, depth, place) for place in range(len(groups))]
        graph.update({key: (*merge, group) for key, group in zip(level, groups, strict=True)})
        depth += 1
    return level


def _graph(data: da.Array, n_before: int, reduction: Reduction[Any]) -> dict[str, da.Array]:
    install()
    token = f"{type(reduction).__name__.lower()}-{tokenize(data.name, data.chunks, reduction, n_before)}"
    stages = ("kernel", "update", "merge", "finalise")
    kernel, update, merge, final = (f"{TASK_PREFIX}{stage}-{token}" for stage in stages)
    unit = 2 + n_before
    zeros_before, zeros_after = (0,) * n_before, (0,) * (data.ndim - unit - 1)
    starts = np.cumsum([0, *data.chunks[1]]).tolist()
    # The kernel carries labels and other arrays: one key, so that they exist once whatever the number of tasks.
    dsk: dict[Any, Any] = {kernel: reduction}
    for c in range(data.numblocks[0]):
        for u in range(data.numblocks[unit]):
            level = []
            for e in range(data.numblocks[1]):
                source = (data.name, c, e, *zeros_before, u, *zeros_after)
                dsk[update, c, e, u] = (_update, source, kernel, n_before, starts[e])
                level.append((update, c, e, u))
            level = add_merges(dsk, level, (merge, c, u), (_merge, kernel))
            dsk[final, c, u] = (_finalise, kernel, level)
    arrays = {}
    for name, output in reduction.outputs().items():
        arrays[name] = _output_array(data, dsk, (final, token), name, output, unit)
    return arrays


def _output_array(
    data: da.Array, dsk: Mapping[Any, Any], names: tuple[str, str], name: str, output: Output, unit: int
) -> da.Array:
    final, token = names
    key = f"{TASK_PREFIX}{name}-{token}"
    has_unit = UNIT in output.dims
    if not has_unit and data.numblocks[unit] > 1:
        raise InvalidInputError(f"Result {name} has no unit dimension, so that units cannot be reduced apart.")
    chunks = tuple(
        data.chunks[unit] if dim == UNIT else (size,) for dim, size in zip(output.dims, output.sizes, strict=True)
    )
    picks: dict[Any, Any] = {}
    for c in range(data.numblocks[0]):
        for u in range(data.numblocks[unit]):
            place = tuple(u if dim == UNIT else 0 for dim in output.dims)
            picks[(key, c, *place)] = (pick, (final, c, u), name)
    # Reduction and pick are layers of their own: every output of one reduction shares the first.
    shared = f"{TASK_PREFIX}shared-{token}"
    graph = HighLevelGraph(
        {**data.dask.layers, shared: dsk, key: picks},
        {**data.dask.dependencies, shared: set(data.__dask_layers__()), key: {shared}},
    )
    return da.Array(graph, key, chunks=(data.chunks[0], *chunks), dtype=np.dtype(output.dtype))
