"""Writing blocks, reading them by the commit record, and arrays made of them.

`read_block` knows from the record which bytes a block has to have. It reads exactly as many, compares the checksum,
and puts the values straight into the destination. A block that is missing, too short, too long or altered raises an
`IntegrityError` naming array and block, and leaves every other block readable.

`BlockArray` looks like a lazy numpy array: a shape, a dtype, and indexing along each axis by an integer, a slice or an
array of integers, which reads each block it touches once and no other. dask and xarray both build on it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Final, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.codecs import CRC_NBYTES, crc32c, decode, encode
from ndt_store.commits import BlockEntry
from ndt_store.errors import DimensionError, IntegrityError, InvalidInputError
from ndt_store.layout import Block, block_nbytes, block_shape, numpy_dtype, padded
from ndt_store.schema import ArraySpec
from ndt_store.storage import Sink, Storage

__all__ = ["BlockArray", "Selector", "as_selector", "count_nonfinite", "expanded", "outer", "read_block", "write_block"]

SLACK_NBYTES: Final = 1 << 20
"""What a codec's header and long strings may add to a block."""

SCRATCH_NBYTES: Final = 32 << 20
"""Largest scratch buffer that a thread keeps for the next block."""

_SCRATCH: Final = threading.local()

Selector: TypeAlias = slice | NDArray[np.intp]
"""Which entries of one axis, in order: a slice of known ends, or positions that are no such run."""


