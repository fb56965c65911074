"""Dimensions from Gram views equal dimensions from values, and views that do not hold the answer are not asked."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import ndt_query as nq
from ndt_store import MemoryBudgetError, ViewWarning, open_store
from ndt_store.testing import simulate_store
from ndt_store.views import gram_view
from ndt_store.views.shelf import view_key

from .sources import CountingStorage, reads

MODES = ("flatten", "mean", "samples")
LAYERS = {"conv": (4, 3, 2), "wide": (70, 2, 2), "tokens": (3, 200), "fc": (7,)}
N = 60


def simulated(path, **options):
    settings = {"checkpoints": (0, 5), "kinds": ("activations",), "layers": LAYERS, "block_nbytes": 4096}
    return simulate_store(path, n_examples=N, **settings | options).store


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store in which every question of these tests without options was asked once."""
    store = simulated(tmp_path_factory.mktemp("gramviewed") / "s.zarr")
    for mode in MODES:
        nq.dimensionality(store, positions=mode, interval="none").compute()
    return store


@pytest.fixture
def counted(made):
    return open_store(CountingStorage(made.catalogue.storage.root))


@pytest.fixture
def bare(made, tmp_path):
    """The same store without views."""
    path = tmp_path / "bare.zarr"
    shutil.copytree(made.path, path)
    shutil.rmtree(path / "views")
    return open_store(CountingStorage(path))


def same(ours, theirs):
    for name, values in theirs.data_vars.items():
        np.testing.assert_allclose(ours[name].values, values.values, rtol=1e-9, err_msg=name)
        assert ours[name].dims == values.dims
        assert ours[name].dtype == values.dtype


OPTIONS = [
    {},
    {"centre": False},
    {"interval": "none", "n_groups": 7, "seed": 3},
]
CASES = [
    ("wide", "flatten"),
    ("wide", "mean"),
    ("wide", "samples"),
    ("tokens", "samples"),
    ("conv", "mean"),
    ("fc", "flatten"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("layer", "mode"), CASES)
def test_a_view_gives_what_the_values_give_and_reads_no_block(counted, layer, mode, options):
    acts = counted[layer].activations
    found = nq.dimensionality(acts, positions=mode, explain=True, **options)
    source = f"layers/{layer}/activations: view gram-{mode} at 2 of 2 checkpoints"
    assert found.attrs["explain"] == source
    found = found.compute()
    assert reads(counted) == []
    same(found, nq.dimensionality(acts.load(), positions=mode, **options))


@pytest.mark.parametrize("options", [{"n_groups": 7}, {"seed": 1, "centre": False}], ids=str)
def test_other_groups_are_answered_on_the_side_of_samples_alone(counted, options):
    for layer, mode in (("wide", "flatten"), ("wide", "mean"), ("tokens", "samples")):
        found = nq.dimensionality(counted[layer].activations, positions=mode, **options).compute()
        assert reads(counted) == []
        same(found, nq.dimensionality(counted[layer].activations.load(), positions=mode, **options))
        counted.catalogue.storage.reads.clear()
    acts = counted["conv"].activations
    found = nq.dimensionality(acts, explain=True, **options)
    assert found.attrs["explain"] == (
        "conv/activations: a pass over its values (the view deals examples into 10 groups by seed 0, not into these)"
    )
    same(found.compute(), nq.dimensionality(acts.load(), **options))


@pytest.mark.parametrize(("layer", "mode"), CASES)
def test_order_does_not_matter_and_groups_follow_the_selection(counted, layer, mode):
    order = np.random.default_rng(1).permutation(N)
    for select in ({"example": order}, {"unit": slice(None, None, -1), "checkpoint": [1]}):
        acts = counted[layer].activations.isel(select)
        same(nq.dimensionality(acts, positions=mode).compute(), nq.dimensionality(acts.compute(), positions=mode))


@pytest.mark.parametrize(
    ("why", "select"),
    [
        ("examples are selected", {"example": [59, 3, 4, 30, 31, 7]}),
        ("units are selected", {"unit": [3, 1, 2]}),
    ],
)
@pytest.mark.parametrize(("layer", "mode"), CASES)
def test_selections_are_computed(counted, layer, mode, why, select):
    acts = counted[layer].activations.isel(select)
    found = nq.dimensionality(acts, positions=mode, explain=True)
    assert why in found.attrs["explain"]
    same(found.compute(), nq.dimensionality(acts.compute(), positions=mode))


def test_two_selections_asked_together_are_not_taken_for_one_another(bare):
    import dask

    acts = bare["wide"].activations
    parts = [acts, acts.isel(example=slice(30)), acts.isel(example=slice(30, None)), acts.isel(unit=slice(60))]
    answers = dask.compute(*(nq.dimensionality(part) for part in parts))
    for found, part in zip(answers, parts, strict=True):
        same(found, nq.dimensionality(part.compute()))


@pytest.mark.parametrize("layer", ["wide", "conv"])
def test_a_missing_view_is_made_once_and_kept(bare, layer):
    acts = bare[layer].activations
    found = nq.dimensionality(acts, explain=True)
    assert reads(bare) == []
    n_blocks = bare.schema.find(f"layers/{layer}/activations")
    n_blocks = -(-N // n_blocks.rows)
    assert f"at 0 of 2 checkpoints, the others made from {2 * n_blocks} blocks and kept" in found.attrs["explain"]
    found = found.compute()
    assert len(reads(bare)) == len(set(reads(bare))) == 2 * n_blocks
    bare.catalogue.storage.reads.clear()
    same(nq.dimensionality(acts, centre=True).compute(), found)
    same(nq.dimensionality(acts, interval="none").compute()[["stable_rank"]], found[["stable_rank"]])
    assert reads(bare) == []


def test_views_that_may_not_answer_are_neither_read_nor_made(bare):
    for layer, where in (("wide", "computed from 40 blocks and not kept: views=False"), ("fc", "a pass over")):
        found = nq.dimensionality(bare[layer].activations, views=False, explain=True)
        assert where in found.attrs["explain"]
        same(found.compute(), nq.dimensionality(bare[layer].activations.load()))
    assert not (bare.catalogue.storage.root / "views").exists()


def test_a_view_that_would_take_too_much_is_not_kept(bare, monkeypatch):
    monkeypatch.setattr(gram_view, "FLOOR_NBYTES", 0)
    monkeypatch.setattr(gram_view, "SHARE", 0.1)
    found = nq.dimensionality(bare["wide"].activations, explain=True)
    assert found.attrs["explain"] == (
        "layers/wide/activations: gram-flatten computed from 40 blocks and not kept: it would take 0.0 MB, more than "
        "10% of the 0.1 MB of the array at one checkpoint"
    )
    same(found.compute(), nq.dimensionality(bare["wide"].activations.load()))
    found = nq.dimensionality(bare["fc"].activations, explain=True)
    assert "a pass over its values (it would take" in found.attrs["explain"]
    same(found.compute(), nq.dimensionality(bare["fc"].activations.load()))
    assert not (bare.catalogue.storage.root / "views").exists()


@pytest.mark.parametrize(("layer", "damage"), [("wide", "cut"), ("fc", "cut"), ("wide", "flipped"), ("fc", "flipped")])
def test_a_damaged_view_is_named_and_made_again(bare, layer, damage):
    acts = bare[layer].activations
    nq.dimensionality(acts).compute()
    path = bare.catalogue.storage.root / view_key("gram-flatten", bare.schema.find(f"layers/{layer}/activations"), 5)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data[:300] if damage == "cut" else data)
    with pytest.warns(ViewWarning, match="is damaged"):
        found = nq.dimensionality(acts, explain=True)
    assert "5 damaged" in found.attrs["explain"]
    same(found.compute(), nq.dimensionality(acts.load().copy()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(nq.dimensionality(bare[layer].activations).compute(), found.compute())


def test_a_view_that_is_lost_before_it_is_read_is_made_again(bare):
    acts = bare["wide"].activations
    expected = nq.dimensionality(acts).compute()
    asked = nq.dimensionality(acts)
    shutil.rmtree(bare.catalogue.storage.root / "views")
    same(asked.compute(), expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 3, 2), (70, 2, 2)], ids=str)
def test_what_is_not_finite_comes_from_the_view_as_from_the_values(tmp_path, shape, mode, bad):
    planted = np.random.default_rng(0).standard_normal((2, N, *shape)).astype(np.float32)
    planted[1, 20, 2, 0, 1] = planted[1, 58, 3, 1, 1] = bad
    store = simulated(tmp_path / "s.zarr", layers={"a": shape}, planted={"layers/a/activations": planted})
    acts = store["a"].activations
    expected = nq.dimensionality(acts.compute(), positions=mode)
    assert np.isnan(expected["stable_rank"]).values.tolist() == [False, True]
    for _ in range(2):
        found = nq.dimensionality(acts, positions=mode).compute()
        same(found, expected)
        assert found["nan_count"].values.tolist() == [0, 2 * int(np.isnan(bad))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(4, 3, 2), (70, 2, 2)], ids=str)
