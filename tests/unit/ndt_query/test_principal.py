"""Components of a store's few samples of many features equal those of its values, are read in runs and forget none."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from threadpoolctl import threadpool_limits

import ndt_query as nq
import ndt_query.principal as principal
from ndt_store import MemoryBudgetError, index_store, open_store
from ndt_store.testing import simulate_store
from ndt_store.views.gram_build import GramPart

from .sources import CountingStorage, reads

LAYERS = {"conv": (40, 3, 2), "tokens": (3, 90), "wide": (120,), "narrow": (5,)}
N = 50
CASES = [("conv", "flatten"), ("tokens", "flatten"), ("wide", "mean"), ("tokens", "mean"), ("narrow", "mean")]


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture
def store(tmp_path):
    options = {"checkpoints": (0, 5), "kinds": ("activations",), "layers": LAYERS, "block_nbytes": 4096}
    made = simulate_store(tmp_path / "s.zarr", n_examples=N, **options)
    return open_store(CountingStorage(made.store.catalogue.storage.root))


def same(ours, theirs, atol=1e-7):
    xr.testing.assert_allclose(ours.compute().drop_attrs(), theirs.drop_attrs(), rtol=1e-7, atol=atol)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize(("layer", "positions"), CASES)
def test_components__of_a_store_are_those_of_its_values(store, layer, positions, centre, monkeypatch):
    monkeypatch.setattr(principal, "PASS_NBYTES", 8192)  # a few examples at a time
    acts = store[layer].activations
    found = nq.pca(acts, 4, positions=positions, centre=centre)
    same(found, nq.pca(acts.compute(), 4, positions=positions, centre=centre))
    assert found["component"].chunks is not None
    some = acts.isel(example=slice(3, 41, 2))
    same(nq.pca(some, 3, positions=positions, centre=centre), nq.pca(some.compute(), 3, positions=positions,
                                                                     centre=centre))  # fmt: skip


def test_components__of_positions_as_samples_are_those_of_its_values(tmp_path):
    made = simulate_store(
        tmp_path / "s.zarr", n_examples=20, layers={"wide": (130, 2, 2)}, kinds=("activations",), block_nbytes=4096
    )
    acts = made.store["wide"].activations
    same(nq.pca(acts, 4, positions="samples"), nq.pca(acts.compute(), 4, positions="samples"))


@pytest.mark.parametrize("units", [slice(10, 90), np.arange(119, 20, -2), np.r_[70:120, 5, 3]])
def test_components__of_selected_units_come_in_the_order_asked_for(store, units):
    asked = store["wide"].activations.isel(unit=units, example=slice(2, 40))
    found = nq.pca(asked, 3, explain=True)
    assert "pass over its values" not in found.attrs["explain"]
    same(found, nq.pca(asked.compute(), 3))
    assert found["feature"].values.tolist() == asked["unit"].values.tolist()


def test_components__of_features_in_another_order_are_read(store):
    index_store(store, gram=("mean",))
    turned = store["narrow"].activations.isel(unit=slice(None, None, -1))
    found = nq.pca(turned, 2, explain=True)
    assert "units are selected in another order" in found.attrs["explain"]
    same(found, nq.pca(turned.compute(), 2))


def test_components__that_are_computed_together_are_each_its_own(store):
    acts = store["wide"].activations
    asked = [{"n_components": 4}, {"n_components": 2}, {"n_components": 4, "centre": False}]
    for one, options in zip(dask.compute(*(nq.pca(acts, **options) for options in asked)), asked, strict=True):
        same(one, nq.pca(acts.compute(), **options))


def holding(folder, values):
    """Activations (checkpoint, example, unit) of a store that holds these values."""
    made = simulate_store(
        folder / "s.zarr", n_examples=values.shape[1], layers={"wide": values.shape[2:]}, kinds=("activations",),
        planted={"layers/wide/activations": values},
    )  # fmt: skip
    return made.store["wide"].activations


def test_components__keep_their_digits_far_from_zero(tmp_path):
    rng = np.random.default_rng(0)
    values = (1e4 + rng.standard_normal((3, 30, 200))).astype(np.float32)
    found = nq.pca(holding(tmp_path, values), 3).compute()
    for step in range(3):
        samples = values[step].astype(np.float64)
        _, sizes, rows = np.linalg.svd(samples - samples.mean(0), full_matrices=False)
        np.testing.assert_allclose(found["explained_variance"][step], sizes[:3] ** 2 / 29, rtol=1e-8)
        np.testing.assert_allclose(np.abs(found["component"][step].values @ rows[:3].T), np.eye(3), atol=1e-7)
        np.testing.assert_allclose(found["mean"][step], samples.mean(0), rtol=1e-12)


def test_components__beside_a_nan_and_of_equal_samples_are_nan(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, 20, 60)).astype(np.float32)
    values[0, 7, 4] = np.nan
    values[1] = 0.1
    found = nq.pca(holding(tmp_path, values), 2).compute()
    assert found["component"].isnull().all(("rank", "feature")).values.tolist() == [True, True, False]
    assert np.isnan(found["mean"].values[0]).sum() == 1
    assert found["total_variance"].values[1] == 0
    assert np.isnan(found["total_variance"].values[0])


def test_components__say_what_they_read_and_read_that(store):
    acts = store["wide"].activations
    acts.isel(checkpoint=0).compute()
    n_blocks = len(reads(store))
    reads(store).clear()
    first = nq.pca(acts, 2, explain=True)
    assert first.attrs["explain"] == (
        f"layers/wide/activations: view gram-mean at 0 of 2 checkpoints, the others made from {2 * n_blocks} blocks "
        f"and kept where the store can be written to (0, 5 not made yet); {2 * n_blocks} blocks read once more for "
        "what it does not hold"
    )
    first = first.compute()
    assert len(reads(store)) == 4 * n_blocks
    reads(store).clear()
    again = nq.pca(acts, 2, explain=True)
    assert "view gram-mean at 2 of 2 checkpoints; " in again.attrs["explain"]
    again = again.compute()
    assert len(reads(store)) == 2 * n_blocks
    same(again, first)
    alone = nq.pca(acts, 2, views=False, explain=True)
    assert "not kept: views=False; " in alone.attrs["explain"]
    same(alone, first)


def test_components__of_features_leave_no_view_and_use_one(store):
    acts = store["narrow"].activations
    assert "a pass over its values (gram-mean is not kept" in nq.pca(acts, 2, explain=True).attrs["explain"]
    nq.pca(acts, 2).compute()
    assert "gram-mean is not kept" in nq.pca(acts, 2, explain=True).attrs["explain"]
    index_store(store, gram=("mean",))
    assert nq.pca(acts, 2, explain=True).attrs["explain"].endswith("view gram-mean at 2 of 2 checkpoints")


def test_memory__of_many_samples_is_not_theirs(tmp_path, monkeypatch):
    """Of 33 MB of samples at each checkpoint no more are held than the budget leaves room for."""
    made = simulate_store(
        tmp_path / "s.zarr", checkpoints=(0, 5, 10, 15), n_examples=64, layers={"wide": (128_000,)},
        kinds=("activations",), block_nbytes=1_024_000,
    )  # fmt: skip
    acts = made.store["wide"].activations
    held: list[int] = []

    def noted(part, catalogue, step, run, out, *rest):
        held.append(out.nbytes)
        return read(part, catalogue, step, run, out, *rest)

    read = GramPart.read
    monkeypatch.setattr(GramPart, "read", noted)
    with dask.config.set(scheduler="synchronous"):
        found = nq.pca(acts, 2, positions="flatten", memory="125 MB", views=False).compute()
        for place in range(4):
            one = acts.isel(checkpoint=[place])
            same(found.isel(checkpoint=[place]), nq.pca(one.compute(), 2, positions="flatten"))
        assert 0 < max(held) <= 17_000_000
        assert min(held) <= 8_400_000
        held.clear()
        nq.pca(acts.isel(checkpoint=[0]), 2, positions="flatten", views=False).compute()
        assert max(held) == 64 * 128_000 * 4  # where there is room a tile holds all
        with pytest.raises(MemoryBudgetError, match="projected"):
            nq.pca(acts, 2, positions="flatten", memory="80 MB", views=False)


def test_memory__has_room_for_the_result(tmp_path):
    """Components of many checkpoints take more than anything they are made of."""
    made = simulate_store(
        tmp_path / "s.zarr", checkpoints=range(20), n_examples=40, layers={"wide": (4000,)}, kinds=("activations",),
        block_nbytes=160_000,
    )  # fmt: skip
    acts = made.store["wide"].activations
    with dask.config.set(scheduler="synchronous"):
        few = nq.pca(acts, 2, positions="flatten", memory="64 MB", explain=True)
        assert few.attrs["explain"].startswith("layers/wide/activations: view gram-flatten")
        many = nq.pca(acts, 40, positions="flatten", memory="64 MB", explain=True)  # 26 MB, twice
        assert many.attrs["explain"].endswith("a pass over its values (making the view would not fit the budget)")
        with pytest.raises(MemoryBudgetError, match="projected"):
            nq.pca(acts, 40, positions="flatten", memory="25 MB")
