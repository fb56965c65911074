"""A traced array holds exactly the part it claims, whatever was selected, and nothing else claims one."""

import copy
import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from ndt_store import open_store
from ndt_store.storage import LocalStorage
from ndt_store.testing import simulate_store
from ndt_store.traced import TracedArray, part_of

CUBE = "layers/conv1/activations"
N_EXAMPLES, ROWS = 13, 3


class CountingStorage(LocalStorage):
    """Notes the key of every block that is read."""

    def __init__(self, root):
        super().__init__(root)
        self.keys = []

    def read_into(self, key, buffers):
        self.keys.append(key)
        return super().read_into(key, buffers)


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    # One example of (4, 6, 5) float32 takes 480 bytes: 5 blocks of 3 examples, the last one short.
    sim = simulate_store(tmp_path_factory.mktemp("traced") / "s", n_examples=N_EXAMPLES, block_nbytes=1500)
    assert sim.store.schema.find(CUBE).rows == ROWS
    return sim


@pytest.fixture
def counted(sim):
    storage = CountingStorage(sim.store.path)
    acts = open_store(storage, chunk_nbytes=3000)["conv1"].activations
    assert acts.chunks[1] == (6, 6, 1)
    storage.keys.clear()
    return acts, storage.keys


@pytest.fixture
def acts(sim):
    # Without the text label, which xarray cannot fill up where labels are missing.
    return open_store(sim.store.path, chunk_nbytes=3000)["conv1"].activations.drop_vars("split")


def dense_part(dense, part):
    """What a part says that it holds, by numpy alone."""
    for axis, positions in enumerate(part.positions):
        dense = dense.take(positions, axis)
    dropped = [axis for axis in range(dense.ndim) if axis not in part.axes]
    return dense.transpose([*part.axes, *dropped]).reshape([dense.shape[axis] for axis in part.axes])


