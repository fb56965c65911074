"""Logistic growth: equal to scipy where scipy finds it, planted parameters found, and no growth in what has none."""

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import xarray as xr

import ndt_query as nq
from ndt_query.kernels import growth as kernel
from ndt_store.errors import DimensionError, InvalidInputError

STEPS = np.arange(0, 2000, 5)
NAMES = ("rate", "midpoint", "ceiling", "floor")


def logistic(step, rate, midpoint, ceiling, floor):
    return floor + (ceiling - floor) / (1 + np.exp(-rate * (step - midpoint)))


def quick(series, steps=None, **options):
    return nq.fit_growth(series, steps, **{"n_resamples": 60, "n_null": 99, **options})


@pytest.mark.parametrize("truth", [(0.01, 700, 9.0, 2.0), (-0.02, 400, 1.5, -3.0), (0.15, 1500, 1e-6, 0.0)], ids=str)
def test_fit_growth__of_clean_data_is_exact_and_equals_scipy(truth):
    series = logistic(STEPS, *truth)
    found = quick(series, STEPS)
    fit, _ = scipy.optimize.curve_fit(logistic, STEPS, series, p0=truth)
    for name, exact, theirs in zip(NAMES, truth, fit, strict=True):
        assert found[name] == pytest.approx(exact, rel=1e-6, abs=1e-9)
        assert found[name] == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert found["r2"] == pytest.approx(1)
    assert found["growth"]
    assert not found["at_bound"].any()
    np.testing.assert_allclose(found["fit"], series, atol=1e-7 * np.ptp(series))


@pytest.mark.parametrize("seed", range(4))
def test_fit_growth__of_noisy_data_is_the_least_squares_fit_of_scipy(seed):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 10, 150))
    truth = (rng.choice([-1, 1]) * 20 / steps[-1], steps[70], 5.0, 1.0)
    series = logistic(steps, *truth) + 0.3 * rng.standard_normal(150)
    found = quick(series, steps)
    fit, _ = scipy.optimize.curve_fit(logistic, steps, series, p0=truth)
    np.testing.assert_allclose([found[name] for name in NAMES], fit, rtol=1e-4)


def test_fit_growth__finds_planted_parameters_within_their_intervals(rng):
    truth = (0.008, 900, 12.0, 4.0)
    found = nq.fit_growth(logistic(STEPS, *truth) + rng.standard_normal(400), STEPS)
    for name, exact in zip(NAMES, truth, strict=True):
        assert found[f"{name}_low"] < exact < found[f"{name}_high"]
        reach = found[f"{name}_high"] - found[f"{name}_low"]
        assert reach == pytest.approx(2 * 1.96 * found[f"{name}_standard_error"], rel=0.25)
    assert found["r2_low"] < found["r2"] < found["r2_high"]
    assert ((found["fit_low"] < found["fit"]) & (found["fit"] < found["fit_high"])).all()


def test_fit_growth__has_the_standard_errors_of_least_squares_where_noise_is_white(rng):
    series = logistic(STEPS, 0.01, 900, 12.0, 4.0) + rng.standard_normal(400)
    found = nq.fit_growth(series, STEPS)
    _, covariance = scipy.optimize.curve_fit(logistic, STEPS, series, p0=(0.01, 900, 12, 4))
    errors = [found[f"{name}_standard_error"] for name in NAMES]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(covariance)), rtol=0.2)


def test_fit_growth__knows_less_where_residuals_depend_on_each_other(rng):
    white = rng.standard_normal(400)
    dependent = scipy.signal.lfilter([np.sqrt(1 - 0.8**2)], [1, -0.8], white)
    one, other = (nq.fit_growth(logistic(STEPS, 0.01, 900, 12, 4) + noise, STEPS) for noise in (white, dependent))
    assert other["ceiling_standard_error"] > 2 * one["ceiling_standard_error"]
    assert other["block_length"] > 3 * one["block_length"]


def test_fit_growth__tells_a_fall_by_its_rate(rng):
    falling = logistic(STEPS, -0.01, 900, 12, 4) + 0.1 * rng.standard_normal(400)
    found, mirrored = quick(falling, STEPS), quick(-falling, STEPS)
    assert found["rate"] == pytest.approx(-0.01, rel=0.05)
    assert mirrored["rate"] == pytest.approx(-found["rate"].item(), rel=1e-6)
    assert mirrored["floor"] == pytest.approx(-found["ceiling"].item(), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.3, -1e9])
def test_fit_growth__of_a_constant_finds_none(value):
    found = quick(np.full(50, value))
    assert not found["growth"]
    assert (found["p_value"], found["r2"]) == (1, 0)
    assert np.isnan([found[name] for name in (*NAMES, "rate_low")]).all()


def test_fit_growth__of_noise_finds_none_and_says_how_little_it_explains(rng):
    found = nq.fit_growth(rng.standard_normal(400))
    assert not found["growth"]
    assert found["r2"] < 0.05
    assert found["r2"] < found["r2_noise"]
    assert np.isnan(found["fit"]).all()
    assert np.isnan([found[name] for name in NAMES]).all()


def test_fit_growth__is_not_taken_in_by_a_random_walk():
    walks = np.random.default_rng(5).standard_normal((40, 200)).cumsum(axis=1)
    found = quick(xr.DataArray(walks, dims=("walk", "step")), n_resamples=2)
    # A curve explains much of a walk, and a test that takes values for independent would see growth in nearly all.
    assert found["r2"].mean() > 0.6
    assert found["growth"].mean() <= 0.15


