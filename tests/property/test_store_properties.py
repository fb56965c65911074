"""For any shape and chunking: what is written is what is read, and lazy indexing equals numpy's."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ndt_store import verify
from ndt_store.blocks import BlockArray
from ndt_store.testing import simulate_store
from ndt_store.testing.strategies import basic_indices, layer_shapes


@settings(max_examples=25)
@given(
    layers=layer_shapes(),
    n_examples=st.integers(1, 17),
    block_nbytes=st.integers(1, 3000),
    codec=st.sampled_from(["none", "fast", "compact"]),
    dtype=st.sampled_from(["float32", "float16", "float64"]),
)
def test_any_store_reads_back_bit_for_bit(layers, n_examples, block_nbytes, codec, dtype):
    with tempfile.TemporaryDirectory() as folder:
        sim = simulate_store(
            Path(folder) / "s",
            checkpoints=(0, 3),
            layers=layers,
            n_examples=n_examples,
            block_nbytes=block_nbytes,
            codec=codec,
            dtype=dtype,
        )
        assert verify(sim.store, read_data=True).ok
        for layer in layers:
            expected = sim.arrays[f"layers/{layer}/activations"]
            assert sim.store[layer].activations.values.tobytes() == expected.tobytes()


@settings(max_examples=100)
@given(data=st.data())
def test_block_arrays_index_like_numpy(data, tmp_path_factory):
    sim = _shared(tmp_path_factory)
    path = data.draw(st.sampled_from(sorted(p for p, a in sim.arrays.items() if a.dtype.kind == "f")))
    dense = sim.arrays[path]
    array = BlockArray(sim.store.catalogue, sim.store.schema.find(path))
    key = data.draw(basic_indices(dense.shape))
    got = array[key]
    assert got.dtype == dense.dtype
    np.testing.assert_array_equal(got, dense[key])


_CACHE = {}


def _shared(factory):
    if "sim" not in _CACHE:
        _CACHE["sim"] = simulate_store(factory.mktemp("shared") / "s", n_examples=13, block_nbytes=900)
    return _CACHE["sim"]
