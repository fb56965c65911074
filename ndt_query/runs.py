"""Runs of blocks as tasks: each is read once, for all questions about it that are computed together.

Questions about one array hang on one layer of dask's graph, `Passes`. Its tasks are made when the graph is culled. By
then it is known which results are computed together, and a run of blocks that any of them needs becomes one task, which
reads block by block into one buffer, gives each to the kernels, and merges states in the order of the blocks.

Where runs are cut follows from the array alone, so that results repeat exactly, whoever else asks.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from weakref import WeakValueDictionary

import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import Layer, MaterializedLayer
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_query.reduce import Reduction, add_merges
from ndt_query.threads import TASK_PREFIX
from ndt_store.blocks import BlockArray
from ndt_store.layout import block_nbytes, n_blocks
from ndt_store.views.blocks import Array
from ndt_store.views.build import each_block

__all__ = ["Passes", "Question", "as_question"]

RUN_NBYTES: Final = 64 << 20
"""Bytes of blocks in one task: 10 ms of work, beside which the 0.2 ms that a task costs are little."""

_Place: TypeAlias = tuple[str, int]
"""Token of a question, and checkpoint."""

_States: TypeAlias = Mapping[_Place, Any]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Question:
    """A reduction of a selection; `as_question` makes one for all results that ask the same of the same.

    Parameters
    ----------
    token : str
        Names it.
    passes : Passes
        What reads for it.
    asked : Asked
        The selection, with its examples in order.
    cuts : tuple of int
        Checkpoints in each chunk of the results.
    reduction : Reduction
        The kernel with its parameters.
    runs : tuple of int
        Runs of blocks that hold examples of the selection.
    """

    token: str
    passes: Passes
    asked: Asked
    cuts: tuple[int, ...]
    reduction: Reduction[Any]
    runs: tuple[int, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return as_question, (self.asked, self.cuts, self.reduction)

    def steps(self, chunk: int) -> tuple[int, ...]:
        """Checkpoints of one chunk of the results."""
        start = sum(self.cuts[:chunk])
        return self.asked.steps[start : start + self.cuts[chunk]]

    def span(self, index: int) -> tuple[int, int]:
        """Return where the examples of a block begin and end in the selection."""
        size = self.asked.spec.rows
        first, stop = np.searchsorted(self.asked.rows, (index * size, (index + 1) * size))
        return int(first), int(stop)

    def has(self, index: int) -> bool:
        """Whether a block holds examples of the selection."""
        first, stop = self.span(index)
        return first < stop

    def added(self, state: Any, index: int, data: NDArray[Any]) -> Any:
        """Merge a block's part of the selection into the state of the blocks before it, None before the first."""
        first, stop = self.span(index)
        local = self.asked.rows[first:stop] - index * self.asked.spec.rows
        part = self.reduction.update(self.asked.take(data, local), first)
        return part if state is None else self.reduction.merge(state, part)

    def merged(self, step: int, found: Sequence[_States]) -> _States:
        """Join the states of neighbouring runs."""
        place = self.token, step
        return {place: functools.reduce(self.reduction.merge, [states[place] for states in found])}

    def finalised(self, steps: Sequence[int], found: Sequence[Sequence[_States]]) -> Mapping[str, Array]:
        """Turn the states of some checkpoints into the results' arrays."""
        merged = [self.merged(step, states)[self.token, step] for step, states in zip(steps, found, strict=True)]
        parts = [self.reduction.finalise(state) for state in merged]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True, slots=True)
class _Run:
    """A task: neighbouring blocks at some checkpoints, for the questions that want them there."""

    blocks: range
    places: tuple[_Place, ...]

    def __call__(self, source: BlockArray, questions: Sequence[Question]) -> _States:
        """Read the blocks and return the state of each question at each checkpoint."""
        states: dict[_Place, Any] = {}
        for step in dict.fromkeys(step for _, step in self.places):
            asking = [one for one in questions if (one.token, step) in self.places]
            states |= _reduced(source, step, self.blocks, asking)
        return states


def _reduced(source: BlockArray, step: int, blocks: range, asking: Sequence[Question]) -> _States:
    states: dict[_Place, Any] = {}

    def visit(index: int, data: NDArray[Any]) -> None:
        for one in asking:
            if one.has(index):
                place = one.token, step
                states[place] = one.added(states.get(place), index, data)

    wanted = [index for index in blocks if any(one.has(index) for one in asking)]
    each_block(source.catalogue, source.spec, step, wanted, visit)
    return states


