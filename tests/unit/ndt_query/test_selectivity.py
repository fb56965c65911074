"""Selectivity: planted preferences are found, noise gives nothing at the stated level."""

import numpy as np
import pytest

import ndt_query as nq

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