SELECTIONS = {
    "whole": lambda a: a,
    "integer": lambda a: a.isel(example=3),
    "negative integer": lambda a: a.isel(example=-1, unit=-2),
    "step": lambda a: a.isel(example=slice(1, None, 4)),
    "reversed": lambda a: a.isel(example=slice(None, None, -2), y=slice(None, None, -1)),
    "two lists": lambda a: a.isel(example=[5, 1, 1], unit=[2, 0]),
    "mask": lambda a: a.isel(example=np.arange(N_EXAMPLES) % 2 == 0),
    "labels": lambda a: a.sel(checkpoint=[100, 0], example=slice(2, 9)),
    "nothing": lambda a: a.isel(example=[]),
    "chain": lambda a: a.isel(example=slice(2, 12)).isel(unit=1).isel(example=[0, 4, 9]),
    "shuffled": lambda a: a.isel(example=np.random.default_rng(0).permutation(N_EXAMPLES)),
    "sorted by label": lambda a: a.sortby("label"),
    "transposed": lambda a: a.transpose("unit", "x", ...).isel(x=2),
    "smaller chunks": lambda a: a.chunk(example=2),
    "chunks of units": lambda a: a.chunk(unit=1).isel(unit=[1, 0, 1], example=slice(3, None)),
    "one chunk": lambda a: a.chunk(-1),
    "renamed": lambda a: a.rename(unit="channel"),
    "copied": lambda a: a.copy(),
    "same dtype": lambda a: a.astype("float32"),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_keep_the_trace(sim, acts, name):
    selected = SELECTIONS[name](acts)
    part = part_of(selected.data)
    assert part is not None
    assert part.blocks.spec.path == CUBE
    assert part.shape == selected.shape
    np.testing.assert_array_equal(selected.values, dense_part(sim.arrays[CUBE], part))
    # The same through xarray alone, which knows nothing of parts.
    np.testing.assert_array_equal(selected.values, SELECTIONS[name](acts.load().copy()).values)


def test_dims_are_the_cubes_own_whatever_they_are_called_now(acts):
    part = part_of(acts.isel(y=0).rename(unit="example", example="unit").transpose("x", ...).data)
    assert part.dims == ("x", "checkpoint", "example", "unit")


def _assigned(acts):
    data = acts.data.copy()
    data[0] = 7
    return acts.copy(data=data)


def _added_in_place(acts):
    data = acts.data.copy()
    np.add(data, 1, out=data)
    return acts.copy(data=data)


OTHER = {
    "times": lambda a: a * 2,
    "plus nothing": lambda a: a + 0,
    "negative": lambda a: -a,
    "abs": abs,
    "where": lambda a: a.where(a > 0),
    "where label": lambda a: a.where(a.label == 1, drop=True),
    "clip": lambda a: a.clip(0),
    "astype": lambda a: a.astype("float64"),
    "fillna": lambda a: a.fillna(0),
    "mean": lambda a: a.mean("y"),
    "cumsum": lambda a: a.cumsum("example"),
    "concat": lambda a: xr.concat([a, a], "example"),
    "concat of parts": lambda a: xr.concat([a.isel(example=[0]), a.isel(example=[2])], "example"),
    "other data": lambda a: a.copy(data=a.data + 1),
    "map_blocks": lambda a: a.copy(data=da.map_blocks(np.negative, a.data)),
    "same name": lambda a: a.copy(data=da.map_blocks(np.negative, a.data, name="x")),
    "roll": lambda a: a.roll(example=1),
    "shift": lambda a: a.shift(example=1),
    "pad": lambda a: a.pad(example=1),
    "coarsen": lambda a: a.coarsen(y=2).mean(),
    "rolling": lambda a: a.rolling(example=2).mean(),
    "reindexed": lambda a: a.reindex(example=[1, 99]),
    "interpolated": lambda a: a.isel(checkpoint=0).drop_vars("label").interp(example=[0.5]),
    "expanded": lambda a: a.expand_dims("run"),
    "stacked": lambda a: a.stack(position=("y", "x")),
    "pointwise": lambda a: a.isel(example=xr.DataArray([0, 1], dims="pair"), unit=xr.DataArray([0, 1], dims="pair")),
    "new axis": lambda a: a.data[None],
    "lazy index": lambda a: a.data[da.from_array(np.array([0, 1]))],
    "lazy mask": lambda a: a.data[a.data > 0],
    "persisted": lambda a: a.persist(),
    "pickled": lambda a: pickle.loads(pickle.dumps(a)),
    "optimised": lambda a: dask.optimize(a.data)[0],
    "delayed": lambda a: da.from_delayed(dask.delayed(a.data), a.shape, a.dtype),
    "assigned in place": _assigned,
    "added in place": _added_in_place,
}


@pytest.mark.parametrize("name", OTHER)
def test_everything_else_loses_the_trace(acts, name):
    other = OTHER[name](acts)
    assert part_of(getattr(other, "data", other)) is None
    assert part_of(acts.data) is not None


@pytest.mark.parametrize("name", ["assigned in place", "added in place"])
def test_selections_of_what_was_changed_in_place_are_not_traced_either(sim, acts, name):
    changed = OTHER[name](acts)
    for later in (changed.isel(example=1), changed.transpose(), changed.chunk(example=2), changed.copy()):
        assert part_of(later.data) is None
    expected = sim.arrays[CUBE].copy()
    if name == "added in place":
        expected += 1
    else:
        expected[0] = 7
    np.testing.assert_array_equal(changed.isel(example=1).values, expected[:, 1])
    np.testing.assert_array_equal(acts.values, sim.arrays[CUBE])


def test_only_cubes_are_traced(sim):
    assert part_of(sim.store.root.input.data) is None
    assert part_of(np.zeros(3)) is None
    assert part_of(None) is None


def keys(dim_size):
    """Draw what isel takes for one dimension."""
    position = st.integers(-dim_size, dim_size - 1)
    bound = st.none() | st.integers(-dim_size - 1, dim_size + 1)
    return st.one_of(
        position,
        st.builds(slice, bound, bound, st.none() | st.integers(-3, -1) | st.integers(1, 3)),
        st.lists(position, max_size=6),
        st.lists(position, max_size=6, unique=True).map(sorted),
        st.lists(st.booleans(), min_size=dim_size, max_size=dim_size).map(np.array),
    )


@settings(max_examples=60)
@given(data=st.data())
def test_any_chain_of_selections_holds_what_its_part_says(sim, data):
    acts = open_store(sim.store.path, chunk_nbytes=data.draw(st.sampled_from([1, 3000, 10**6])))["conv1"].activations
    plain = xr.DataArray(sim.arrays[CUBE], dims=acts.dims)
    for _ in range(data.draw(st.integers(1, 4))):
        sizes = {dim: size for dim, size in acts.sizes.items() if size}
        step = data.draw(st.sampled_from(["select", "transpose", "chunk"]))
        if step == "select" and sizes:
            dims = data.draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3, unique=True))
            chosen = {dim: data.draw(keys(sizes[dim])) for dim in dims}
            acts, plain = acts.isel(chosen), plain.isel(chosen)
        elif step == "transpose":
            order = data.draw(st.permutations(acts.dims))
            acts, plain = acts.transpose(*order), plain.transpose(*order)
        elif sizes:
            dim = data.draw(st.sampled_from(sorted(sizes)))
            acts = acts.chunk({dim: data.draw(st.integers(1, sizes[dim]))})
    part = part_of(acts.data)
    assert part is not None
    assert part.dims == acts.dims
    got = acts.data.compute(scheduler="synchronous")
    np.testing.assert_array_equal(got, plain.values)
    np.testing.assert_array_equal(got, dense_part(sim.arrays[CUBE], part))


