"""The file that holds one view: a header that says what it was made from, plain arrays, a checksum.

::

    "NDTVIEW1" | header length, uint32 | header, JSON | arrays, each aligned to 8 bytes | CRC-32C of all before, uint32

Everything is little-endian. The header names the view and its version, the array and checkpoint it was made from, the
digests of the commit records that it covers, and dtype and shape of each array. A file comes from anywhere: sizes are
checked against the file's own length before anything is believed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.codecs import crc32c

__all__ = ["ViewFile", "decode", "encode"]

MAGIC: Final = b"NDTVIEW1"
_LENGTH: Final = struct.Struct("<I")
_ALIGNMENT: Final = 8
_MAX_HEADER_NBYTES: Final = 1 << 16
_MAX_RANK: Final = 4
_DTYPES: Final = ("<f4", "<f8", "<i8", "<i4", "<u4", "<u2", "|u1")

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ViewFile:
    """Contents of one view file.

    Parameters
    ----------
    view : str
        Name of the view.
    version : int
        Of the kernel and of the meaning of the arrays.
    array : str
        Path of the cube that it was made from.
    checkpoint : int
        Training step.
    covers : tuple of str
        Digests of the commit record of the checkpoint and of the record of the static arrays.
    meta : mapping
        Numbers that belong to the arrays.
    arrays : mapping of str to ndarray
        The view itself.
    """

    view: str
    version: int
    array: str
    checkpoint: int
    covers: tuple[str, str]
    meta: Mapping[str, int] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


def encode(contents: ViewFile) -> bytes:
    """Render a view file."""
    arrays = {name: _little(values) for name, values in contents.arrays.items()}
    header = {
        "view": contents.view,
        "version": contents.version,
        "array": contents.array,
        "checkpoint": contents.checkpoint,
        "covers": list(contents.covers),
        "meta": dict(contents.meta),
        "arrays": [[name, values.dtype.str, list(values.shape)] for name, values in arrays.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [MAGIC, _LENGTH.pack(len(text)), text]
    length = sum(len(part) for part in parts)
    for values in arrays.values():
        gap = -length % _ALIGNMENT
        parts += [bytes(gap), values.tobytes()]
        length += gap + values.nbytes
    body = b"".join(parts)
    return body + _LENGTH.pack(crc32c(body))


def _little(values: NDArray[Any]) -> NDArray[Any]:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in _DTYPES:
        raise TypeError(f"a view holds no arrays of {values.dtype}")
    return little


def decode(data: bytes) -> ViewFile:
    """Read a view file; its arrays are read-only views of `data`.

    Raises
    ------
    ValueError
        Says what is wrong with the bytes.
    """
    if len(data) < len(MAGIC) + 2 * _LENGTH.size or data[: len(MAGIC)] != MAGIC:
        raise ValueError("it is no view file")
    if crc32c(memoryview(data)[: -_LENGTH.size]) != _LENGTH.unpack(data[-_LENGTH.size :])[0]:
        raise ValueError("it does not match its checksum")
    start = len(MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack(data[len(MAGIC) : start])
    if length > min(_MAX_HEADER_NBYTES, len(data) - start - _LENGTH.size):
        raise ValueError(f"its header claims {length} bytes")
    try:
        header = json.loads(data[start : start + length], parse_constant=_refuse)
        commit, static = header["covers"]
        arrays = dict(_arrays(data, start + length, header["arrays"]))
        found = ViewFile(
            str(header["view"]),
            int(header["version"]),
            str(header["array"]),
            int(header["checkpoint"]),
            (str(commit), str(static)),
            {str(key): int(value) for key, value in header["meta"].items()},
            arrays,
        )
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"its header is malformed ({error})") from error
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def _arrays(data: bytes, at: int, listed: Any) -> list[tuple[str, NDArray[Any]]]:
    found = []
    end = len(data) - _LENGTH.size
    for name, dtype, shape in listed:
        sizes = tuple(int(size) for size in shape)
        if dtype not in _DTYPES or len(sizes) > _MAX_RANK or min(sizes, default=0) < 0:
            raise ValueError(f"its array {name!r} has dtype {dtype} and shape {shape}")
        at += -at % _ALIGNMENT
        count = math.prod(sizes)
        if at + count * np.dtype(dtype).itemsize > end:
            raise ValueError(f"its array {name!r} of shape {shape} does not fit the file")
        found.append((str(name), np.frombuffer(data, dtype, count, at).reshape(sizes)))
        at += count * np.dtype(dtype).itemsize
    if at != end:
        raise ValueError(f"{end - at} bytes belong to none of its arrays")
    return found
