"""Ranks beyond the view and thresholds: exact for any selection, and blocks that cannot matter are not read."""

import shutil

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_store import InvalidInputError, MemoryBudgetError, index_store, open_store
from ndt_store.testing import simulate_store

from .sources import CountingStorage, reads

N = 400


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Units that are active in a run of examples each, so that most blocks do not matter to most units."""
    rng = np.random.default_rng(3)
    fc = np.maximum(rng.standard_normal((2, N, 6)), 0).astype(np.float32)
    for unit in range(4):
        fc[:, 100 * unit : 100 * unit + 100, unit] += 10
    fc[:, :, 4] = 0
    fc[1, 7, 5] = np.nan
    fc = np.round(fc, 1)  # many ties
    conv = np.maximum(rng.standard_normal((2, N, 3, 4, 5)), 0).astype(np.float32)
    conv[:, 250, 1] += 20
    store = simulate_store(
        tmp_path_factory.mktemp("pruned") / "s.zarr", checkpoints=(0, 5), n_examples=N,
        layers={"fc": (6,), "conv": (3, 4, 5)}, kinds=("activations",), block_nbytes=1000,
        planted={"layers/fc/activations": fc, "layers/conv/activations": conv},
    ).store  # fmt: skip
    index_store(store)
    return store


@pytest.fixture
def store(planted):
    return open_store(CountingStorage(planted.catalogue.storage.root))


SELECTIONS = {
    "all": lambda a: a,
    "one unit": lambda a: a.isel(unit=[1]),
    "a class": lambda a: a.isel(example=np.flatnonzero(a["label"].values == 1)),
    "few examples backwards": lambda a: a.isel(example=[300, 42, 7]),
    "a run": lambda a: a.isel(example=slice(30, 260)),
    "one checkpoint, two units": lambda a: a.isel(checkpoint=1, unit=[2, 0]),
}


@pytest.mark.parametrize("k", [1, 20, 64, 65, 150, 400])
@pytest.mark.parametrize("layer", ["fc", "conv"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_ranks_of_any_number_and_selection_equal_a_full_sort(store, layer, k, selection):
    acts = SELECTIONS[selection](store[layer].activations)
    found = nq.top_examples(acts, k=k)
    dense = acts.compute()
    dense = dense if "checkpoint" in dense.dims else dense.expand_dims("checkpoint")
    over = [dim for dim in dense.dims if dim in ("y", "x")]
    best = dense.max(over, skipna=False).transpose("checkpoint", "unit", "example")
    ids = best["example"].values
    value = found["value"].values.reshape(*best.shape[:2], -1)
    example = found["example"].values.reshape(value.shape)
    for c in range(best.shape[0]):
        for u in range(best.shape[1]):
            row = best.values[c, u].astype(np.float64)
            order = np.lexsort((ids, np.where(np.isnan(row), -np.inf, -row)))[: min(k, len(ids))]
            np.testing.assert_array_equal(example[c, u], ids[order])
            np.testing.assert_array_equal(value[c, u], row[order].astype(np.float32))


def test_places_beyond_the_view_equal_those_of_a_pass(store):
    acts = store["conv"].activations.isel(unit=[1, 2])
    ours, pass_over = nq.top_examples(acts, k=90).compute(), nq.top_examples(acts, k=90, views=False).compute()
    for name in ("value", "example", "y", "x"):
        np.testing.assert_array_equal(ours[name].values, pass_over[name].values)


def test_blocks_that_cannot_hold_a_rank_are_not_read(store):
    acts = store["fc"].activations.isel(unit=[2], checkpoint=0)
    n_blocks = len(store.catalogue.record(0).arrays["layers/fc/activations"].blocks)
    with dask.config.set(scheduler="synchronous"):  # with threads it is chance how far one runs ahead of the others
        found = nq.top_examples(acts, k=80).compute()
    assert set(found["example"].values[0]) <= set(store.examples[200:300])
    assert len(reads(store)) <= 0.3 * n_blocks  # a quarter holds the run
    assert n_blocks >= 10


def test_a_dead_unit_ends_with_the_first_examples_and_few_blocks(store):
    found = nq.top_examples(store["fc"].activations.isel(unit=[4], checkpoint=0), k=80).compute()
    np.testing.assert_array_equal(found["example"].values[0], store.examples[:80])


def test_examples_among_the_kept_ranks_need_no_block(store):
    acts = store["fc"].activations.isel(unit=[0], example=slice(0, 100), checkpoint=[0])
    nq.top_examples(acts, k=20).compute()
    assert reads(store) == []


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.5, 10.5, 1e9])
@pytest.mark.parametrize("layer", ["fc", "conv"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_hits_equal_a_dense_search(store, layer, threshold, selection):
    acts = SELECTIONS[selection](store[layer].activations)
    found = nq.examples_above(acts, threshold)
    again = nq.examples_above(acts, threshold, views=False)
    in_memory = nq.examples_above(acts.compute(), threshold)
    dense = acts.compute()
    dense = dense if "checkpoint" in dense.dims else dense.expand_dims("checkpoint")
    over = [dim for dim in dense.dims if dim in ("y", "x")]
    best = dense.max(over, skipna=False).transpose("checkpoint", "unit", "example")
    expected = []
    for c, step in enumerate(best["checkpoint"].values):
        for u, unit in enumerate(best["unit"].values):
            hits = [
                (-np.inf if np.isnan(value) else -float(value), int(example), int(step), int(unit))
                for value, example in zip(best.values[c, u], best["example"].values, strict=True)
                if not value <= threshold
            ]
            expected += [(step, unit, example) for _, example, step, unit in sorted(hits)]
    for result in (found, again, in_memory):
        listed = zip(result["checkpoint"].values, result["unit"].values, result["example"].values, strict=True)
        assert [tuple(map(int, hit)) for hit in listed] == expected


def test_a_hit_says_where_in_the_example_it_is(store):
    found = nq.examples_above(store["conv"].activations, 15)
    assert set(found["example"].values) == {store.examples[250]}
    assert set(found["unit"].values) == {1}
    dense = store["conv"].activations.values
    for c, (y, x) in enumerate(zip(found["y"].values, found["x"].values, strict=True)):
        assert dense[c, 250, 1, y, x] == dense[c, 250, 1].max() == found["value"].values[c]


def test_blocks_that_cannot_hold_a_hit_are_not_read(store):
    found = nq.examples_above(store["conv"].activations, 15, explain=True)
    assert len(reads(store)) == found.attrs["blocks_read"] == 2
    assert found.attrs["blocks"] > 20
    assert "2 of " in found.attrs["explain"]


def test_nothing_beyond_the_threshold_is_an_empty_answer(store):
    found = nq.examples_above(store["conv"].activations, 1e6)
    assert dict(found.sizes) == {"hit": 0}
    assert set(found.data_vars) >= {"checkpoint", "unit", "example", "value", "y", "x"}
    assert reads(store) == []


def test_too_many_hits_are_refused_with_the_number(store):
    with pytest.raises(InvalidInputError, match="More than 10 hits lie beyond the threshold 0"):
        nq.examples_above(store["conv"].activations, 0, limit=10)


@pytest.mark.parametrize("threshold", ["1", np.nan, np.inf, True, None])
def test_a_threshold_that_is_no_number_is_refused(store, threshold):
    with pytest.raises(InvalidInputError, match="threshold="):
        nq.examples_above(store["fc"].activations, threshold)


def test_budgets_are_kept(store):
    with pytest.raises(MemoryBudgetError):
        nq.examples_above(store["fc"].activations, 1, memory=1000)
    with pytest.raises(MemoryBudgetError):
        nq.top_examples(store["fc"].activations, k=100, memory=1000)
    for acts, options in ((store["fc"].activations, {"views": False}), (store["fc"].activations * 2, {})):
        with pytest.raises(MemoryBudgetError, match="examples_above is projected to take"):
            nq.examples_above(acts, 1, memory=1000, **options)
        assert nq.examples_above(acts, 25, memory="10 MB", **options).sizes["hit"] > 0
    assert nq.examples_above(store["fc"].activations, 11, memory="200 kB", limit=1000).sizes["hit"] > 0
    with pytest.raises(MemoryBudgetError, match="lower limit="):
        nq.examples_above(store["fc"].activations, 11, memory="200 kB", limit=2000)


def test_a_chunk_of_several_checkpoints_is_computed_once():
    computed = []

    def noted(block, block_info=None):
        computed.append(block_info[0]["chunk-location"])
        return block + 0

    values = np.random.default_rng(0).standard_normal((4, 30, 3))
    data = da.from_array(values, chunks=(2, 10, 3)).map_blocks(noted, dtype=float, meta=np.empty((0, 0, 0)))
    computed.clear()
    acts = xr.DataArray(data, dims=("checkpoint", "example", "unit"), coords={"example": np.arange(30)})
    found = nq.examples_above(acts.assign_coords(checkpoint=range(4), unit=range(3)), 0.5)
    assert len(computed) == len(set(computed)) == 6
    listed = zip(found["checkpoint"].values, found["example"].values, found["unit"].values, strict=True)
    assert sorted(listed) == sorted(map(tuple, np.argwhere(values > 0.5)))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A store of float16, whose zone maps are float32, in several blocks."""
    rng = np.random.default_rng(5)
    fc = rng.standard_normal((1, 200, 3)).astype(np.float16)
    fc[0, :, 0], fc[0, 30, 0] = 0, 0.5
    fc[0, 90, 2] = np.nan
    store = simulate_store(
        tmp_path_factory.mktemp("half") / "s.zarr", checkpoints=(0,), n_examples=200, layers={"fc": (3,)},
        kinds=("activations",), block_nbytes=128, dtype="float16", planted={"layers/fc/activations": fc},
    ).store  # fmt: skip
    index_store(store)
    return store


