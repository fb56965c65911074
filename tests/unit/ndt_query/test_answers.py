"""Answers from views equal a pass over the values, stand for what views describe alone, and name their source."""

import os
import shutil

import dask
import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.asked import asked_of
from ndt_store import MemoryBudgetError, ViewWarning, index_store, open_store
from ndt_store.storage import LocalStorage
from ndt_store.testing import simulate_store
from ndt_store.views.shelf import view_key

from .sources import CountingStorage, reads


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers") / "s.zarr"
    simulated = simulate_store(path, n_examples=90, n_classes=4)
    index_store(simulated.store)
    return simulated


@pytest.fixture
def counted(made):
    return open_store(CountingStorage(made.store.catalogue.storage.root))


@pytest.fixture
def bare(made, tmp_path):
    """The same store without views."""
    path = tmp_path / "bare.zarr"
    shutil.copytree(made.store.path, path)
    shutil.rmtree(path / "views")
    return open_store(CountingStorage(path))


QUESTIONS = {
    "unit_moments": nq.unit_moments,
    "dead_units": nq.dead_units,
    "neuron_importance": nq.neuron_importance,
    "newly_active_units": lambda acts, **options: nq.newly_active_units(acts, 0, 100, **options),
    "class_means": nq.class_means,
    "top_examples": nq.top_examples,
}


def same(ours, theirs):
    for name, values in theirs.data_vars.items():
        np.testing.assert_allclose(ours[name].values, values.values, rtol=1e-9, atol=1e-12, err_msg=name)
        assert ours[name].dims == values.dims
        assert ours[name].dtype == values.dtype
        assert set(ours[name].coords) == set(values.coords)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("layer", ["conv1", "blocks.0", "fc"])
def test_a_view_gives_what_a_pass_gives_and_reads_no_block(counted, name, layer):
    acts = counted[layer].activations
    found = QUESTIONS[name](acts, explain=True)
    assert reads(counted) == []
    assert all(variable.chunks is None for variable in found.data_vars.values())
    expected = QUESTIONS[name](acts, views=False, explain=True).compute()
    assert reads(counted)
    same(found, expected)
    assert found.attrs["explain"].startswith(f"layers/{layer}/activations: view ")
    assert "a pass over its values (views=False)" in expected.attrs["explain"]
    assert "explain" not in QUESTIONS[name](acts).attrs


@pytest.mark.parametrize(
    ("why", "select"),
    [
        ("units, in another order", lambda a: a.isel(unit=[3, 0])),
        ("a run of checkpoints", lambda a: a.sel(checkpoint=slice(10, 100))),
        ("one checkpoint", lambda a: a.sel(checkpoint=10)),
        ("examples in another order", lambda a: a.isel(example=np.random.default_rng(0).permutation(90))),
        ("dimensions in another order", lambda a: a.transpose("unit", ..., "checkpoint")),
        ("other chunks", lambda a: a.chunk(example=7)),
        (
            "a renamed array and other attributes",
            lambda a: a.rename("other").assign_attrs(store="elsewhere", layer="x"),
        ),
        ("checkpoints backwards", lambda a: a.isel(checkpoint=slice(None, None, -1))),
    ],
)
@pytest.mark.parametrize("name", ["unit_moments", "class_means", "top_examples"])
def test_selections_of_whole_examples_are_answered_from_views(counted, name, why, select):
    acts = select(counted["conv1"].activations)
    found = QUESTIONS[name](acts)
    assert reads(counted) == [], why
    same(found, QUESTIONS[name](acts.compute()))


@pytest.mark.parametrize(
    ("why", "select"),
    [
        ("arithmetic", lambda a: a * 2),
        ("arithmetic that changes nothing", lambda a: a + 0),
        ("masked values", lambda a: a.where(a > 1)),
        ("positions left out", lambda a: a.isel(y=slice(1, None))),
        ("positions backwards", lambda a: a.isel(x=slice(None, None, -1))),
        ("a position", lambda a: a.isel(y=0)),
        ("examples left out", lambda a: a.isel(example=slice(1, None))),
        ("an example twice", lambda a: a.isel(example=[0, *range(89)])),
        ("swapped names", lambda a: a.rename(y="x", x="y")),
        ("values in memory", lambda a: a.load()),
        ("concatenated", lambda a: xr.concat([a.isel(example=slice(45)), a.isel(example=slice(45, None))], "example")),
    ],
)
def test_everything_else_is_computed_from_its_values(counted, why, select):
    acts = select(counted["conv1"].activations)
    found = nq.unit_moments(acts, explain=True)
    assert "a pass over its values" in found.attrs["explain"]
    # numpy's own moments, not ours
    over = [dim for dim in acts.dims if dim not in ("checkpoint", "unit")]
    values = acts.astype(np.float64).compute()
    np.testing.assert_allclose(found["mean"].values, values.mean(over, skipna=False).values, rtol=1e-9, err_msg=why)
    np.testing.assert_allclose(found["max"].values, values.max(over, skipna=False).values, rtol=1e-9, err_msg=why)


def test_options_that_the_view_does_not_know_are_computed(counted):
    acts = counted["fc"].activations
    assert "not beyond another threshold" in nq.dead_units(acts, 0.5, explain=True).attrs["explain"]
    labels = xr.DataArray((counted.labels + 1) % 3, dims="example")
    found = nq.class_means(acts, labels, explain=True)
    assert "the labels are others than the store's" in found.attrs["explain"]
    same(found.compute(), nq.class_means(acts.compute(), labels))
    renamed = acts.assign_coords(example=np.arange(90)[::-1])
    found = nq.top_examples(renamed, explain=True)
    assert "the examples are named otherwise than in the store" in found.attrs["explain"]
    same(found.compute(), nq.top_examples(renamed.compute()))


