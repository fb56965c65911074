"""Ridge from sums over folds against scikit-learn, one target and one fold at a time."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from ndt_query.kernels.ridge import Design, column_nbytes
from ndt_query.kernels.selectivity import normalised

ALPHAS = 10.0 ** np.arange(-2, 7)
FOLDS = 5


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small take longer on two threads, and much longer beside other work."""
    with threadpool_limits(1):
        yield


@pytest.fixture
def folds(rng):
    return rng.permutation(np.arange(83) % FOLDS)


def features(rng, n=83, p=20):
    """ReLU-like, with a constant feature and one that a single row drives, so that it is constant in training parts."""
    x = np.maximum(rng.standard_normal((n, p)) + 0.3, 0) * rng.gamma(1.0, size=p)
    x[:, 3], x[:, 4] = 0, 0
    x[7, 4] = 9
    x[:, 6] = x[:, 5]
    return x


def targets(rng, x):
    y = rng.standard_normal((len(x), 6)) * 10
    y[:, 0] += 40 * x[:, 1] - 15 * x[:, 2]
    y[:, 1] = x[:, 5] + x[:, 8] + 0.5
    y[:, 2] = 0
    y[7, 2] = 1
    y[:, 3] += 1e3
    return y


def by_hand(x, y, folds):
    """Errors, totals and penalties (fold, target) of scikit-learn's nested search."""
    errors, totals, chosen = (np.zeros((FOLDS, y.shape[1])) for _ in range(3))
    for u, target in enumerate(y.T):
        for k in range(FOLDS):
            train, test = folds != k, folds == k
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge(solver="svd")),
                {"ridge__alpha": ALPHAS},
                cv=PredefinedSplit(folds[train]),
                scoring="neg_mean_squared_error",
            ).fit(x[train], target[train])
            errors[k, u] = ((target[test] - search.predict(x[test])) ** 2).sum()
            totals[k, u] = ((target[test] - target[train].mean()) ** 2).sum()
            chosen[k, u] = search.best_params_["ridge__alpha"]
    return errors, totals, chosen


def test_held_out__equals_the_nested_search_of_scikit_learn(rng, folds):
    x = features(rng)
    y = targets(rng, x)
    errors, totals, chosen = by_hand(x, y, folds)
    found = Design(x, folds, ALPHAS).held_out(normalised(y))
    np.testing.assert_allclose(found.r2, 1 - errors.sum(axis=0) / totals.sum(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.r2_by_fold, 1 - errors / totals, atol=1e-9)
    varying = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(ALPHAS[found.chosen][:, varying], chosen[:, varying])
    assert len(np.unique(chosen)) > 2
    assert found.r2[1] > 0.99


def test_held_out__with_more_features_than_rows_equals_scikit_learn(rng):
    x, folds = rng.standard_normal((40, 70)), np.arange(40) % FOLDS
    y = np.stack([x[:, :30].sum(axis=1), rng.standard_normal(40)], axis=1)
    errors, totals, _ = by_hand(x, y, folds)
    found = Design(x, folds, ALPHAS).held_out(normalised(y))
    np.testing.assert_allclose(found.r2, 1 - errors.sum(axis=0) / totals.sum(axis=0), atol=1e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e9, 1e150])
def test_held_out__does_not_depend_on_scale_nor_on_origin(rng, folds, scale):
    x = features(rng)
    y = targets(rng, x)
    plain = Design(x, folds, ALPHAS).held_out(normalised(y)).r2
    np.testing.assert_allclose(Design(scale * x, folds, ALPHAS).held_out(normalised(scale * y)).r2, plain, atol=1e-9)
    moved = Design(x + 1e4, folds, ALPHAS).held_out(normalised(y - 1e4)).r2
    np.testing.assert_allclose(moved, plain, atol=1e-6)


def test_held_out__of_a_target_that_never_varies_is_nan(rng, folds):
    found = Design(features(rng), folds, ALPHAS).held_out(normalised(np.full((83, 2), 0.1) * [1, 3]))
    assert np.isnan(found.r2).all()
    assert (found.totals == 0).all()


def test_held_out__without_a_feature_that_varies_predicts_the_mean(rng, folds):
    found = Design(np.full((83, 4), 3.3), folds, ALPHAS).held_out(normalised(rng.standard_normal((83, 3))))
    np.testing.assert_allclose(found.errors, found.totals)
    np.testing.assert_allclose(found.r2, 0, atol=1e-12)


