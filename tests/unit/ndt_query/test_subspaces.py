"""Components, overlaps and drift equal scikit-learn, scipy and closed forms; random subspaces overlap by chance."""

import numpy as np
import pytest
import xarray as xr
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

import ndt_query as nq
from ndt_query.kernels.subspaces import angles, overlap
from ndt_store import index_store, open_store
from ndt_store.errors import InvalidInputError, MemoryBudgetError
from ndt_store.testing import simulate_store

from .sources import CountingStorage, labelled


@pytest.mark.parametrize(("n", "shape"), [(200, (6,)), (12, (30,)), (150, (5, 3, 2)), (20, (4, 6))])
@pytest.mark.parametrize("positions", ["mean", "flatten", "samples"])
def test_pca__spans_what_scikit_learn_says(rng, n, shape, positions):
    values = rng.standard_normal((2, n, *shape)) @ np.diag(np.arange(1, shape[-1] + 1)) + 3
    acts = labelled(values)
    found = nq.pca(acts, 3, positions=positions)
    for c in range(2):
        samples = as_samples(acts.isel(checkpoint=c), positions)
        expected = PCA(3).fit(samples)
        np.testing.assert_allclose(found["explained_variance"][c], expected.explained_variance_, rtol=1e-8)
        np.testing.assert_allclose(found["explained_variance_ratio"][c], expected.explained_variance_ratio_, rtol=1e-8)
        np.testing.assert_allclose(np.abs(found["component"].values[c] @ expected.components_.T), np.eye(3), atol=1e-6)
        np.testing.assert_allclose(found["mean"][c], samples.mean(0), rtol=1e-8)
    assert (found["component"].values[0, np.arange(3), np.abs(found["component"].values[0]).argmax(1)] > 0).all()


def as_samples(one, positions):
    before = [dim for dim in ("token",) if dim in one.dims]
    after = [dim for dim in ("y", "x") if dim in one.dims]
    if positions == "mean":
        return one.mean([*before, *after]).values
    if positions == "flatten":
        return one.transpose("example", *before, "unit", *after).values.reshape(one.sizes["example"], -1)
    return one.transpose("example", *before, *after, "unit").values.reshape(-1, one.sizes["unit"])


def test_pca__of_a_store_and_of_its_values_is_the_same(tmp_path):
    store = simulate_store(tmp_path / "r.zarr", n_examples=40).store
    for layer in store.layers:
        acts = store[layer].activations
        lazy = nq.pca(acts, 2)
        assert lazy["component"].chunks is not None
        xr.testing.assert_allclose(lazy.drop_attrs(), nq.pca(acts.compute(), 2).drop_attrs())
    assert set(nq.pca(store, 2).children) == set(store.layers)


@pytest.mark.parametrize("centre", [True, False])
def test_pca__from_views_reads_no_block(tmp_path, centre):
    storage = CountingStorage(tmp_path / "r.zarr")
    storage.reads = []
    simulate_store(storage, n_examples=60, layers={"a": (6, 4, 4), "wide": (90,)}, kinds=("activations",))
    store = open_store(storage)
    expected = {layer: nq.pca(store[layer].activations.compute(), 3, centre=centre) for layer in store.layers}
    index_store(store, gram=("mean",))
    storage.reads.clear()
    found = nq.pca(store["a"].activations, 3, centre=centre)
    xr.testing.assert_allclose(found.drop_attrs(), expected["a"].drop_attrs(), atol=1e-6)
    assert storage.reads == []
    # There are fewer samples than features: the view has products of samples, which name no feature.
    wide = nq.pca(store["wide"].activations, 3, centre=centre).compute()
    xr.testing.assert_allclose(wide.drop_attrs(), expected["wide"].drop_attrs(), atol=1e-6)
    assert storage.reads
    some = nq.pca(store["a"].activations.isel(unit=slice(0, 5)), 3, centre=centre).compute()
    again = nq.pca(store["a"].activations.compute().isel(unit=slice(0, 5)), 3, centre=centre)
    xr.testing.assert_allclose(some.drop_attrs(), again.drop_attrs(), atol=1e-6)