@pytest.mark.parametrize("threshold", [0.5 - 1e-12, 0.5, 0.5 + 1e-12, 0.1, -0.3])
@pytest.mark.parametrize("unit", range(3))
@pytest.mark.parametrize("views", [True, False])
def test_float16_exceeds_a_threshold_as_its_float64_does(half, threshold, unit, views):
    acts = half["fc"].activations.isel(unit=[unit])
    found = nq.examples_above(acts, threshold, views=views)
    exceeds = ~(acts.values[0, :, 0].astype(np.float64) <= threshold)
    assert sorted(found["example"].values) == half.examples[exceeds].tolist()


@pytest.mark.parametrize("views", [True, False])
def test_float32_exceeds_a_threshold_that_it_cannot_hold(store, views):
    acts = store["conv"].activations
    found = nq.examples_above(acts, float(acts.max()) - 1e-12, views=views)
    assert found["value"].values.tolist() == [acts.values.max()]


@pytest.mark.parametrize("select", [lambda a: a, lambda a: a.isel(example=slice(0, 150))], ids=["all", "some"])
@pytest.mark.parametrize("k", [3, 90])
def test_ranks_of_float16_have_one_type_wherever_they_come_from(half, tmp_path, k, select):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(half.path, bare)
    shutil.rmtree(bare / "views")
    expected = nq.top_examples(select(half["fc"].activations).compute(), k=k)
    for source in (half, open_store(bare), open_store(bare)):
        found = nq.top_examples(select(source["fc"].activations), k=k)
        for answer in (found, found.compute()):
            assert answer["value"].dtype == expected["value"].dtype == np.float64
        np.testing.assert_array_equal(found["value"].values, expected["value"].values)
        np.testing.assert_array_equal(found["example"].values, expected["example"].values)