def test_a_missing_view_is_made_once_for_questions_asked_together_and_kept(bare):
    acts = bare["conv1"].activations
    questions = [QUESTIONS[name](acts, explain=True) for name in ("unit_moments", "class_means", "top_examples")]
    assert reads(bare) == []
    assert "the others made from" in questions[0].attrs["explain"]
    assert "0 of 3 checkpoints" in questions[0].attrs["explain"]
    answers = dask.compute(*questions)
    assert len(reads(bare)) == len(set(reads(bare))) > 3
    for found, name in zip(answers, ("unit_moments", "class_means", "top_examples"), strict=True):
        same(found, QUESTIONS[name](acts.load()))
    bare.catalogue.storage.reads.clear()
    again = nq.unit_moments(open_store(bare.catalogue.storage)["conv1"].activations, explain=True)
    assert reads(bare) == []
    same(again, answers[0])


def test_only_missing_checkpoints_are_read(bare):
    index_store(bare, layers=["fc"], checkpoints=[0, 100])
    bare.catalogue.storage.reads.clear()
    acts = bare["fc"].activations
    found = nq.unit_moments(acts, explain=True)
    assert "view moments at 2 of 3 checkpoints" in found.attrs["explain"]
    assert "10 not made yet" in found.attrs["explain"]
    found = found.compute()
    assert {key.split("/")[4] for key in reads(bare)} == {"1"}
    same(found, nq.unit_moments(acts.load()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_store_on_a_read_only_disk_answers(bare):
    root = bare.catalogue.storage.root
    root.chmod(0o555)
    try:
        same(nq.unit_moments(bare["fc"].activations).compute(), nq.unit_moments(bare["fc"].activations.load()))
    finally:
        root.chmod(0o755)


def test_a_store_that_cannot_be_written_to_answers_and_keeps_nothing(bare, monkeypatch):
    from ndt_store.errors import StorageError

    def refuse(*_args, **_options):
        raise StorageError("read-only")

    monkeypatch.setattr(LocalStorage, "write", refuse)
    acts = bare["conv1"].activations
    same(nq.unit_moments(acts).compute(), nq.unit_moments(acts.load()))
    assert not (bare.catalogue.storage.root / "views").exists()


def test_a_damaged_view_is_named_and_the_answer_right(bare):
    index_store(bare, layers=["fc"])
    spec = bare.schema.find("layers/fc/activations")
    path = bare.catalogue.storage.root / view_key("moments", spec, 10)
    path.write_bytes(path.read_bytes()[:100])
    acts = bare["fc"].activations
    with pytest.warns(ViewWarning, match="is damaged"):
        found = nq.unit_moments(acts, explain=True)
    assert "10 damaged" in found.attrs["explain"]
    same(found.compute(), nq.unit_moments(acts.load()))
    same(nq.unit_moments(acts), nq.unit_moments(acts.load()))  # without a word: it was made again


def test_nan_and_infinity_come_from_the_view_as_from_a_pass(tmp_path):
    rng = np.random.default_rng(0)
    planted = rng.standard_normal((1, 70, 9)).astype(np.float32)
    planted[0, 3, 1], planted[0, 4, 2], planted[0, 5, 3], planted[0, :, 4] = np.nan, np.inf, -np.inf, 0.0
    planted[0, 60, 1] = np.nan
    store = simulate_store(
        tmp_path / "s.zarr", checkpoints=(0,), n_examples=70, layers={"fc": (9,)}, kinds=("activations",),
        planted={"layers/fc/activations": planted}, block_nbytes=512,
    ).store  # fmt: skip
    index_store(store)
    acts = store["fc"].activations
    for name in ("unit_moments", "dead_units", "class_means", "top_examples"):
        same(QUESTIONS[name](acts), QUESTIONS[name](acts.load().copy()))


def test_a_whole_store_is_answered_layer_by_layer(counted):
    found = nq.unit_moments(counted, explain=True)
    assert set(found.children) == set(counted.layers)
    table = nq.summary(counted, explain=True)
    assert len(table.attrs["explain"].splitlines()) >= 3


def test_making_a_view_keeps_within_the_budget(bare):
    with pytest.raises(MemoryBudgetError, match="unit_moments is projected to take"):
        nq.unit_moments(bare["conv1"].activations, memory=2000)


def test_gradients_have_views_of_their_own(counted):
    found = nq.unit_moments(counted["fc"].gradients)
    assert reads(counted) == []
    same(found, nq.unit_moments(counted["fc"].gradients.compute()))


def test_asked_of_tells_what_part_it_is(made):
    acts = made.store["conv1"].activations
    asked, why = asked_of(acts.isel(unit=[2, 1], checkpoint=[2]))
    assert why == ""
    assert (asked.steps, asked.units.tolist(), asked.all_examples) == ((100,), [2, 1], True)
    assert asked_of(acts * 1)[0] is None
    assert asked_of(acts.compute())[0] is None


def test_a_view_that_does_not_fit_the_budget_gives_way_to_a_pass_that_does(tmp_path):
    store = simulate_store(
        tmp_path / "s.zarr", checkpoints=(0,), n_examples=64, layers={"fc": (400,)}, kinds=("activations",)
    ).store
    acts = store["fc"].activations.isel(unit=[3])
    found = nq.unit_moments(acts, memory=200_000, explain=True)
    assert "making the view would not fit the budget" in found.attrs["explain"]
    same(found.compute(), nq.unit_moments(acts.load()))
    assert not (store.catalogue.storage.root / "views").exists()