def test_pca__uncentred_begins_with_the_mean(rng):
    acts = labelled(rng.standard_normal((1, 400, 5)) + 10)
    first = nq.pca(acts, 1, centre=False)["component"][0, 0].values
    np.testing.assert_allclose(first, np.full(5, 5**-0.5), atol=0.02)
    values = acts.values[0]
    expected = np.linalg.svd(values, full_matrices=False)[1][0] ** 2 / 400
    np.testing.assert_allclose(nq.pca(acts, 1, centre=False)["explained_variance"][0, 0], expected)


def test_pca__beyond_the_rank_is_nan_and_so_is_a_nan(rng):
    flat = np.zeros((2, 30, 6))
    flat[:, :, 0] = rng.standard_normal((2, 30))
    flat[1, 3, 2] = np.nan
    found = nq.pca(labelled(flat), 2)
    assert found["component"].isnull().all("feature").values.tolist() == [[False, True], [True, True]]
    assert found["explained_variance"].values[0, 1] == 0
    assert np.isnan(found["explained_variance"].values[1]).all()
    still = nq.pca(labelled(np.full((1, 30, 6), 0.1, np.float32)), 1)
    assert still["component"].isnull().all()
    assert float(still["total_variance"][0]) == 0


def test_overlap__of_the_same_subspace_is_one_and_of_random_ones_k_over_d():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((30, 60, 40))
    rotated = values[0] @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    acts = labelled(np.concatenate([values, values[:1] * 5 - 2, rotated[None]]))
    found = nq.subspace_overlap(acts, 8)
    matrix = found["overlap"].values
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert matrix[0, 30] == pytest.approx(1)  # neither scale nor mean matters
    assert float(found["chance"]) == pytest.approx(0.2)
    random = matrix[:30, :30][np.triu_indices(30, 1)]
    assert abs(random.mean() - 0.2) < 3 * random.std() / len(random) ** 0.5 + 0.005
    np.testing.assert_allclose(matrix, matrix.T)
    assert found["overlap"].dims == ("checkpoint", "other_checkpoint")


def test_angles__are_scipys(rng):
    one, other = (np.linalg.qr(rng.standard_normal((9, 3)))[0].T for _ in range(2))
    np.testing.assert_allclose(angles(one, other), np.sort(subspace_angles(one.T, other.T)), atol=1e-12)
    assert overlap(one, other) == pytest.approx((np.cos(subspace_angles(one.T, other.T)) ** 2).mean())
    tilted = np.eye(4)[:1] * np.cos(1e-9) + np.eye(4)[1:2] * np.sin(1e-9)
    np.testing.assert_allclose(angles(np.eye(4)[:1], tilted), [1e-9], rtol=1e-6)  # small ones keep their digits


def planted(rng, turns):
    """Two strong directions that turn by given angles from checkpoint to checkpoint, in 20 features of weak noise."""
    at, found = 0.0, []
    for turn in turns:
        at += turn
        base = np.zeros((2, 20))
        base[0, :2] = np.cos(at), np.sin(at)
        base[1, 2:4] = np.cos(at), np.sin(at)
        found.append(5 * rng.standard_normal((80, 2)) @ base + 0.01 * rng.standard_normal((80, 20)))
    return labelled(np.stack(found))


def test_drift__is_that_of_the_angle_that_was_turned(rng):
    found = nq.subspace_drift(planted(rng, [0, 0.1, 0.2, 0.3, 0.1]), 2)
    np.testing.assert_allclose(found["drift"], np.sin([0.1, 0.2, 0.3, 0.1]) ** 2, rtol=0.02)
    np.testing.assert_allclose(found["turn"], [0.1, 0.2, 0.3, 0.1], rtol=0.01)
    assert found["before"].values.tolist() == [0, 100, 200, 300]


def test_drift__tells_an_abrupt_turn_from_a_steady_one(rng):
    steady = nq.subspace_drift(planted(rng, 0.1 + 0.02 * rng.standard_normal(40)), 2)
    abrupt = nq.subspace_drift(
        planted(rng, np.where(np.arange(40) == 25, 1.2, 0.1 + 0.02 * rng.standard_normal(40))), 2
    )
    assert float(steady["p_value"]) > 0.05
    assert float(abrupt["p_value"]) < 0.05
    assert float(steady["smoothness"]) > float(abrupt["smoothness"])


