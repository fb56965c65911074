"""Reductions over the blocks of a store: each block is reduced as soon as it is read, while it is in the cache.

A chunk of a dask array is several blocks, which have left the cache before a kernel sees them, in memory that is new
each time. So where a question is about a selection of a stored array, its examples in order, the blocks are read by the
tasks that reduce them, see `ndt_query.runs`. Everything else is reduced chunk by chunk, by `ndt_query.reduce`.
"""

from __future__ import annotations

import math
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.highlevelgraph import HighLevelGraph

from ndt_query.asked import asked_of
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.reduce import ADVICE, Reduction, n_waiting, pick, reduce_examples, result_nbytes
from ndt_query.runs import Question, as_question
from ndt_query.threads import TASK_PREFIX, install
from ndt_store.blocks import as_selector
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.layout import block_nbytes

__all__ = ["reduce_values"]


def reduce_values(
    given: xr.DataArray,
    acts: xr.DataArray,
    reduction: Reduction[Any],
    *,
    what: str,
    memory: int | str | None = None,
    advice: str = ADVICE,
) -> dict[str, xr.Variable]:
    """Reduce activations over ``example`` and positions: by blocks of a store where they can be, else by chunks.

    Parameters
    ----------
    given : DataArray
        What was asked, as it was given: it carries the trace of what it is.
    acts, reduction, what, memory, advice
        As for `ndt_query.reduce.reduce_examples`.

    Returns
    -------
    dict of str to Variable
        As from `ndt_query.reduce.reduce_examples`.

    Raises
    ------
    MemoryBudgetError
        The projection exceeds the budget.
    """
    asked, _ = asked_of(given)
    if asked is None or not asked.in_order or acts.chunks is None:
        return reduce_examples(acts, reduction, what=what, memory=memory, advice=advice)
    question = as_question(asked, tuple(size for size in acts.chunks[0] if size), reduction)
    check(what, _projection(question), allowed_nbytes(memory), advice)
    return _lazy(question)


def _lazy(question: Question) -> dict[str, xr.Variable]:
    install()
    passes, token, cuts = question.passes, question.token, question.cuts
    kept = f"{passes.name}-question-{token}"
    found = {}
    for name, output in question.reduction.outputs().items():
        key = f"{TASK_PREFIX}{name}-{token}"
        zeros = (0,) * len(output.dims)
        picks = {(key, c, *zeros): (pick, (passes.name, token, c), name) for c in range(len(cuts))}
        # No task needs the second layer: it keeps the question, of which the passes have a weak reference.
        layers: dict[str, Any] = {passes.name: passes, kept: {(kept,): question}, key: picks}
        graph = HighLevelGraph(layers, {passes.name: set(), kept: set(), key: {passes.name, kept}})
        sizes = [
            len(question.asked.units) if dim == UNIT else size
            for dim, size in zip(output.dims, output.sizes, strict=True)
        ]
        data = da.Array(graph, key, chunks=(cuts, *((size,) for size in sizes)), dtype=np.dtype(output.dtype))
        found[name] = xr.Variable((CHECKPOINT, *output.dims), data)
    return found


def _projection(question: Question) -> Projection:
    asked, reduction = question.asked, question.reduction
    n_steps, n_runs, n_rows, n_units = len(set(asked.steps)), len(question.runs), len(asked.rows), len(asked.units)
    threads = min(n_threads(), n_steps * n_runs)
    one = reduction.state_nbytes(1, min(n_rows, question.passes.n_blocks * asked.spec.rows), n_units)
    final = reduction.state_nbytes(1, n_rows, n_units)
    under_way = min(math.ceil(threads / n_runs) + 1, n_steps)
    # In a run there are the state so far, that of a block, and the two merged.
    peak = max((under_way * n_waiting(n_runs) + 2 * threads) * one, 2 * under_way * final)
    source, share = block_nbytes(asked.spec), n_units / asked.frame.n_units
    copied = not isinstance(as_selector(asked.units), slice)
    piece = int(source * (max(1.0, share) if copied else share))
    working = reduction.working_factor + copied + (not asked.all_examples)
    result = result_nbytes(reduction, len(asked.steps), n_units)
    return Projection(source, piece, working, threads, one, math.ceil(peak / max(1, one)), result)
