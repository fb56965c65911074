"""Agreement over seeds against published figures, scipy and planted effects."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError

# Shrout and Fleiss 1979, table 2: four judges rate six targets.
JUDGES = np.array([[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]])


def test_icc__is_the_published_one():
    found = nq.agreement_over_seeds(JUDGES)
    assert found["icc"] == pytest.approx(0.29, abs=0.005)
    # As the R packages psych and irr print them for these data.
    assert (found["icc_low"], found["icc_high"]) == pytest.approx((0.019, 0.76), abs=0.005)
    assert (found["n_seeds"], found["n_items"]) == (4, 6)


def test_concordance__equals_scipy():
    found = nq.agreement_over_seeds(JUDGES, n_permutations=4999)
    friedman = scipy.stats.friedmanchisquare(*JUDGES.T)
    assert found["kendall_w"] == pytest.approx(friedman.statistic / (4 * 5))
    assert found["kendall_p_value"] == pytest.approx(friedman.pvalue, abs=0.01)
    pairs = [scipy.stats.spearmanr(a, b).statistic for k, a in enumerate(JUDGES) for b in JUDGES[k + 1 :]]
    assert found["rank_correlation"] == pytest.approx(np.mean(pairs))


def test_concordance__without_ties_follows_from_the_rank_correlation(rng):
    found = nq.agreement_over_seeds(rng.random((5, 12)))
    assert found["kendall_w"] == pytest.approx((found["rank_correlation"] * 4 + 1) / 5)


def test_mean_and_spread__have_the_intervals_of_student_and_of_chi_squared(rng):
    values = rng.standard_normal((6, 3))
    found = nq.agreement_over_seeds(values, confidence=0.9)
    for k in range(3):
        t = scipy.stats.ttest_1samp(values[:, k], 0).confidence_interval(0.9)
        assert (found["mean_low"][k], found["mean_high"][k]) == pytest.approx((t.low, t.high))
        power = values[:, k].var(ddof=1) * 5
        low, high = np.sqrt(power / scipy.stats.chi2.ppf([0.95, 0.05], 5))
        assert (found["standard_deviation_low"][k], found["standard_deviation_high"][k]) == pytest.approx((low, high))
    np.testing.assert_allclose(found["mean"], values.mean(0))
    np.testing.assert_allclose(found["standard_deviation"], values.std(0, ddof=1))


@pytest.mark.parametrize(
    ("n", "reach", "low", "high"),
    [(3, 2.48, 0.52, 6.3), (5, 1.24, 0.60, 2.9), (6, 1.05, 0.62, 2.5), (10, 0.72, 0.69, 1.8)],
)
def test_what_few_seeds_can_show__is_as_documented(rng, n, reach, low, high):
    found = nq.agreement_over_seeds(rng.standard_normal(n))
    spread = found["standard_deviation"]
    assert (found["mean_high"] - found["mean"]) / spread == pytest.approx(reach, abs=0.006)
    assert found["standard_deviation_low"] / spread == pytest.approx(low, abs=0.006)
    assert found["standard_deviation_high"] / spread == pytest.approx(high, abs=0.06)
    # No test over n pairs can give a smaller p.
    _, p_value = nq.paired_permutation_test(np.arange(1.0, n + 1), np.zeros(n))
    assert found["least_p_value"] == pytest.approx(float(p_value))
    text = nq.agreement_over_seeds.__doc__
    assert all(f"{number:.2g}" in text for number in (low, high))


def test_seeds_that_agree__are_found_and_noise_is_not(rng):
    effects = rng.standard_normal((40, 1, 15))
    planted = effects + 0.3 * rng.standard_normal((40, 4, 15))
    noise = rng.standard_normal((40, 4, 15))
    dims = ("case", "run", "unit")
    found, nothing = (nq.agreement_over_seeds(xr.DataArray(one, dims=dims), over="unit") for one in (planted, noise))
    assert (found["kendall_p_value"] < 0.01).all()
    assert found["icc"].mean() == pytest.approx(1 / (1 + 0.3**2), abs=0.05)
    assert (nothing["kendall_p_value"] < 0.05).mean() < 0.15
    assert abs(nothing["icc"].mean()) < 0.05


def test_levels_that_differ_between_seeds__cost_agreement_and_not_concordance(rng):
    shifted = rng.standard_normal((1, 10)) + 0.01 * rng.standard_normal((4, 10)) + np.arange(4)[:, None] * 3
    found = nq.agreement_over_seeds(shifted)
    assert found["kendall_w"] > 0.95
    assert found["icc"] < 0.3


def test_dimensions__are_named_in_and_out(rng):
    data = xr.DataArray(
        rng.random((3, 4, 5)),
        dims=("checkpoint", "run", "layer"),
        coords={"checkpoint": [0, 10, 20], "run": list("abcd"), "layer": list("vwxyz")},
    )
    found = nq.agreement_over_seeds(data, over="layer")
    assert found["mean"].dims == ("checkpoint", "layer")
    assert found["icc"].dims == ("checkpoint",)
    assert found["checkpoint"].values.tolist() == [0, 10, 20]
    one = nq.agreement_over_seeds(data.isel(checkpoint=1).values)
    np.testing.assert_allclose(found["icc"][1], one["icc"])
    np.testing.assert_allclose(found["mean_low"][1], one["mean_low"])
    whole = nq.agreement_over_seeds(data.rename(run="seed"))
    assert whole["icc"].dims == ()
    assert whole["n_items"] == 15
    xr.testing.assert_equal(nq.agreement_over_seeds(data.rename(run="repeat"), dim="repeat")["icc"], whole["icc"])


def test_one_number_a_seed__has_no_items_to_order():
    found = nq.agreement_over_seeds([0.91, 0.93, 0.92])
    assert found["mean"] == pytest.approx(0.92)
    for name in ("icc", "icc_low", "kendall_w", "kendall_p_value", "rank_correlation"):
        assert np.isnan(found[name])
    assert found["least_p_value"] == 0.25


def test_nan__reaches_what_it_goes_into(rng):
    values = rng.random((3, 2, 4))
    values[0, 0, 2] = np.nan
    found = nq.agreement_over_seeds(xr.DataArray(values, dims=("run", "layer", "unit")), over="unit")
    assert np.isnan(found["mean"]).values.sum() == 1
    for name in ("icc", "kendall_w", "kendall_p_value"):
        assert np.isnan(found[name]).values.tolist() == [True, False]


def test_bootstrap__over_seeds_is_that_of_bootstrap_ci(rng):
    values = rng.random((8, 3))
    found = nq.agreement_over_seeds(values, interval="bootstrap", seed=4)
    np.testing.assert_array_equal(found["mean_low"], nq.bootstrap_ci(values, seed=4).low)


@pytest.mark.parametrize(
    "call",
    [
        lambda: nq.agreement_over_seeds(1.0),
        lambda: nq.agreement_over_seeds([1.0]),
        lambda: nq.agreement_over_seeds([1.0, 2.0], interval="z"),
        lambda: nq.agreement_over_seeds([1.0, 2.0], confidence=95),
        lambda: nq.agreement_over_seeds([1.0, 2.0], n_permutations=0),
    ],
)
def test_agreement__refuses_what_it_cannot_use(call):
    with pytest.raises(InvalidInputError):
        call()


def test_agreement__says_which_dimension_it_misses():
    data = xr.DataArray(np.zeros((3, 2)), dims=("run", "layer"))
    with pytest.raises(DimensionError, match="over='unit' is not possible"):
        nq.agreement_over_seeds(data, over="unit")
    with pytest.raises(DimensionError, match="expected one of them to be run or seed"):
        nq.agreement_over_seeds(data.rename(run="model"))
