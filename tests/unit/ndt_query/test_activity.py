"""Activity questions: planted units are found, noise is not, NaN is told."""

import pickle

import dask.array as da
import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .sources import labelled


@pytest.fixture
def planted(rng):
    """Three checkpoints of four units: 0 always dead, 1 wakes at step 100, 2 fires weakly, 3 fires."""
    values = rng.random((3, 200, 4, 2, 2)).astype(np.float32) + 0.1
    values[:, :, 0] = 0
    values[0, :, 1] = 0
    values[:, :, 2] = 0
    values[:, 17, 2, 1, 0] = 0.3
    return values


def test_unit_moments__equal_xarray_in_float64(planted):
    acts = labelled(planted)
    found, exact, over = nq.unit_moments(acts), acts.astype(float), ["example", "y", "x"]
    for name in ("mean", "std", "min", "max"):
        xr.testing.assert_allclose(found[name].drop_attrs(), getattr(exact, name)(over).drop_attrs())
    np.testing.assert_allclose(found["active_fraction"], (planted != 0).mean((1, 3, 4)))
    assert (found["count"] == 800).all()


def test_dead_units__are_those_that_never_fire(planted):
    found = nq.dead_units(labelled(planted))
    later = [True, False, False, False]
    assert found["dead"].values.tolist() == [[True, True, False, False], later, later]
    np.testing.assert_allclose(found["firing_rate"].isel(checkpoint=0), [0, 0, 1 / 200, 1])
    np.testing.assert_allclose(found["active_fraction"].isel(checkpoint=0), [0, 0, 1 / 800, 1])


def test_dead_units__bound_the_firing_rate_by_examples_not_positions(planted):
    upper = nq.dead_units(labelled(planted))["firing_rate_upper"].isel(checkpoint=0)
    expected = [1 - 0.05 ** (1 / 200), 1 - 0.05 ** (1 / 200), scipy.stats.beta.ppf(0.95, 2, 199), 1.0]
    np.testing.assert_allclose(upper, expected)


def test_dead_units__heed_the_threshold_on_the_magnitude(planted):
    assert nq.dead_units(labelled(-planted), 0.3)["dead"].isel(checkpoint=0).values.tolist() == [
        True,
        True,
        True,
        False,
    ]
    assert nq.dead_units(labelled(-planted), 0.299)["dead"].isel(checkpoint=0).values.tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_dead_units__with_a_nan_are_not_called_dead(planted):
    planted[0, 5, 0, 1, 1] = np.nan
    found = nq.dead_units(labelled(planted)).isel(checkpoint=0, unit=0)
    assert not found["dead"]
    assert found["nan_count"] == 1
    assert all(np.isnan(found[name]) for name in ("active_fraction", "firing_rate", "firing_rate_upper"))


def test_newly_active_units__are_found_between_steps(planted):
    found = nq.newly_active_units(labelled(planted), before=0, after=100)
    assert found["newly_active"].values.tolist() == [False, True, False, False]
    np.testing.assert_allclose(found["rate_before"], [0, 0, 1 / 200, 1])
    np.testing.assert_allclose(found["rate_after"], [0, 1, 1 / 200, 1])
    for name, counts in (("rate_before", [0, 0, 1, 200]), ("rate_after", [0, 200, 1, 200])):
        exact = [scipy.stats.binomtest(k, 200).proportion_ci(0.95, "exact") for k in counts]
        np.testing.assert_allclose(np.stack([found[f"{name}_low"], found[f"{name}_high"]], axis=1), exact)


def test_newly_active_units__have_to_exceed_the_rate():
    values = np.zeros((2, 100, 3))
    values[1, 0, 1], values[1, :2, 2] = 1, 1
    found = nq.newly_active_units(labelled(values), 0, 100, min_rate=0.01)
    assert found["newly_active"].values.tolist() == [False, False, True]