def test_a_layer_that_never_varies_is_unknown_from_the_view_too(tmp_path, shape, mode):
    planted = np.full((2, N, *shape), 3.3, np.float32)
    planted[1] = 0
    store = simulated(tmp_path / "s.zarr", layers={"a": shape}, planted={"layers/a/activations": planted})
    for _ in range(2):
        found = nq.dimensionality(store["a"].activations, positions=mode).compute()
        for name in ("stable_rank", "participation_ratio_corrected", "effective_rank"):
            assert np.isnan(found[name]).all()
    assert nq.dimensionality(store["a"].activations, positions=mode, centre=False)["stable_rank"][0] == pytest.approx(1)


def test_less_memory_means_more_passes_and_the_same_answer(bare):
    acts = bare["wide"].activations
    found = nq.dimensionality(acts, views=False, explain=True)
    assert "passes" not in found.attrs["explain"]
    with pytest.MonkeyPatch.context() as patch:
        from ndt_store.views import gram_build

        patch.setattr(gram_build, "TILE_NBYTES", 24000)
        tiled = nq.dimensionality(acts, views=False, explain=True)
        assert "blocks in 3 passes" in tiled.attrs["explain"]
        same(tiled.compute(), found.compute())


def test_what_cannot_keep_its_budget_says_so_before_it_reads(counted):
    with pytest.raises(MemoryBudgetError, match="use positions='mean', select fewer"):
        nq.dimensionality(counted["wide"].activations, memory=10_000)
    assert reads(counted) == []


def test_summary_takes_its_dimensions_from_the_view(counted):
    table = nq.summary(counted, explain=True)
    assert "view gram-mean at 2 of 2 checkpoints" in table.attrs["explain"]
    expected = nq.dimensionality({"wide": counted["wide"].load()}, positions="mean")
    np.testing.assert_allclose(table["stable_rank"].sel(layer="wide"), expected["stable_rank"].sel(layer="wide"))
