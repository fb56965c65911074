"""Measures of dimension in cases with a closed form."""

import math

import numpy as np
import pytest

from ndt_store.views.scatter import scatter_of, scatter_spectrum
from ndt_store.views.spectrum import MEASURES, corrected_participation_ratio, energy_crossing, measures


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


def test_measures__count_eigenvalues_within_rounding_of_zero_as_zero(rng):
    # 60 samples of 10 dimensions among 200 features: 50 of the eigenvalues of their Gram matrix are rounding.
    samples = rng.standard_normal((60, 10)) @ rng.standard_normal((10, 200))
    few, many = np.linalg.svd(samples, compute_uv=False)[:10] ** 2, np.linalg.eigvalsh(samples @ samples.T)
    assert measures(many) == pytest.approx(measures(few), rel=1e-12)


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
        found = scatter_spectrum(scatter_of(x), centre=True)
        plain.append(measures(found.eigenvalues)["participation_ratio"])
        corrected.append(corrected_participation_ratio(found.n, found.trace, found.trace_square, found.fourth))
    assert abs(np.mean(plain) - truth) > 0.3 * truth
    assert np.median(corrected) == pytest.approx(truth, rel=0.05)


def test_corrected_participation_ratio__is_nan_below_four_samples():
    assert math.isnan(corrected_participation_ratio(3, 1.0, 1.0, 1.0))
