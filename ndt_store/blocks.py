"""Writing blocks, reading them by the commit record, and arrays made of them.

`read_block` knows from the record which bytes a block has to have. It reads exactly as many, compares the checksum,
and decodes straight into the destination. A block that is missing, too short, too long or altered raises an
`IntegrityError` naming array and block, and leaves every other block readable.

`BlockArray` looks like a lazy numpy array: a shape, a dtype, and basic indexing that reads only the blocks it touches.
dask and xarray both build on it.
"""

from __future__ import annotations

import math
import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.codecs import CRC_NBYTES, crc32c, decode, encode
from ndt_store.commits import BlockEntry
from ndt_store.errors import DimensionError, IntegrityError, InvalidInputError
from ndt_store.layout import Block, block_nbytes, block_shape, n_blocks, numpy_dtype, padded
from ndt_store.schema import ArraySpec
from ndt_store.storage import Storage

__all__ = ["BlockArray", "count_nonfinite", "read_block", "write_block"]

SLACK_NBYTES: Final = 1 << 20
"""What a codec's header and long strings may add to a block."""

_SCRATCH: Final = threading.local()

Key = tuple[int | slice, ...]


def read_block(storage: Storage, spec: ArraySpec, entry: BlockEntry, out: NDArray[Any]) -> None:
    """Read one block into `out`, a C-contiguous array of the block's shape on disk and dtype.

    Raises
    ------
    IntegrityError
        The bytes on disk are not the bytes that were committed.
    """
    if not 0 < entry.nbytes <= 2 * block_nbytes(spec) + SLACK_NBYTES:
        raise _damaged(storage, spec, entry, f"is listed with {entry.nbytes} bytes, which no such block has")
    direct = spec.codec == "none" and out.dtype.kind != "T" and out.nbytes + CRC_NBYTES == entry.nbytes
    trailer = bytearray(CRC_NBYTES)
    if direct:
        payload = out.reshape(-1).view(np.uint8).data
    else:
        payload = memoryview(_scratch(entry.nbytes))[: max(entry.nbytes - CRC_NBYTES, 0)]
    beyond = bytearray(1)
    try:
        n_read = storage.read_into(entry.key, [payload, memoryview(trailer), memoryview(beyond)])
    except (FileNotFoundError, NotADirectoryError):
        raise _damaged(storage, spec, entry, "is missing") from None
    except OSError as error:
        raise _damaged(storage, spec, entry, f"cannot be read ({error})") from error
    if n_read != entry.nbytes:
        size = storage.size(entry.key)
        raise _damaged(storage, spec, entry, f"has {size} bytes where {entry.nbytes} were committed")
    if not crc32c(payload) == entry.crc32c == int.from_bytes(trailer, "little"):
        raise _damaged(storage, spec, entry, "does not match its checksum")
    if direct:
        return
    try:
        decode(payload, spec.codec, out)
    except ValueError as error:
        raise _damaged(storage, spec, entry, f"cannot be decoded: {error}") from error


def write_block(storage: Storage, spec: ArraySpec, target: Block, data: NDArray[Any]) -> tuple[BlockEntry, int, int]:
    """Encode and write one block, whole or not at all.

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
    nan, inf = count_nonfinite(data)
    encoded = encode(padded(spec, data), spec.codec)
    storage.write(target.key, encoded.buffers)
    return BlockEntry(target.key, encoded.nbytes, encoded.crc32c), nan, inf


def count_nonfinite(data: NDArray[Any]) -> tuple[int, int]:
    """Count NaN and infinite values."""
    if data.dtype.kind != "f":
        return 0, 0
    # Almost every block is finite, and one fast pass says so; overflow to infinity only means a second look.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat := data.reshape(-1), flat)):
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


def _scratch(nbytes: int) -> bytearray:
    # One buffer a thread, grown when needed: allocating and faulting in fresh pages costs more than reading the disk.
    buffer: bytearray | None = getattr(_SCRATCH, "buffer", None)
    if buffer is None or len(buffer) < nbytes:
        buffer = _SCRATCH.buffer = bytearray(nbytes)
    return buffer


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
        selection = _normalise(key, self.shape)
        steps = range(*selection[0].indices(self.shape[0])) if self.spec.is_cube else range(1)
        inner = selection[1:] if self.spec.is_cube else selection
        picked = np.empty(
            (len(steps), *(len(range(*s.indices(n))) for s, n in zip(inner, self.spec.sizes, strict=True))),
            self.dtype,
        )
        for row, position in enumerate(steps):
            step = self.catalogue.committed[position] if self.spec.is_cube else None
            self._read_rows(step, inner, picked[row, ...])
        values = picked if self.spec.is_cube else picked[0]
        drop = tuple(0 if isinstance(k, int | np.integer) else slice(None) for k in _expand(key, self.ndim))
        return np.asarray(values[drop])

    def _read_rows(self, step: int | None, inner: tuple[slice, ...], out: NDArray[Any]) -> None:
        spec = self.spec
        entries = self.catalogue.record(step).arrays[spec.path].blocks
        shape = block_shape(spec)
        if not spec.sizes:
            single = np.empty((), self.dtype)
            read_block(self.catalogue.storage, spec, entries[0], single)
            out[...] = single
            return
        wanted = range(*inner[0].indices(spec.sizes[0]))
        if not wanted:
            return
        whole = wanted.step == 1 and all(s == slice(0, n, 1) for s, n in zip(inner[1:], spec.sizes[1:], strict=True))
        for index in range(n_blocks(spec)):
            start, stop = index * spec.rows, min((index + 1) * spec.rows, spec.sizes[0])
            here = _overlap(wanted, start, stop)
            if not here:
                continue
            first = wanted.index(here[0])
            target = out[first : first + len(here)]
            if whole and len(here) == spec.rows and target.flags.c_contiguous:
                read_block(self.catalogue.storage, spec, entries[index], target)
                continue
            decoded = np.empty(shape, self.dtype)
            read_block(self.catalogue.storage, spec, entries[index], decoded)
            target[...] = decoded[(slice(here[0] - start, here[-1] - start + 1, here.step), *inner[1:])]


def _overlap(wanted: range, start: int, stop: int) -> range:
    skip = max(0, -(-(start - wanted.start) // wanted.step))
    end = max(0, -(-(stop - wanted.start) // wanted.step))
    return wanted[skip:end]


def _expand(key: Any, ndim: int) -> Key:
    parts = key if isinstance(key, tuple) else (key,)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (ndim - len(parts) + 1), *parts[at + 1 :])
    return (*parts, *[slice(None)] * (ndim - len(parts)))


def _normalise(key: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Turn basic indexing into one ascending slice with known ends per dimension."""
    slices = []
    for part, size in zip(_expand(key, len(shape)), shape, strict=True):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step < 1:
                raise IndexError("blocks are read forwards: take a positive step and reverse the result")
            stop = max(start, stop)
        else:
            start = int(part) + (size if part < 0 else 0)
            if not 0 <= start < size:
                raise IndexError(f"index {part} is out of bounds for a dimension of size {size}")
            stop, step = start + 1, 1
        slices.append(slice(start, stop, step))
    return tuple(slices)
