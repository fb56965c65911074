"""Compression profiles by name, and the bytes of one block.

A block on disk is ``payload + crc32c(payload)``: the payload is the little-endian array, compressed by the profile's
codec, and the four trailing bytes are what Zarr's ``crc32c`` codec writes. Every profile is a chain that any Zarr v3
reader knows, so the same block reads back without this module. The checksum is computed once and serves twice: at the
end of the block, and in the commit record.

The decoded size of a block is known from the schema. It is compared with what the compressed frame declares before
anything is decompressed, so that a forged frame cannot ask for more memory than the block may have.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c
import numpy as np
from numcodecs import blosc
from numcodecs.vlen import VLenUTF8
from numpy.typing import NDArray

from ndt_store.errors import InvalidInputError

__all__ = [
    "CRC_NBYTES",
    "DEFAULT_PROFILE",
    "PROFILES",
    "EncodedBlock",
    "Profile",
    "crc32c",
    "decode",
    "encode",
    "profile",
]

CRC_NBYTES: Final = 4
CRC_PIECE_NBYTES: Final = 1 << 20
"""Bytes that are checksummed at once: 0.1 ms, so that other threads need not wait for a whole block."""

# With several threads Blosc writes a frame's parts in the order in which they finish; equal data must give equal bytes.
blosc.use_threads = False
_BLOSC_HEADER: Final = struct.Struct("<4B3I")
_STRINGS: Final = VLenUTF8()


def _crc32c_without_lock() -> Any:
    """Find the C function that google_crc32c wraps, to call it without the interpreter lock; None where it is not."""
    try:
        extend = ctypes.CDLL(sys.modules["google_crc32c._crc32c"].__file__).crc32c_extend
    except (KeyError, OSError, AttributeError):
        return None
    extend.argtypes, extend.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint32
    return extend


_EXTEND: Final = _crc32c_without_lock()


def crc32c(payload: memoryview | bytes, start: int = 0) -> int:
    """CRC-32C (Castagnoli) of a buffer, or of what gave `start` followed by it; in hardware where there is any."""
    values = np.frombuffer(payload, np.uint8)
    if _EXTEND is not None and len(values) > CRC_PIECE_NBYTES:
        return int(_EXTEND(start, values.ctypes.data, len(values)))
    # The module's own function takes arrays and bytes, but no memoryview, and holds the lock for as long as it runs.
    for begin in range(0, len(values), CRC_PIECE_NBYTES):
        start = int(google_crc32c.extend(start, values[begin : begin + CRC_PIECE_NBYTES]))
    return start


@dataclass(frozen=True, slots=True)
class Profile:
    """One named way to store blocks.

    Parameters
    ----------
    name : str
        What users write, for example ``"fast"``.
    cname, clevel : str, int
        Blosc's inner codec and level; an empty `cname` stores the bytes as they are.
    """

    name: str
    cname: str = ""
    clevel: int = 0

    def zarr_codecs(self, dtype: str) -> list[dict[str, Any]]:
        """Return the codec chain as it stands in an array's ``zarr.json``."""
        chain: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        itemsize = 1
        if dtype == "string":
            chain = [{"name": "vlen-utf8", "configuration": {}}]
        else:
            itemsize = np.dtype(dtype).itemsize
            if itemsize == 1:
                chain = [{"name": "bytes"}]
        if self.cname:
            configuration = {
                "typesize": itemsize,
                "cname": self.cname,
                "clevel": self.clevel,
                "shuffle": "noshuffle",
                "blocksize": 0,
            }
            chain.append({"name": "blosc", "configuration": configuration})
        chain.append({"name": "crc32c"})
        return chain


# What a name means is part of the format: a better profile gets a name of its own.
PROFILES: Final = {
    profile.name: profile for profile in (Profile("none"), Profile("fast", "lz4", 5), Profile("compact", "zstd", 1))
}
DEFAULT_PROFILE: Final = "fast"


def profile(name: str) -> Profile:
    """Look a profile up by name."""
    if name not in PROFILES:
        raise InvalidInputError(f"There is no compression profile {name!r}: expected one of {', '.join(PROFILES)}.")
    return PROFILES[name]


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A block as it goes to disk: `payload`, then its checksum in four bytes."""

    payload: memoryview
    crc32c: int

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return self.payload.nbytes + CRC_NBYTES

    @property
    def buffers(self) -> tuple[memoryview, bytes]:
        """What to write, in order, without joining it first."""
        return self.payload, struct.pack("<I", self.crc32c)


def encode(data: NDArray[Any], codec: str) -> EncodedBlock:
    """Encode one block.

    Parameters
    ----------
    data : ndarray
        C-contiguous values; object or string arrays become variable-length UTF-8.
    codec : str
        Profile name.

    Notes
    -----
    With profile ``none`` the payload is a view of `data`: do not change `data` before the block is written.
    """
    chosen = profile(codec)
    if data.dtype.kind in "OUT":
        raw = memoryview(_STRINGS.encode(data.astype(object).ravel()))
        itemsize = 1
    else:
        little = data.astype(data.dtype.newbyteorder("<"), order="C", copy=False)
        raw = little.reshape(-1).view(np.uint8).data
        itemsize = data.dtype.itemsize
    if chosen.cname:
        packed = blosc.compress(raw, chosen.cname.encode(), chosen.clevel, blosc.NOSHUFFLE, 0, itemsize)
        raw = memoryview(packed)
    return EncodedBlock(raw, crc32c(raw))


def decode(payload: memoryview, codec: str, out: NDArray[Any]) -> None:
    """Decode one block's payload into `out`, whose dtype and shape are the block's.

    Raises
    ------
    ValueError
        When the payload is not a frame of exactly the block's size; the caller knows which block that is.
    """
    if out.dtype.kind == "T":
        raw = _decompress(payload) if profile(codec).cname else payload
        count = int.from_bytes(raw[:4], "little")
        if count != out.size:
            raise ValueError(f"it declares {count} strings where the schema has {out.size}")
        out[...] = _STRINGS.decode(raw).reshape(out.shape)
        return
    if not profile(codec).cname:
        if payload.nbytes != out.nbytes:
            raise ValueError(f"it holds {payload.nbytes} bytes where the schema has {out.nbytes}")
        out.reshape(-1).view(np.uint8)[:] = payload
        return
    declared = _declared_nbytes(payload)
    if declared != out.nbytes:
        raise ValueError(f"it declares {declared} bytes where the schema has {out.nbytes}")
    try:
        blosc.decompress(payload, out.reshape(-1).view(np.uint8))
    except RuntimeError as error:
        raise ValueError(f"it does not decompress ({error})") from error


def _declared_nbytes(payload: memoryview) -> int:
    if payload.nbytes < _BLOSC_HEADER.size:
        raise ValueError(f"it has {payload.nbytes} bytes, too few for a compressed frame")
    *_, nbytes, _, compressed = _BLOSC_HEADER.unpack_from(payload)
    if compressed != payload.nbytes:
        raise ValueError(f"its frame declares {compressed} compressed bytes of {payload.nbytes} present")
    return int(nbytes)


def _decompress(payload: memoryview) -> Any:
    if _declared_nbytes(payload) > 1 << 30:
        raise ValueError("it declares more than 1 GiB of strings")
    decompress: Callable[[memoryview], bytes] = blosc.decompress
    return decompress(payload)
