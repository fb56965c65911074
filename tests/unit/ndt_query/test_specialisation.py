"""Heads that differ, between classes and from each other, are found where they were planted and not in noise."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.kernels.patterns import divergences
from ndt_store.errors import InvalidInputError, NotFoundError

from .attention_cases import noise, patterns

LABELS = np.arange(60) % 3


def test_selectivity__is_the_share_of_variance_between_classes(rng):
    att = patterns(noise(rng, dtype=np.float64), labels=LABELS)
    found = nq.attention_selectivity(att, n_permutations=19)
    received = att.values.mean(3)
    for c in range(2):
        for head in range(4):
            x = received[c, :, head]
            total = ((x - x.mean(0)) ** 2).sum()
            between = sum(20 * ((x[k == LABELS].mean(0) - x.mean(0)) ** 2).sum() for k in range(3))
            assert float(found["eta_squared"][c, head]) == pytest.approx(between / total)
    np.testing.assert_allclose(found["null_mean"], 2 / 59, rtol=0.5)
    np.testing.assert_allclose(found["excess"], found["eta_squared"] - found["null_mean"])
    np.testing.assert_allclose(found["q_value"], nq.fdr(found["p_value"].values))


def test_selectivity__finds_the_class_that_was_planted_and_none_in_noise(rng):
    values = noise(rng)
    values[1, LABELS == 2, 1] = np.eye(9)[4]
    values[1, :, 3] = np.eye(9)[0]  # never varies
    found = nq.attention_selectivity(patterns(values, labels=LABELS))
    told = found["q_value"].values < 0.05
    assert told.tolist() == [[False] * 4, [False, True, False, False]]
    assert float(found["preferred_class"].values[1, 1]) == 2
    assert found["eta_squared"].isnull().values.tolist() == [[False] * 4, [False, False, False, True]]
    assert np.isnan(found["p_value"].values[1, 3])
    assert np.isnan(found["preferred_class"].values[1, 3])


def test_selectivity__keeps_its_level_in_noise(rng):
    att = patterns(noise(rng, n=40, heads=100, tokens=5, steps=2), labels=np.arange(40) % 4)
    p = nq.attention_selectivity(att, n_permutations=99)["p_value"].values
    assert 0.02 <= (p <= 0.05).mean() <= 0.09  # 200 tests at 5%: two standard deviations are 3%


def test_selectivity__of_names_and_of_one_class(rng):
    values = noise(rng)
    values[:, LABELS == 1, 0] = np.eye(9)[4]
    names = np.array(["cat", "dog", "eel"])[LABELS]
    found = nq.attention_selectivity(patterns(values), labels=names)
    assert found["preferred_class"].values[0, 0] == "dog"
    with pytest.raises(InvalidInputError, match="all 0"):
        nq.attention_selectivity(patterns(values), labels=np.zeros(60, int))
    with pytest.raises(NotFoundError, match="no coordinate 'label'"):
        nq.attention_selectivity(patterns(values))


def test_specialisation__finds_a_head_that_looks_elsewhere_and_nothing_in_noise(rng):
    values = noise(rng)
    values[1, :, 2] = 0.5 * values[1, :, 2] + 0.5 * np.eye(9)[7]
    found = nq.head_specialisation(patterns(values))
    assert found["divergence"].dims == ("checkpoint", "head", "other_head")
    assert found["p_value"].values[0] > 0.05
    assert found["p_value"].values[1] == pytest.approx(1 / 200)
    assert found["of_head"].values[1].argmax() == 2
    one = found.isel(checkpoint=1)
    assert 0 < one["specialisation_low"] < one["specialisation"] < one["specialisation_high"]
    apart = found["divergence"].values
    assert (found["specialisation"] < apart.sum((1, 2)) / 12).all()  # the bias of finite examples is taken away
    np.testing.assert_allclose(apart, apart.transpose(0, 2, 1))


@pytest.mark.parametrize(("n", "tilt"), [(60, 0.0), (60, 0.15), (200, 0.15)])
def test_specialisation__intervals_hold_what_many_examples_have(rng, n, tilt):
    """Heads that are the same and heads that differ a little: without correction no interval holds either."""
    alpha = np.full((3, 4, 4), 0.5)
    alpha[1, :, 0] += tilt
    mean = alpha / alpha.sum(-1, keepdims=True)
    truth = divergences(mean)[np.triu_indices(3, 1)].mean()
    drawn = rng.standard_gamma(alpha, (60, n, 3, 4, 4))
    found = nq.head_specialisation(patterns(drawn / drawn.sum(-1, keepdims=True), steps=range(60)), n_permutations=1)
    held = (found["specialisation_low"] <= truth) & (truth <= found["specialisation_high"])
    assert held.mean() >= 0.88  # three standard deviations below 95% of 60
    assert float(found["specialisation"].mean()) == pytest.approx(
        truth, abs=4 * float(found["specialisation"].std()) / 60**0.5
    )


def test_selectivity__of_a_head_that_never_varies_is_nan():
    row = np.array([0.1, 0.4, 0.25, 0.25])
    constant = np.broadcast_to(row, (1, 50, 2, 4, 4)).astype(np.float64)
    found = nq.attention_selectivity(patterns(constant), labels=np.arange(50) % 2)
    assert found["eta_squared"].isnull().all()
    assert found["p_value"].isnull().all()


def test_specialisation__keeps_its_level_in_noise(rng):
    att = patterns(noise(rng, n=40, heads=3, tokens=4, steps=100), steps=range(100))
    p = nq.head_specialisation(att, n_permutations=99)["p_value"].values
    assert (p <= 0.05).mean() <= 0.1  # 100 tests at 5%: two standard deviations are 4.4%


def test_specialisation__of_a_selection_and_of_lazy_patterns_is_the_same(rng):
    att = patterns(noise(rng))
    whole = nq.head_specialisation(att)
    lazy = nq.head_specialisation(att.chunk({"checkpoint": 1, "example": 20}))
    xr.testing.assert_allclose(whole, lazy)
    one = nq.head_specialisation(att.sel(checkpoint=10))
    assert one["specialisation"].dims == ()
    np.testing.assert_allclose(one["divergence"], whole["divergence"].sel(checkpoint=10))
    several = nq.head_specialisation({"a": att, "b": att})
    assert several["specialisation"].dims == ("checkpoint", "layer")
    np.testing.assert_array_equal(several["specialisation"].sel(layer="b"), whole["specialisation"])


def test_specialisation__names_what_is_wrong(rng):
    with pytest.raises(InvalidInputError, match="There are 1 heads and 60 examples"):
        nq.head_specialisation(patterns(noise(rng, heads=1)))
    with pytest.raises(InvalidInputError, match="n_groups"):
        nq.head_specialisation(patterns(noise(rng)), n_groups=1)
