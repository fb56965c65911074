"""Measures of how far classes have come apart equal scikit-learn's and closed forms, held out, in bounded memory."""

import importlib

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import ndt_query as nq
from ndt_query.kernels import manifolds
from ndt_query.kernels.manifolds import class_dimension, scatter_ratio, silhouettes, two_nearest, two_nn
from ndt_store.errors import InvalidInputError, MemoryBudgetError, NotFoundError
from ndt_store.views.blocks import as_block

from .sources import labelled

module = importlib.import_module("ndt_query.disentanglement")  # the package hands on the function of that name


@pytest.mark.parametrize("nbytes", [1 << 24, 8 * 90 * 7])
def test_silhouettes_and_neighbours__are_scikit_learns_in_blocks_of_any_size(rng, monkeypatch, nbytes):
    monkeypatch.setattr(manifolds, "BLOCK_NBYTES", nbytes)
    points = rng.standard_normal((90, 5)) + 1000
    codes = np.arange(90) % 4
    codes[codes == 3] = np.where(np.arange(22) == 0, 3, 1)[: (codes == 3).sum()]  # class 3 has one point
    np.testing.assert_allclose(silhouettes(points, codes), silhouette_samples(points, codes), atol=1e-9)
    near = NearestNeighbors(n_neighbors=3).fit(points).kneighbors(points)[0][:, 1:]
    np.testing.assert_allclose(two_nearest(points), near, rtol=1e-6)


@pytest.mark.parametrize("dimension", range(2, 11))
def test_two_nn__is_within_a_tenth_on_spheres(dimension):
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((2000, dimension + 1))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        embedded = points @ np.linalg.qr(rng.standard_normal((40, 40)))[0][: dimension + 1]
        found.append(two_nn(embedded)[0])
    assert np.mean(found) == pytest.approx(dimension, rel=0.1)


def test_two_nn__drops_duplicates(rng):
    points = rng.standard_normal((300, 3))
    once, n = two_nn(points)
    again, distinct = two_nn(np.concatenate([points, points[:200]]))
    assert (n, distinct) == (300, 300)
    assert again == once
    assert np.isnan(two_nn(points[:9])[0])
    assert np.isnan(two_nn(np.ones((30, 2)))[0])


def test_separation__is_the_ratio_of_scatters(rng):
    points, codes = rng.standard_normal((60, 4)), np.arange(60) % 3
    means = np.stack([points[codes == one].mean(0) for one in range(3)])
    within = sum(((points[codes == one] - means[one]) ** 2).sum() for one in range(3))
    between = 20 * ((means - points.mean(0)) ** 2).sum()
    assert scatter_ratio(points, codes) == pytest.approx(between / within)
    assert np.isnan(scatter_ratio(means[codes], codes))


def test_class_dimension__counts_components(rng):
    basis = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    assert class_dimension(rng.standard_normal((200, 3)) @ basis[:3], 0.95) == 3
    assert class_dimension(np.ones((5, 4)), 0.95) == 0


