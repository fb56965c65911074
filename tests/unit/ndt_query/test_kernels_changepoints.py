"""Gains of steps, and fits, against penalised least squares as one dense system; and the null they are held to."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.signal
import scipy.stats

from ndt_query.kernels.changepoints import EDGE, fit, gains_of, scan, steps
from ndt_query.kernels.noise import NOISES
from ndt_query.kernels.stepdesign import FREEDOM, design, scaled_design
from ndt_query.kernels.stepnull import p_value, simulated, spacing
from ndt_query.kernels.trend import N_FREE, spline

n = 40
NONE = np.zeros((n, 0))
ALL = np.zeros(n, bool)
ALL[EDGE : n - EDGE + 1] = True


def dense(values, columns, noise, freedom, scale):
    """Residual sum, log determinants, coefficients and their covariance (up to s^2), with no decomposition."""
    basis, penalty = spline(n)
    correlation = (1 - noise.white) * scipy.linalg.toeplitz(noise.rho ** np.arange(n)) + noise.white * np.eye(n)
    covariance = correlation * np.outer(scale, scale)
    precision = np.linalg.inv(covariance)
    gram = basis.T @ precision @ basis

    def used(log_smoothing):
        return np.trace(np.linalg.solve(gram + np.exp(log_smoothing) * penalty, gram)) - N_FREE - freedom

    smoothing = np.exp(scipy.optimize.brentq(used, -30, 30, xtol=1e-12))
    x = np.concatenate([basis, columns], axis=1)
    k = basis.shape[1]
    system = x.T @ precision @ x
    system[:k, :k] += smoothing * penalty
    inverse = np.linalg.inv(system)
    b = inverse @ x.T @ precision @ values
    left = values @ precision @ (values - x @ b)
    cost = np.linalg.slogdet(covariance)[1] + np.linalg.slogdet(gram + smoothing * penalty)[1]
    return left, cost - (k - N_FREE) * np.log(smoothing), b, inverse, x


def freedoms():
    return np.minimum(FREEDOM, 0.9 * (spline(n)[0].shape[1] - N_FREE))


def dense_gain(values, columns, shape, scale):
    freedom = n - N_FREE - columns.shape[1]
    levels = []
    for extra in (columns, np.column_stack([columns, shape])):
        costs = [
            freedom * np.log(left) + cost
            for noise, used in itertools.product(NOISES, freedoms())
            for left, cost, *_ in [dense(values, extra, noise, used, scale)]
        ]
        levels.append(min(costs))
    return levels[0] - levels[1]


@pytest.fixture(scope="module", params=["even", "falling"])
def scale(request):
    return np.ones(n) if request.param == "even" else np.linspace(2, 0.5, n)


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(3).standard_normal(n) + 3 * (np.arange(n) >= 25)


def test_scan__equals_dense_penalised_likelihoods(values, scale):
    model = scaled_design(scale, np.empty((n, 0)))
    for columns, at in ((NONE, 25), (NONE, 10), (steps(n, [25]), 12)):
        free = ALL & ((np.arange(n) != 25) | (columns.size == 0))
        found = scan(model, values[:, None], columns, free, 0.0, locate=True)
        expected = dense_gain(values, columns, steps(n, [at]), scale)
        assert found.gain[at, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_gains_of__a_step_is_what_scan_says(values, scale):
    model = scaled_design(scale, np.empty((n, 0)))
    everything = frozenset(range(len(NOISES) * len(FREEDOM)))
    for columns in (NONE, steps(n, [8])):
        expected = scan(model, values[:, None], columns, ALL & (np.arange(n) > 10), 1e-6).gain[:, 0]
        got = gains_of(model, values, columns, steps(n, [15, 25, 30]), 1e-6, everything)
        np.testing.assert_allclose(got, expected[[15, 25, 30]], rtol=1e-6)


def test_gains_of__what_the_curve_can_do_for_nothing_is_none(values):
    everything = frozenset(range(len(NOISES) * len(FREEDOM)))
    assert np.abs(gains_of(design(n), values, NONE, np.arange(n, dtype=float)[:, None], 0.0, everything)).max() < 0.01


def test_scan__of_many_series_is_that_of_each(rng):
    series = rng.standard_normal((n, 5))
    together = scan(design(n), series, steps(n, [20]), ALL & (np.abs(np.arange(n) - 20) > 2), 1e-8).gain
    for one, gains in zip(series.T, together.T, strict=True):
        alone = scan(design(n), one[:, None], steps(n, [20]), ALL & (np.abs(np.arange(n) - 20) > 2), 1e-8).gain
        np.testing.assert_allclose(gains, alone[:, 0], rtol=1e-9, atol=1e-9)


def test_scan__with_the_near_points_alone_gives_the_same_gain(values):
    found = scan(design(n), values[:, None], NONE, ALL, 1e-8, locate=True)
    keep = frozenset(np.flatnonzero(found.near[:, 0] < 1e-9).tolist())
    assert 1 <= len(keep) <= 2
    again = scan(design(n), values[:, None], NONE, ALL, 1e-8, keep=keep)
    assert again.gain.max() == pytest.approx(found.gain.max())
    assert again.without == found.without
    assert set(found.with_step[found.gain.argmax()].tolist() + found.without.tolist()) == keep


def test_scan__leaves_out_what_is_not_allowed(values):
    allowed = ALL.copy()
    allowed[20:30] = False
    gain = scan(design(n), values[:, None], NONE, allowed, 1e-8).gain[:, 0]
    assert (gain[~allowed] == 0).all()
    assert (gain[allowed] >= -1e-9).all()


def test_fit__equals_a_dense_system(values, scale):
    model = scaled_design(scale, np.empty((n, 0)))
    columns = steps(n, [25])
    point = 21 * len(FREEDOM) + 2
    found = fit(model, values, columns, point, 0.0)
    left, _, b, inverse, x = dense(values, columns, NOISES[21], freedoms()[2], scale)
    k = len(b) - 1
    np.testing.assert_allclose(found.curve, x[:, :k] @ b[:k], atol=1e-5)
    assert found.coefficients[0] == pytest.approx(b[k], rel=1e-6)
    variance = left / (n - N_FREE - 1)
    assert found.variance == pytest.approx(variance, rel=1e-6)
    assert found.covariance[0, 0] == pytest.approx(variance * inverse[k, k], rel=1e-5)
    np.testing.assert_allclose(found.error, np.sqrt(variance * np.diag(x @ inverse @ x.T)), rtol=1e-4)
    back = scale * (NOISES[21].root(n) @ found.innovations)
    np.testing.assert_allclose(back, values - x @ b, atol=1e-5)


def test_rougher__keeps_the_noise_and_gives_the_curve_more_freedom():
    model = design(400)
    last = len(FREEDOM) - 1
    for point in (0, 3, last + 1):
        branch, shrink = model.at(point)
        rougher_branch, rougher = model.at(model.rougher(point))
        assert rougher_branch is branch
        assert (rougher >= shrink).all()
        assert rougher.sum() > shrink.sum()
    assert model.rougher(last) == last


@pytest.mark.parametrize("rho", [0.0, 0.92])
def test_simulated__has_the_noise_of_the_fit(rho):
    m = 400
    rng = np.random.default_rng(5)
    values = scipy.signal.lfilter([np.sqrt(1 - rho**2)], [1, -rho], rng.standard_normal(m))
    point = [one.rho for one in NOISES].index(rho) * len(FREEDOM)
    fitted = fit(design(m), values, np.zeros((m, 0)), point, 0.0)
    still = np.zeros((m, fitted.wiggle.shape[1]))
    series = simulated(design(m), replace(fitted, wiggle=still), np.zeros(m), np.inf, 0.0, rng, 300)
    assert series.var() == pytest.approx(fitted.variance, rel=0.1)
    assert (series[1:] * series[:-1]).mean() / series.var() == pytest.approx(rho, abs=0.06)
    heavy = simulated(design(m), replace(fitted, wiggle=still), np.zeros(m), 3.0, 0.0, rng, 300)
    if rho == 0:
        assert scipy.stats.kurtosis(heavy.ravel()) > 3
        assert abs(scipy.stats.kurtosis(series.ravel())) < 0.2


def test_simulated__lies_on_the_grid_of_the_series_with_no_more_noise():
    m = 400
    rng = np.random.default_rng(5)
    values = np.round(0.7 * rng.standard_normal(m))
    assert spacing(values) == 1
    fitted = fit(design(m), values, np.zeros((m, 0)), 2 * len(FREEDOM), 0.0)
    still = replace(fitted, wiggle=np.zeros((m, fitted.wiggle.shape[1])))
    series = simulated(design(m), still, np.zeros(m), np.inf, 1.0, rng, 200)
    assert set(np.unique(series)) <= set(range(-9, 10))
    assert series.var() == pytest.approx(values.var(), rel=0.15)


def test_spacing__is_that_of_counts_and_none_of_continuous_values(rng):
    assert spacing(0.25 + 0.5 * rng.integers(0, 9, 100)) == 0.5
    assert spacing(rng.standard_normal(100)) == 0
    assert spacing(np.repeat(rng.standard_normal(5), 20)) == 0
    assert spacing(rng.integers(0, 1_000_000, 100)) == 0
    assert spacing(1.0 * (np.arange(100) >= 40)) == 0


def test_p_value__counts_the_series_that_reach_the_gain_and_stops_at_ten(rng):
    gains = rng.standard_normal(1000)

    def tested(gain, n_null=199):
        made = iter(range(0, 1000, 64))
        return p_value(gain, lambda size: gains[(start := next(made)) : start + size], n_null)

    p, null = tested(np.inf)
    assert p == 1 / 200
    np.testing.assert_array_equal(null, gains[:199])
    assert tested(np.sort(gains[:199])[-5])[0] == 6 / 200
    p, few = tested(np.median(gains))
    assert len(few) == 64
    assert p == 10 / (np.flatnonzero(few >= np.median(gains))[9] + 1)
