"""Sudden changes that were planted are found; gradual ones and noise are called sudden no oftener than said."""

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import curve_fit

import ndt_query as nq
from ndt_query.kernels.sharpness import SMOOTH, fitted, largest_share
from ndt_query.transitions import VERDICTS
from ndt_store.errors import DimensionError, InvalidInputError


def gradual(i, width, height=10.0):
    """A logistic rise in the middle, so many measurements from 10 to 90%."""
    return height / (1 + np.exp(-4.394 / width * (i - len(i) / 2)))


def ar1(rng, shape, rho):
    noise = rng.standard_normal(shape)
    for t in range(1, shape[-1]):
        noise[..., t] = rho * noise[..., t - 1] + np.sqrt(1 - rho**2) * noise[..., t]
    return noise


KINDS = {
    "white": lambda i, rng: rng.standard_normal(i.shape),
    "correlated": lambda i, rng: ar1(rng, i.shape, 0.5),
    "line": lambda i, rng: 20 * i / i.shape[-1] + rng.standard_normal(i.shape),
    "exponential": lambda i, rng: 10 * np.exp(-8 * i / i.shape[-1]) + rng.standard_normal(i.shape),
    "rise of 5": lambda i, rng: gradual(i[0], 5) + rng.standard_normal(i.shape),
    "rise of a quarter": lambda i, rng: gradual(i[0], i.shape[-1] / 4) + rng.standard_normal(i.shape),
    "quiet rise": lambda i, rng: gradual(i[0], i.shape[-1] / 4) + 0.1 * rng.standard_normal(i.shape),
}


def verdict_by_series(values):
    """Each series by itself: their family would change the level."""
    found = [nq.transition(row, n_null=99)["change"].item() for row in values]
    return np.array(found)


def planted(n_series, n, size, seed=0):
    i = np.broadcast_to(np.arange(n), (n_series, n))
    return size * (i >= n // 2) + np.random.default_rng(seed).standard_normal((n_series, n))


def test_planted_changes__are_found_and_gradual_ones_and_noise_are_not_sudden():
    assert (verdict_by_series(planted(10, 40, 12)) == "sudden").all()
    i = np.broadcast_to(np.arange(40), (4, 40))
    called = np.concatenate([verdict_by_series(KINDS[kind](i, np.random.default_rng(1))) for kind in KINDS])
    assert (called == "sudden").sum() <= 3  # of 28; more have a chance of 5% at the nominal level


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_series_without_a_sudden_change__are_called_so_in_at_most_the_nominal_share(kind, n):
    i = np.broadcast_to(np.arange(n), (100, n))
    called = verdict_by_series(KINDS[kind](i, np.random.default_rng(2)))
    assert (called == "sudden").mean() <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(20, 0.8), (40, 0.9)])
def test_changes_of_eight_deviations__are_found_as_often_as_documented(n, least):
    assert (verdict_by_series(planted(100, n, 8)) == "sudden").mean() >= least


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(5)
    step = np.arange(40) * 25
    curves = np.stack([10 * (step >= 600), gradual(np.arange(40), 16), 0 * step, -10 * (step >= 250)])
    curves = curves + 0.4 * rng.standard_normal(curves.shape)
    series = xr.DataArray(
        np.stack([curves, curves[[2, 1, 2, 3]]]), {"measure": ["a", "b"], "layer": list("pqrs"), "checkpoint": step},
        ("measure", "layer", "checkpoint"), name="silhouette", attrs={"store": "runs/x.zarr"},
    )  # fmt: skip
    return series, nq.transition(series)


def test_each_series__has_its_verdict_place_and_size(found):
    _, result = found
    assert result["change"].dims == ("measure", "layer")
    assert result["change"].sel(measure="a").values.tolist() == ["sudden", "gradual", "none", "sudden"]
    assert result["change"].sel(measure="b").values.tolist() == ["none", "gradual", "none", "sudden"]
    one = result.sel(measure="a", layer="p")
    assert (int(one["jump_step"]), int(one["half_step"]), int(one["n_jumps"])) == (600, 600, 1)
    assert (int(one["largest_before"]), int(one["largest_after"])) == (575, 600)
    assert float(one["jump_size"]) == pytest.approx(10, abs=0.6)
    assert 575 <= float(one["midpoint"]) <= 600
    assert float(one["largest_share"]) == pytest.approx(1, abs=0.15)
    assert one["largest_share"] > one["null_share_95"]
    slow = result.sel(measure="a", layer="q")
    assert float(slow["midpoint"]) == pytest.approx(500, abs=20)
    assert float(slow["width"]) == pytest.approx(400, abs=60)
    assert abs(float(slow["half_step"]) - 500) <= 50
    assert np.isnan(float(slow["jump_step"]))
    assert np.isnan(float(result.sel(measure="a", layer="r")["half_step"]))
    assert float(result.sel(measure="a", layer="s")["jump_size"]) == pytest.approx(-10, abs=0.6)
    assert result.attrs["store"] == "runs/x.zarr"
    assert "silhouette" in result.attrs["what"]