@pytest.fixture(scope="module")
def acts():
    """Three classes that do not differ at step 0, and lie far apart at 100."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((2, 150, 6, 3, 3))
    values[1] += 4 * np.eye(6)[np.arange(150) % 3][:, :, None, None]
    return labelled(values)


def test_disentanglement__finds_what_was_planted(acts):
    found = nq.disentanglement(acts)
    assert found["accuracy"].dims == ("checkpoint",)
    assert found["accuracy"].values[1] > 0.98
    assert found["silhouette_low"].values[1] > 0.5
    assert found["separation"].values[1] > 10 * found["separation"].values[0]


def test_disentanglement__in_noise_stays_at_chance_where_training_accuracy_does_not(rng):
    wide = labelled(rng.standard_normal((1, 60, 200)))
    found = nq.disentanglement(wide)
    assert float(found["training_accuracy"][0]) == 1
    assert found["accuracy_low"][0] < 1 / 3 < found["accuracy_high"][0]
    assert abs(float(found["control"][0]) - 1 / 3) < 0.2
    assert found["silhouette_low"][0] < 0.01


def test_disentanglement__is_what_its_parts_say(acts):
    found = nq.disentanglement(acts).sel(checkpoint=100)
    mean = acts.sel(checkpoint=100).mean(("y", "x")).values
    codes = np.arange(150) % 3
    assert float(found["silhouette"]) == pytest.approx(silhouette_samples(mean, codes).mean())
    assert float(found["intrinsic_dimension"]) == pytest.approx(two_nn(mean)[0])
    assert float(found["separation"]) == pytest.approx(scatter_ratio(mean, codes))
    assert found["class_dimension"].dims == ("class",)
    assert found.attrs["n_per_class"] == 50
    flat = nq.disentanglement(acts, positions="flatten").sel(checkpoint=100)
    every = acts.sel(checkpoint=100).values.reshape(150, -1)
    assert float(flat["silhouette"]) == pytest.approx(silhouette_samples(every, codes).mean())


def test_accuracy__is_that_of_a_cross_validation_by_scikit_learn(acts):
    rng = np.random.default_rng(5)
    wide = labelled(rng.standard_normal((1, 90, 120)) + 0.8 * np.eye(120)[np.arange(90) % 3])
    for data in (acts.isel(checkpoint=[0]), wide):
        samples = data.isel(checkpoint=0)
        samples = samples.mean([dim for dim in ("y", "x") if dim in samples.dims]).values
        codes = np.arange(len(samples)) % 3
        machine = make_pipeline(StandardScaler(), LinearSVC(random_state=0))
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        predicted = cross_val_predict(machine, samples, codes, cv=folds)
        assert float(nq.disentanglement(data)["accuracy"][0]) == (predicted == codes).mean()


def test_class_dimension_of_a_layer__is_that_of_a_dense_covariance(acts):
    found = nq.disentanglement(acts).sel(checkpoint=100)["class_dimension"].values
    mean = acts.sel(checkpoint=100).mean(("y", "x")).values
    for one in range(3):
        values = np.linalg.eigvalsh(np.cov(mean[np.arange(150) % 3 == one].T))[::-1]
        assert found[one] == np.argmax(values.cumsum() / values.sum() >= 0.95) + 1


def test_samples__are_the_same_whatever_run_of_examples_is_read(acts, monkeypatch):
    whole = nq.disentanglement(acts)
    lazy = acts.chunk({"checkpoint": 1, "example": 16})
    monkeypatch.setattr(module, "BLOCK_NBYTES", 1)
    read = []

    def noted(values, n_before):
        read.append(values.shape[1])
        return as_block(values, n_before)

    monkeypatch.setattr(module, "as_block", noted)
    xr.testing.assert_allclose(nq.disentanglement(lazy).drop_attrs(), whole.drop_attrs())
    assert max(read) == 16
    assert sum(read) == 300


def test_classes_are_compared_at_equal_numbers(rng):
    acts = labelled(rng.standard_normal((1, 100, 40)))
    labels = np.r_[np.zeros(80, int), np.ones(20, int)]
    found = nq.disentanglement(acts, labels)
    assert found.attrs["n_per_class"] == 20
    assert abs(float(found["class_dimension"][0, 0]) - float(found["class_dimension"][0, 1])) <= 2


def test_a_nan_makes_its_checkpoint_nan(acts):
    values = acts.copy(deep=True)
    values[0, 3, 2, 0, 0] = np.nan
    found = nq.disentanglement(values)
    for name in ("accuracy", "silhouette", "separation", "intrinsic_dimension"):
        assert found[name].isnull().values.tolist() == [True, False]


def test_disentanglement__names_what_is_wrong(acts):
    with pytest.raises(InvalidInputError, match="A class has 1 examples and n_folds=5"):
        nq.disentanglement(acts, np.arange(150))
    with pytest.raises(NotFoundError, match="no coordinate 'label'"):
        nq.disentanglement(acts.drop_vars("label"))
    with pytest.raises(InvalidInputError, match="positions"):
        nq.disentanglement(acts, positions="samples")
    with pytest.raises(MemoryBudgetError, match="disentanglement with positions='mean' is projected"):
        nq.disentanglement(acts, memory="1 kB")


@pytest.mark.parametrize("bad", [1e155, np.inf, np.nan])
def test_disentanglement__of_values_whose_squares_are_none_is_nan(rng, bad):
    values = rng.standard_normal((2, 60, 6))
    values[1, 4, 2] = bad
    found = nq.disentanglement(labelled(values))
    assert np.isfinite(found["silhouette"]).values.tolist() == [True, False]
    assert np.isnan(found["accuracy"].values[1])


def test_figure__of_one_checkpoint_shows_its_intervals(rng):
    from ndt_query.plot import dimensionality, disentanglement

    acts = labelled(rng.standard_normal((1, 60, 6)))
    axes = disentanglement(nq.disentanglement(acts)).axes
    assert [len(one.collections) for one in axes[:2]] == [1, 1]  # a bar each; the control is a band
    assert len(axes[0].patches) == 1
    found = nq.dimensionality(acts)
    (bar,) = dimensionality(found).axes[0].collections
    expected = [found["participation_ratio_low"][0], found["participation_ratio_high"][0]]
    np.testing.assert_allclose(bar.get_segments()[0][:, 1], expected)
