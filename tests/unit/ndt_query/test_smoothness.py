"""Smoothness: scipy's tests on the derivatives that are meant, planted differences found, none where there is none."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError

STEPS = np.arange(0, 1000, 5)


def rise(rng, noise):
    return 3 / (1 + np.exp(-0.01 * (STEPS - 400))) + noise * rng.standard_normal(200)


def test_smoothness__tests_derivatives_per_step_of_ranges(rng):
    a, b = rise(rng, 0.2), 100 * rise(rng, 0.3)
    found = nq.smoothness(a, b, STEPS)
    derivatives = [np.diff(one) / 5 / np.ptp(one) for one in (a, b)]
    np.testing.assert_allclose(found["derivative"], derivatives)
    np.testing.assert_allclose(found["variance"], [one.var(ddof=1) for one in derivatives])
    levene, kruskal = scipy.stats.levene(*derivatives), scipy.stats.kruskal(*derivatives)
    assert (found["levene_statistic"], found["levene_p_value"]) == pytest.approx(tuple(levene))
    assert (found["kruskal_statistic"], found["kruskal_p_value"]) == pytest.approx(tuple(kruskal))
    assert found["log_variance_ratio"] == pytest.approx(np.log(derivatives[0].var() / derivatives[1].var()))
    assert found["epsilon_squared"] == pytest.approx(kruskal.statistic / 397)
    larger = scipy.stats.mannwhitneyu(*derivatives).statistic / 199**2
    assert found["rank_biserial"] == pytest.approx(2 * larger - 1)
    assert found["n"] == 199
    assert found["interval"].values[:2].tolist() == [2.5, 7.5]


def test_smoothness__does_not_depend_on_scale_or_offset(rng):
    a, b = rise(rng, 0.2), rise(rng, 0.3)
    one, other = nq.smoothness(a, b, STEPS), nq.smoothness(1e3 * a - 7, 0.01 * b, STEPS)
    for name in ("log_variance_ratio", "levene_block_p_value", "kruskal_block_p_value", "rank_biserial_low"):
        assert one[name] == pytest.approx(other[name].item(), rel=1e-6)


def test_smoothness__finds_a_planted_difference_and_its_direction(rng):
    found = nq.smoothness(rise(rng, 0.05), rise(rng, 0.2), STEPS)
    assert found["log_variance_ratio_high"] < 0
    assert found["levene_block_p_value"] < 0.001
    turned = nq.smoothness(rise(rng, 0.2), rise(rng, 0.05), STEPS)
    assert turned["log_variance_ratio_low"] > 0


def test_smoothness__finds_derivatives_that_are_larger(rng):
    # One goes up evenly, the other in few leaps: most of its derivatives are smaller.
    even = np.linspace(0, 1, 200) + 0.001 * rng.standard_normal(200)
    leaps = np.cumsum(rng.random(200) < 0.04) + 0.001 * rng.standard_normal(200)
    found = nq.smoothness(even, leaps, STEPS)
    assert found["rank_biserial_low"] > 0.3
    assert found["kruskal_block_p_value"] < 0.001


@pytest.mark.parametrize("test", ["levene", "kruskal"])
def test_smoothness__of_like_series_sees_no_difference_where_plain_tests_do(rng, test):
    derivatives = scipy.signal.lfilter([1], [1, -0.8], rng.standard_normal((2, 60, 200)))
    # Equal ranges, by a slope, or for ranks, which a slope leaves nothing to differ in, by a leap and back.
    if test == "levene":
        derivatives += 100
    else:
        derivatives[..., :2] += [1e4, -1e4]
    a, b = (xr.DataArray(one, dims=("draw", "step")) for one in derivatives.cumsum(axis=-1))
    found = nq.smoothness(a, b, n_resamples=200)
    assert (found[f"{test}_block_p_value"] < 0.05).mean() <= 0.12
    # Derivatives that depend on their neighbours count as more than they are.
    assert (found[f"{test}_p_value"] < 0.05).mean() >= 0.2


def test_smoothness__keeps_names_and_compares_each_pair(rng):
    shape = ("step", "layer")
    coords = {"step": STEPS, "layer": ["x", "y"]}
    a = xr.DataArray(np.stack([rise(rng, 0.1), rise(rng, 0.1)], axis=1), coords, shape, name="stable_rank")
    b = xr.DataArray(np.stack([rise(rng, 0.1), rise(rng, 0.5)], axis=1), coords, shape, name="effective_rank")
    found = nq.smoothness(a, b.transpose())
    assert found["log_variance_ratio"].dims == ("layer",)
    assert found["series"].values.tolist() == ["stable_rank", "effective_rank"]
    assert (found["levene_block_p_value"] < 0.01).values.tolist() == [False, True]
    one = nq.smoothness(a.sel(layer="y").values, b.sel(layer="y").values, STEPS)
    np.testing.assert_allclose(found["variance_low"].sel(layer="y"), one["variance_low"])
    assert found["trajectory"].dims == ("layer", "series", "step")
    assert nq.smoothness(a, a)["series"].values.tolist() == ["a", "b"]


@pytest.mark.parametrize("bad", [np.full(200, 2.0), np.where(np.arange(200) == 9, np.nan, 1.0), STEPS * 0.1])
def test_smoothness__of_what_never_turns_or_is_not_known_is_unknown(rng, bad):
    found = nq.smoothness(bad, rise(rng, 0.1), STEPS)
    for name in ("log_variance_ratio", "levene_p_value", "kruskal_block_p_value", "rank_biserial", "epsilon_squared"):
        assert np.isnan(found[name])
    assert found["nan_count"].values.tolist() == [np.isnan(bad).sum(), 0]


def test_smoothness__beside_a_straight_line_tells_the_variance(rng):
    other = rise(rng, 0.1)
    found = nq.smoothness(STEPS * 0.1, other, STEPS)
    expected = nq.smoothness(other[::-1], other, STEPS)["variance"][1]
    np.testing.assert_allclose(found["variance"], [0, expected], rtol=1e-12)


def test_smoothness__refuses_series_that_do_not_compare():
    a = xr.DataArray(np.arange(20.0), {"step": np.arange(20)}, ("step",))
    with pytest.raises(DimensionError, match="20 and 20 values, not at the same steps"):
        nq.smoothness(a, a.assign_coords(step=np.arange(20) * 2))
    with pytest.raises(DimensionError, match="select one series of each"):
        nq.smoothness(a, a.expand_dims(layer=2))
    layers = a.expand_dims(layer=["x", "y"])
    with pytest.raises(DimensionError, match="labels of layer"):
        nq.smoothness(layers, layers.assign_coords(layer=["x", "z"]))
    with pytest.raises(DimensionError, match="9 values or more: got 8"):
        nq.smoothness(np.arange(8.0), np.arange(8.0))
    with pytest.raises(InvalidInputError, match="confidence"):
        nq.smoothness(a, a, confidence=95)
