"""Moments against dense float64 numpy, over every form a block can take."""

import numpy as np
import pytest

from ndt_store.views import moments
from ndt_store.views.blocks import as_block, position_means

AXES = (1, 2, 4)
SHAPES = [
    (1, 300, 1, 5, 1),
    (2, 7, 1, 3, 49),
    (1, 6, 1, 2, 784),
    (2, 9, 11, 6, 1),
    (1, 300, 300, 2, 1),
    (1, 3, 2, 2, 5000),
]


def dense(block, threshold):
    values = block.astype(np.float64)
    active = np.abs(values) > threshold
    return {
        "count": np.full((block.shape[0], block.shape[3]), block[0, :, :, 0].size),
        "n_examples": np.full((block.shape[0], block.shape[3]), block.shape[1]),
        "active": active.sum(AXES),
        "active_examples": active.any((2, 4)).sum(1),
        "mean": values.mean(AXES),
        "std": values.std(AXES),
        "mean_abs": np.abs(values).mean(AXES),
        "min": values.min(AXES),
        "max": values.max(AXES),
        "max_abs": np.abs(values).max(AXES),
        "active_fraction": active.mean(AXES),
        "firing_rate": active.any((2, 4)).mean(1),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_update__equals_dense_float64(rng, shape, signed, dtype):
    block = rng.standard_normal(shape)
    block = (block if signed else np.maximum(block, 0)).astype(dtype)
    found = moments.finalise(moments.update(block, 0.5))
    for name, expected in dense(block, 0.5).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-11, atol=1e-13, err_msg=name)
    assert (found["nan_count"] == 0).all()


@pytest.mark.parametrize("shape", [(1, 500, 1, 3, 1), (1, 20, 1, 3, 100)], ids=str)
def test_update__keeps_a_small_spread_on_a_large_mean(rng, shape):
    block = 1e4 + 1e-2 * rng.standard_normal(shape)
    found = moments.finalise(moments.update(block))
    np.testing.assert_allclose(found["std"], block.std(AXES), rtol=1e-7)


def test_update__gives_a_constant_unit_a_spread_of_exactly_zero():
    assert (moments.finalise(moments.update(np.full((1, 50, 1, 2, 3), 0.1, np.float32)))["std"] == 0).all()


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_update__counts_nan_and_spoils_only_its_own_unit(rng, shape):
    block = rng.standard_normal(shape, dtype=np.float32)
    block[0, 2, 0, 1, 0] = np.nan
    found = moments.finalise(moments.update(block))
    expected = np.zeros(found["nan_count"].shape, int)
    expected[0, 1] = 1
    np.testing.assert_array_equal(found["nan_count"], expected)
    for name in ("mean", "std", "min", "max", "mean_abs", "active_fraction", "firing_rate"):
        np.testing.assert_array_equal(np.isnan(found[name]), expected == 1, err_msg=name)
    active = np.nan_to_num(block) != 0
    np.testing.assert_array_equal(found["active"], active.sum(AXES))
    np.testing.assert_array_equal(found["active_examples"], active.any((2, 4)).sum(1))


def test_update__lets_infinity_through_and_leaves_the_spread_unknown(rng):
    block = rng.standard_normal((1, 40, 1, 2, 1))
    block[0, 3, 0, 0, 0] = np.inf
    found = moments.finalise(moments.update(block))
    assert found["mean"][0, 0] == np.inf
    assert found["max"][0, 0] == np.inf
    assert np.isnan(found["std"][0, 0])
    assert np.isfinite(found["std"][0, 1])


def test_merge__of_any_split_equals_the_whole(rng):
    block = rng.standard_normal((2, 30, 1, 3, 4)) + 5
    whole = moments.finalise(moments.update(block))
    for cut in (1, 13, 29):
        parts = moments.update(block[:, :cut]), moments.update(block[:, cut:])
        merged = moments.finalise(moments.merge(*parts))
        for name, expected in whole.items():
            np.testing.assert_allclose(merged[name], expected, rtol=1e-12, err_msg=name)


def test_merge__with_zero_changes_nothing(rng):
    state = moments.update(rng.standard_normal((2, 5, 1, 3, 1)))
    for merged in (moments.merge(moments.zero(2, 3), state), moments.merge(state, moments.zero(2, 3))):
        for name, expected in moments.finalise(state).items():
            np.testing.assert_array_equal(moments.finalise(merged)[name], expected)


def test_finalise__of_nothing_is_nan():
    found = moments.finalise(moments.update(np.empty((1, 0, 1, 2, 1))))
    assert (found["count"] == 0).all()
    assert np.isnan(found["mean"]).all()
    assert np.isnan(found["max"]).all()


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_position_means__equals_dense_float64(rng, shape):
    block = rng.standard_normal(shape, dtype=np.float32)
    np.testing.assert_allclose(position_means(block), block.mean((2, 4), dtype=np.float64), rtol=1e-12, atol=1e-15)


def test_as_block__keeps_a_contiguous_array_in_place(rng):
    conv, tokens = rng.standard_normal((2, 3, 4, 5, 6)), rng.standard_normal((2, 3, 7, 4))
    assert as_block(conv, 0).shape == (2, 3, 1, 4, 30)
    assert as_block(tokens, 1).shape == (2, 3, 7, 4, 1)
    assert np.shares_memory(conv, as_block(conv, 0))


@pytest.mark.parametrize("where", [0, 4, 9])
def test_an_infinite_value_gives_the_same_moments_however_blocks_are_cut(where):
    values = np.arange(10.0, dtype=np.float32).reshape(1, 10, 1, 1, 1)
    values[0, where] = -np.inf
    expected = moments.finalise(moments.update(values))
    merged = moments.zero(1, 1)
    for part in np.split(values, [3, 7], axis=1):
        merged = moments.merge(merged, moments.update(part))
    found = moments.finalise(moments.merge(merged, moments.zero(1, 1)))
    assert (found["mean"], found["mean_abs"], found["min"]) == (-np.inf, np.inf, -np.inf)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
