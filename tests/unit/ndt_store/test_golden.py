"""Stores that were written when the format was fixed stay readable, and mean what they meant."""

from pathlib import Path

import numpy as np
import pytest

from ndt_store import open_store, verify
from ndt_store.codecs import PROFILES
from ndt_store.layout import documents

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("codec", PROFILES)
def test_a_store_of_format_version_1_reads_back_what_it_held(codec):
    store = open_store(GOLDEN / f"format-1-{codec}.zarr")
    assert verify(store, read_data=True).ok
    with np.load(GOLDEN / "format-1.npz", allow_pickle=False) as expected:
        for name in expected.files:
            path = name.replace("|", "/")
            assert store.tree[path].values.tobytes() == expected[name].tobytes(), path


@pytest.mark.parametrize("codec", PROFILES)
def test_the_documents_of_format_version_1_do_not_change(codec):
    root = GOLDEN / f"format-1-{codec}.zarr"
    store = open_store(root)
    for key, data in documents(store.schema, store.provenance).items():
        assert (root / key).read_bytes() == data, key
