"""The codecs that are compared: what Zarr v3 readers know, lz4 frames, and float16 as the one lossy way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numcodecs import blosc, lz4, zstd
from numpy.typing import NDArray

__all__ = ["CODECS", "Codec", "as_bytes"]

SHUFFLES: Final = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}

Values = NDArray[np.float32]
Raw = NDArray[np.uint8]


@dataclass(frozen=True)
class Codec:
    """One way to store float32 values; `decode` fills an array that is there already."""

    name: str
    encode: Callable[[Values], Any]
    decode: Callable[[Any, Values], object]
    is_slow: bool = False
    is_lossy: bool = False


def as_bytes(values: Values) -> Raw:
    """View contiguous values as bytes."""
    return values.reshape(-1).view(np.uint8)


def _bytes_codec(name: str, compress: Callable[[Raw], Any], decompress: Callable[[Any, Raw], object]) -> Codec:
    slow = name.startswith(("blosc lz4hc", "blosc zstd 5"))
    return Codec(name, lambda v: compress(as_bytes(v)), lambda p, out: decompress(p, as_bytes(out)), is_slow=slow)


def _float16_codec(name: str, compress: Callable[[Raw], Any], decompress: Callable[[Any], Any]) -> Codec:
    def encode(values: Values) -> Any:
        with np.errstate(over="ignore", under="ignore"):
            return compress(values.astype(np.float16).reshape(-1).view(np.uint8))

    def decode(payload: Any, out: Values) -> None:
        out.reshape(-1)[...] = np.frombuffer(decompress(payload), np.float16)

    return Codec(name, encode, decode, is_lossy=True)


def _codecs() -> Iterator[Codec]:
    for level in (-5, -3, -1, 1, 3):
        yield _bytes_codec(f"zstd {level}", partial(zstd.compress, level=level), zstd.decompress)
    yield _bytes_codec("lz4 1", partial(lz4.compress, acceleration=1), lz4.decompress)
    for cname in ("lz4", "lz4hc", "zstd"):
        for level in (1, 5):
            for name, shuffle in SHUFFLES.items():
                compress = partial(blosc.compress, cname=cname.encode(), clevel=level, shuffle=shuffle, typesize=4)
                yield _bytes_codec(f"blosc {cname} {level} {name}", compress, blosc.decompress)
    yield _float16_codec("float16", _same, _same)
    for level in (-1, 1):
        compress = partial(zstd.compress, level=level)
        yield _float16_codec(f"float16, zstd {level}", compress, zstd.decompress)


def _same(payload: Any) -> Any:
    return payload


CODECS: Final = tuple(_codecs())
