"""Exact answers that read only the blocks that can matter, by the zone maps of the moments view.

A zone map bounds what each unit does in each block. A block whose bound lies below what is asked for cannot change the
answer and is not read; without a zone map every block with a selected example is. Where those are all blocks, the views
that are missing are made of them on the way and kept, so that the next question has them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_store.layout import n_blocks
from ndt_store.views import topk
from ndt_store.views.build import each_block, make_views
from ndt_store.views.fused import summarise
from ndt_store.views.kinds import MomentsView, TopView
from ndt_store.views.shelf import load

__all__ = ["Blocks", "kept_ranks", "needed", "top_of_blocks", "without_zones"]


class Blocks:
    """The blocks of a selection at one checkpoint: which hold its examples, and what bounds its units there.

    Parameters
    ----------
    asked : Asked
        The selection.
    step : int
        Its checkpoint; the view that holds the zone map is read at once.
    """

    def __init__(self, asked: Asked, step: int) -> None:
        self.asked = asked
        self.step = step
        rows = np.sort(asked.rows)
        self._size = asked.spec.rows
        self._rows = {int(block): rows[rows // self._size == block] for block in np.unique(rows // self._size)}
        view, self._missing = load(asked.catalogue, asked.frame, step, MomentsView)
        self._maximum = None if view is None else view.zones.maximum[:, asked.units]

    @property
    def indices(self) -> list[int]:
        """Blocks with selected examples, in order."""
        return list(self._rows)

    @property
    def makes_views(self) -> bool:
        """Whether there is no zone map, and one is made on the way because every block is read."""
        return self._maximum is None and len(self._rows) == n_blocks(self.asked.spec)

    @property
    def note(self) -> str:
        """What is so where there is no zone map; "" where there is one."""
        if self._maximum is not None:
            return ""
        if self.makes_views:
            return f"{self._missing}: all blocks are read, and views made of them and kept where the store allows it"
        return f"{self._missing}: all blocks with selected examples are read; `ndt index` makes one"

    def bounds(self, index: int) -> NDArray[Any] | None:
        """Return the largest value of each selected unit in a block (NaN: a NaN is there), None where not known."""
        return None if self._maximum is None else self._maximum[index]

    def rows(self, index: int) -> NDArray[np.intp]:
        """Return the selected examples of a block, as positions on the example axis."""
        rows: NDArray[np.intp] = self._rows[index]
        return rows

    def examples(self, index: int) -> NDArray[np.int64]:
        """Return the identifiers of the selected examples of a block."""
        ids: NDArray[np.int64] = self.asked.frame.examples[self._rows[index]]
        return ids

    def take(self, index: int, data: NDArray[Any]) -> NDArray[Any]:
        """Pick the selection from a block's values, as (1, example, token, unit, position)."""
        return self.asked.take(data, self._rows[index] - index * self._size)

    def by_promise(self) -> list[int]:
        """Order blocks so that those with large values come first, and later ones can be left out."""
        if self._maximum is None:
            return self.indices
        bounds = np.nan_to_num(self._maximum[self.indices], nan=np.inf)
        ranks = bounds.argsort(axis=0, kind="stable").argsort(axis=0).sum(axis=1)
        return [self.indices[position] for position in np.argsort(-ranks, kind="stable")]

    def each(
        self,
        indices: Sequence[int],
        visit: Callable[[int, NDArray[Any]], None],
        *,
        n_threads: int,
        skip: Callable[[int], bool] | None = None,
    ) -> None:
        """Read blocks as `each_block` does, and make the views of them where `makes_views` says so."""
        asked = self.asked
        if not self.makes_views:
            each_block(asked.catalogue, asked.spec, self.step, indices, visit, n_threads=n_threads, skip=skip)
            return
        make_views(asked.catalogue, asked.spec, self.step, n_threads=n_threads, visit=visit)


def kept_ranks(asked: Asked, step: int, k: int) -> topk.TopK | None:
    """Rank the selected examples for each selected unit by the view alone; a state (1, unit, rank).

    Those among the kept ranks lead the selection as they lead all. None where they are too few, or there is no view.
    """
    view, _ = load(asked.catalogue, asked.frame, step, TopView)
    if view is None:
        return None
    chosen = np.isin(view.row[asked.units], asked.rows)
    if (np.count_nonzero(chosen, axis=1) < k).any():
        return None
    columns = np.argsort(~chosen, axis=1, kind="stable")[:, :k]
    fields = (np.take_along_axis(part[asked.units], columns, axis=1) for part in (view.value, view.row, view.place))
    return TopView(*fields).state(asked.frame, k)


def top_of_blocks(blocks: Blocks, k: int, n_threads: int) -> topk.TopK:
    """Rank the selected examples by the blocks that can hold one of the first `k`; a state (1, unit, rank)."""
    guard = threading.Lock()
    found: list[topk.TopK] = []

    def skip(index: int) -> bool:
        bound = blocks.bounds(index)
        if bound is None or not found or found[0].value.shape[2] < k:
            return False
        value, example = found[0].value[0, :, -1], found[0].example[0, :, -1]
        tied = (bound == value) & (blocks.examples(index).min() > example)
        # A NaN on either side compares as false, and the block is read.
        return bool(((bound < value) | tied).all())

    def visit(index: int, data: NDArray[Any]) -> None:
        values = blocks.take(index, data)
        best = summarise(values, best=True).best
        with guard:
            start = found[0] if found else None
            found[:] = [topk.update(values, blocks.examples(index), k, best=best, start=start)]

    blocks.each(blocks.by_promise(), visit, n_threads=n_threads, skip=skip)
    return found[0]


def needed(blocks: Blocks, threshold: np.float64) -> Sequence[int]:
    """Blocks in which some selected unit exceeds a threshold, or may; both are compared in float64."""
    keep = []
    for index in blocks.indices:
        bound = blocks.bounds(index)
        if bound is None or not (bound <= threshold).all():
            keep.append(index)
    return keep


def without_zones(notes: Mapping[int, str]) -> str:
    """Say at which checkpoints there is no zone map, and what is so there; "" where all have one."""
    found = dict.fromkeys(note for note in notes.values() if note)
    steps = {note: ", ".join(str(step) for step in notes if notes[step] == note) for note in found}
    return "".join(f"; no zone map at {steps[note]} ({note})" for note in found)