def read_block(storage: Storage, spec: ArraySpec, entry: BlockEntry, out: NDArray[Any], start: int = 0) -> None:
    """Read one block, or some of its rows, into `out`.

    The whole block is read and checked whichever rows are wanted. Rows of an uncompressed block go straight from the
    file into `out`; its other rows, and blocks that have to be decoded, pass through a buffer that the thread reuses.

    Parameters
    ----------
    storage : Storage
        Where the store lies.
    spec : ArraySpec
        Array of the block.
    entry : BlockEntry
        What the commit record says of it.
    out : ndarray
        C-contiguous, of the array's dtype, shape (rows wanted, *other sizes).
    start : int
        First row of the block that is wanted.

    Raises
    ------
    IntegrityError
        The bytes on disk are not the bytes that were committed.
    """
    whole_nbytes = block_nbytes(spec)
    if not 0 < entry.nbytes <= 2 * whole_nbytes + SLACK_NBYTES:
        raise _damaged(storage, spec, entry, f"is listed with {entry.nbytes} bytes, which no such block has")
    direct = spec.codec == "none" and out.dtype.kind != "T" and whole_nbytes + CRC_NBYTES == entry.nbytes
    if direct:
        wanted = out.reshape(-1).view(np.uint8).data
        before = start * (whole_nbytes // spec.rows)
        beside = _scratch("payload", whole_nbytes - wanted.nbytes).data
        payload = [beside[:before], wanted, beside[before:]]
    else:
        payload = [_scratch("payload", max(entry.nbytes - CRC_NBYTES, 0)).data]
    _read_checked(storage, spec, entry, payload)
    if direct:
        return
    shape = block_shape(spec)
    try:
        if out.shape == shape:
            decode(payload[0], spec.codec, out)
            return
        decoded = _scratch("decoded", whole_nbytes).view(out.dtype).reshape(shape)
        decode(payload[0], spec.codec, decoded)
    except ValueError as error:
        raise _damaged(storage, spec, entry, f"cannot be decoded: {error}") from error
    out[...] = decoded[start : start + len(out)]


def _read_checked(storage: Storage, spec: ArraySpec, entry: BlockEntry, payload: Sequence[memoryview]) -> None:
    """Fill the buffers with the block's payload, whose bytes are the committed ones when this returns."""
    trailer, beyond = bytearray(CRC_NBYTES), bytearray(1)
    try:
        n_read = storage.read_into(entry.key, [*payload, memoryview(trailer), memoryview(beyond)])
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(storage, spec, entry, "is missing") from None
    except OSError as error:
        raise _damaged(storage, spec, entry, f"cannot be read ({error})") from error
    if n_read != entry.nbytes:
        size = storage.size(entry.key)
        raise _damaged(storage, spec, entry, f"has {size} bytes where {entry.nbytes} were committed")
    found = 0
    for buffer in payload:
        found = crc32c(buffer, found)
    if not found == entry.crc32c == int.from_bytes(trailer, "little"):
        raise _damaged(storage, spec, entry, "does not match its checksum")


def write_block(
    storage: Sink, spec: ArraySpec, target: Block, data: NDArray[Any], *, is_finite: bool = False
) -> tuple[BlockEntry, int, int]:
    """Encode and write one block, whole or not at all; values are counted unless they are known to be finite.

    Returns
    -------
    entry : BlockEntry
        For the commit record.
    n_nan, n_inf : int
        How many of its values are not finite.
    """
    shape = (target.stop - target.start, *spec.sizes[1:]) if spec.sizes else ()
    if data.shape != shape:
        raise DimensionError(f"Block {target.key} has shape {data.shape}: expected {shape} for dims {spec.dims}.")
    dtype = numpy_dtype(spec)
    if spec.dtype != "string" and data.dtype != dtype:
        raise InvalidInputError(f"Block {target.key} has dtype {data.dtype}: expected {dtype}; cast it first.")
    nan, inf = (0, 0) if is_finite else count_nonfinite(data)
    encoded = encode(padded(spec, data), spec.codec)
    storage.write(target.key, encoded.buffers)
    return BlockEntry(target.key, encoded.nbytes, encoded.crc32c), nan, inf


def count_nonfinite(data: NDArray[Any]) -> tuple[int, int]:
    """Count NaN and infinite values."""
    if data.dtype.kind != "f":
        return 0, 0
    # Almost every block is finite, and one fast pass says so; overflow to infinity only means a second look. No product
    # of vectors, for which BLAS would start threads that get into the model's way.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(data.sum()):
            return 0, 0
    nan = int(np.count_nonzero(np.isnan(data)))
    return nan, int(np.count_nonzero(np.isinf(data)))


def _damaged(storage: Storage, spec: ArraySpec, entry: BlockEntry, what: str) -> IntegrityError:
    return IntegrityError(
        f"Block {entry.key} of array {spec.path} in {storage.path} {what}: restore the file from a copy, or capture "
        "the checkpoint again into a new store.",
        spec.path,
        entry.key,
    )


def _scratch(name: str, nbytes: int) -> NDArray[np.uint8]:
    # One buffer a thread and use, grown when needed: faulting in fresh pages costs more than reading from the cache.
    if nbytes > SCRATCH_NBYTES:
        return np.empty(nbytes, np.uint8)
    buffer: NDArray[np.uint8] | None = getattr(_SCRATCH, name, None)
    if buffer is None or len(buffer) < nbytes:
        buffer = np.empty(nbytes, np.uint8)
        setattr(_SCRATCH, name, buffer)
    return buffer[:nbytes]


class BlockArray:
    """One array of a store at the committed checkpoints, read block by block when indexed.

    Parameters
    ----------
    catalogue : Catalogue
        The snapshot that is read.
    spec : ArraySpec
        Which array.
    """

    def __init__(self, catalogue: Catalogue, spec: ArraySpec) -> None:
        self.catalogue = catalogue
        self.spec = spec
        lead = (len(catalogue.committed),) if spec.is_cube else ()
        self.shape: tuple[int, ...] = (*lead, *spec.sizes)
        self.dtype = numpy_dtype(spec)
        self.ndim = len(self.shape)

    @property
    def nbytes(self) -> int:
        """Decoded size of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # A commit never changes; the stamp tells another store at the same place.
        where = (self.catalogue.storage.path, self.catalogue.stamp)
        return ("ndt", *where, self.spec.path, self.catalogue.committed)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read what integers, slices and arrays of integers select, each along its own axis."""
        values = self.read(_without_integers(key, self.shape))
        drop = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in expanded(key, self.ndim))
        return np.asarray(values[drop], self.dtype)

    def read(self, selectors: Sequence[Selector]) -> NDArray[Any]:
        """Read the entries that `selectors` name, one for each axis; every block is read at most once.

        Positions may come in any order and more than once. The array is the caller's own.
        """
        places = [np.arange(n)[selector] for selector, n in zip(selectors, self.shape, strict=True)]
        values = np.empty(tuple(map(len, places)), self.dtype)
        if not self.spec.is_cube:
            self._read_rows(None, places, values)
            return values
        first: dict[int, int] = {}
        for row, position in enumerate(places[0].tolist()):
            if position in first:
                values[row] = values[first[position]]
                continue
            first[position] = row
            self._read_rows(self.catalogue.committed[position], places[1:], values[row, ...])
        return values

    def _read_rows(self, step: int | None, places: Sequence[NDArray[np.intp]], out: NDArray[Any]) -> None:
        spec, storage = self.spec, self.catalogue.storage
        entries = self.catalogue.entries(spec.path, step)
        if not spec.sizes:
            single = np.empty((), self.dtype)
            read_block(storage, spec, entries[0], single)
            out[...] = single
            return
        if not out.size:
            return
        inner = [as_selector(place) for place in places[1:]]
        whole = all(isinstance(s, slice) and s == slice(0, n, 1) for s, n in zip(inner, spec.sizes[1:], strict=True))
        block_of = places[0] // spec.rows
        order = np.argsort(block_of, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(block_of[order])) + 1):
            index = int(block_of[run[0]])
            here, rows = as_selector(run), as_selector(places[0][run] - index * spec.rows)
            if whole and _is_run(here) and _is_run(rows) and (target := out[here]).flags.c_contiguous:
                read_block(storage, spec, entries[index], target, rows.start)
                continue
            decoded = self._decoded()
            read_block(storage, spec, entries[index], decoded)
            out[here] = outer(decoded, [rows, *inner])

    def _decoded(self) -> NDArray[Any]:
        shape = block_shape(self.spec)
        if self.dtype.kind == "T":
            return np.empty(shape, self.dtype)
        return _scratch("decoded", block_nbytes(self.spec)).view(self.dtype).reshape(shape)


