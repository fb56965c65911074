"""Selectivity: planted preferences are found, noise gives nothing at the stated level."""

import numpy as np
import pytest
import xarray as xr
from sklearn.metrics import roc_auc_score

import ndt_query as nq
from ndt_store.errors import InvalidInputError

from .sources import labelled


def test_selectivity_index__finds_the_planted_preference(rng):
    values = rng.random((2, 90, 5, 2, 2)).astype(np.float32)
    values[1, 2::3, 3] += 2
    found = nq.selectivity_index(labelled(values), n_permutations=199)
    hit = found.isel(checkpoint=1, unit=3)
    assert hit["preferred_class"] == 2
    assert hit["selectivity_index"] > 0.5
    assert hit["d_prime"] > 3
    assert hit["auroc"] == 1
    assert hit["p_value"] == pytest.approx(1 / 200)
    assert hit["q_value"] == pytest.approx(5 / 200)


def test_selectivity_index__is_one_for_a_unit_of_one_class_only():
    values = np.zeros((1, 30, 2))
    values[0, 1::3, 0] = 4
    found = nq.selectivity_index(labelled(values), n_permutations=0).isel(checkpoint=0)
    assert found["selectivity_index"].values[0] == 1
    assert np.isnan(found["selectivity_index"].values[1])
    assert np.isnan(found["p_value"]).all()


def test_selectivity_index__weighs_classes_equally():
    values = np.array([4.0] + [2.0] * 8 + [0.0])[None, :, None]
    found = nq.selectivity_index(labelled(values), [0] + [1] * 8 + [2], n_permutations=0)
    assert found["selectivity_index"].item() == pytest.approx((4 - 1) / (4 + 1))


def test_selectivity_index__is_undefined_for_signed_units_which_dprime_serves(rng):
    values = rng.standard_normal((1, 90, 2, 3, 3))
    values[0, ::3, 0] += 1.5
    found = nq.selectivity_index(labelled(values), n_permutations=99).isel(checkpoint=0)
    assert np.isnan(found["selectivity_index"]).all()
    assert found["d_prime"].values[0] > 2
    assert found["p_value"].values[0] == pytest.approx(0.01)


def test_selectivity_index__calls_a_unit_signed_by_its_values_not_their_means(rng):
    values = rng.random((1, 12, 1, 2, 1)) + 1
    values[0, 0, 0, 0, 0] = -0.5
    assert np.isnan(nq.selectivity_index(labelled(values), n_permutations=0)["selectivity_index"].item())


@pytest.mark.parametrize("statistic", ["auto", "dprime", "auroc"])
def test_selectivity_index__of_noise_respects_the_false_discovery_rate(rng, statistic):
    # Complete null: any discovery is false, so the chance of one or more is the level itself.
    hits = 0
    for run in range(40):
        acts = labelled(rng.gamma(0.5, size=(1, 60, 30)), n_classes=5)
        found = nq.selectivity_index(acts, statistic=statistic, n_permutations=199, seed=run)
        hits += bool((found["q_value"] < 0.1).any())
    assert hits <= 10  # 4 expected; more than 10 has probability 0.001


def test_selectivity_index__shares_its_seed_with_nobody(rng):
    acts = labelled(rng.random((1, 30, 4)))
    one, two = (nq.selectivity_index(acts, n_permutations=50, seed=3) for _ in range(2))
    assert one.identical(two)
    assert not one["p_value"].equals(nq.selectivity_index(acts, n_permutations=50, seed=4)["p_value"])


def test_selectivity_index__with_a_nan_is_nan_for_that_unit_and_checkpoint(rng):
    values = rng.random((2, 30, 3, 2, 2))
    values[1, 4, 2, 0, 1] = np.nan
    found = nq.selectivity_index(labelled(values), n_permutations=19)
    expected = [[False] * 3, [False, False, True]]
    for name in ("selectivity_index", "d_prime", "auroc", "p_value", "q_value", "preferred_class"):
        assert np.isnan(found[name]).values.tolist() == expected, name
    assert found["preferred"].values[1, 2] == -1
    assert found["nan_count"].values[1].tolist() == [0, 0, 1]


def test_selectivity_index__names_classes_by_text(rng):
    values = rng.random((1, 6, 1))
    values[0, :3] += 5
    found = nq.selectivity_index(labelled(values), ["dog"] * 3 + ["cat"] * 3, n_permutations=0)
    assert found["preferred_class"].item() == "dog"
    assert found["preferred"].attrs["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e300])
def test_selectivity_index__does_not_depend_on_the_scale(rng, scale):
    values = rng.random((1, 30, 3))
    plain, scaled = (nq.selectivity_index(labelled(v), n_permutations=0) for v in (values, values * scale))
    for name in ("selectivity_index", "d_prime", "auroc"):
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-3 if scale < 1e-300 else 1e-9)


@pytest.mark.parametrize("value", [3.3, 0.1, -7.7])
@pytest.mark.parametrize("n", [12, 30, 77])
def test_selectivity_index__of_a_constant_unit_is_no_preference(value, n):
    found = nq.selectivity_index(labelled(np.full((1, n, 2, 3, 3), value)), n_permutations=19).isel(checkpoint=0)
    assert np.isnan(found["d_prime"]).all()
    assert (found["auroc"] == 0.5).all()
    if value > 0:
        assert ((found["selectivity_index"] >= 0) & (found["selectivity_index"] < 1e-15)).all()


