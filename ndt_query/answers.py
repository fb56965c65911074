"""Answers from views, where a view answers the question exactly, and from the blocks where none does.

A view that is there is read at once: its numbers are few. One that is missing is made when the answer is computed, in
one pass over the blocks of its checkpoint, and kept beside the store; questions that are computed together share that
pass. Every answer says in one line where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ndt_query.asked import Asked, asked_of
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.passes import reduce_values
from ndt_query.reduce import ADVICE, Reduction, result_nbytes
from ndt_query.threads import TASK_PREFIX, install
from ndt_query.viewed import Finalise, Viewed
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.errors import MemoryBudgetError
from ndt_store.layout import block_nbytes, n_blocks
from ndt_store.views.blocks import Array
from ndt_store.views.shelf import load

__all__ = ["Answer", "answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """Variables over (checkpoint, ...) by name, and one line that says where they come from.

    They have no labels: aligning labels that are the same takes longer than reading a view, and `described` adds them.
    """

    variables: dict[str, xr.Variable]
    source: str


def answer(
    given: xr.DataArray,
    acts: xr.DataArray,
    reduction: Reduction[Any],
    viewed: Viewed,
    *,
    what: str,
    memory: int | str | None,
    views: bool,
    advice: str = ADVICE,
) -> Answer:
    """Answer a question from views, or by reduction where they do not answer it exactly.

    Parameters
    ----------
    given : DataArray
        What was asked, as it was given: it carries the trace of what it is.
    acts : DataArray (checkpoint, example, [token,] unit[, y, x])
        The same in the order that `ndt_query.inputs.canonical` gives.
    reduction : Reduction
        The question as a pass over values.
    viewed : Viewed
        The question as one that a view can answer.
    what : str
        The question, for messages.
    memory : int or str, optional
        As for `ndt_query.budget.allowed_nbytes`.
    views : bool
        Whether views may answer.
    advice : str
        What to do where the budget is too small, for messages.

    Returns
    -------
    Answer
        In memory where all views are there; else lazy where `acts` is.

    Raises
    ------
    MemoryBudgetError
        Neither making the missing views nor a pass fits the budget.
    """
    asked, why = asked_of(given) if views else (None, "views=False")
    if asked is not None:
        why = viewed.refusal(asked)
        if not why:
            try:
                return _from_views(asked, viewed, reduction, what, memory, advice)
            except MemoryBudgetError:
                # Views are made of all units, and what is asked for may be smaller.
                why = "making the view would not fit the budget"
    where = "/".join(str(given.attrs[key]) for key in ("layer", "kind") if key in given.attrs) or "the array"
    found = reduce_values(given, acts, reduction, what=what, memory=memory, advice=advice)
    return Answer(found, f"{where}: a pass over its values ({why})")


def _from_views(
    asked: Asked,
    viewed: Viewed,
    reduction: Reduction[Any],
    what: str,
    memory: int | str | None,
    advice: str,
) -> Answer:
    found: dict[int, Any] = {}
    deferred: list[int] = []
    missing: dict[int, str] = {}
    unkept = viewed.unkept(asked)
    for step in dict.fromkeys(asked.steps):
        view, why = (None, unkept) if unkept else load(asked.catalogue, asked.frame, step, viewed.kind)
        if view is None:
            missing[step] = why
        elif viewed.deferred:
            deferred.append(step)
        else:
            found[step] = view
    work = [*deferred, *missing]
    if work:
        # What is found at each checkpoint, and all of it joined.
        results = 2 * result_nbytes(reduction, len(asked.steps), len(asked.units))
        _check_memory(asked, viewed, len(work), results, what, memory, advice)
    finalise = viewed.bound(asked)
    parts = [finalise(found[step], step) if step in found else None for step in asked.steps]
    made = _tasks(asked, viewed, finalise, dict.fromkeys(deferred, _read) | dict.fromkeys(missing, _make))
    variables = {}
    for name, output in reduction.outputs().items():
        sizes = tuple(
            len(asked.units) if dim == UNIT else size for dim, size in zip(output.dims, output.sizes, strict=True)
        )
        data = _joined(name, parts, asked.steps, made, sizes, output.dtype)
        variables[name] = xr.Variable((CHECKPOINT, *output.dims), data)
    return Answer(variables, _source(asked, viewed, missing))


def _check_memory(
    asked: Asked, viewed: Viewed, n_steps: int, results: int, what: str, memory: int | str | None, advice: str
) -> None:
    nbytes, threads = block_nbytes(asked.spec), n_threads()
    # Beside the block in work there is its compressed form, and the largest value of each example and unit.
    terms = Projection(nbytes, nbytes, 1.0, threads, viewed.state_nbytes(asked), min(threads, n_steps) + 1, results)
    check(what, terms, allowed_nbytes(memory), advice)


def _make(viewed: Viewed, asked: Asked, step: int, threads: int) -> Mapping[str, Any]:
    return viewed.make(asked, step, threads)


def _read(viewed: Viewed, asked: Asked, step: int, threads: int) -> Mapping[str, Any]:
    view, _ = load(asked.catalogue, asked.frame, step, viewed.kind)
    return viewed.make(asked, step, threads) if view is None else {viewed.kind.name: view}


def _finalised(views: Mapping[str, Any], name: str, finalise: Finalise[Any], step: int) -> Mapping[str, Array]:
    return finalise(views[name], step)


def _pick(results: Mapping[str, Array], name: str, dtype: str) -> Array:
    # Views keep values in fewer bytes than a pass hands on.
    return results[name].astype(dtype, copy=False)


def _tasks(
    asked: Asked, viewed: Viewed, finalise: Finalise[Any], steps: Mapping[int, Callable[..., Mapping[str, Any]]]
) -> dict[int, tuple[Any, ...]]:
    """Tasks by checkpoint that get its views in the way given, and finalise them: (graph, key of the last)."""
    if not steps:
        return {}
    install()
    where = tokenize(asked.catalogue.storage.path, asked.catalogue.stamp, asked.spec.path, viewed.makes(asked))
    answered = tokenize(where, viewed.kind.name, finalise)
    threads = n_threads() if len(steps) == 1 else 1
    tasks = {}
    for step, get in steps.items():
        views, final = (f"{TASK_PREFIX}views-{where}", step), (f"{TASK_PREFIX}answer-{answered}", step)
        graph = {
            views: (get, viewed, asked, step, threads),
            final: (_finalised, views, viewed.kind.name, finalise, step),
        }
        tasks[step] = (graph, final)
    return tasks


def _joined(
    name: str,
    parts: Sequence[Mapping[str, Array] | None],
    steps: Sequence[int],
    made: Mapping[int, tuple[Any, ...]],
    sizes: tuple[int, ...],
    dtype: str,
) -> Any:
    """Stack one result over checkpoints: an array where all are known, else a lazy one."""
    if not made:
        known = [_pick(part, name, dtype) for part in parts if part is not None]
        return known[0] if len(known) == 1 else np.concatenate(known)
    pieces = []
    for step, part in zip(steps, parts, strict=True):
        if part is not None:
            pieces.append(da.from_array(_pick(part, name, dtype), chunks=-1))
            continue
        graph, final = made[step]
        key = f"{final[0]}-{name}-{step}"
        shared = f"{final[0]}-{step}"
        picked = {(key, *(0,) * (1 + len(sizes))): (_pick, final, name, dtype)}
        layers: dict[str, Any] = {shared: graph, key: picked}
        whole = HighLevelGraph(layers, {shared: set(), key: {shared}})
        pieces.append(da.Array(whole, key, chunks=((1,), *((n,) for n in sizes)), dtype=np.dtype(dtype)))
    return da.concatenate(pieces)


def _source(asked: Asked, viewed: Viewed, missing: Mapping[int, str]) -> str:
    n = len(set(asked.steps))
    passes = viewed.n_passes(asked)
    again = f"; {n_blocks(asked.spec) * n} blocks read once more for what it does not hold" * viewed.rereads(asked)
    read = f"{n_blocks(asked.spec) * len(missing)} blocks" + (f" in {passes:g} passes" if passes > 1 else "")
    unkept = viewed.unkept(asked)
    if unkept:
        return f"{asked.spec.path}: {viewed.kind.name} computed from {read} and not kept: {unkept}{again}"
    line = f"{asked.spec.path}: view {viewed.kind.name} at {n - len(missing)} of {n} checkpoints"
    if missing:
        reasons = "; ".join(
            f"{', '.join(str(step) for step in missing if missing[step] == why)} {why}"
            for why in dict.fromkeys(missing.values())
        )
        line += f", the others made from {read} and kept where the store can be written to ({reasons})"
    return line + again
