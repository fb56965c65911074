"""Intervals and tests against scipy and closed forms; how often they are right is tested with benchmarks.coverage."""

import numpy as np
import pytest
import scipy.stats

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError


def test_clopper_pearson__equals_scipy():
    for k, n in [(0, 10), (3, 10), (10, 10), (1, 1000)]:
        exact = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(nq.clopper_pearson(k, n), exact)
        above = scipy.stats.binomtest(k, n, alternative="less").proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(nq.clopper_pearson(k, n, side="upper"), above)
        below = scipy.stats.binomtest(k, n, alternative="greater").proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(nq.clopper_pearson(k, n, side="lower"), below)


def test_clopper_pearson__lets_nan_through_and_refuses_impossible_counts():
    assert np.isnan(nq.clopper_pearson(np.nan, 5)).all()
    with pytest.raises(InvalidInputError, match="0 <= k <= n"):
        nq.clopper_pearson(6, 5)
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        nq.clopper_pearson(1, 5, confidence=95)


def test_fdr__equals_scipy_and_leaves_out_what_was_not_tested(rng):
    p_values = rng.random(20)
    np.testing.assert_allclose(nq.fdr(p_values), scipy.stats.false_discovery_control(p_values))
    gaps = np.insert(p_values, [3, 7], np.nan)
    found = nq.fdr(gaps)
    np.testing.assert_allclose(found[~np.isnan(gaps)], nq.fdr(p_values))
    assert np.isnan(found[np.isnan(gaps)]).all()
    assert np.isnan(nq.fdr([np.nan, np.nan])).all()


def test_fdr__takes_each_row_as_a_family(rng):
    p_values = rng.random((3, 10))
    np.testing.assert_allclose(nq.fdr(p_values)[1], nq.fdr(p_values[1]))
    np.testing.assert_allclose(nq.fdr(p_values, axis=0)[:, 2], nq.fdr(p_values[:, 2]))
    with pytest.raises(InvalidInputError, match="between 0 and 1"):
        nq.fdr([0.1, 1.1])


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_ci__resamples_whole_examples(rng, method):
    data = rng.standard_normal((40, 3))
    data[:, 2] = data[:, 0] + 1
    # Resampled together, the two columns keep their distance in every resample.
    whole = nq.bootstrap_ci(data, method=method, seed=4)
    np.testing.assert_allclose(whole.low[2] - whole.low[0], 1)
    np.testing.assert_allclose(whole.high[2] - whole.high[0], 1)


def test_bootstrap_ci__is_near_the_normal_interval_of_a_mean(rng):
    data = rng.standard_normal(400)
    found, reach = nq.bootstrap_ci(data, n_resamples=4000), 1.96 * data.std(ddof=1) / 20
    assert found.low == pytest.approx(data.mean() - reach, abs=0.015)
    assert found.high == pytest.approx(data.mean() + reach, abs=0.015)
    assert found.standard_error == pytest.approx(reach / 1.96, rel=0.05)


def test_bootstrap_ci__lets_nan_through(rng):
    data = rng.standard_normal((20, 2))
    data[3, 1] = np.nan
    found = nq.bootstrap_ci(data, n_resamples=100)
    assert np.isnan(found.low).tolist() == [False, True]
    assert np.isnan(found.estimate).tolist() == [False, True]


def test_bootstrap_ci__needs_two_entries():
    with pytest.raises(DimensionError, match="two or more entries"):
        nq.bootstrap_ci([1.0])


def test_jackknife__of_a_mean_has_its_standard_error(rng):
    data = rng.standard_normal(30)
    left_out = (data.sum() - data) / 29
    found = nq.jackknife(left_out, data.mean())
    assert found.standard_error == pytest.approx(data.std(ddof=1) / np.sqrt(30))
    assert (found.low, found.high) == pytest.approx(scipy.stats.t.interval(0.95, 29, data.mean(), found.standard_error))


def test_jackknife__corrects_the_bias_of_a_variance_exactly(rng):
    data = rng.standard_normal(12)
    left_out = [np.delete(data, i).var() for i in range(12)]
    found = nq.jackknife(left_out, data.var(), correct_bias=True)
    assert found.estimate == pytest.approx(data.var(ddof=1))
    with pytest.raises(DimensionError, match="two or more groups"):
        nq.jackknife([1.0], 1.0)


def test_permutation_null__counts_the_observed_labelling(rng):
    labels, values = np.arange(40) % 2, rng.standard_normal(40)

    def gap(given):
        return abs(values[given == 1].mean() - values[given == 0].mean())

    found = nq.permutation_null(gap, labels, n_permutations=99)
    assert found.null.shape == (99,)
    assert found.p_value == pytest.approx(((found.null >= found.observed).sum() + 1) / 100)
    strong = nq.permutation_null(lambda given: float((given == labels).mean()), labels, n_permutations=99)
    assert strong.p_value == pytest.approx(0.01)