def test_drift__keeps_its_level_where_nothing_is_abrupt():
    from ndt_query.subspaces import _smooth, _surrogates

    p = []
    for seed in range(200):
        series = np.abs(np.random.default_rng(seed).standard_normal(40) + 4)
        null = np.array([_smooth(one) for one in _surrogates(series, 99, seed)])
        p.append(((null <= _smooth(series)).sum() + 1) / 100)
    assert (np.array(p) <= 0.05).mean() <= 0.1


@pytest.mark.parametrize("kind", ["normal", "lognormal", "exponential"])
def test_drift__keeps_its_level_whatever_the_turns_are_like(kind):
    from ndt_query.subspaces import _smooth, _surrogates

    abrupt = 0
    for number in range(100):
        rng = np.random.default_rng(number)
        drawn = {"normal": 1 + 0.25 * rng.standard_normal(19), "lognormal": np.exp(0.5 * rng.standard_normal(19)),
                 "exponential": rng.exponential(size=19)}[kind]  # fmt: skip
        null = np.array([_smooth(one) for one in _surrogates(np.abs(drawn), 99, number)])
        abrupt += ((null <= _smooth(np.abs(drawn))).sum() + 1) / 100 <= 0.05
    assert abrupt <= 11  # of 100 at 5%, twelve or more come by chance less than once in 200


def test_drift__asks_for_checkpoints_in_order(rng):
    acts = labelled(rng.standard_normal((5, 40, 4)))
    with pytest.raises(InvalidInputError, match="not in order of training"):
        nq.subspace_drift(acts.isel(checkpoint=[3, 1, 0, 4, 2]), k=2)
    with pytest.raises(InvalidInputError, match="n_surrogates"):
        nq.subspace_drift(acts, k=2, n_surrogates=0)


def test_subspaces__name_what_is_wrong(rng, tmp_path):
    acts = labelled(rng.standard_normal((2, 30, 6)))
    with pytest.raises(InvalidInputError, match=r"n_components=7: 30 samples of 6 features have at most 6"):
        nq.pca(acts, 7)
    with pytest.raises(InvalidInputError, match="two or more checkpoints: got 1"):
        nq.subspace_overlap(acts.isel(checkpoint=0), 2)
    with pytest.raises(InvalidInputError, match="There are 2 checkpoints: drift as a series needs four"):
        nq.subspace_drift(acts, 2)
    with pytest.raises(InvalidInputError, match="positions"):
        nq.pca(acts, 2, positions="all")
    store = simulate_store(tmp_path / "r.zarr", n_examples=40).store
    with pytest.raises(MemoryBudgetError, match="pca with positions='mean' is projected"):
        nq.pca(store[store.layers[0]].activations, 2, memory="1 kB")


def test_drift__of_nothing_but_rounding_has_no_score(rng):
    full = labelled(rng.standard_normal((6, 60, 5)))
    found = nq.subspace_drift(full, 5)  # all of the features: there is nothing to turn into
    assert (found["drift"] == 0).all()
    assert np.isnan([found["smoothness"], found["null_05"], found["p_value"]]).all()
    assert float(nq.subspace_overlap(full, 5)["overlap"].max()) <= 1
    frozen = np.maximum(rng.standard_normal((60, 12)), 0)
    scaled = labelled(np.stack([frozen * (1 + 0.1 * n) for n in range(12)]).astype(np.float32))
    assert np.isnan(float(nq.subspace_drift(scaled, 5)["p_value"]))


def test_figure_of_drift__says_where_nothing_turns(rng):
    found = nq.subspace_drift(labelled(rng.standard_normal((6, 60, 5))), 5)
    score = nq.plot.subspace_drift(found).axes[1]
    assert [text.get_text() for text in score.texts] == ["no turn"]
    assert not score.lines
    turning = nq.plot.subspace_drift(nq.subspace_drift(labelled(rng.standard_normal((6, 60, 5))), 2)).axes[1]
    assert turning.texts[0].get_text().startswith("$p$ = ")
    assert len(turning.lines) == 1