def test_selectivity_index__of_classes_that_do_not_vary_has_an_infinite_dprime():
    # Sums of squares leave 1e-17 of the variances, which would give a d-prime of 2e8.
    labels = np.arange(77) % 3
    values = np.where(labels == 0, 0.26978671, 0.04097352)[None, :, None]
    assert np.isposinf(nq.selectivity_index(labelled(values), labels, n_permutations=0)["d_prime"].item())


def test_selectivity_index__of_a_nearly_dead_unit_is_one_by_chance(rng):
    values = rng.random((1, 60, 2))
    values[0, :, 0], values[0, 5, 0] = 0, 1e-3
    found = nq.selectivity_index(labelled(values), n_permutations=99).isel(checkpoint=0, unit=0)
    assert found["selectivity_index"] == 1
    assert found["p_value"] == 1


def test_selectivity_index__takes_texts_of_variable_width(rng):
    names = np.array(["dog", "cat"] * 3, dtype=np.dtypes.StringDType())
    values = rng.random((1, 6, 1)) + (np.arange(6) % 2)[None, :, None]
    assert nq.selectivity_index(labelled(values), names, n_permutations=0)["preferred_class"].item() == "cat"


def test_selectivity_index__refuses_a_seed_that_is_none(rng):
    with pytest.raises(InvalidInputError, match="seed=-1 is not possible"):
        nq.selectivity_index(labelled(rng.random((1, 6, 1))), seed=-1)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["auto", "index", "dprime", "auroc"])
@pytest.mark.parametrize("kind", ["sparse", "count", "dense"])
def test_selectivity_index__of_noise_has_p_values_that_are_valid(rng, kind, statistic):
    p_values = []
    for run in range(20):
        labels = rng.choice(4, 60, p=[0.1, 0.2, 0.3, 0.4])
        draw = {
            "sparse": lambda: rng.random((1, 60, 100)) * (rng.random((1, 60, 100)) < 0.05),
            "count": lambda: rng.poisson(1.0, (1, 60, 100)).astype(float),
            "dense": lambda: rng.gamma(0.5, size=(1, 60, 100)),
        }[kind]
        found = nq.selectivity_index(labelled(draw()), labels, statistic=statistic, n_permutations=199, seed=run)
        p_values.append(found["p_value"].values.ravel())
    p = np.concatenate(p_values)
    p = p[np.isfinite(p)]
    for level in (0.05, 0.2, 0.5):
        # Units of one run share their labels and permutations, which widens the spread severalfold.
        assert (p <= level).mean() <= level + 8 * np.sqrt(level * (1 - level) / p.size)


@pytest.mark.slow
def test_selectivity_index__finds_planted_units_at_the_false_discovery_rate(rng):
    false, found = [], []
    for run in range(40):
        values = rng.gamma(0.5, size=(1, 60, 60))
        values[0, 1::3, :15] += 1.2
        hits = nq.selectivity_index(labelled(values), n_permutations=499, seed=run)["q_value"].values[0] < 0.1
        false.append(hits[15:].sum() / max(1, hits.sum()))
        found.append(hits[:15].mean())
    assert np.mean(false) < 0.1 * 45 / 60 + 0.03  # 45 of 60 units are noise; 0.03 is three standard errors
    assert np.mean(found) > 0.95


@pytest.mark.parametrize("n_classes", [2, 4])
def test_selectivity_index__has_the_auroc_of_scikit_learn_with_ties(rng, n_classes):
    values = rng.poisson(1.2, (1, 80, 6)).astype(float)
    labels = np.arange(80) % n_classes
    found = nq.selectivity_index(labelled(values), labels, n_permutations=0).isel(checkpoint=0)
    for unit in range(6):
        expected = roc_auc_score(labels == found["preferred_class"].values[unit], values[0, :, unit])
        assert found["auroc"].values[unit] == pytest.approx(expected)


def test_selectivity_index__finds_a_few_selective_units_among_thousands(rng):
    """Of 1,500 units 5 are planted: with 200 permutations alone their q could not be below 1.5."""
    labels = np.arange(100) % 5
    values = np.maximum(rng.standard_normal((100, 1500)), 0)
    values[labels == 2, :5] += 10
    acts = xr.DataArray(values, dims=("example", "unit"))
    found = nq.selectivity_index(acts, labels, n_permutations=200)
    told = np.flatnonzero(found["q_value"].values <= 0.05)
    assert set(range(5)) <= set(told.tolist())
    assert len(told) <= 7  # one in twenty is expected to be false


def test_selectivity_index__keeps_its_level_where_it_looks_closer(rng):
    labels = np.arange(60) % 3
    values = rng.standard_normal((60, 3000))
    p = nq.selectivity_index(xr.DataArray(values, dims=("example", "unit")), labels, n_permutations=99)[
        "p_value"
    ].values
    for level in (0.05, 0.01, 0.002):
        assert (p <= level).mean() <= level + 4 * np.sqrt(level / 3000)
    assert p.min() < 0.01
