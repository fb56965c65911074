"""Lazy arrays that know which part of a stored cube they are.

A `TracedArray` is a dask array whose values are ``cube[positions of axis 0][positions of axis 1]...``, transposed. It
carries that statement as its `Part`, so that whoever holds one may answer from something else that is known of the
cube, and reads the part in one step instead of reading more and cutting it down.

Integers, slices, lists and masks along an axis, transposition and new chunks give a `TracedArray` again. Its graph is
one layer of reads of the store wherever that reads little more than the blocks concerned, each once; elsewhere, for
shuffled examples say, it is dask's own graph. Every other operation is dask's and gives a plain array.

A trace that no longer holds would be worse than none. It lives in the array, because attributes and coordinates
survive arithmetic, and it holds only as long as the array has the name it was made with: dask's names stand for
contents, and whatever changes an array in place renames it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, Final, Self

import dask.array as da
import numpy as np
from dask.base import normalize_token, tokenize
from numpy.typing import NDArray

from ndt_store.blocks import BlockArray, expanded

__all__ = ["Part", "TracedArray", "part_of"]

READS_LIMIT: Final = 1.5
"""Block reads, over the blocks concerned, up to which chunks read the store by themselves."""

Chunks = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Which part of which cube.

    Parameters
    ----------
    blocks : BlockArray
        The cube, in one snapshot of its store.
    positions : tuple of ndarray of intp
        For every axis of the cube the positions that are kept, in order; one where the dimension was dropped.
    axes : tuple of int
        The cube's axis behind each dimension of the array.
    """

    blocks: BlockArray
    positions: tuple[NDArray[np.intp], ...]
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        for kept in self.positions:
            kept.setflags(write=False)

    @classmethod
    def whole(cls, blocks: BlockArray) -> Self:
        """Return the part that is everything."""
        return cls(blocks, tuple(np.arange(n, dtype=np.intp) for n in blocks.shape), tuple(range(blocks.ndim)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each dimension of the array."""
        return tuple(len(self.positions[axis]) for axis in self.axes)

    @property
    def dims(self) -> tuple[str, ...]:
        """The cube's name for each dimension of the array."""
        return tuple(self.blocks.spec.dims[axis] for axis in self.axes)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # Arrays as they are would be told apart by their repr, which leaves out the middle of long ones.
        return (self.blocks.__dask_tokenize__(), normalize_token(self.positions), self.axes)


class _EqualToDask(type):
    """Makes the class compare equal to dask's own, though it is another.

    xarray lets no two types of chunked arrays into one computation, which is meant to tell dask from cubed. It compares
    types, so that without this ``dataset.assign(twice=2 * dataset.activations).load()`` would fail.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is da.Array

    def __hash__(cls) -> int:
        return hash(da.Array)


class TracedArray(da.Array, metaclass=_EqualToDask):
    """A dask array over a part of a stored cube; see the module's first lines.

    Parameters
    ----------
    part : Part
        What it holds.
    chunks : tuple of tuple of int
        Chunk sizes of each dimension.
    """

    __slots__ = ("_trace",)

    _trace: tuple[str, Part]

    def __new__(cls, part: Part, chunks: Chunks) -> Self:
        """Make an array whose chunks are read from the store, one task each."""
        # Two queries of the same part share its tasks, because their names say what they read and how.
        name = f"ndt-read-{tokenize(part, chunks)}"
        meta = np.empty((0,) * len(chunks), part.blocks.dtype)
        return cls._of(da.from_array(_Reader(part), chunks, name=name, asarray=False, meta=meta), part)

    @classmethod
    def _of(cls, array: da.Array, part: Part) -> Self:
        """Give an array its trace; the array has to hold exactly this part."""
        traced: Self = da.Array.__new__(cls, array.dask, array.name, array.chunks, meta=array._meta)
        traced._trace = (array.name, part)
        return traced

    @property
    def part(self) -> Part | None:
        """Which part of which cube this is, None since the array was changed in place."""
        name, part = self._trace
        return part if name == self.name else None

    def copy(self) -> da.Array:
        """Return an equal array, which can be changed in place by itself."""
        part = self.part
        return da.Array.copy(self) if part is None else self._of(self, part)

    def __getitem__(self, index: Any) -> da.Array:
        part = self.part
        picks = None if part is None else _picks(index, self.shape)
        if part is None or picks is None:
            plain: da.Array = da.Array.__getitem__(self, index)
            return plain
        positions, axes, chunks = list(part.positions), [], []
        for axis, sizes, picked in zip(part.axes, self.chunks, picks, strict=True):
            positions[axis] = np.atleast_1d(positions[axis][picked])
            if picked.ndim:
                axes.append(axis)
                chunks.append(_cut(sizes, picked))
        selected = replace(part, positions=tuple(positions), axes=tuple(axes))
        return self._settle(selected, tuple(chunks), lambda: da.Array.__getitem__(self, index))

    def transpose(self, *axes: Any) -> da.Array:
        """Reverse or permute the dimensions, as `dask.array.Array.transpose` does."""
        plain: da.Array = da.Array.transpose(self, *axes)
        part = self.part
        if part is None or plain is self:
            return plain
        given = axes[0] if len(axes) == 1 and not isinstance(axes[0], int | np.integer) else axes
        order = [int(axis) % self.ndim for axis in given] if given else list(range(self.ndim))[::-1]
        turned = replace(part, axes=tuple(part.axes[axis] for axis in order))
        return self._settle(turned, plain.chunks, lambda: plain)

    def rechunk(self, *args: Any, **kwargs: Any) -> da.Array:
        """Change the chunks, as `dask.array.Array.rechunk` does."""
        plain: da.Array = da.Array.rechunk(self, *args, **kwargs)
        part = self.part
        if part is None or plain is self:
            return plain
        return self._settle(part, plain.chunks, lambda: plain)

    def _settle(self, part: Part, chunks: Chunks, otherwise: Callable[[], da.Array]) -> da.Array:
        """Read the part from the store by `chunks`, or trace the array that `otherwise` makes of this one."""
        if _reads_little(part, chunks):
            return type(self)(part, chunks)
        plain = otherwise()
        return self._of(plain, part)


def part_of(data: Any) -> Part | None:
    """Return which part of which cube a dask array is, None for everything that does not know or is no dask array."""
    return data.part if isinstance(data, TracedArray) else None


class _Reader:
    """Looks like an array to dask's `from_array` and reads the part of the cube."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.shape = part.shape
        self.dtype = part.blocks.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        blocks, axes, selectors = self.part.blocks, self.part.axes, list(self.part.positions)
        dropped = [axis for axis in range(blocks.ndim) if axis not in axes]
        whole: list[int | slice] = []
        # dask merges later selections into a read, integers among them.
        for axis, k in zip(axes, expanded(key, self.ndim), strict=True):
            selectors[axis] = np.atleast_1d(selectors[axis][k])
            whole.append(0 if isinstance(k, int | np.integer) else slice(None))
        values = blocks.read(selectors).transpose([*axes, *dropped])
        return values[(*whole, *[0] * len(dropped))]


def _picks(index: Any, shape: tuple[int, ...]) -> list[NDArray[np.intp]] | None:
    """Positions that a key picks along each dimension, without one where it drops it; None for what is left to dask."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(np.asarray(part, None if part else np.intp) if isinstance(part, list) else part for part in parts)
    n_arrays = 0
    for part in parts:
        if isinstance(part, np.ndarray):
            n_arrays += 1
            if part.ndim != 1 or part.dtype.kind not in "iub":
                return None
        elif isinstance(part, bool) or not isinstance(part, int | np.integer | slice | EllipsisType):
            return None
    try:
        # Several arrays, a dimension too many, a position out of bounds: dask has the error for it.
        keys = zip(shape, expanded(parts, len(shape)), strict=True)
        return [np.asarray(np.arange(n)[key]) for n, key in keys] if n_arrays <= 1 else None
    except (IndexError, ValueError):
        return None


def _cut(sizes: tuple[int, ...], picked: NDArray[np.intp]) -> tuple[int, ...]:
    """Chunk a selection where its source is chunked, or evenly where it goes to and fro between the source's chunks."""
    if len(picked) == 0:
        return (0,)
    source = np.searchsorted(np.cumsum(sizes), picked, side="right")
    steps = np.diff(source)
    if (steps >= 0).all() or (steps <= 0).all():
        edges = [0, *(np.flatnonzero(steps) + 1).tolist(), len(picked)]
        return tuple(b - a for a, b in itertools.pairwise(edges))
    longest = max(sizes)
    n_whole, rest = divmod(len(picked), longest)
    return (longest,) * n_whole + ((rest,) if rest else ())


def _reads_little(part: Part, chunks: Chunks) -> bool:
    """Whether chunks that read the store by themselves read few blocks more than once."""
    spec = part.blocks.spec
    by_axis = dict(zip(part.axes, chunks, strict=True))
    reads = distinct = 1
    for axis, positions in enumerate(part.positions):
        sizes = by_axis.get(axis, (1,))
        if axis - spec.is_cube > 0:
            reads *= len(sizes)
            continue
        blocks = positions // (spec.rows if axis == spec.is_cube else 1)
        ends = np.cumsum(sizes)[:-1]
        reads *= sum(_n_distinct(piece) for piece in np.split(blocks, ends))
        distinct *= _n_distinct(blocks)
    return reads <= READS_LIMIT * distinct


def _n_distinct(values: NDArray[np.intp]) -> int:
    steps = np.diff(values)
    if (steps >= 0).all():  # as nearly always, and then they need not be sorted
        return min(len(values), 1 + int(np.count_nonzero(steps)))
    return len(np.unique(values))
