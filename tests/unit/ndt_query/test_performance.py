"""Loss and accuracy over training equal scipy, with intervals that cover."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store


def root(loss, prediction, label):
    dims = ("checkpoint", "example")
    variables = {"loss": (dims, loss), "prediction": (dims, prediction), "label": ("example", label)}
    return xr.Dataset(variables, {"checkpoint": np.arange(len(loss)) * 10})


def test_performance__equals_scipy(rng):
    loss, prediction, label = rng.gamma(1, size=(3, 40)), rng.integers(3, size=(3, 40)), np.arange(40) % 3
    found = nq.performance(root(loss, prediction, label), confidence=0.9)
    for c in range(3):
        t = scipy.stats.ttest_1samp(loss[c], 0).confidence_interval(0.9)
        np.testing.assert_allclose([found["loss_low"][c], found["loss_high"][c]], t)
        hits = int((prediction[c] == label).sum())
        exact = scipy.stats.binomtest(hits, 40).proportion_ci(0.9, "exact")
        np.testing.assert_allclose([found["accuracy_low"][c], found["accuracy_high"][c]], exact)
        assert found["accuracy"].values[c] == hits / 40
    assert found.attrs["n_examples"] == 40


def test_performance__asks_stores_and_trees_alike(tmp_path):
    store = simulate_store(tmp_path / "run.zarr").store
    assert nq.performance(store)["checkpoint"].values.tolist() == [0, 10, 100]
    xr.testing.assert_equal(nq.performance(store), nq.performance(store.tree))


def test_performance__with_a_nan_is_unknown_at_that_checkpoint():
    found = nq.performance(root([[1.0, np.nan], [1.0, 2.0]], [[0, 0]] * 2, [0, 1]))
    for name in ("loss", "loss_low", "loss_high"):
        assert np.isnan(found[name]).values.tolist() == [True, False]


def test_performance__of_one_example_has_no_interval_of_its_loss():
    found = nq.performance(root([[2.0]], [[0]], [0]))
    assert found["loss"].item() == 2
    assert np.isnan(found["loss_low"].item())
    assert found["accuracy_low"].item() == pytest.approx(0.025)


def test_performance__refuses_what_it_cannot_use():
    whole = root([[1.0]], [[0]], [0])
    with pytest.raises(NotFoundError, match="no loss and no label"):
        nq.performance(whole.drop_vars(["loss", "label"]))
    with pytest.raises(DimensionError, match="loss has dims"):
        nq.performance(whole.isel(checkpoint=0))
    with pytest.raises(InvalidInputError, match="got list"):
        nq.performance([whole])
    with pytest.raises(InvalidInputError, match="confidence=95"):
        nq.performance(whole, confidence=95)
