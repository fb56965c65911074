"""Views made from blocks: while a capture has them in memory, or by one pass over what is stored.

`BlockSummary` takes the blocks of one array at one checkpoint, from any thread and in any order, and ends in the same
views to the last bit: parts whose sums round are merged in block order, and the ranking is exact in any order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import read_block
from ndt_store.catalogue import Catalogue
from ndt_store.errors import StorageError
from ndt_store.layout import block, block_shape, n_blocks, numpy_dtype
from ndt_store.schema import ArraySpec
from ndt_store.views import classes, moments
from ndt_store.views.blocks import as_block
from ndt_store.views.classes import ClassSums
from ndt_store.views.frame import Frame, frame_of
from ndt_store.views.kinds import K, MomentsView, TopView, Zones
from ndt_store.views.moments import Moments
from ndt_store.views.shelf import keep
from ndt_store.views.topk import TopK

__all__ = ["BlockSummary", "UnitViews", "each_block", "make_views", "summary_nbytes"]

_ZONE_NBYTES: Final = 20
_RANK_NBYTES: Final = 24
_MOMENTS_NBYTES: Final = 80


@dataclass(frozen=True, slots=True)
class UnitViews:
    """The two views that one pass makes."""

    moments: MomentsView
    top: TopView

    def keep(self, catalogue: Catalogue, frame: Frame, step: int) -> None:
        """Write both to the store; `StorageError` where that is not possible."""
        for view in (self.moments, self.top):
            keep(catalogue, frame, step, view)


class BlockSummary:
    """Collects the views of one array at one checkpoint, block by block.

    Parameters
    ----------
    frame : Frame
        The array.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        zones = (n_blocks(frame.spec), frame.n_units)
        self._zones = Zones(np.empty(zones, frame.dtype), np.empty(zones, frame.dtype), np.empty(zones, np.uint32))
        self._merged: tuple[Moments, ClassSums | None] | None = None
        self._n_merged = 0
        self._waiting: dict[int, tuple[Moments, ClassSums | None]] = {}
        self._merging = threading.Lock()
        self._top: TopK | None = None
        self._ranking = threading.Lock()

    def add(self, index: int, data: NDArray[Any]) -> bool:
        """Take block number `index`, shape (examples of the block, *other sizes); any thread may call.

        Returns
        -------
        bool
            Whether every value is finite.
        """
        from ndt_store.views.fused import summarise
        from ndt_store.views.topk import update

        frame = self._frame
        values = as_block(data[None], frame.n_before)
        first = index * frame.spec.rows
        rows = slice(first, first + len(data))
        codes = None if frame.codes is None else frame.codes[rows]
        found = summarise(values, codes=codes, n_classes=len(frame.classes), best=True)
        self._zones.minimum[index] = found.moments.minimum[0]
        self._zones.maximum[index] = found.moments.maximum[0]
        self._zones.active[index] = found.moments.active[0]
        with self._merging:
            self._waiting[index] = found.moments, found.classes
            self._merge()
        with self._ranking:
            # Nearly every value falls short of the k-th so far, which is why the ranking goes on and is not merged.
            self._top = update(values, frame.examples[rows], K, best=found.best, start=self._top)
        return bool(np.isfinite(self._zones.minimum[index]).all() and np.isfinite(self._zones.maximum[index]).all())

    def _merge(self) -> None:
        """Merge what has come up to the first block that is missing: sums round, and are to do so in one order."""
        while self._n_merged in self._waiting:
            part = self._waiting.pop(self._n_merged)
            self._merged = part if self._merged is None else _joined(self._merged, part)
            self._n_merged += 1

    def views(self) -> UnitViews:
        """Return the views, once every block is in."""
        missing = n_blocks(self._frame.spec) - self._n_merged - len(self._waiting)
        if missing or self._top is None or self._merged is None:
            raise ValueError(f"{missing} blocks of {self._frame.spec.path} were not summarised")
        return UnitViews(MomentsView(*self._merged, self._zones), TopView.of(self._top, self._frame))


def _joined(
    left: tuple[Moments, ClassSums | None], right: tuple[Moments, ClassSums | None]
) -> tuple[Moments, ClassSums | None]:
    sums = None if left[1] is None or right[1] is None else classes.merge(left[1], right[1])
    return moments.merge(left[0], right[0]), sums


def summary_nbytes(spec: ArraySpec, n_units: int, n_classes: int, n_waiting: int) -> int:
    """Memory of one `BlockSummary` of which `n_waiting` blocks are ahead of their turn, in bytes.

    Zones of each block, ranks, and moments and sums by class: those merged, those in the merger, and those that wait.
    """
    state = _MOMENTS_NBYTES + 8 * (n_classes + 1)
    return n_units * (_ZONE_NBYTES * n_blocks(spec) + 2 * _RANK_NBYTES * K + (2 + n_waiting) * state)


def make_views(
    catalogue: Catalogue,
    spec: ArraySpec,
    step: int,
    *,
    n_threads: int = 1,
    save: bool = True,
    visit: Callable[[int, NDArray[Any]], None] | None = None,
) -> UnitViews:
    """Make the views of one array at one committed checkpoint from its blocks, and keep them where that is possible.

    Parameters
    ----------
    catalogue : Catalogue
    spec : ArraySpec
        An array for which `has_views` holds.
    step : int
        A committed checkpoint.
    n_threads : int
        Blocks read and summarised at once; each holds one block in memory.
    save : bool
        Whether to write them beside the store.
    visit : callable, optional
        Called with each block too, as `each_block` does, by whoever has another question about all of them.

    Raises
    ------
    IntegrityError
        A block is damaged.

    Notes
    -----
    One pass over the array.
    """
    frame = frame_of(catalogue, spec)
    summary = BlockSummary(frame)

    def one(index: int, data: NDArray[Any]) -> None:
        summary.add(index, data)
        if visit is not None:
            visit(index, data)

    each_block(catalogue, spec, step, range(n_blocks(spec)), one, n_threads=n_threads)
    made = summary.views()
    if save:
        with suppress(StorageError):
            made.keep(catalogue, frame, step)
    return made


def each_block(
    catalogue: Catalogue,
    spec: ArraySpec,
    step: int,
    indices: Sequence[int],
    visit: Callable[[int, NDArray[Any]], None],
    *,
    n_threads: int = 1,
    skip: Callable[[int], bool] | None = None,
) -> None:
    """Read blocks of one array at one checkpoint and call ``visit(index, values)`` for each, from `n_threads` threads.

    The values, shape (examples of the block, *other sizes), lie in a buffer that the thread uses again. `skip` is asked
    just before a block is read.
    """
    entries = catalogue.record(step).arrays[spec.path].blocks
    own = threading.local()

    def one(index: int) -> None:
        if skip is not None and skip(index):
            return
        if not hasattr(own, "buffer"):
            own.buffer = np.empty(block_shape(spec), numpy_dtype(spec))
        read_block(catalogue.storage, spec, entries[index], own.buffer)
        where = block(spec, index)
        visit(index, own.buffer[: where.stop - where.start])

    if n_threads == 1 or len(indices) == 1:
        for index in indices:
            one(index)
        return
    with ThreadPoolExecutor(n_threads, thread_name_prefix="ndt-read") as pool:
        try:
            for _ in pool.map(one, indices):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