def test_newly_active_units__takes_steps_not_positions(planted):
    with pytest.raises(NotFoundError, match="no checkpoint 1: the nearest are 0 and 100"):
        nq.newly_active_units(labelled(planted), 0, 1)
    with pytest.raises(DimensionError, match="no dimension checkpoint"):
        nq.newly_active_units(labelled(planted).isel(checkpoint=0), 0, 1)


def test_newly_active_units__with_a_nan_are_not_called_so(planted):
    planted[1, 0, 1, 0, 0] = np.nan
    found = nq.newly_active_units(labelled(planted), 0, 100)
    assert not found["newly_active"].isel(unit=1)
    assert found["nan_count"].isel(unit=1) == 1


def test_neuron_importance__shares_sum_to_one_and_rank_by_variance(rng):
    values = rng.standard_normal((2, 4000, 4)) * np.array([1.0, 3.0, 0.0, 2.0])
    found = nq.neuron_importance(labelled(values))
    np.testing.assert_allclose(found["variance"], values.var(1))
    np.testing.assert_allclose(found["mean_magnitude"], np.abs(values).mean(1))
    np.testing.assert_allclose(found["variance_share"].sum("unit"), 1)
    np.testing.assert_allclose(found["magnitude_share"].sum("unit"), 1)
    assert found["rank"].values.tolist() == [[3, 1, 4, 2]] * 2


def test_neuron_importance__with_a_nan_leaves_the_shares_unknown(rng):
    values = rng.random((1, 10, 3))
    values[0, 0, 1] = np.nan
    found = nq.neuron_importance(labelled(values)).isel(checkpoint=0)
    assert np.isnan(found["variance_share"]).all()
    assert np.isnan(found["variance"]).values.tolist() == [False, True, False]
    assert found["rank"].isel(unit=1) == 3


def test_class_means__equal_a_groupby(rng):
    acts = labelled(rng.random((2, 20, 3, 4, 2)))
    found = nq.class_means(acts)
    expected = acts.mean(("y", "x")).groupby("label").mean().transpose("checkpoint", "label", "unit")
    np.testing.assert_allclose(found["mean"], expected)
    assert found["class"].values.tolist() == [0, 1, 2]
    assert found["n_examples"].values.tolist() == [7, 7, 6]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_class_means__let_a_bad_value_reach_its_own_class_only(rng, bad):
    values = rng.random((1, 9, 2))
    values[0, 4, 1] = bad
    found = nq.class_means(labelled(values)).isel(checkpoint=0)
    assert np.isfinite(found["mean"]).values.tolist() == [[True, True], [True, False], [True, True]]
    assert found["nan_count"].values.tolist() == [0, int(np.isnan(bad))]


def test_class_means__keep_the_names_of_classes(rng):
    found = nq.class_means(labelled(rng.random((1, 4, 2))), ["cat", "dog", "dog", "cat"])
    assert found["class"].values.tolist() == ["cat", "dog"]


def test_top_examples__name_where_the_maximum_lies(rng):
    values = rng.random((1, 10, 2, 4, 3))
    values[0, 6, 1, 3, 2] = 5
    acts = labelled(values).assign_coords(y=[0, 10, 20, 30], x=[0, 100, 200])
    best = nq.top_examples(acts, k=3).isel(checkpoint=0, unit=1, rank=0)
    assert (best["value"], best["example"], best["y"], best["x"]) == (5, 6 * 2 + 5, 30, 200)


def test_top_examples__name_the_token(rng):
    values = rng.random((1, 10, 4, 2))
    values[0, 3, 2, 1] = 5
    best = nq.top_examples(labelled(values), k=1).isel(checkpoint=0, unit=1, rank=0)
    assert (best["example"], best["token"]) == (11, 2)
    assert "y" not in best


