"""Gram views made from blocks, in bounded memory.

Where features are summed over, runs of blocks are read one after the other, and their sums are merged in order: one
pass. Where products of samples are wanted, a tile of samples stays in memory while the samples after it stream past, so
that every pair meets (`Tiles`): the first tile meets all samples, the second all but those of the first, and so on.
With p tiles the blocks are read (p + 1) / 2 times over. More than `TILE_NBYTES` for both would save reading, which the
products outweigh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.layout import numpy_dtype
from ndt_store.schema import ArraySpec
from ndt_store.views.blocks import Array, as_block, as_float
from ndt_store.views.build import each_block
from ndt_store.views.frame import Frame, frame_of
from ndt_store.views.gram import SampleGram, add_products, finished, sample_gram
from ndt_store.views.gram_view import GRAM_VIEWS, GramView, GroupSums, sample_shape
from ndt_store.views.samples import DEFAULT_N_GROUPS, deal_groups, on_samples, sample_mean, sample_rows
from ndt_store.views.scatter import Scatter, merge_scatter, scatter_of

__all__ = ["TILE_NBYTES", "GramPart", "Tiles", "batch_grams", "make_gram"]

TILE_NBYTES: Final = 192 << 20
"""Most memory for the samples whose products are summed."""

RUN_NBYTES: Final = 64 << 20
"""Most memory for the samples that are summed at once."""


@dataclass(frozen=True, slots=True)
class GramPart:
    """What a Gram matrix is made of: an array's samples, of some examples and units.

    Parameters
    ----------
    frame : Frame
        The array.
    mode : {"flatten", "mean", "samples"}
        What becomes of positions.
    rows : ndarray (example,)
        Positions of the examples, increasing.
    units : ndarray (unit,)
        Positions of the units, increasing.
    """

    frame: Frame
    mode: str
    rows: NDArray[np.intp]
    units: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int]:
        """Samples and features."""
        return sample_shape(self.mode, len(self.rows), len(self.units), self.frame.n_positions)

    @property
    def per_example(self) -> int:
        """Samples of one example."""
        return self.frame.n_positions if self.mode == "samples" else 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples as they are held."""
        return np.dtype(np.float64) if self.mode == "mean" else numpy_dtype(self.frame.spec)

    @property
    def nbytes(self) -> int:
        """Size of all samples."""
        n, d = self.shape
        return n * d * self.dtype.itemsize

    def runs(self, first: int, nbytes: int) -> Iterator[slice]:
        """Cut the examples from the `first` on into runs of whole blocks that fit `nbytes`, at least one block each."""
        block_of = self.rows // self.frame.spec.rows
        ends = np.append(np.flatnonzero(np.diff(block_of)) + 1, len(self.rows))
        limit = max(1, nbytes // (self.nbytes // len(self.rows)))
        start = first
        while start < len(self.rows):
            last = int(np.searchsorted(ends, start + limit, side="right")) - 1
            fitting = int(ends[last]) if last >= 0 else start
            stop = fitting if fitting > start else int(ends[np.searchsorted(ends, start, side="right")])
            yield slice(start, stop)
            start = stop

    def read(
        self, catalogue: Catalogue, step: int, run: slice, out: Array, n_threads: int,
        places: NDArray[np.intp] | None = None,
    ) -> Array:  # fmt: skip
        """Read the samples (sample, feature) of a run of examples into the beginning of `out`.

        With `places`, for examples of one sample each, the sample of an example goes there.
        """
        frame, each = self.frame, self.per_example
        rows = self.rows[run]
        values = out[: len(rows) * each]
        some_units = not np.array_equal(self.units, np.arange(frame.n_units))

        def take(index: int, block: Array) -> None:
            first = index * frame.spec.rows
            start, stop = np.searchsorted(rows, [first, first + len(block)])
            picked = rows[start:stop] - first
            part = block if len(picked) == len(block) else block[picked]
            form = as_block(part[None], frame.n_before)
            samples = sample_rows(form[:, :, :, self.units] if some_units else form, self.mode)
            where = slice(start * each, stop * each) if places is None else places[start:stop]
            values[where] = samples.reshape(-1, values.shape[1])

        indices = np.unique(rows // frame.spec.rows).tolist()
        each_block(catalogue, frame.spec, step, indices, take, n_threads=n_threads)
        return values


@dataclass(frozen=True, slots=True)
class Tiles:
    """How samples are read so that all pairs meet within a budget.

    Parameters
    ----------
    tiles : tuple of slice
        Runs of examples that stay in memory in turn.
    partner_nbytes : int
        Room for the samples that stream past; 0 where one tile holds all.
    """

    tiles: tuple[slice, ...]
    partner_nbytes: int

    @classmethod
    def of(cls, part: GramPart, nbytes: int) -> Tiles:
        """Cut samples so that a tile and what streams past it take `nbytes`, or the least possible."""
        nbytes = min(nbytes, TILE_NBYTES)
        if part.nbytes <= nbytes:
            return cls((slice(0, len(part.rows)),), 0)
        return cls(tuple(part.runs(0, nbytes * 2 // 3)), nbytes // 3)

    @property
    def n_passes(self) -> float:
        """How often the blocks are read."""
        return (len(self.tiles) + 1) / 2


def make_gram(
    catalogue: Catalogue, spec: ArraySpec, step: int, mode: str, *, nbytes: int, n_threads: int = 1,
    rows: NDArray[np.intp] | None = None, units: NDArray[np.intp] | None = None,
) -> GramView:  # fmt: skip
    """Make the Gram view of one array at one committed checkpoint.

    Parameters
    ----------
    catalogue : Catalogue
    spec : ArraySpec
        An array for which `has_views` holds.
    step : int
        A committed checkpoint.
    mode : {"flatten", "mean", "samples"}
        What becomes of positions.
    nbytes : int
        Memory for samples, beside the statistics themselves; at most `TILE_NBYTES` are used.
    n_threads : int
        Threads that read and multiply.
    rows, units : ndarray, optional
        Positions of examples and units, increasing; all by default.

    Raises
    ------
    IntegrityError
        A block is damaged.

    Notes
    -----
    One pass over the blocks, or (p + 1) / 2 where p tiles of samples are needed, see `Tiles`.
    """
    frame = frame_of(catalogue, spec)
    part = GramPart(
        frame,
        mode,
        np.arange(frame.n_examples) if rows is None else rows,
        np.arange(frame.n_units) if units is None else units,
    )
    with ThreadPoolExecutor(n_threads, thread_name_prefix="ndt-gram") as pool:
        if on_samples(*part.shape):
            return GRAM_VIEWS[mode](_products(catalogue, step, part, nbytes, n_threads, pool))
        return GRAM_VIEWS[mode](_groups(catalogue, step, part, nbytes, n_threads, pool))


def batch_grams(
    catalogue: Catalogue, spec: ArraySpec, step: int, mode: str, batches: Sequence[NDArray[np.intp]],
    units: NDArray[np.intp], n_threads: int = 1,
) -> Iterator[SampleGram]:  # fmt: skip
    """Products of the samples of each of some batches, whose blocks are read once for all.

    Parameters
    ----------
    catalogue, spec, step
        As for `make_gram`.
    mode : {"flatten", "mean"}
        What becomes of positions.
    batches : sequence of ndarray
        Positions of the examples of each batch; no two batches share one.
    units : ndarray
        Positions of the units, in any order.
    n_threads : int
        Threads that read and multiply.

    Raises
    ------
    IntegrityError
        A block is damaged.

    Notes
    -----
    The samples of all batches are held.
    """
    frame, rows = frame_of(catalogue, spec), np.concatenate(batches)
    order = np.argsort(rows)
    part = GramPart(frame, mode, rows[order], units)
    buffer = np.empty(part.shape, part.dtype)
    values = part.read(catalogue, step, slice(0, len(rows)), buffer, n_threads, order)
    start = 0
    with ThreadPoolExecutor(n_threads, thread_name_prefix="ndt-gram") as pool:
        for batch in batches:
            yield sample_gram(values[start : start + len(batch)], pool)
            start += len(batch)


def _buffer(part: GramPart, runs: list[slice]) -> Array:
    longest = max(run.stop - run.start for run in runs)
    return np.empty((longest * part.per_example, part.shape[1]), part.dtype)


def _products(
    catalogue: Catalogue, step: int, part: GramPart, nbytes: int, n_threads: int, pool: ThreadPoolExecutor
) -> SampleGram:
    n, each = part.shape[0], part.per_example
    tiles = Tiles.of(part, nbytes)
    products, with_about, nan_count = np.zeros((n, n)), np.zeros(n), 0
    held = _buffer(part, list(tiles.tiles))
    after = [list(part.runs(tile.stop, tiles.partner_nbytes)) for tile in tiles.tiles]
    passing = _buffer(part, [run for runs in after for run in runs] or [slice(0, 0)])
    about = None
    for tile, runs in zip(tiles.tiles, after, strict=True):
        left = part.read(catalogue, step, tile, held, n_threads)
        about = sample_mean(left) if about is None else about
        here = slice(tile.start * each, tile.stop * each)
        nan_count += add_products(products[here, here], left, None, about, with_about[here], pool)
        for run in runs:
            right = part.read(catalogue, step, run, passing, n_threads)
            add_products(products[here, run.start * each : run.stop * each], left, right, about, pool=pool)
    assert about is not None
    del held, passing, left
    return finished(products, with_about, about, nan_count)


def _groups(
    catalogue: Catalogue, step: int, part: GramPart, nbytes: int, n_threads: int, pool: ThreadPoolExecutor
) -> GroupSums:
    groups = deal_groups(len(part.rows))
    by_group: list[Scatter | None] = [None] * min(DEFAULT_N_GROUPS, len(groups))
    runs = list(part.runs(0, min(nbytes, RUN_NBYTES)))
    buffer = _buffer(part, runs)
    for run in runs:
        values = part.read(catalogue, step, run, buffer, n_threads)
        of_sample = np.repeat(groups[run], part.per_example)

        def add(group: int, values: Array = values, of_sample: NDArray[np.int64] = of_sample) -> None:
            found, before = scatter_of(as_float(values[of_sample == group])), by_group[group]
            by_group[group] = found if before is None else merge_scatter(before, found)

        for _ in pool.map(add, range(len(by_group))):
            pass
    return GroupSums.of([one for one in by_group if one is not None], groups)