def test_held_out__takes_large_values_of_one_fold_for_what_they_are(rng, folds):
    # A fold that is subtracted from a sum of all would leave 1e-16 of its squares, which is 1 here.
    x, y = features(rng), rng.standard_normal((83, 1))
    x[folds == 0, 1] *= 1e8
    errors, totals, _ = by_hand(x, y, folds)
    found = Design(x, folds, ALPHAS).held_out(normalised(y))
    np.testing.assert_allclose(found.r2_by_fold[1:], (1 - errors / totals)[1:], atol=1e-6)


def test_null_r2__is_that_of_targets_shuffled_by_hand(rng, folds, monkeypatch):
    x = features(rng)
    y = normalised(targets(rng, x)[:, [0, 1, 4]])
    design = Design(x, folds, ALPHAS)
    # Batches that end within a shuffle.
    monkeypatch.setattr("ndt_query.kernels.ridge.BATCH_NBYTES", 2 * column_nbytes(83, 20, FOLDS, len(ALPHAS)))
    found = design.null_r2(y, 3, seed=3)
    orders = np.random.default_rng(3)
    for row in found:
        order = orders.permutation(83)
        errors, totals, _ = by_hand(x, y[order], folds)
        np.testing.assert_allclose(row, 1 - errors.sum(axis=0) / totals.sum(axis=0), atol=1e-8)


def test_refit__equals_scikit_learn_on_all_rows(rng, folds):
    x = features(rng)
    y = targets(rng, x)
    design = Design(x, folds, ALPHAS)
    held_out = design.held_out(normalised(y))
    found = design.refit(normalised(y), held_out.overall)
    standard = StandardScaler().fit_transform(x)
    for u in (0, 1, 3, 4, 5):
        alpha = ALPHAS[held_out.overall[u]]
        model = Ridge(alpha=alpha, solver="svd").fit(standard, y[:, u])
        np.testing.assert_allclose(found.coefficients[:, u], model.coef_ / y[:, u].std(), atol=1e-9)
        assert found.r2[u] == pytest.approx(model.score(standard, y[:, u]), abs=1e-9)
        # The penalty of all rows is the one of a plain search over the same folds, whose standardisation is inside.
        search = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge(solver="svd")),
            {"ridge__alpha": ALPHAS},
            cv=PredefinedSplit(folds),
            scoring="neg_mean_squared_error",
        ).fit(x, y[:, u])
        assert search.best_params_["ridge__alpha"] == alpha


def test_refit__losses_are_what_leaving_a_feature_out_costs(rng, folds):
    x = features(rng)
    y = targets(rng, x)
    design = Design(x, folds, ALPHAS)
    chosen = np.full(6, 3)
    found = design.refit(normalised(y), chosen)
    standard = StandardScaler().fit_transform(x)

    def loss(columns, target):
        model = Ridge(alpha=ALPHAS[3], solver="svd").fit(columns, target)
        return ((target - model.predict(columns)) ** 2).sum() + ALPHAS[3] * (model.coef_**2).sum()

    for u in (0, 1, 4):
        total = ((y[:, u] - y[:, u].mean()) ** 2).sum()
        for j in range(20):
            expected = (loss(np.delete(standard, j, axis=1), y[:, u]) - loss(standard, y[:, u])) / total
            assert found.losses[j, u] == pytest.approx(expected, abs=1e-9), (u, j)
    assert found.losses[3].tolist()[:2] == [0, 0]
    # Twins stand in for each other: large coefficients, hardly any loss.
    assert found.losses[8, 1] > 5 * found.losses[5, 1]


def test_in_sample_score_of_noise__is_what_held_out_scores_are_for(rng):
    # The study's figure: ridge on pure noise, n = 160 and p = 128, scored on its training data.
    x, y = rng.standard_normal((160, 128)), normalised(rng.standard_normal((160, 40)))
    folds = rng.permutation(np.arange(160) % FOLDS)
    alpha = 10.0
    weak = Design(x, folds, [alpha])
    held_out = weak.held_out(y)
    assert 0.7 < weak.refit(y, held_out.overall).r2.mean() < 0.82
    assert held_out.r2.mean() < -0.5
    chosen = Design(x, folds, ALPHAS).held_out(y).r2
    assert chosen.mean() <= 0.0
    assert chosen.max() < 0.15
    # scikit-learn's own choice by leaving out one row agrees that nothing is there.
    assert RidgeCV(alphas=ALPHAS).fit(x, y).alpha_ >= 1e3