class Passes(Layer):
    """What reads one array for all questions about it, as a layer of a graph.

    Its results are those of `Question.finalised`, by question and chunk. It knows its questions weakly: their results
    keep them.
    """

    has_legacy_tasks = True
    """Its tasks are tuples."""

    def __init__(self, name: str, source: BlockArray) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.questions: WeakValueDictionary[str, Question] = WeakValueDictionary()
        self._whole: tuple[AbstractSet[Any], dict[Any, Any]] | None = None
        # A run is an even part of one checkpoint, or several whole ones.
        whole, most = n_blocks(source.spec), max(1, RUN_NBYTES // block_nbytes(source.spec))
        self.n_blocks = math.ceil(whole / math.ceil(whole / most))
        self.n_steps = max(1, most // whole)

    def __reduce__(self) -> tuple[Any, ...]:
        return _passes, (self.source,)

    def is_materialized(self) -> bool:
        """Tasks are made when they are asked for."""
        return False

    def get_output_keys(self) -> AbstractSet[Any]:
        """Return a key for every question and chunk."""
        return {(self.name, one.token, chunk) for one in self._alive() for chunk in range(len(one.cuts))}

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:  # noqa: ARG002
        """Make the tasks that `keys` need; they need nothing of other layers."""
        self._whole = None
        graph = self._graph(keys)
        return MaterializedLayer(graph), {key: set() for key in graph}

    def __getitem__(self, key: Any) -> Any:
        return self._all()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[Any, Any]:
        """Every task, kept until the next graph is culled, because a mapping is asked for them one at a time."""
        keys = self.get_output_keys()
        if self._whole is None or self._whole[0] != keys:
            self._whole = keys, self._graph(keys)
        return self._whole[1]

    def _alive(self) -> list[Question]:
        with _GUARD:
            return list(self.questions.values())

    def _graph(self, wanted: AbstractSet[Any]) -> dict[Any, Any]:
        """Tasks for the output keys among `wanted`: one for each run, merges, and one for each key."""
        graph: dict[Any, Any] = {}
        asking: dict[tuple[int, int], dict[_Place, None]] = {}
        alive = sorted(self._alive(), key=lambda one: one.token)
        chunks = [(one, c) for one in alive for c in range(len(one.cuts)) if (self.name, one.token, c) in wanted]
        for question, chunk in chunks:
            for step in question.steps(chunk):
                for run in question.runs:
                    asking.setdefault((self._group(step), run), {})[question.token, step] = None
        runs = {where: self._add_run(graph, *where, tuple(places)) for where, places in asking.items()}
        for question, chunk in chunks:
            self._add_result(graph, question, chunk, runs)
        return graph

    def _group(self, step: int) -> int:
        return self.source.catalogue.committed.index(step) // self.n_steps

    def _add_run(self, graph: dict[Any, Any], group: int, run: int, places: tuple[_Place, ...]) -> Any:
        source = (f"{self.name}-source",)
        graph[source] = self.source
        questions = [(self.name, token) for token in dict.fromkeys(token for token, _ in places)]
        blocks = range(run * self.n_blocks, min((run + 1) * self.n_blocks, n_blocks(self.source.spec)))
        # What a task is for is part of its name: another computation may want the run for other questions.
        key = (f"{self.name}-run-{tokenize(places)}", group, run)
        graph[key] = (_Run(blocks, places), source, questions)
        return key

    def _add_result(
        self, graph: dict[Any, Any], question: Question, chunk: int, runs: Mapping[tuple[int, int], Any]
    ) -> None:
        kernel, steps = (self.name, question.token), question.steps(chunk)
        graph[kernel] = question
        levels = []
        for step in steps:
            level = [runs[self._group(step), run] for run in question.runs]
            levels.append(add_merges(graph, level, (*kernel, step), (Question.merged, kernel, step)))
        graph[*kernel, chunk] = (Question.finalised, kernel, steps, levels)


_ALIVE: Final[WeakValueDictionary[str, Passes]] = WeakValueDictionary()
_GUARD: Final = threading.Lock()


def _passes(source: BlockArray) -> Passes:
    name = f"{TASK_PREFIX}passes-{tokenize(source)}"
    with _GUARD:
        return _ALIVE.setdefault(name, Passes(name, source))


def as_question(asked: Asked, cuts: tuple[int, ...], reduction: Reduction[Any]) -> Question:
    """Return the question that is alive, if one is, so that its results are found whoever holds them; else a new one.

    Parameters
    ----------
    asked, cuts, reduction
        As for `Question`.
    """
    passes = _passes(BlockArray(asked.catalogue, asked.spec))
    token = tokenize(asked.steps, asked.rows, asked.units, cuts, reduction)
    runs = np.unique(asked.rows // (asked.spec.rows * passes.n_blocks))
    with _GUARD:
        return passes.questions.setdefault(token, Question(token, passes, asked, cuts, reduction, tuple(runs.tolist())))
