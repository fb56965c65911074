"""Top examples against a sort of everything."""

import numpy as np
import pytest

from ndt_store.errors import InvalidInputError
from ndt_store.views import topk


def dense(block, ids, k):
    """Rank by (value descending, id ascending), position by first maximum; NaN above everything."""
    c, _, _, u, _ = block.shape
    flat = block.transpose(0, 1, 3, 2, 4).reshape(c, block.shape[1], u, -1)
    value, example, position = (np.empty((c, u, min(k, len(ids)))) for _ in range(3))
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


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16"])
@pytest.mark.parametrize("shape", [(2, 60, 1, 4, 1), (1, 60, 2, 3, 5)], ids=str)
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("k", [1, 6, 45, 100])
def test_update__continues_from_the_state_of_earlier_blocks(rng, dtype, shape, ordered, k):
    block = rng.integers(-4, 4, shape).astype(dtype)
    ids = np.arange(shape[1]) if ordered else rng.permutation(500)[: shape[1]]
    state = merged = None
    for part in (slice(0, 2), slice(2, 30), slice(30, 30), slice(30, 31), slice(31, 60)):
        apart = topk.update(block[:, part], ids[part], k)
        merged = apart if merged is None else topk.merge(merged, apart, k)
        best = block[:, part].max((2, 4)) if part.start else None
        state = topk.update(block[:, part], ids[part], k, best=best, start=state)
        for name in ("value", "example", "position"):
            np.testing.assert_array_equal(getattr(state, name), getattr(merged, name), err_msg=name)
    for name, expected in zip(("value", "example", "position"), dense(block, ids, k), strict=True):
        np.testing.assert_array_equal(getattr(state, name), expected, err_msg=name)
    assert state.value.dtype == (np.float32 if dtype == "float32" else np.float64)


def test_update__equals_lexsort_of_many_values(rng):
    block = np.maximum(rng.standard_normal((1, 3000, 1, 20, 1), dtype=np.float32), 0)
    block[0, :, 0, 3], block[0, :, 0, 4] = 0, np.nan
    block[0, 5::7, 0, 5], block[0, ::500, 0, 6], block[0, :, 0, 7] = np.inf, np.nan, -np.inf
    ids = np.arange(3000)
    state = None
    for part in (slice(0, 1000), slice(1000, 2000), slice(2000, 3000)):
        state = topk.update(block[:, part], ids[part], 64, start=state)
    values = block[0, :, 0, :, 0].T
    order = np.lexsort((np.broadcast_to(ids, values.shape), -values, ~np.isnan(values)), axis=-1)[:, :64]
    np.testing.assert_array_equal(state.example[0], order)
    np.testing.assert_array_equal(state.value[0], np.take_along_axis(values, order, axis=1))


def test_update__reads_any_strides(rng):
    block, ids = rng.integers(0, 5, (2, 30, 2, 4, 3)).astype(np.float32), rng.permutation(30)
    expected = topk.update(block, ids, 7)
    found = topk.update(np.asfortranarray(block), ids, 7, best=np.asfortranarray(block.max((2, 4))))
    for name in ("value", "example", "position"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"example_ids": np.arange(4)}, "example_ids"),
        ({"best": np.zeros((1, 3, 1))}, "best"),
        ({"start": topk.TopK(*(np.zeros((1, 3, 2), kind) for kind in (float, int, int)))}, "start"),
    ],
)
def test_update__refuses_what_does_not_fit_the_block(wrong, what):
    with pytest.raises(InvalidInputError, match=f"^{what} has shape"):
        topk.update(**{"block": np.zeros((1, 3, 1, 2, 1)), "example_ids": np.arange(3), "k": 2} | wrong)


def test_sort_keys__has_the_order_of_the_floats():
    values = np.array([-np.inf, -2.0, -1e-300, -0.0, 1e-300, 2.0, np.inf, np.nan])
    keys = topk.sort_keys(values)
    assert (np.diff(keys) > 0).all()
    assert topk.sort_keys(np.array([0.0])) == topk.sort_keys(np.array([-0.0]))
    assert topk.sort_keys(np.array([-np.nan])) == topk.sort_keys(np.array([np.nan]))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("k", [257, 400, 1000])
def test_update__of_many_ranks_equals_a_sort_of_everything(rng, ordered, k):
    values = np.round(rng.standard_normal((1, 700, 2, 3, 2)), 1).astype(np.float32)
    values[0, [5, 600], 0, 1, 0] = np.nan
    values[:, :, :, 2] = -0.0
    values[0, ::2, :, 2] = 0.0
    ids = np.arange(700) * 3 if ordered else rng.permutation(700) * 3
    state = None
    for rows in (slice(0, 10), slice(10, 420), slice(420, 700)):
        state = topk.update(values[:, rows], ids[rows], k, start=state)
    flat = values.transpose(0, 1, 3, 2, 4).reshape(700, 3, 4)
    best = flat.max(2)
    for unit in range(3):
        falling = np.where(np.isnan(best[:, unit]), -np.inf, -best[:, unit].astype(np.float64))
        order = np.lexsort((ids, falling))[:k]
        np.testing.assert_array_equal(state.example[0, unit], ids[order])
        np.testing.assert_array_equal(state.value[0, unit], best[order, unit])
        np.testing.assert_array_equal(state.position[0, unit], flat[order, unit].argmax(1))
