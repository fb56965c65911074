"""Blocks come back as they were written, whole or in part, by any selection, and from several threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from ndt_store import blocks as blocks_module
from ndt_store import codecs, open_store
from ndt_store.blocks import BlockArray, as_selector, read_block
from ndt_store.codecs import CRC_PIECE_NBYTES, crc32c
from ndt_store.errors import IntegrityError
from ndt_store.storage import LocalStorage
from ndt_store.testing import simulate_store

CUBE = "layers/conv1/activations"


@pytest.fixture(scope="module", params=["none", "fast", "compact"])
def sim(request, tmp_path_factory):
    # 5 blocks of 3 examples a checkpoint, the last one padded.
    folder = tmp_path_factory.mktemp(request.param)
    return simulate_store(folder / "s", n_examples=13, block_nbytes=1500, codec=request.param)


def array_of(sim):
    return BlockArray(sim.store.catalogue, sim.store.schema.find(CUBE))


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (0, 1), (1, 3), (1, 2), (2, 3), (3, 3)])
def test_read_block_reads_any_rows_of_a_block(sim, start, stop):
    spec = sim.store.schema.find(CUBE)
    entry = sim.store.catalogue.record(10).arrays[CUBE].blocks[2]
    out = np.full((stop - start, *spec.sizes[1:]), np.nan, np.float32)
    read_block(sim.store.catalogue.storage, spec, entry, out, start)
    np.testing.assert_array_equal(out, sim.arrays[CUBE][1, 6 + start : 6 + stop])


@pytest.mark.parametrize("codec", ["none", "fast"])
@pytest.mark.parametrize("where", [0.01, 0.5, 0.99])
def test_read_block__raises_on_damage_to_rows_that_are_not_wanted(tmp_path, codec, where):
    sim = simulate_store(tmp_path / "s", n_examples=13, block_nbytes=1500, codec=codec)
    spec = sim.store.schema.find(CUBE)
    entry = sim.store.catalogue.record(10).arrays[CUBE].blocks[2]
    file = tmp_path / "s" / entry.key
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1
    file.write_bytes(data)
    for start in range(3):
        with pytest.raises(IntegrityError, match="does not match its checksum"):
            read_block(sim.store.catalogue.storage, spec, entry, np.empty((1, *spec.sizes[1:]), np.float32), start)


@given(data=st.data())
def test_arrays_select_along_each_axis_by_itself(sim, data):
    dense, array = sim.arrays[CUBE], array_of(sim)
    key, places = [], []
    for size in dense.shape:
        position = st.integers(-size, size - 1)
        part = data.draw(
            st.one_of(
                st.builds(slice, st.none() | position, st.none() | position, st.sampled_from([None, 1, 2, -1, -2])),
                st.lists(position, max_size=4).map(lambda found: np.array(found, np.intp)),
                st.lists(st.booleans(), min_size=size, max_size=size).map(np.array),
            )
        )
        key.append(part)
        places.append(np.arange(size)[part])
    np.testing.assert_array_equal(array[tuple(key)], dense[np.ix_(*places)])


def test_arrays__raise_on_positions_that_are_not_there(sim):
    for key in (3, -4, (0, 13), (0, [13]), (0, np.array([-14]))):
        with pytest.raises(IndexError, match="out of bounds"):
            array_of(sim)[key]


def test_what_is_read_is_not_touched_by_later_reads(sim):
    array = array_of(sim)
    keys = [np.s_[0, 0:2], np.s_[1, 3:9, 1], np.s_[2, [12, 0]], np.s_[:, :, 0, 0, 0], np.s_[0]]
    read = [(key, array[key]) for key in keys for _ in range(2)]
    for key, values in read:
        np.testing.assert_array_equal(values, sim.arrays[CUBE][key])
        values[...] = -1
    for key in keys:
        np.testing.assert_array_equal(array[key], sim.arrays[CUBE][key])


def test_threads_do_not_share_buffers(sim):
    array, dense = array_of(sim), sim.arrays[CUBE]
    keys = [np.s_[c, e, :, ::2] for c in range(3) for e in range(13)] * 10
    with ThreadPoolExecutor(4) as pool:
        for key, values in zip(keys, pool.map(array.__getitem__, keys), strict=True):
            np.testing.assert_array_equal(values, dense[key])


def test_blocks_too_large_to_keep_a_buffer_for_are_read_alike(sim, monkeypatch):
    monkeypatch.setattr(blocks_module, "SCRATCH_NBYTES", 100)
    monkeypatch.setattr(blocks_module, "_SCRATCH", kept := threading.local())
    np.testing.assert_array_equal(array_of(sim)[:, 1:8, ::2], sim.arrays[CUBE][:, 1:8, ::2])
    assert all(len(buffer) <= 100 for buffer in vars(kept).values())


def test_lazy_variables_without_dask_read_only_the_blocks_of_a_list(sim):
    class Counting(LocalStorage):
        def read_into(self, key, buffers):
            keys.append(key)
            return super().read_into(key, buffers)

    keys = []
    store = open_store(Counting(sim.store.path))
    lazy = xr.open_dataset(sim.store.path, engine="ndt", group="layers/conv1").activations
    array = BlockArray(store.catalogue, sim.store.schema.find(CUBE))
    expected = sim.arrays[CUBE][1][[12, 1]][:, :, ::-2]
    np.testing.assert_array_equal(array[1, [12, 1], :, ::-2], expected)
    assert sorted(keys) == [f"{CUBE}/c/1/0/0/0/0", f"{CUBE}/c/1/4/0/0/0"]
    np.testing.assert_array_equal(lazy.isel(checkpoint=1, example=[12, 1], y=slice(None, None, -2)).values, expected)


@given(positions=st.lists(st.integers(0, 8), max_size=6))
def test_as_selector_selects_the_same(positions):
    places = np.array(positions, np.intp)
    selector = as_selector(places)
    np.testing.assert_array_equal(np.arange(9)[selector], places)
    steps = set(np.diff(positions).tolist())
    assert isinstance(selector, slice) == (len(steps) <= 1 and steps != {0})


@pytest.mark.parametrize("found", [True, False], ids=["without the lock", "by google_crc32c"])
def test_crc32c_of_pieces_is_that_of_the_whole(rng, monkeypatch, found):
    if not found:
        monkeypatch.setattr(codecs, "_EXTEND", None)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert crc32c(b"") == 0
    data = rng.bytes(2 * CRC_PIECE_NBYTES + 17)
    import google_crc32c

    assert crc32c(data) == crc32c(memoryview(data)) == google_crc32c.value(data)
    assert crc32c(data[7:], crc32c(data[:7])) == google_crc32c.value(data)