def test_permutation_null__compares_infinities():
    found = nq.permutation_null(lambda labels: np.inf if labels[0] == 0 else 0.0, [0, 1], n_permutations=100)
    assert 0.3 < found.p_value < 0.7


def test_permutation_null__calls_a_statistic_that_never_changes_unremarkable():
    found = nq.permutation_null(lambda labels: np.array([labels.sum() * 0.1, np.nan]), np.arange(9), n_permutations=20)
    assert found.p_value[0] == 1
    assert np.isnan(found.p_value[1])
    with pytest.raises(InvalidInputError, match="at least 1"):
        nq.permutation_null(np.sum, [0, 1], n_permutations=0)


def test_paired_permutation_test__is_exact_for_few_pairs():
    difference, p_value = nq.paired_permutation_test([2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0])
    assert difference == pytest.approx(2.5)
    assert p_value == pytest.approx(2 / 16)
    with pytest.raises(DimensionError, match="one shape"):
        nq.paired_permutation_test([1.0], [1.0, 2.0])


def test_effect_size__follows_its_formulas(rng):
    a, b = rng.standard_normal(12) + 1, rng.standard_normal(15)
    pooled = np.sqrt((11 * a.var(ddof=1) + 14 * b.var(ddof=1)) / 25)
    assert nq.effect_size(a, b) == pytest.approx((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * 27 - 9)))
    assert nq.effect_size(a, b[:12], paired=True) == pytest.approx((a - b[:12]).mean() / (a - b[:12]).std(ddof=1))
    assert np.isnan(nq.effect_size(np.ones(3), np.ones(4)))
    with pytest.raises(DimensionError, match="two or more samples"):
        nq.effect_size([1.0], [2.0, 3.0])


def test_paired_permutation_test__with_a_nan_gives_nan():
    difference, p_value = nq.paired_permutation_test([[1.0, 1.0], [2.0, np.nan]], [[0.0, 0.0], [1.0, 0.0]])
    assert np.isnan(difference).tolist() == [False, True]
    assert np.isnan(p_value).tolist() == [False, True]


def test_effect_size__of_values_that_differ_by_rounding_is_unknown():
    # The standard deviation of three times 0.1 is 1.7e-17.
    assert np.isnan(nq.effect_size([0.1] * 3, [0.2] * 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda: nq.fdr(0.1),
        lambda: nq.fdr([0.1, 0.2], axis=3),
        lambda: nq.bootstrap_ci([1.0, 2.0], axis=2),
        lambda: nq.bootstrap_ci([1.0, 2.0], method="basic"),
        lambda: nq.bootstrap_ci([1.0, 2.0], n_resamples=0),
        lambda: nq.jackknife([[1.0, 2.0], [2.0, 3.0]], [1, 2, 3]),
        lambda: nq.clopper_pearson(1, 3, side="up"),
        lambda: nq.clopper_pearson([1, 2], [3, 4, 5]),
        lambda: nq.paired_permutation_test([1.0], [2.0]),
        lambda: nq.paired_permutation_test([1.0, 2.0], [2.0, 4.0], alternative="more"),
        lambda: nq.permutation_null(np.mean, [0, 1], n_permutations=0),
        lambda: nq.effect_size([1.0, 2.0], [1.0, 2.0], axis=4),
        lambda: nq.mean_ci([]),
        lambda: nq.mean_ci(1.0),
        lambda: nq.mean_ci([1.0, 2.0], confidence=95),
    ],
)
def test_inference__refuses_what_it_cannot_use(call):
    with pytest.raises(InvalidInputError):
        call()


def test_mean_ci__equals_scipy(rng):
    data = rng.standard_normal((9, 4))
    found = nq.mean_ci(data, confidence=0.9)
    for k in range(4):
        exact = scipy.stats.ttest_1samp(data[:, k], 0).confidence_interval(0.9)
        np.testing.assert_allclose((found.low[k], found.high[k]), exact)
    assert found.n == 9


def test_mean_ci__of_one_entry_or_of_nan_is_unknown():
    one = nq.mean_ci([3.0])
    assert one.estimate == 3
    assert np.isnan([one.low, one.high, one.standard_error]).all()
    found = nq.mean_ci([[1.0, 1.0, 1.0], [2.0, np.nan, np.inf]])
    assert np.isnan(found.low).tolist() == [False, True, True]


def test_intervals__say_how_many_things_they_are_about(rng):
    data = rng.standard_normal((12, 2))
    assert nq.bootstrap_ci(data, n_resamples=20).n == 12
    assert nq.jackknife([1.0, 2.0, 3.0], 2.0).n == 3
