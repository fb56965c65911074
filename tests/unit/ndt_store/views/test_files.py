"""View files say what they are made from, give back what was put in, and never more than their own bytes."""

import json
import struct

import google_crc32c
import numpy as np
import pytest

from ndt_store.views.files import ViewFile, decode, encode

CONTENTS = ViewFile(
    "moments",
    3,
    "layers/fc/activations",
    700,
    ("aa", "bb"),
    {"k": 64},
    {
        "means": np.arange(6.0).reshape(2, 3),
        "rows": np.array([[1, 2, 65535]], np.uint16),
        "nothing": np.empty((0, 4), np.float32),
        "counts": np.array([2**40], ">i8"),
    },
)


def sealed(body: bytes) -> bytes:
    """Close a body with a checksum made by the library itself."""
    return body + struct.pack("<I", google_crc32c.value(body))


def with_header(**changes) -> bytes:
    data = encode(CONTENTS)
    (length,) = struct.unpack("<I", data[8:12])
    header = json.loads(data[12 : 12 + length]) | changes
    text = json.dumps({key: value for key, value in header.items() if value is not None}).encode()
    text += b" " * (-(12 + len(text)) % 8)
    arrays = data[12 + length + -(12 + length) % 8 : -4]
    return sealed(data[:8] + struct.pack("<I", len(text)) + text + arrays)


def test_what_went_in_comes_out():
    found = decode(encode(CONTENTS))
    assert (found.view, found.version, found.array, found.checkpoint) == ("moments", 3, "layers/fc/activations", 700)
    assert (found.covers, found.meta) == (("aa", "bb"), {"k": 64})
    for name, values in CONTENTS.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], values)
        assert found.arrays[name].dtype == values.dtype.newbyteorder("<")
        assert not found.arrays[name].flags.writeable


def test_equal_contents_give_equal_bytes():
    assert encode(CONTENTS) == encode(CONTENTS)


@pytest.mark.parametrize("position", range(0, 400, 13))
def test_any_flipped_bit_is_found(position):
    data = bytearray(encode(CONTENTS))
    data[position % len(data)] ^= 1 << (position % 8)
    with pytest.raises(ValueError, match=r"it "):
        decode(bytes(data))


@pytest.mark.parametrize("length", [0, 7, 12, 20, 100])
def test_a_truncated_file_is_refused(length):
    with pytest.raises(ValueError, match="it "):
        decode(encode(CONTENTS)[:length])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arrays": [["x", "<f8", [1 << 40]]]}, "does not fit the file"),
        ({"arrays": [["x", "<f8", [1 << 62, 1 << 62]]]}, "does not fit the file"),
        ({"arrays": [["x", "<f8", [-1]]]}, "has dtype"),
        ({"arrays": [["x", "|O", [1]]]}, "has dtype"),
        ({"arrays": [["x", "<f8", [1, 1, 1, 1, 1]]]}, "has dtype"),
        ({"arrays": []}, "belong to none"),
        ({"arrays": None}, "malformed"),
        ({"covers": "a"}, "not enough values"),
        ({"meta": {"k": "many"}}, "invalid literal"),
        ({"version": None}, "malformed"),
        ({"version": float("inf")}, "Infinity is no JSON"),
        ({"arrays": [["x", "<f8", [1e400]]]}, "Infinity is no JSON"),
    ],
)
def test_a_forged_header_with_a_right_checksum_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        decode(with_header(**changes))


def test_a_header_longer_than_the_file_is_refused():
    data = encode(CONTENTS)
    with pytest.raises(ValueError, match="its header claims"):
        decode(sealed(data[:8] + struct.pack("<I", 1 << 31) + data[12:-4]))


def test_an_array_of_objects_cannot_be_kept():
    with pytest.raises(TypeError, match="no arrays of object"):
        encode(ViewFile("x", 1, "a", 0, ("", ""), {}, {"o": np.array([None])}))
