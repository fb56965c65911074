"""The smooth curve and the noise of change points, against integrals, dense matrices and known distributions."""

import numpy as np
import pytest
import scipy.interpolate
import scipy.linalg

from ndt_query.kernels.noise import NOISES, Noise, scale_over_training, tail_weight
from ndt_query.kernels.trend import N_FREE, spline, training_axis


@pytest.mark.parametrize("n", [30, 100, 401])
def test_what_is_free_costs_nothing_and_is_in_the_span(n):
    basis, penalty = spline(n)
    at = np.arange(n)
    for free in (np.ones(n), at, training_axis(n)):
        coefficients, *_ = np.linalg.lstsq(basis, free, rcond=None)
        assert np.abs(basis @ coefficients - free).max() < 1e-3 * np.abs(free).max()
        bend = coefficients @ penalty @ coefficients
        wave = np.linalg.lstsq(basis, np.sin(training_axis(n)) * np.abs(free).max(), rcond=None)[0]
        assert bend < 1e-3 * (wave @ penalty @ wave)
    roughness = np.linalg.eigvalsh(penalty)
    assert (roughness[N_FREE:] > 1e-9 * roughness[-1]).all()
    assert (np.abs(roughness[:N_FREE]) < 1e-9 * roughness[-1]).all()


def test_penalty__is_the_integral_of_the_squared_second_derivative():
    n = 400
    basis, penalty = spline(n)
    axis = training_axis(n)
    wave = np.linalg.lstsq(basis, np.sin(axis), rcond=None)[0]
    line = np.linalg.lstsq(basis, np.linspace(-1, 1, n), rcond=None)[0]
    curve = scipy.interpolate.make_interp_spline(axis, basis @ wave, k=3)
    straight = scipy.interpolate.make_interp_spline(axis, basis @ line, k=3)
    fine = np.linspace(axis[0], axis[-1], 200_001)
    gap = fine[1] - fine[0]
    bends = [one.derivative(2)(fine) for one in (curve, straight)]
    cost = (bends[0] @ bends[0] - (bends[0] @ bends[1]) ** 2 / (bends[1] @ bends[1])) * gap
    assert wave @ penalty @ wave == pytest.approx(cost, rel=0.01)


@pytest.mark.parametrize(("tau", "sign"), [(tau, sign) for tau in (2, 10, 150) for sign in (-1, 1)])
def test_basis__follows_exponentials_closely(tau, sign):
    basis, _ = spline(400)
    curve = sign * np.exp(-np.arange(400) / tau)
    fitted = basis @ np.linalg.lstsq(basis, curve, rcond=None)[0]
    assert np.abs(fitted - curve).max() < 2e-3


@pytest.mark.parametrize("noise", NOISES, ids=lambda one: f"{one.rho}-{one.white:.2f}")
def test_noise__equals_dense_matrices(noise, rng):
    n = 50
    dense = (1 - noise.white) * scipy.linalg.toeplitz(noise.rho ** np.arange(n)) + noise.white * np.eye(n)
    series = rng.standard_normal((n, 3))
    before = series.copy()
    np.testing.assert_allclose(noise.precise(series), np.linalg.solve(dense, series), rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(series, before)
    assert noise.log_determinant(n) == pytest.approx(np.linalg.slogdet(dense)[1])
    np.testing.assert_allclose(noise.root(n) @ noise.root(n).T, dense, atol=1e-12)


def test_noise__covers_white_noise_ar_up_to_0_9_and_random_walks():
    assert Noise(0.0, 0.0) in NOISES
    assert max(one.rho for one in NOISES if one.white == 0) > 0.9
    assert any(one.rho > 0.99 and one.white > 0 for one in NOISES)


def test_scale__of_even_noise_is_mostly_one(rng):
    found = [scale_over_training(rng.standard_normal(400)) for _ in range(100)]
    even = [np.ptp(scale) == 0 and doubt.shape == (400, 0) for scale, doubt in found]
    assert sum(even) >= 90
    assert all(np.sqrt((scale**2).mean()) == pytest.approx(1) for scale, _ in found)


def test_scale__that_falls_is_followed_and_most_of_its_error_is_in_its_doubt(rng):
    truth = 1 + 4 * np.exp(-np.arange(400) / 30)
    truth /= np.sqrt((truth**2).mean())
    errors, doubts = [], []
    for _ in range(100):
        scale, doubt = scale_over_training(truth * rng.standard_normal(400))
        errors.append(np.log(scale / truth))
        doubts.append(np.sqrt((doubt**2).sum(axis=1)))
    assert np.abs(np.mean(errors, axis=0)).max() < 0.35
    # The rest is that the degree is chosen by the data.
    assert 0.55 < np.mean(doubts) / np.std(errors, axis=0).mean() < 1


def test_scale__is_not_fooled_by_a_few_outliers(rng):
    kept = 0
    for _ in range(50):
        values = rng.standard_normal(400)
        values[[100, 101]] = 12
        kept += np.ptp(scale_over_training(values)[0]) == 0
    assert kept >= 43


def test_tail_weight__tells_normal_from_heavy_tails(rng):
    assert np.isinf(np.median([tail_weight(rng.standard_normal(400)) for _ in range(21)]))
    assert 3 <= np.median([tail_weight(5 * rng.standard_t(3, 400)) for _ in range(21)]) <= 4
