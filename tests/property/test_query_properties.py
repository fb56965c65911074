"""Any values, any chunking: the lazy answer equals the dense one, and merging is associative."""

from unittest.mock import patch

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ndt_query as nq
from ndt_query import runs
from ndt_store import open_store
from ndt_store.testing import simulate_store
from ndt_store.views import moments, topk
from ndt_store.views.fused import summarise

from ..unit.ndt_query.sources import CountingStorage, reads

# Few distinct values make ties, zeros of both signs and dead units likely; extremes and NaN come in at times.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 3e20, np.inf, -np.inf, np.nan])
TAME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.25, 1000.0])


def blocks(elements, min_examples=1):
    shapes = st.tuples(
        st.integers(1, 2),
        st.integers(min_examples, 9),
        st.integers(1, 3),
        st.integers(1, 3),
        st.sampled_from([1, 2, 3, 4, 13]),  # every form of the kernels
    )
    return hnp.arrays(np.float64, shapes, elements=elements)


@st.composite
def chunked(draw):
    values = draw(blocks(TAME, min_examples=3))[:, :, 0]
    chunks = tuple(draw(st.integers(1, size)) for size in values.shape)
    acts = xr.DataArray(
        values,
        dims=("checkpoint", "example", "unit", "x"),
        coords={
            "example": draw(st.permutations(range(values.shape[1]))),
            "label": ("example", np.arange(values.shape[1]) % 2),
        },
    )
    return acts, acts.chunk(dict(zip(acts.dims, chunks, strict=True)))


@given(chunked())
@settings(max_examples=60)
def test_any_chunking__gives_the_dense_answer(pair):
    dense, lazy = pair
    questions = (
        nq.unit_moments,
        nq.dead_units,
        nq.class_means,
        lambda acts: nq.top_examples(acts, 3),
        lambda acts: nq.selectivity_index(acts, n_permutations=5),
        lambda acts: nq.dimensionality(acts, n_groups=2),
    )
    with dask.config.set(scheduler="synchronous"):
        for ask in questions:
            xr.testing.assert_allclose(ask(lazy).compute(), ask(dense), rtol=1e-7, atol=1e-7)


STORES = {
    "one block": ((5,), 13, 1 << 20, "none", "float32"),
    "an example a block": ((3, 2, 2), 9, 1, "fast", "float32"),
    "tokens": ((2, 3), 30, 200, "none", "float16"),
    "positions": ((3, 2, 2), 29, 300, "none", "float32"),
    "units": ((4,), 40, 100, "fast", "float64"),
}
"""Shape of an example, examples, bytes of a block, profile, dtype."""


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    for name, (shape, n, block_nbytes, codec, dtype) in STORES.items():
        simulate_store(
            folder / name, n_examples=n, n_classes=2, layers={"a": shape}, kinds=["activations"],
            block_nbytes=block_nbytes, codec=codec, dtype=dtype,
        )  # fmt: skip
    return folder