@pytest.fixture
def bare(planted, tmp_path):
    """The planted store without views."""
    path = tmp_path / "bare.zarr"
    shutil.copytree(planted.path, path)
    shutil.rmtree(path / "views")
    return open_store(CountingStorage(path))


def views_of(store):
    root = store.catalogue.storage.root / "views"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


ASKING = {
    "hits": lambda acts: nq.examples_above(acts, 15, explain=True),
    "ranks": lambda acts: nq.top_examples(acts, k=80, explain=True),
}


@pytest.mark.parametrize("question", ASKING)
def test_missing_views_are_made_on_the_way_where_all_blocks_are_read(bare, planted, question):
    ask, acts = ASKING[question], bare["conv"].activations.isel(unit=[1])
    first = ask(acts)
    assert "no zone map at 0, 5 (not made yet: all blocks are read, and views made of them" in first.attrs["explain"]
    first = first.compute()
    assert (
        len(reads(bare))
        == len(set(reads(bare)))
        == 2 * len(bare.catalogue.record(0).arrays["layers/conv/activations"].blocks)
    )
    made = views_of(bare)
    assert set(made) == {f"{view}/conv/activations/{step}" for view in ("moments", "topk") for step in (0, 5)}
    assert made.items() <= views_of(planted).items()
    bare.catalogue.storage.reads.clear()
    again = ask(bare["conv"].activations.isel(unit=[1]))
    assert "no zone map" not in again.attrs["explain"]
    assert "zone maps do not rule out" in again.attrs["explain"]
    again = again.compute()
    for name in first.data_vars:
        np.testing.assert_array_equal(again[name].values, first[name].values)
    if question == "hits":
        assert (len(reads(bare)), again.attrs["blocks_read"]) == (2, 2)


@pytest.mark.parametrize("question", ASKING)
def test_no_views_are_made_where_not_all_blocks_are_read_and_explain_says_what_makes_them(bare, question):
    acts = bare["conv"].activations.isel(example=slice(200, 300))
    found = ASKING[question](acts)
    words = "no zone map at 0, 5 (not made yet: all blocks with selected examples are read; `ndt index` makes one)"
    assert words in found.attrs["explain"]
    found.compute()
    assert not (bare.catalogue.storage.root / "views").exists()
