"""Blocks decode to what was encoded, exactly, and forged frames are refused before they are believed."""

import numpy as np
import pytest

from ndt_store.codecs import PROFILES, crc32c, decode, encode
from ndt_store.errors import InvalidInputError
from ndt_store.layout import numpy_dtype
from ndt_store.schema import DTYPES, ArraySpec


def _values(dtype, rng):
    if dtype == "string":
        return np.asarray(["", "ünïcode", "x" * 500, "a"], dtype=object)
    if dtype == "bool":
        return rng.random((4, 7)) < 0.5
    drawn = rng.standard_normal((4, 7)) * 100
    if dtype.startswith("float"):
        drawn[0, :5] = [np.nan, np.inf, -np.inf, -0.0, 0.0]
    return np.abs(drawn).astype(dtype) if dtype == "uint8" else drawn.astype(dtype)


@pytest.mark.parametrize("codec", PROFILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_gives_back_the_encoded_bits(dtype, codec, rng):
    values = _values(dtype, rng)
    out = np.empty(values.shape, numpy_dtype(ArraySpec("a", ("example",), (4,), dtype)))
    encoded = encode(values, codec)
    decode(encoded.payload, codec, out)
    if dtype == "string":
        assert out.tolist() == values.tolist()
    else:
        assert out.tobytes() == values.tobytes()


def test_crc32c_matches_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4


@pytest.mark.parametrize("codec", ["fast", "compact"])
def test_decode__raises_on_a_frame_that_declares_another_size(codec):
    encoded = encode(np.zeros(1000, np.float32), codec)
    with pytest.raises(ValueError, match="declares 4000 bytes where the schema has 400"):
        decode(encoded.payload, codec, np.empty(100, np.float32))


@pytest.mark.parametrize("payload", [b"", b"short", bytes(64)])
def test_decode__raises_on_garbage(payload):
    with pytest.raises(ValueError, match="^its? "):
        decode(memoryview(payload), "fast", np.empty(100, np.float32))


def test_encode_is_deterministic(rng):
    values = np.maximum(rng.standard_normal((64, 4096)).astype(np.float32), 0)
    assert len({bytes(encode(values, "fast").payload) for _ in range(5)}) == 1


def test_encode__raises_on_an_unknown_profile():
    with pytest.raises(InvalidInputError, match="'zip'.*none, fast, compact"):
        encode(np.zeros(3), "zip")