def test_top_examples__of_a_dead_unit_are_the_first_by_identifier():
    acts = labelled(np.zeros((1, 50, 1))).isel(example=slice(None, None, -1))
    assert nq.top_examples(acts, k=4)["example"].values.ravel().tolist() == [5, 7, 9, 11]


def test_top_examples__give_all_examples_where_there_are_fewer(rng):
    found = nq.top_examples(labelled(rng.random((1, 6, 2))))
    assert found.sizes["rank"] == 6
    assert found["value"].dtype == np.float64


@pytest.mark.parametrize("value", [3.3, 0.1, -7.7, 1e300])
def test_unit_moments__of_equal_values_have_no_spread(value):
    acts = labelled(np.full((1, 13, 2, 3, 3), value))
    assert (nq.unit_moments(acts)["std"] == 0).all()
    assert np.isnan(nq.neuron_importance(acts)["variance_share"]).all()


@pytest.mark.parametrize("threshold", [-1, float("nan"), None, "0.1", True])
def test_dead_units__refuse_a_threshold_that_is_none(rng, threshold):
    with pytest.raises(InvalidInputError, match="threshold=.*at least 0"):
        nq.dead_units(labelled(rng.random((1, 4, 2))), threshold)


@pytest.mark.parametrize("min_rate", [-0.1, 1, "a"])
def test_newly_active_units__refuse_a_rate_that_is_none(planted, min_rate):
    with pytest.raises(InvalidInputError, match="min_rate=.*less than 1"):
        nq.newly_active_units(labelled(planted), 0, 100, min_rate=min_rate)


@pytest.mark.parametrize("step", [1.5, "x", [100], True])
def test_newly_active_units__refuse_a_step_that_is_none(planted, step):
    with pytest.raises(InvalidInputError, match="not a training step"):
        nq.newly_active_units(labelled(planted), 0, step)


def test_newly_active_units__refuse_attentions_for_what_they_are(rng):
    attentions = xr.DataArray(rng.random((2, 3, 2, 4, 4)), dims=("checkpoint", "example", "head", "query", "key"))
    with pytest.raises(DimensionError, match="reduce head, query, key"):
        nq.newly_active_units(attentions, 0, 1)


@pytest.mark.parametrize(
    "question", [nq.unit_moments, nq.top_examples, nq.class_means, nq.dimensionality, nq.selectivity_index]
)
def test_questions__of_a_selection_that_left_chunks_empty_are_answered(rng, question):
    values = rng.random((2, 12, 4))
    empty = labelled(values, chunks=((2,), (5, 0, 7), (4,)))
    xr.testing.assert_allclose(question(empty).compute(), question(labelled(values)))


@pytest.mark.parametrize("question", [nq.unit_moments, nq.top_examples, nq.dimensionality, nq.summary])
def test_questions__of_chunks_of_unknown_size_say_what_to_do(question):
    unknown = da.ones((2, 12, 4))[:, da.ones(12, chunks=12) > 0]
    with pytest.raises(InvalidInputError, match="unknown size: call .compute_chunk_sizes"):
        question(xr.DataArray(unknown, dims=("checkpoint", "example", "unit")))


@pytest.mark.parametrize("name", ["dead_units", "neuron_importance", "unit_moments"])
def test_a_lazy_answer_can_be_pickled(tmp_path, name):
    acts = simulate_store(tmp_path / "s.zarr").store["fc"].activations
    lazy = getattr(nq, name)(acts)
    assert any(variable.chunks for variable in lazy.data_vars.values())
    xr.testing.assert_equal(pickle.loads(pickle.dumps(lazy)).compute(), lazy.compute())


def test_infinities_of_both_signs_are_merged_without_a_warning():
    values = np.zeros((4, 1), np.float32)
    values[0], values[3] = np.inf, -np.inf
    acts = xr.DataArray(values, dims=("example", "unit")).chunk(example=1)
    assert np.isnan(nq.class_means(acts, [0, 1, 1, 0]).compute()["mean"].values[0, 0])
