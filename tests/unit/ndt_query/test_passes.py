"""Passes over blocks: equal to passes over chunks, each block read once whoever asks, and none before it is needed."""

import gc
import pickle

import dask
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import ThreadpoolController, threadpool_limits

import ndt_query as nq
from ndt_query import runs
from ndt_query.asked import asked_of
from ndt_query.dimension import Measuring, RowsReduction, ScatterReduction
from ndt_query.reductions import ClassReduction, MomentsReduction, TopReduction
from ndt_query.runs import as_question
from ndt_query.selectivity import SelectivityReduction
from ndt_store import IntegrityError, MemoryBudgetError, open_store
from ndt_store.testing import simulate_store
from ndt_store.testing.faults import flip_bit

from .sources import CountingStorage, reads

N = 90


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("passes") / "s.zarr"
    return simulate_store(path, n_examples=N, n_classes=4).store


@pytest.fixture
def store(made, monkeypatch):
    """One block a run and one checkpoint a chunk."""
    monkeypatch.setattr(runs, "RUN_NBYTES", 2048)
    return open_store(CountingStorage(made.catalogue.storage.root), chunk_nbytes=4096)


QUESTIONS = {
    "unit_moments": lambda acts: nq.unit_moments(acts, views=False),
    "unit_moments above": lambda acts: nq.unit_moments(acts, threshold=0.5),
    "dead_units": lambda acts: nq.dead_units(acts, views=False),
    "neuron_importance": lambda acts: nq.neuron_importance(acts, views=False),
    "class_means": lambda acts: nq.class_means(acts, views=False),
    "top_examples": lambda acts: nq.top_examples(acts, 7, views=False),
    "selectivity_index": lambda acts: nq.selectivity_index(acts, n_permutations=10),
    "dimensionality": lambda acts: nq.dimensionality(acts, positions="samples", views=False, n_groups=5),
    "dimensionality of rows": lambda acts: nq.dimensionality(acts.isel(unit=[0, 0, 1]), views=False, n_groups=5),
}
SELECTIONS = {
    "everything": lambda acts: acts,
    "some examples": lambda acts: acts.isel(example=[0, 1, 2, 40, 41, 60, 88, 89]),
    "every third example": lambda acts: acts.isel(example=slice(1, None, 3)),
    "some units": lambda acts: acts.isel(unit=[3, 0, 1]),
    "examples and units": lambda acts: acts.isel(example=slice(7, 60), unit=slice(1, 4)),
    "checkpoints backwards": lambda acts: acts.isel(checkpoint=[2, 0]),
    "a checkpoint without its dimension": lambda acts: acts.isel(checkpoint=1),
    "turned": lambda acts: acts.transpose(..., "checkpoint", "example"),
}


def by_chunks(acts):
    """The same values without a trace."""
    return acts.copy(data=acts.data.map_blocks(np.array, dtype=acts.dtype))


def same(found, expected):
    assert found.attrs == expected.attrs
    for name, values in expected.data_vars.items():
        np.testing.assert_allclose(found[name].values, values.values, rtol=1e-9, atol=1e-12, err_msg=name)
        assert found[name].dtype == values.dtype
        assert found[name].dims == values.dims


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("layer", ["conv1", "blocks.0", "fc"])
def test_pass__equals_the_pass_over_chunks(store, layer, name, select):
    acts = SELECTIONS[select](store[layer].activations)
    found = QUESTIONS[name](acts)
    assert not any("ndt-read" in name for name in graph_of(found))
    same(found.compute(), QUESTIONS[name](by_chunks(acts)).compute())


def graph_of(result):
    return {name for variable in result.data_vars.values() if variable.chunks for name in variable.data.dask.layers}


def test_pass__over_examples_out_of_order_goes_by_chunks(store):
    acts = store["conv1"].activations.isel(example=[5, 3, 80, 4])
    found = nq.class_means(acts, views=False)
    assert any("ndt-read" in name for name in graph_of(found))
    same(found.compute(), nq.class_means(by_chunks(acts), views=False).compute())


def test_question__computes_nothing_until_asked(store):
    for ask in QUESTIONS.values():
        ask(store["conv1"].activations)
    assert reads(store) == []