@given(name=st.sampled_from(sorted(STORES)), run_nbytes=st.integers(1, 4000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_blocks_runs_and_selection__give_the_dense_answer_and_are_read_once(stores, name, run_nbytes, data):
    store = open_store(CountingStorage(stores / name), chunk_nbytes=data.draw(st.sampled_from([1, 1 << 20])))
    acts = store["a"].activations
    rows = sorted(data.draw(st.sets(st.integers(0, acts.sizes["example"] - 1), min_size=1)))
    units = data.draw(st.lists(st.integers(0, acts.sizes["unit"] - 1), min_size=1, max_size=6))
    steps = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    some = acts.isel(example=rows, unit=units, checkpoint=steps)
    questions = [lambda acts: nq.unit_moments(acts, views=False), lambda acts: nq.top_examples(acts, 3, views=False)]
    if len({row % 2 for row in rows}) == 2:
        questions.append(lambda acts: nq.class_means(acts, views=False))
    with patch.object(runs, "RUN_NBYTES", run_nbytes), dask.config.set(scheduler="synchronous"):
        found = dask.compute(*(ask(some) for ask in questions))
    n_blocks = len({row // store.schema.find("layers/a/activations").rows for row in rows})
    assert len(reads(store)) == len(set(reads(store))) == n_blocks * len(set(steps))
    dense = some.copy(data=acts.values[steps][:, rows].take(units, acts.dims.index("unit")))
    for ask, ours in zip(questions, found, strict=True):
        xr.testing.assert_allclose(ours, ask(dense), rtol=1e-9, atol=1e-12)


@given(blocks(VALUES), st.data())
def test_moments__counts_and_extremes_are_exact_for_any_values(block, data):
    cut = data.draw(st.integers(0, block.shape[1]))
    state = moments.merge(moments.update(block[:, :cut], 0.5), moments.update(block[:, cut:], 0.5))
    values = block.transpose(0, 3, 1, 2, 4).reshape(block.shape[0], block.shape[3], -1)
    np.testing.assert_array_equal(state.nan_count, np.isnan(values).sum(-1))
    np.testing.assert_array_equal(state.active, (np.abs(values) > 0.5).sum(-1))
    np.testing.assert_array_equal(state.minimum, values.min(-1))
    np.testing.assert_array_equal(state.maximum, values.max(-1))
    finite = np.isfinite(values).all(-1)
    np.testing.assert_allclose(state.mean[finite], values[finite].mean(-1), rtol=1e-12, atol=1e-12)
    assert not np.isfinite(moments.finalise(state)["std"][~finite]).any()


@given(
    blocks(TAME, min_examples=2),
    st.sampled_from(["f2", "f4", "f8", "i4"]),
    st.sampled_from([1e-8, 1.0, 1e8]),
    st.data(),
)
def test_moments__of_any_split_have_the_dense_spread(block, dtype, scale, data):
    block = (block * (scale if dtype in ("f4", "f8") else 1)).astype(dtype)
    cut = data.draw(st.integers(0, block.shape[1]))
    found = moments.finalise(moments.merge(moments.update(block[:, :cut]), moments.update(block[:, cut:])))
    values = block.astype(np.float64)
    tolerance = 1e-11 * max(1e-300, float(np.abs(values).max()))
    for name, expected in {"mean": values.mean((1, 2, 4)), "std": values.std((1, 2, 4))}.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-11, atol=tolerance)
    constant = values.min((1, 2, 4)) == values.max((1, 2, 4))
    assert (found["std"][constant] == 0).all()


@given(blocks(VALUES), st.data())
def test_summarise__keeps_the_largest_value_and_the_class_sums_of_any_values(block, data):
    codes = np.array(data.draw(st.lists(st.integers(0, 2), min_size=block.shape[1], max_size=block.shape[1])))
    found = summarise(block, codes=codes, n_classes=3, best=True)
    np.testing.assert_array_equal(found.best, block.max((2, 4)))
    with np.errstate(invalid="ignore"):
        means = block.mean((2, 4))
        expected = np.stack([means[:, codes == code].sum(1) for code in range(3)], axis=1)
    np.testing.assert_allclose(found.classes.total, expected, rtol=1e-12, atol=1e-12 * 3e20)
    np.testing.assert_array_equal(found.classes.nan_count, np.isnan(block).any((2, 4)).sum(1))


@given(blocks(VALUES, min_examples=3), st.integers(1, 4), st.data())
def test_topk__merges_in_any_order(block, k, data):
    n = block.shape[1]
    ids = np.array(data.draw(st.permutations(range(n))))
    a, b = sorted(data.draw(st.tuples(st.integers(1, n - 1), st.integers(1, n - 1))))
    spans = [span for span in (slice(0, a), slice(a, b), slice(b, n)) if span.start < span.stop]
    parts = [topk.update(block[:, span], ids[span], k) for span in spans]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = topk.merge(left, part, k)
    for part in parts[-2::-1]:
        right = topk.merge(part, right, k)
    state = None
    for span in spans:
        state = topk.update(block[:, span], ids[span], k, start=state)
    whole = topk.update(block, ids, k)
    for name in ("value", "example", "position"):
        np.testing.assert_array_equal(getattr(left, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(right, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(state, name), getattr(whole, name))