def blocks_of(examples, checkpoints=3):
    return sorted((c, b) for c in range(checkpoints) for b in {e // ROWS for e in examples})


def blocks_read(keys):
    found = [key.removeprefix(f"{CUBE}/c/").split("/")[:2] for key in keys if key.startswith(f"{CUBE}/c/")]
    return sorted((int(checkpoint), int(block)) for checkpoint, block in found)


@pytest.mark.parametrize(
    ("selection", "examples"),
    [
        ({"example": [5, 12]}, [5, 12]),
        ({"example": [12, 5]}, [12, 5]),
        ({"example": 7}, [7]),
        ({"example": slice(2, 8)}, range(2, 8)),
        ({"example": slice(None, None, 4)}, [0, 4, 8, 12]),
        ({"example": [4, 5, 5, 6], "unit": [3, 0]}, [4, 6]),
        ({"unit": 2, "y": slice(0, 2)}, range(N_EXAMPLES)),
    ],
    ids=str,
)
def test_a_selection_reads_each_block_it_needs_once_and_no_other(sim, counted, selection, examples):
    acts, keys_read = counted
    got = acts.isel(selection)
    assert blocks_read(keys_read) == []
    np.testing.assert_array_equal(got.values, xr.DataArray(sim.arrays[CUBE], dims=acts.dims).isel(selection).values)
    assert blocks_read(keys_read) == blocks_of(examples)


def test_a_selected_checkpoint_is_read_alone(counted):
    acts, keys_read = counted
    acts.sel(checkpoint=10).load()
    assert blocks_read(keys_read) == [(1, b) for b in range(5)]


@pytest.mark.parametrize(
    "change", [lambda a: a.chunk(unit=1), lambda a: a.chunk(example=1), lambda a: a.isel(example=[0, 12] * 6)]
)
def test_chunks_that_would_read_blocks_many_times_share_dasks_reads(counted, change):
    acts, keys_read = counted
    with dask.config.set(scheduler="synchronous"):
        change(acts).load()
    assert len(keys_read) == len(set(keys_read))


def test_two_queries_of_the_same_part_share_their_reads(counted):
    acts, keys_read = counted
    one, two = acts.isel(example=slice(0, 9)).isel(unit=1), acts.isel(unit=1).isel(example=slice(0, 9))
    assert one.data.name == two.data.name
    dask.compute(one.sum(), two.max())
    assert blocks_read(keys_read) == blocks_of(range(9))


def test_names_differ_by_part_and_chunks_and_repeat_for_a_store_that_is_opened_again(sim, acts):
    others = [acts, acts.isel(unit=0), acts.isel(unit=1), acts.transpose("unit", ...), acts.chunk(example=3)]
    assert len({other.data.name for other in others}) == len(others)
    again = open_store(sim.store.path, chunk_nbytes=3000)["conv1"]
    assert again.activations.data.name == acts.data.name
    assert again.gradients.data.name != acts.data.name


def test_xarray_computes_traced_and_plain_arrays_together(sim, acts):
    both = acts.to_dataset(name="a").assign(b=acts * 2).compute()
    np.testing.assert_array_equal(both.b.values, 2 * sim.arrays[CUBE])
    added = xr.apply_ufunc(np.add, acts, acts.max("example"), dask="parallelized", output_dtypes=["float32"])
    np.testing.assert_array_equal(added.values, sim.arrays[CUBE] + sim.arrays[CUBE].max(1, keepdims=True))
    assert isinstance(acts.data, TracedArray)
    assert not isinstance((acts * 2).data, TracedArray)


def test_errors_of_indexing_are_dasks_own(acts):
    for key in (13, [0, 13], (slice(None),) * 6, np.ones(12, bool), 0.5, [[0, 1]]):
        with pytest.raises((IndexError, TypeError, NotImplementedError)) as plain:
            da.Array.copy(acts.isel(checkpoint=0).data)[key]
        with pytest.raises(type(plain.value)) as traced:
            acts.isel(checkpoint=0).data[key]
        assert str(traced.value) == str(plain.value)


def test_a_deep_copy_is_the_same_part(acts):
    assert part_of(copy.deepcopy(acts.data)).positions is part_of(acts.data).positions


def test_positions_cannot_be_changed_under_the_trace(acts):
    with pytest.raises(ValueError, match="read-only"):
        part_of(acts.data).positions[1][0] = 5


def test_long_selections_that_differ_in_the_middle_are_different_arrays(tmp_path):
    n = 3000
    values = np.arange(n, dtype=np.float32).reshape(1, n, 1)
    store = simulate_store(
        tmp_path / "s.zarr", checkpoints=(0,), n_examples=n, layers={"fc": (1,)}, kinds=("activations",),
        planted={"layers/fc/activations": values},
    ).store  # fmt: skip
    acts = store["fc"].activations
    some = np.arange(0, n, 2)
    others = some.copy()
    others[700] += 1
    one, two = acts.isel(example=some), acts.isel(example=others)
    assert one.data.name != two.data.name
    found = dask.compute(one, two)
    np.testing.assert_array_equal(found[0].values, values[:, some])
    np.testing.assert_array_equal(found[1].values, values[:, others])