def test_questions__asked_together_read_each_block_once(store):
    acts = store["conv1"].activations
    n_blocks = sum(len(store.catalogue.record(step).arrays["layers/conv1/activations"].blocks) for step in (0, 10, 100))
    for names in (["unit_moments"], ["unit_moments", "class_means"], list(QUESTIONS)):
        reads(store).clear()
        dask.compute(*(QUESTIONS[name](acts) for name in names))
        assert len(reads(store)) == len(set(reads(store))) == n_blocks > 3 * 10


def test_questions__of_different_selections_share_their_blocks(store):
    acts = store["conv1"].activations
    asked = [
        nq.unit_moments(acts.isel(checkpoint=[0, 1]), views=False),
        nq.top_examples(acts.isel(unit=[1], checkpoint=[1]), views=False),
        nq.class_means(acts.isel(example=slice(0, 30)), views=False),
    ]
    found = dask.compute(*asked)
    assert len(reads(store)) == len(set(reads(store)))
    for one, alone in zip(found, asked, strict=True):
        xr.testing.assert_identical(one, alone.compute())


def test_questions__of_two_snapshots_of_one_store_share_their_blocks(store):
    storage = store.catalogue.storage
    one, other = (open_store(storage)["fc"].activations for _ in range(2))
    dask.persist(nq.unit_moments(one, views=False), nq.class_means(other, views=False))
    assert len(reads(store)) == len(set(reads(store))) > 3


