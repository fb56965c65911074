"""Measures of dimension in cases with a closed form, and scatter matrices against dense numpy."""

import math

import numpy as np
import pytest

from ndt_query.kernels.spectrum import MEASURES, corrected_participation_ratio, energy_crossing, measures
from ndt_store.views import gram


@pytest.mark.parametrize("d", [1, 4, 10])
def test_measures__of_a_flat_spectrum_are_its_dimension(d):
    found = measures(np.full(d, 3.7))
    assert found == pytest.approx(dict.fromkeys(MEASURES, d) | {"energy_dims_90": 0.9 * d, "energy_dims_95": 0.95 * d})


def test_measures__of_two_unequal_components_follow_their_formulas():
    found = measures(np.array([1.0, 9.0]))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found["stable_rank"] == pytest.approx(10 / 9)
    assert found["participation_ratio"] == pytest.approx(100 / 82)
    assert found["nuclear_ratio"] == pytest.approx(4 / 3)
    assert found["effective_rank"] == pytest.approx(math.exp(entropy))
    assert math.ceil(found["energy_dims_90"]) == 1
    assert math.ceil(found["energy_dims_95"]) == 2


def test_measures__tell_the_spectral_from_the_frobenius_norm():
    # Regression: a study divided the Frobenius norm by itself and published a stable rank of 1.0 throughout.
    assert measures(np.array([1.0, 1.0, 1.0]))["stable_rank"] == pytest.approx(3.0)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_measures__do_not_depend_on_scale(scale):
    spectrum = np.array([5.0, 3.0, 1.0, 0.0])
    assert measures(spectrum * scale) == pytest.approx(measures(spectrum))


@pytest.mark.parametrize("spectrum", [[], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]], ids=str)
def test_measures__of_nothing_measurable_are_nan(spectrum):
    assert all(math.isnan(value) for value in measures(np.array(spectrum)).values())


def test_energy_crossing__needs_no_component_more_because_of_rounding():
    assert math.ceil(energy_crossing(np.full(10, 0.1), 0.9)) == 9


def test_corrected_participation_ratio__is_unbiased_in_its_terms(rng):
    # Skewed, heavy-tailed data of known covariance; a plug-in estimate is off by far more than the tolerance.
    d, n = 30, 25
    scales = np.linspace(0.5, 2.0, d)
    truth = (scales**2).sum() ** 2 / (scales**4).sum()
    plain, corrected = [], []
    for _ in range(800):
        x = (rng.exponential(size=(n, d)) - 1) * scales
        found = gram.rows_spectrum(x, centre=True)
        plain.append(measures(found.eigenvalues)["participation_ratio"])
        corrected.append(corrected_participation_ratio(found.n, found.trace, found.trace_square, found.fourth))
    assert abs(np.mean(plain) - truth) > 0.3 * truth
    assert np.median(corrected) == pytest.approx(truth, rel=0.05)


def test_corrected_participation_ratio__is_nan_below_four_samples():
    assert math.isnan(corrected_participation_ratio(3, 1.0, 1.0, 1.0))


def direct(samples):
    y = samples - samples.mean(axis=0)
    squared = (y * y).sum(axis=1)
    return {"mean": samples.mean(axis=0), "matrix": y.T @ y, "cubic": squared @ y, "fourth": (squared**2).sum()}


def test_merge_scatter__equals_sums_over_all_samples(rng):
    samples = rng.standard_normal((1, 40, 1, 6)) * np.arange(1, 7) + 100
    groups = np.arange(40) % 3
    parts = [gram.scatter(samples[:, part], groups[part], 3) for part in (slice(0, 1), slice(1, 17), slice(17, 40))]
    merged = gram.merge_scatter(gram.merge_scatter(parts[0], parts[1]), parts[2])
    for g in range(3):
        for name, expected in direct(samples[0, groups == g, 0]).items():
            np.testing.assert_allclose(getattr(merged[0][g], name), expected, rtol=1e-9, err_msg=name)
    whole = gram.merge_scatter(gram.merge_scatter(merged[0][0], merged[0][1]), merged[0][2])
    for name, expected in direct(samples[0, :, 0]).items():
        np.testing.assert_allclose(getattr(whole, name), expected, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", [(8, 30), (30, 8)], ids=str)
@pytest.mark.parametrize("centre", [True, False])
def test_rows_spectrum__equals_squared_singular_values(rng, shape, centre):
    samples = rng.standard_normal(shape, dtype=np.float32) + 10
    exact = samples.astype(np.float64)
    exact = exact - exact.mean(axis=0) if centre else exact
    singular = np.linalg.svd(exact, compute_uv=False)
    found = gram.rows_spectrum(samples, centre)
    np.testing.assert_allclose(np.sort(found.eigenvalues)[::-1][: min(shape)], singular**2, rtol=1e-9, atol=1e-6)
    sums = direct(samples.astype(np.float64))
    assert found.trace == pytest.approx(np.trace(sums["matrix"]))
    assert found.trace_square == pytest.approx((sums["matrix"] ** 2).sum())
    assert found.fourth == pytest.approx(sums["fourth"])


def test_rows_spectrum__takes_a_part_of_a_larger_gram_matrix(rng):
    samples = rng.standard_normal((10, 40)) + 3
    kept = np.array([0, 2, 3, 7, 9])
    products = gram.sample_gram(samples)
    found = gram.rows_spectrum(samples[kept], centre=True, gram=products[np.ix_(kept, kept)])
    np.testing.assert_allclose(found.eigenvalues, gram.rows_spectrum(samples[kept], centre=True).eigenvalues, atol=1e-9)
