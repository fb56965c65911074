"""Selectivity statistics against scipy and scikit-learn, one unit at a time."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from ndt_query.kernels import selectivity


@pytest.fixture
def planted(rng):
    codes = np.repeat(np.arange(3), [10, 15, 20])
    values = np.round(rng.gamma(1.0, size=(45, 6)), 1)
    values[codes == 1, 0] += 5
    return values, codes


def test_average_ranks__equals_scipy(rng):
    values = rng.integers(0, 8, (50, 7)).astype(float)
    np.testing.assert_array_equal(selectivity.average_ranks(values), scipy.stats.rankdata(values, axis=0))


def test_statistics__equal_unit_by_unit_formulas(planted):
    values, codes = planted
    found = selectivity.statistics(values, codes, np.bincount(codes), "all", np.zeros(6, bool))
    for u, unit in enumerate(values.T):
        means = np.array([unit[codes == c].mean() for c in range(3)])
        best = int(means.argmax())
        rest = np.delete(means, best).mean()
        inside, outside = unit[codes == best], unit[codes != best]
        spread = np.sqrt((inside.var() + outside.var()) / 2)
        assert found["preferred"][u] == best
        assert found["index"][u] == pytest.approx((means[best] - rest) / (means[best] + rest))
        assert found["dprime"][u] == pytest.approx((inside.mean() - outside.mean()) / spread)
        assert found["auroc"][u] == pytest.approx(roc_auc_score(codes == best, unit))


@pytest.mark.parametrize("statistic", ["index", "dprime", "auroc", "auto"])
def test_permutation_counts__follow_from_permuting_labels_one_by_one(planted, statistic):
    values, codes = planted
    signed, key = np.zeros(6, bool), "index" if statistic == "auto" else statistic
    reached, observed = selectivity.permutation_counts(values, codes, 3, signed, statistic, 200, 5)
    rng, counts = np.random.default_rng(5), np.bincount(codes)
    permuted = rng.permuted(np.tile(codes, (200, 1)), axis=1)
    null = np.array([selectivity.statistics(values, one, counts, statistic, signed)[key] for one in permuted])
    np.testing.assert_array_equal(reached, (null >= observed - 1e-10).sum(axis=0))
    assert reached[0] == 0


def test_permutation_counts__chooses_the_preferred_class_in_every_permutation(rng):
    # Held to the observed class, noise would look selective: the observed class was the best of ten.
    values, codes = rng.random((200, 300)), np.arange(200) % 10
    reached, _ = selectivity.permutation_counts(values, codes, 10, np.zeros(300, bool), "index", 99, 0)
    p_values = (reached + 1) / 100
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.001


def test_permutation_counts__tests_signed_units_by_dprime_when_left_to_choose(planted):
    values, codes = planted
    values = values - np.array([0, 0, 0, 1, 1, 1])
    signed = np.array([False] * 3 + [True] * 3)
    _, observed = selectivity.permutation_counts(values, codes, 3, signed, "auto", 1, 0)
    found = selectivity.statistics(values, codes, np.bincount(codes), "all", signed)
    np.testing.assert_array_equal(observed[:3], found["index"][:3])
    np.testing.assert_array_equal(observed[3:], found["dprime"][3:])
    assert np.isnan(found["index"][3:]).all()


def test_permutation_counts__counts_permutations_that_separate_perfectly_too():
    # Neither class varies, so d-prime is infinite, as it is for the one in three permutations that keep the groups.
    values, codes = np.array([[-1.0], [0.0], [0.0]]), np.array([1, 0, 0])
    reached, observed = selectivity.permutation_counts(values, codes, 2, np.ones(1, bool), "dprime", 300, 0)
    assert observed[0] == np.inf
    assert 60 < reached[0] < 140


def test_permutation_counts__takes_equal_values_as_reached():
    values = np.full((30, 1), 0.1)
    reached, observed = selectivity.permutation_counts(values, np.arange(30) % 3, 3, np.zeros(1, bool), "index", 50, 0)
    assert observed[0] == pytest.approx(0)
    assert reached[0] == 50


@pytest.mark.parametrize(("n_classes", "each"), [(10, 50), (100, 5), (100, 2)])
def test_held_out_auroc__of_noise_is_a_half_whatever_the_classes(rng, n_classes, each):
    codes = np.repeat(np.arange(n_classes), each)
    values = np.maximum(rng.standard_normal((len(codes), 400)), 0)
    found = selectivity.held_out_auroc(values, codes, n_classes)
    assert found.mean() == pytest.approx(0.5, abs=4 * found.std() / 20)


def test_held_out_auroc__is_that_of_each_half_by_scikit_learn(rng):
    codes = rng.permutation(np.repeat(np.arange(3), [7, 9, 12]))
    values = rng.standard_normal((28, 5)).round(1)  # with ties
    seen, half = [0, 0, 0], np.empty(28, int)
    for row, code in enumerate(codes):
        half[row], seen[code] = seen[code] % 2, seen[code] + 1
    expected = np.zeros(5)
    for part in (0, 1):
        for unit in range(5):
            means = [values[(half == part) & (codes == code), unit].mean() for code in range(3)]
            rest = half != part
            expected[unit] += roc_auc_score(codes[rest] == np.argmax(means), values[rest, unit]) / 2
    np.testing.assert_allclose(selectivity.held_out_auroc(values, codes, 3), expected)
    assert np.isnan(selectivity.held_out_auroc(values[:3], np.arange(3), 3)).all()


def test_batches__grow_no_larger_with_the_units():
    for n_examples, n_units in ((64, 16384), (5000, 10), (10, 10)):
        assert selectivity.batch_size(10, n_examples, n_units) * 80 * (n_examples + 4 * n_units) <= max(
            32 << 20, 80 * (n_examples + 4 * n_units)
        )