def test_q_values__are_over_all_series(found):
    from scipy.stats import false_discovery_control

    result = found[1]
    expected = false_discovery_control(result["p_value"].values.ravel())
    np.testing.assert_allclose(result["q_value"].values.ravel(), expected)
    np.testing.assert_array_equal(result["p_value"], np.maximum(result["jump_p_value"], result["share_p_value"]))


def test_midpoint__is_that_of_fit_growth(found):
    series, result = found
    expected = nq.fit_growth(series, n_resamples=200, n_null=639)
    np.testing.assert_allclose(result["midpoint"], expected["midpoint"])


def test_a_whole_dataset__is_asked_measure_by_measure(found):
    series, result = found
    table = series.to_dataset("measure")
    again = nq.transition(table)
    assert again["change"].sel(measure="b").values.tolist() == result["change"].sel(measure="b").values.tolist()


def test_series_that_cannot_be_judged__say_so():
    rows = np.stack([np.full(30, 2.0), np.where(np.arange(30) == 4, np.nan, 1.0), (np.arange(30) >= 15) * 1.0])
    result = nq.transition(xr.DataArray(rows, dims=("layer", "step")))
    assert result["change"].values.tolist() == ["none", "unknown", "sudden"]
    assert result["nan_count"].values.tolist() == [0, 1, 0]
    assert float(result["p_value"][0]) == 1
    assert np.isnan(float(result["q_value"][1]))
    assert set(result["change"].values) <= set(VERDICTS)


def test_largest_share__is_that_of_the_largest_step_in_the_direction_of_the_change():
    share, end, total = largest_share(np.array([0.0, 0, 0, 0, 3, 3, 2, 4, 4, 4]))
    assert (float(share), int(end), float(total)) == (0.75, 4, 4.0)
    share, end, total = largest_share(-np.array([0.0, 9, 0, 0, 3, 3, 2, 4, 4, 4]))
    assert (float(share), int(end), float(total)) == (2.25, 1, -4.0)


def test_the_smooth_curve__is_nearly_the_logistic_that_least_squares_finds():
    i = np.arange(40.0)
    values = gradual(i, 11) + 0.2 * np.random.default_rng(0).standard_normal(40)
    theta, _ = curve_fit(lambda u, r, m, c, f: f + c / (1 + np.exp(-r * (u - m))), i, values, (0.4, 20, 10, 0))
    best = theta[3] + theta[2] / (1 + np.exp(-theta[0] * (i - theta[1])))
    curve = fitted(values, SMOOTH)
    assert ((values - curve) ** 2).sum() <= 1.1 * ((values - best) ** 2).sum()
    steep = fitted(10.0 * (i >= 20), SMOOTH)
    assert np.diff(steep).max() < 3  # however steep the series, the curve takes five measurements


def test_transition__names_what_is_wrong():
    with pytest.raises(DimensionError, match="19 values along step: gradual is told from sudden by at least 20"):
        nq.transition(np.arange(19.0))
    with pytest.raises(InvalidInputError, match="n_null=9 series are too few for alpha=0.05"):
        nq.transition(np.arange(30.0), n_null=9)
    with pytest.raises(InvalidInputError, match="steps do not increase"):
        nq.transition(np.arange(30.0), np.zeros(30))


def test_a_rise_far_beyond_its_noise__is_gradual_where_neighbours_are_alike():
    # Smooth as a random walk is, so that no test of growth can call it anything; and yet it ended elsewhere.
    steps = np.unique(np.geomspace(1, 2000, 24).round())
    rng = np.random.default_rng(0)
    rise = 0.5 + 0.44 / (1 + np.exp(-(np.log(steps) - 3))) + 0.004 * rng.standard_normal(len(steps))
    found = nq.transition(rise, steps)
    assert str(found["change"].values) == "gradual"
    assert float(found["change_in_noise"]) > 20
    still = nq.transition(0.5 + 0.004 * rng.standard_normal(len(steps)), steps)
    assert str(still["change"].values) == "none"
    assert float(still["change_in_noise"]) < 3
