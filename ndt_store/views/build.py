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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import read_block
from ndt_store.catalogue import Catalogue
from ndt_store.errors import StorageError
from ndt_store.layout import block, block_shape, n_blocks, numpy_dtype
from ndt_store.schema import ArraySpec
from ndt_store.views.blocks import as_block
from ndt_store.views.classes import ClassSums
from ndt_store.views.frame import Frame, frame_of
from ndt_store.views.kinds import K, MomentsView, TopView
from ndt_store.views.moments import Moments
from ndt_store.views.shelf import keep
from ndt_store.views.topk import TopK

__all__ = ["BlockSummary", "UnitViews", "each_block", "make_views"]


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
        self._parts: dict[int, tuple[Moments, ClassSums | None]] = {}
        self._top: TopK | None = None
        self._ranking = threading.Lock()

    def add(self, index: int, data: NDArray[Any]) -> None:
        """Take block number `index`, shape (examples of the block, *other sizes); any thread may call."""
        from ndt_store.views.fused import summarise
        from ndt_store.views.topk import update

        frame = self._frame
        values = as_block(data[None], frame.n_before)
        first = index * frame.spec.rows
        rows = slice(first, first + len(data))
        codes = None if frame.codes is None else frame.codes[rows]
        found = summarise(values, codes=codes, n_classes=len(frame.classes), best=True)
        self._parts[index] = found.moments, found.classes
        with self._ranking:
            # Nearly every value falls short of the k-th so far, which is why the ranking goes on and is not merged.
            self._top = update(values, frame.examples[rows], K, best=found.best, start=self._top)

    def views(self) -> UnitViews:
        """Return the views, once every block is in."""
        missing = n_blocks(self._frame.spec) - len(self._parts)
        if missing or self._top is None:
            raise ValueError(f"{missing} blocks of {self._frame.spec.path} were not summarised")
        parts = [self._parts[index] for index in sorted(self._parts)]
        return UnitViews(MomentsView.of(parts, self._frame), TopView.of(self._top, self._frame))


def make_views(catalogue: Catalogue, spec: ArraySpec, step: int, *, n_threads: int = 1, save: bool = True) -> UnitViews:
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
    each_block(catalogue, spec, step, range(n_blocks(spec)), summary.add, n_threads=n_threads)
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
