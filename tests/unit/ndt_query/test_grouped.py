"""Intervals of moments, shares and class means: equal to a jackknife done by hand, whatever the chunks."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import InvalidInputError
from ndt_store.testing import simulate_store
from ndt_store.views.samples import deal_groups

from .sources import labelled

QUESTIONS = {"moments": nq.unit_moments, "importance": nq.neuron_importance, "classes": nq.class_means}


def by_hand(values, statistic):
    """Low and high of a statistic of examples, leaving out each of ten groups."""
    groups = deal_groups(len(values))
    left_out = np.stack([statistic(values[groups != g]) for g in range(10)])
    error = np.sqrt(0.9 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    reach = scipy.stats.t.ppf(0.975, 9) * error
    return statistic(values) - reach, statistic(values) + reach


def share(values):
    return values.var((0, 2, 3)) / values.var((0, 2, 3)).sum()


@pytest.mark.parametrize("chunks", [None, (1, 60, 5, 3, 2), (1, 7, 2, 3, 2)], ids=str)
def test_intervals__are_those_of_a_jackknife_over_groups_of_examples(rng, chunks):
    values = rng.standard_normal((2, 60, 5, 3, 2)) * np.arange(1, 6)[:, None, None]
    acts = labelled(values, chunks=chunks)
    moments, importance = (question(acts, interval="jackknife") for question in (nq.unit_moments, nq.neuron_importance))
    cases = (
        (moments, "mean", lambda part: part.mean((0, 2, 3))),
        (moments, "std", lambda part: part.std((0, 2, 3))),
        (moments, "mean_abs", lambda part: np.abs(part).mean((0, 2, 3))),
        (moments, "active_fraction", lambda part: (part != 0).mean((0, 2, 3))),
        (importance, "variance", lambda part: part.var((0, 2, 3))),
        (importance, "variance_share", share),
    )
    for found, name, statistic in cases:
        for c in range(2):
            low, high = by_hand(values[c], statistic)
            np.testing.assert_allclose(found[f"{name}_low"][c], low, err_msg=name)
            np.testing.assert_allclose(found[f"{name}_high"][c], high, err_msg=name)


@pytest.mark.parametrize("chunks", [None, (1, 7, 2, 3, 2)], ids=str)
def test_intervals__of_class_means_leave_examples_out_of_their_class(rng, chunks):
    values = rng.standard_normal((2, 60, 5, 3, 2))
    found = nq.class_means(labelled(values, chunks=chunks), interval="jackknife").compute()
    groups, classes = deal_groups(60), np.arange(60) % 3
    for c, k in ((0, 0), (1, 2)):
        means = values[c].mean((2, 3))
        left_out = np.stack([means[(groups != g) & (classes == k)].mean(0) for g in range(10)])
        reach = scipy.stats.t.ppf(0.975, 9) * np.sqrt(0.9 * ((left_out - left_out.mean(0)) ** 2).sum(0))
        np.testing.assert_allclose(found["mean_high"][c, k] - found["mean"][c, k], reach)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_intervals__leave_the_numbers_as_they_are_and_say_that_they_took_a_pass(tmp_path, question):
    acts = simulate_store(tmp_path / "s.zarr").store["fc"].activations
    plain, found = question(acts).compute(), question(acts, interval="jackknife", explain=True)
    assert "a pass over its values (views hold no groups" in found.attrs["explain"]
    xr.testing.assert_allclose(found.compute()[list(plain.data_vars)], plain)
    limits = [name for name in found if name.endswith(("_low", "_high"))]
    assert limits
    assert not [name for name in plain if name.endswith(("_low", "_high"))]


def test_intervals__with_a_nan_or_of_a_class_in_one_group_are_unknown(rng):
    values = rng.random((1, 20, 3))
    values[0, 4, 1] = np.nan
    labels = np.zeros(20, int)
    labels[7] = 1
    found = nq.class_means(labelled(values), labels, interval="jackknife").isel(checkpoint=0)
    assert np.isnan(found["mean_low"]).values.tolist() == [[False, True, False], [True] * 3]
    assert np.isfinite(found["mean"]).values.tolist() == [[True, False, True], [True] * 3]
    moments = nq.unit_moments(labelled(values), interval="jackknife").isel(checkpoint=0)
    assert np.isnan(moments["std_high"]).values.tolist() == [False, True, False]


def test_intervals__of_one_example_are_unknown():
    found = nq.unit_moments(labelled(np.ones((1, 1, 2))), interval="jackknife")
    assert np.isnan(found["mean_low"]).all()
    assert (found["mean"] == 1).all()


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_intervals__refuse_what_they_cannot_use(rng, question):
    with pytest.raises(InvalidInputError, match="interval='bootstrap' is not an option"):
        question(labelled(rng.random((1, 9, 2))), interval="bootstrap")
    with pytest.raises(InvalidInputError, match="confidence=95"):
        question(labelled(rng.random((1, 9, 2))), confidence=95)
