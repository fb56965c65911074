"""Exact answers that read only the blocks that can matter, by the zone maps of the moments view.

A zone map bounds what each unit does in each block. A block whose bound lies below what is asked for cannot change the
answer and is not read; without a zone map every block with a selected example is.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_store.views import topk
from ndt_store.views.blocks import as_block
from ndt_store.views.build import each_block
from ndt_store.views.fused import summarise
from ndt_store.views.kinds import MomentsView, TopView, Zones
from ndt_store.views.shelf import load

__all__ = ["Blocks", "needed", "top_among", "zones_of"]


def zones_of(asked: Asked, step: int) -> Zones | None:
    """Return the zone map of one checkpoint, None where there is none to use."""
    view, _ = load(asked.catalogue, asked.frame, step, MomentsView)
    return None if view is None else view.zones


class Blocks:
    """The blocks of a selection at one checkpoint: which hold its examples, and what bounds its units there.

    Parameters
    ----------
    asked : Asked
        The selection.
    zones : Zones or None
        Of its checkpoint.
    """

    def __init__(self, asked: Asked, zones: Zones | None) -> None:
        self.asked = asked
        rows = np.sort(asked.rows)
        self._size = asked.spec.rows
        self._rows = {int(block): rows[rows // self._size == block] for block in np.unique(rows // self._size)}
        self._zones = zones

    @property
    def indices(self) -> list[int]:
        """Blocks with selected examples, in order."""
        return list(self._rows)

    def bounds(self, index: int) -> NDArray[Any] | None:
        """Return the largest value of each selected unit in a block (NaN: a NaN is there), None where not known."""
        return None if self._zones is None else self._zones.maximum[index, self.asked.units]

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
        frame = self.asked.frame
        local = self._rows[index] - index * self._size
        picked = data if len(local) == len(data) else data[local]
        block = as_block(picked[None], frame.n_before)
        units = self.asked.units
        return block if np.array_equal(units, np.arange(frame.n_units)) else block[:, :, :, units]

    def by_promise(self) -> list[int]:
        """Order blocks so that those with large values come first, and later ones can be left out."""
        if self._zones is None:
            return self.indices
        bounds = np.nan_to_num(self._zones.maximum[self.indices][:, self.asked.units], nan=np.inf)
        ranks = bounds.argsort(axis=0, kind="stable").argsort(axis=0).sum(axis=1)
        return [self.indices[position] for position in np.argsort(-ranks, kind="stable")]


def top_among(asked: Asked, step: int, k: int, n_threads: int) -> topk.TopK:
    """Rank the selected examples at one checkpoint for each selected unit; a state (1, unit, rank).

    From the ranks of the view where enough of the selected examples are among them, else from the blocks that can hold
    one of the first `k`.
    """
    known = _from_ranks(asked, step, k)
    return _from_blocks(Blocks(asked, zones_of(asked, step)), step, k, n_threads) if known is None else known


def _from_ranks(asked: Asked, step: int, k: int) -> topk.TopK | None:
    """Pick the selected examples from the kept ranks; they lead the selection as they lead all."""
    view, _ = load(asked.catalogue, asked.frame, step, TopView)
    if view is None:
        return None
    chosen = np.isin(view.row[asked.units], asked.rows)
    if (np.count_nonzero(chosen, axis=1) < k).any():
        return None
    columns = np.argsort(~chosen, axis=1, kind="stable")[:, :k]
    fields = (np.take_along_axis(part[asked.units], columns, axis=1) for part in (view.value, view.row, view.place))
    return TopView(*fields).state(asked.frame, k)


def _from_blocks(blocks: Blocks, step: int, k: int, n_threads: int) -> topk.TopK:
    asked = blocks.asked
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

    each_block(asked.catalogue, asked.spec, step, blocks.by_promise(), visit, n_threads=n_threads, skip=skip)
    return found[0]


def needed(blocks: Blocks, threshold: np.float64) -> Sequence[int]:
    """Blocks in which some selected unit exceeds a threshold, or may; both are compared in float64."""
    keep = []
    for index in blocks.indices:
        bound = blocks.bounds(index)
        if bound is None or not (bound <= threshold).all():
            keep.append(index)
    return keep