def test_fit_growth__says_which_parameter_sits_on_its_bound(rng):
    noise = 0.01 * rng.standard_normal(400)
    decay = quick(np.exp(-STEPS / 700) + noise, STEPS)  # a logistic curve far behind its middle
    assert decay["growth"]
    assert decay["at_bound"].any()
    step = quick((STEPS >= 1000) + noise, STEPS)
    assert step["at_bound"].sel(parameter="rate")
    assert np.isnan([step["rate_low"], step["rate_standard_error"]]).all()
    assert np.isfinite([step["rate"], step["ceiling_low"]]).all()
    # 10 to 90% within one measurement.
    assert step["rate"] * 5 == pytest.approx(2 * np.log(9), rel=0.01)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fit_growth__with_a_bad_value_is_unknown(bad):
    series = np.array([np.linspace(0, 1, 20)] * 2)
    series[1, 4] = bad
    found = quick(xr.DataArray(series, dims=("layer", "step")))
    assert found["growth"].values.tolist() == [True, False]
    assert np.isnan(found["p_value"]).values.tolist() == [False, True]
    assert np.isnan(found["r2"]).values.tolist() == [False, True]
    assert found["nan_count"].values.tolist() == [0, int(np.isnan(bad))]


def test_fit_growth__takes_arrays_and_names_alike(rng):
    series = logistic(STEPS, 0.01, 900, 12, 4) + 0.1 * rng.standard_normal(400)
    plain = quick(series, STEPS)
    named = xr.DataArray(np.stack([series, rng.standard_normal(400)], axis=1), dims=("step", "layer"), name="rank")
    named = named.assign_coords(step=STEPS, layer=["a", "b"])
    found = quick(named)
    xr.testing.assert_allclose(found.sel(layer="a", drop=True), plain)
    xr.testing.assert_equal(quick(named.rename(step="checkpoint").transpose())["rate"], found["rate"])
    assert found["growth"].values.tolist() == [True, False]
    assert found["fit"].dims == ("layer", "step")
    assert found["step"].values.tolist() == STEPS.tolist()
    assert "growth of rank" in found.attrs["what"]


def test_fit_growth__of_a_dataset_fits_what_spans_its_dimensions(rng):
    shape = ("step", "layer")
    dataset = xr.Dataset(
        {
            "stable_rank": (shape, rng.random((20, 2))),
            "stable_rank_low": (shape, rng.random((20, 2))),
            "nuclear_ratio": (shape, np.linspace([0, 1], [1, 0], 20)),
            "nan_count": (shape, np.zeros((20, 2), int)),
            "loss": ("step", rng.random(20)),
        }
    )
    found = quick(dataset)
    assert found["measure"].values.tolist() == ["stable_rank", "nuclear_ratio"]
    assert np.sign(found["rate"].sel(measure="nuclear_ratio")).values.tolist() == [1, -1]
    with pytest.raises(DimensionError, match="no floating variables"):
        quick(dataset[["nan_count"]])


def test_fit_growth__repeats_with_its_seed(rng):
    series = logistic(STEPS, 0.01, 900, 12, 4) + rng.standard_normal(400)
    xr.testing.assert_equal(quick(series, seed=1), quick(series, seed=1))
    assert quick(series, seed=1)["rate_low"] != quick(series, seed=2)["rate_low"]


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        (np.arange(7.0), {}, "8 values or more along step: got 7"),
        (np.zeros((9, 2)), {}, "shape .9, 2."),
        (np.arange(9.0), {"steps": np.arange(8)}, "give one step each"),
        (np.arange(9.0), {"steps": np.zeros(9)}, "do not increase"),
        (np.arange(9.0), {"steps": list("abcdefghi")}, "expected numbers"),
        (np.array(list("abcdefghi")), {}, "expected real numbers"),
        (np.arange(9.0), {"alpha": 5}, "level"),
        (np.arange(9.0), {"n_null": 0}, "n_null"),
        (xr.DataArray(np.zeros((9, 2)), dims=("epoch", "layer")), {}, "step or checkpoint"),
        (xr.DataArray(np.zeros((9, 0)), dims=("step", "layer")), {}, "holds no value"),
    ],
)
def test_fit_growth__refuses_what_it_cannot_use(series, options, message):
    with pytest.raises(InvalidInputError, match=message):
        nq.fit_growth(series, **options)


def test_slopes__are_those_of_the_curve(rng):
    u, theta = np.linspace(0, 1, 30), np.array([[6.0, 0.4, 1.2, 0.1], [-20.0, 0.7, 0.9, -0.3]])
    exact = np.stack([scipy.optimize.approx_fprime(one, lambda t: kernel.curve(t, u), 1e-7) for one in theta])
    np.testing.assert_allclose(kernel.slopes(theta, u), exact, atol=1e-5)


def test_refit__finds_the_bounded_solutions_of_scipy(rng):
    u = np.linspace(0, 1, 60)
    values = kernel.curve(np.array([8.0, 0.5, 1.0, 0.0]), u) + 0.1 * rng.standard_normal((20, 60))
    lower, upper = kernel.limits(u)
    found = kernel.refit(np.array([8.0, 0.5, 1.0, 0.0]), u, values, 12)
    for series, theta in zip(values, found, strict=True):
        exact = scipy.optimize.least_squares(lambda t, y=series: kernel.curve(t, u) - y, theta, bounds=(lower, upper))
        np.testing.assert_allclose(theta, exact.x, rtol=2e-3)