def as_selector(positions: NDArray[np.intp]) -> Selector:
    """Return a slice that selects `positions`, which numpy serves without a copy; the positions where there is none."""
    if len(positions) == 0:
        return slice(0, 0, 1)
    first, last = int(positions[0]), int(positions[-1])
    step = int(positions[1]) - first if len(positions) > 1 else 1
    if step == 0 or not (np.diff(positions) == step).all():
        return positions
    end = last + (1 if step > 0 else -1)
    return slice(first, end if end >= 0 else None, step)


def _is_run(selector: Selector) -> TypeGuard[slice]:
    return isinstance(selector, slice) and selector.step == 1


def outer(values: NDArray[Any], selectors: Sequence[Selector]) -> NDArray[Any]:
    """Select along each axis by itself, from all before `values` is copied where that is possible."""
    # One array of positions at a time: numpy would pair several up, element by element.
    values = values[tuple(s if isinstance(s, slice) else slice(None) for s in selectors)]
    for axis, selector in enumerate(selectors):
        if not isinstance(selector, slice):
            values = values.take(selector, axis)
    return values


def expanded(key: Any, ndim: int) -> tuple[Any, ...]:
    """Write an index out to one entry for each of `ndim` dimensions."""
    parts = key if isinstance(key, tuple) else (key,)
    at = next((place for place, part in enumerate(parts) if part is Ellipsis), None)
    if at is not None:
        parts = (*parts[:at], *[slice(None)] * (ndim - len(parts) + 1), *parts[at + 1 :])
    return (*parts, *[slice(None)] * (ndim - len(parts)))


def _without_integers(key: Any, shape: tuple[int, ...]) -> list[Any]:
    """Turn each integer into the slice of that one entry."""
    selectors = []
    for part, size in zip(expanded(key, len(shape)), shape, strict=True):
        if not isinstance(part, int | np.integer):
            selectors.append(part)
            continue
        position = int(part) + (size if part < 0 else 0)
        if not 0 <= position < size:
            raise IndexError(f"index {part} is out of bounds for a dimension of size {size}")
        selectors.append(slice(position, position + 1))
    return selectors
