"""Top examples against a sort of everything."""

import numpy as np
import pytest

from ndt_store.views import topk


def dense(block, ids, k):
    """Rank by (value descending, id ascending), position by first maximum; NaN above everything."""
    c, _, _, u, _ = block.shape
    flat = block.transpose(0, 1, 3, 2, 4).reshape(c, block.shape[1], u, -1)
    value, example, position = (np.empty((c, u, k)) for _ in range(3))
    for i in range(c):
        for j in range(u):
            best = flat[i, :, j].max(axis=1)
            order = sorted(range(len(ids)), key=lambda n: (not np.isnan(best[n]), -best[n], ids[n]))[:k]
            value[i, j], example[i, j] = best[order], ids[order]
            position[i, j] = flat[i, order, j].argmax(axis=1)
    return value, example, position


@pytest.mark.parametrize("shape", [(2, 40, 1, 5, 1), (1, 30, 1, 3, 9), (2, 25, 6, 4, 1)], ids=str)
@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("k", [1, 7, 25])
def test_update__equals_a_sort_of_everything(rng, shape, levels, k):
    # Few levels make many ties, and -0.0 has to tie with 0.0.
    block = np.float32(rng.integers(0, levels, shape) - levels // 2) * np.float32(-0.5)
    ids = rng.permutation(1000)[: shape[1]]
    found = topk.update(block, ids, k)
    for name, expected in zip(("value", "example", "position"), dense(block, ids, k), strict=True):
        np.testing.assert_array_equal(getattr(found, name), expected, err_msg=name)


def test_update__ranks_nan_first(rng):
    block = rng.standard_normal((1, 20, 1, 2, 3))
    block[0, 7, 0, 1, 2] = np.nan
    block[0, 4, 0, 1, 0] = np.inf
    found = topk.update(block, np.arange(20), 3)
    assert found.example[0, 1, :2].tolist() == [7, 4]
    assert np.isnan(found.value[0, 1, 0])
    assert found.position[0, 1, 0] == 2
    assert np.isfinite(found.value[0, 0]).all()


@pytest.mark.parametrize("levels", [3, 1000])
def test_merge__of_any_split_equals_the_whole(rng, levels):
    block, ids = rng.integers(0, levels, (2, 30, 1, 4, 2)).astype(float), rng.permutation(30)
    whole = topk.update(block, ids, 6)
    for cut in (2, 15, 29):
        merged = topk.merge(topk.update(block[:, :cut], ids[:cut], 6), topk.update(block[:, cut:], ids[cut:], 6), 6)
        for name in ("value", "example", "position"):
            np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name), err_msg=name)


def test_sort_keys__has_the_order_of_the_floats():
    values = np.array([-np.inf, -2.0, -1e-300, -0.0, 1e-300, 2.0, np.inf, np.nan])
    keys = topk.sort_keys(values)
    assert (np.diff(keys) > 0).all()
    assert topk.sort_keys(np.array([0.0])) == topk.sort_keys(np.array([-0.0]))
    assert topk.sort_keys(np.array([-np.nan])) == topk.sort_keys(np.array([np.nan]))