def test_pass__reads_only_blocks_with_selected_examples(store):
    spec = store.schema.find("layers/conv1/activations")
    rows = [0, 3 * spec.rows, 3 * spec.rows + 1, N - 1]
    nq.unit_moments(store["conv1"].activations.isel(example=rows, checkpoint=[1])).compute()
    wanted = {entry.key for i, entry in enumerate(store.catalogue.record(10).arrays[spec.path].blocks)
              if any(row // spec.rows == i for row in rows)}  # fmt: skip
    assert set(reads(store)) == wanted
    assert len(reads(store)) == len(wanted) == 3


def test_pass__reads_only_checkpoints_whose_results_are_wanted(store):
    found = nq.unit_moments(store["conv1"].activations, views=False)
    assert found["mean"].chunksizes["checkpoint"] == (1, 1, 1)
    found["mean"].sel(checkpoint=10).compute()
    assert {key.split("/")[4] for key in reads(store)} == {"1"}


def test_pass__joins_small_checkpoints_into_one_task(store, monkeypatch):
    monkeypatch.setattr(runs, "RUN_NBYTES", 1 << 20)
    store = open_store(store.catalogue.storage)
    found = nq.unit_moments(store["fc"].activations, views=False)
    assert found["mean"].chunksizes["checkpoint"] == (3,)
    tasks = dict(dask.optimize(found)[0].__dask_graph__())
    assert sum("-run-" in str(key) for key in tasks) == 1
    assert len(reads(store)) == 0
    same(found.compute(), nq.unit_moments(by_chunks(store["fc"].activations)).compute())


def test_pass__repeats_bit_for_bit_whoever_else_asks_and_on_any_scheduler(store):
    acts = store["conv1"].activations
    with dask.config.set(scheduler="synchronous"):
        one = nq.unit_moments(acts, views=False).compute()
    with dask.config.set(scheduler="threads", num_workers=4):
        other, _ = dask.compute(nq.unit_moments(acts, views=False), nq.class_means(acts[:, 10:], views=False))
    xr.testing.assert_identical(one, other)
    part = nq.unit_moments(acts.sel(checkpoint=[100]), views=False).compute()
    xr.testing.assert_equal(part, one.sel(checkpoint=[100]))


def test_pass__names_a_damaged_block_and_gives_the_threads_back(tmp_path):
    store = simulate_store(tmp_path / "s.zarr", checkpoints=(0,), n_examples=N).store
    entry = store.catalogue.record(0).arrays["layers/conv1/activations"].blocks[3]
    flip_bit(store.catalogue.storage.root / entry.key, np.random.default_rng(0))
    with threadpool_limits(2), dask.config.set(scheduler="threads"):
        with pytest.raises(IntegrityError) as caught:
            nq.unit_moments(store["conv1"].activations, views=False).compute()
        assert {lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas"} == {2}
    assert (caught.value.array, caught.value.block) == ("layers/conv1/activations", entry.key)


@pytest.mark.parametrize("only", [["mean"], ["mean", "std"]])
def test_pass__runs_with_one_blas_thread_also_where_dask_fuses_it_into_one_task(store, monkeypatch, only):
    seen = []
    update = MomentsReduction.update

    def noting(self, block, start):
        seen.extend(lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas")
        return update(self, block, start)

    monkeypatch.setattr(MomentsReduction, "update", noting)
    monkeypatch.setattr(runs, "RUN_NBYTES", 1 << 20)
    with threadpool_limits(2):
        (nq.unit_moments(store["fc"].activations.isel(checkpoint=[0]), views=False)[only] ** 2).compute()
    assert set(seen) == {1}


def test_pass__over_its_budget_says_so_before_it_reads(store):
    with pytest.raises(MemoryBudgetError, match="unit_moments is projected to take"):
        nq.unit_moments(store["conv1"].activations, memory=1000, views=False)
    assert reads(store) == []


def test_result__can_be_pickled_and_outlives_its_twin(store):
    acts = store["conv1"].activations
    found = nq.unit_moments(acts, views=False)
    expected = found.compute()
    twin = pickle.loads(pickle.dumps(found))
    again = nq.unit_moments(acts, views=False)
    del found
    gc.collect()
    xr.testing.assert_identical(twin.compute(), expected)
    del twin
    gc.collect()
    xr.testing.assert_identical(again.compute(), expected)
    frozen = pickle.dumps(again)
    del again
    gc.collect()
    xr.testing.assert_identical(pickle.loads(frozen).compute(), expected)


def test_result__is_the_same_without_optimisation_and_after_it(store):
    acts = store["conv1"].activations
    found, other = nq.unit_moments(acts, views=False), nq.class_means(acts, views=False)
    (whole,) = dask.compute(found, optimize_graph=False)
    xr.testing.assert_identical(whole, found.compute())
    apart = dask.compute(*dask.optimize(found, other), other)
    xr.testing.assert_identical(apart[0], whole)
    xr.testing.assert_identical(apart[1], apart[2])
    graph = found["mean"].data.dask
    assert set(graph.layers[next(name for name in graph.layers if "passes" in name)]) <= set(graph)
    assert len(graph.keys()) == len(graph)


def test_questions__are_let_go_with_their_results(store):
    acts = store["conv1"].activations
    kept = nq.unit_moments(acts, views=False)
    passes = next(iter(kept["mean"].data.dask.layers.values()))
    for k in range(3):
        nq.top_examples(acts, k + 1, views=False).compute()
    gc.collect()
    assert len(passes.questions) == 1
    del kept
    gc.collect()
    assert len(passes.questions) == 0


def test_question__is_one_object_for_equal_results(store):
    asked, _ = asked_of(store["fc"].activations)
    one, other = (as_question(asked, (1, 1, 1), MomentsReduction(0.5)) for _ in range(2))
    assert one is other
    assert one is not as_question(asked, (1, 1, 1), MomentsReduction(0.25))
    assert one is pickle.loads(pickle.dumps(one))


def test_states__keep_nothing_of_a_block(rng):
    codes, how = np.arange(12) % 3, Measuring("flatten", True, "jackknife", 3, 0.95)
    reductions = [
        MomentsReduction(0.0),
        TopReduction(np.arange(12), 4, "float32"),
        ClassReduction(codes, 3),
        SelectivityReduction(codes, 3, "auto", 5, 0),
        RowsReduction(codes, 5, how, 1, 4),
        ScatterReduction(codes, 5, how),
    ]
    for reduction in reductions:
        values = rng.random((1, 12, 1, 5, 1), dtype=np.float32)
        block = values.copy()
        state = reduction.update(block, 0)
        block[...] = np.nan
        found, expected = reduction.finalise(state), reduction.finalise(reduction.update(values, 0))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{type(reduction).__name__} {name}")
