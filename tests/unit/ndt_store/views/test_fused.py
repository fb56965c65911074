"""One pass against dense float64 numpy, over every form, dtype and memory layout a block can have."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest

from ndt_store import codecs
from ndt_store.errors import InvalidInputError
from ndt_store.views import classes, jit, moments, topk
from ndt_store.views.fused import summarise

AXES = (1, 2, 4)
N_CLASSES = 3
FORMS = {
    "columns": (2, 131, 1, 1030, 1),
    "tokens": (2, 9, 7, 5, 1),
    "short": (1, 53, 1, 6, 9),
    "2 by 2": (1, 53, 1, 6, 4),
    "tokens and short": (1, 5, 3, 4, 2),
    "long": (2, 7, 1, 3, 49),
    "tokens and long": (1, 4, 2, 3, 25),
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def shape(request):
    return request.param


def codes_of(shape):
    return np.arange(shape[1]) % N_CLASSES


def check(block, threshold=0.5, rtol=1e-11):
    """Compare everything that a summary holds."""
    codes = codes_of(block.shape)
    found = summarise(block, threshold=threshold, codes=codes, n_classes=N_CLASSES, best=True)
    exact, values = block.astype(np.float64), block
    with np.errstate(invalid="ignore"):
        means = exact.mean((2, 4))
        expected = {
            "mean": exact.mean(AXES), "std": exact.std(AXES), "mean_abs": np.abs(exact).mean(AXES),
            "min": exact.min(AXES), "max": exact.max(AXES),
        }  # fmt: skip
        totals = np.stack([means[:, codes == code].sum(1) for code in range(N_CLASSES)], axis=1)
    results = moments.finalise(found.moments)
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=rtol, atol=rtol, err_msg=name)
    active = np.abs(values) > threshold
    for name, value in {
        "active": active.sum(AXES), "active_examples": active.any((2, 4)).sum(1),
        "nan_count": np.isnan(values).sum(AXES),
    }.items():  # fmt: skip
        np.testing.assert_array_equal(getattr(found.moments, name), value, err_msg=name)
    np.testing.assert_allclose(found.classes.total, totals, rtol=rtol, atol=rtol)
    np.testing.assert_array_equal(found.classes.count, np.bincount(codes, minlength=N_CLASSES))
    np.testing.assert_array_equal(found.classes.nan_count, np.isnan(values).any((2, 4)).sum(1))
    assert found.best.dtype == block.dtype
    np.testing.assert_array_equal(found.best, values.max((2, 4)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", ">f4"])
def test_summarise__equals_dense_float64(rng, shape, dtype):
    check((3 * rng.standard_normal(shape)).astype(dtype))


def test_summarise__of_rectified_values(rng, shape):
    check(np.maximum(rng.standard_normal(shape, dtype=np.float32), 0), threshold=0.0)


def test_summarise__counts_nan_and_infinities_of_either_sign(rng, shape):
    block = rng.standard_normal(shape, dtype=np.float32)
    block[0, 1, 0, 0, 0] = np.nan
    block[0, 2, 0, 1, 0] = np.inf
    block[0, 3, -1, 1, -1] = -np.inf
    block[0, 1, 0, 2] = -np.nan
    block[0, 3, -1, 3 % shape[3]] = -np.inf
    check(block)


def test_summarise__of_infinities_within_one_example_is_no_nan(shape):
    block = np.zeros(shape, np.float32)
    block[0, 0], block[0, 1, 0, :, 0] = np.inf, -np.inf
    block[0, 0, 0, :, 0] = -np.inf if block[0, 0].size > shape[3] else np.inf
    found = summarise(block, codes=codes_of(shape), n_classes=N_CLASSES, best=True)
    assert not found.moments.nan_count.any()
    assert not found.classes.nan_count.any()
    np.testing.assert_array_equal(found.best, block.max((2, 4)))


def test_summarise__of_nothing_but_nan(shape):
    check(np.full(shape, np.nan, np.float32))


@pytest.mark.parametrize("first", [1e8, -3.0, np.inf, np.nan])
def test_summarise__keeps_a_small_spread_on_a_large_mean(rng, shape, first):
    block = 1e8 + 1e-3 * rng.standard_normal(shape)
    block[:, 0, 0, 0, 0] = first
    found = moments.finalise(summarise(block).moments)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found["std"], block.std(AXES), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-160, 1e-30, 1e30, 1e140])
def test_summarise__of_tiny_and_huge_values(rng, shape, scale):
    block = rng.standard_normal(shape)
    found, plain = (moments.finalise(summarise(values).moments) for values in (block * scale, block))
    for name in ("mean", "std", "mean_abs", "min", "max"):
        rtol = 1e-3 if scale < 1e-150 else 1e-10  # squares are subnormal
        np.testing.assert_allclose(found[name] / scale, plain[name], rtol=rtol, atol=rtol, err_msg=name)


def test_summarise__of_finite_values_with_infinite_squares(shape):
    block = np.ones(shape)
    block[:, 0], block[:, 1] = 3e200, -1e200
    found = moments.finalise(summarise(block).moments)
    np.testing.assert_allclose(found["mean"], block.mean(AXES), rtol=1e-10)
    assert (found["std"] == np.inf).all()


@pytest.mark.parametrize("value", [0.1, -7.3, 0.0])
def test_summarise__gives_constants_a_spread_of_exactly_zero_in_any_split(shape, value):
    block = np.full(shape, value, np.float32)
    state = moments.merge(*(summarise(part).moments for part in (block[:, :2], block[:, 2:])))
    assert (state.m2 == 0).all()
    assert (moments.finalise(state)["mean"] == block[0, 0, 0, 0, 0]).all()


def test_summarise__reads_any_strides(rng, shape):
    block = rng.standard_normal(shape, dtype=np.float32)
    expected = summarise(block, codes=codes_of(shape), n_classes=N_CLASSES, best=True)
    for strided in (np.asfortranarray(block), np.repeat(block, 2, axis=1)[:, ::2], block[..., ::-1]):
        assert not strided.flags.c_contiguous or shape[-1] == 1
        found = summarise(strided, codes=codes_of(shape), n_classes=N_CLASSES, best=True)
        for field in fields(moments.Moments):
            np.testing.assert_allclose(
                getattr(found.moments, field.name), getattr(expected.moments, field.name), rtol=1e-10, atol=1e-12
            )
        np.testing.assert_allclose(found.classes.total, expected.classes.total, rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(found.best, expected.best)


def test_summarise__copies_a_strided_block_in_parts_that_add_up(rng):
    block = rng.standard_normal((3, 5, 64, 2000)).transpose(0, 3, 2, 1)[:, :, None, :, :]
    assert block[0].size > 2 * 1 << 17
    check(block)


def test_summarise__of_no_examples_is_the_neutral_element(shape):
    found = summarise(np.empty((1, 0, *shape[2:])), codes=np.empty(0, np.int64), n_classes=N_CLASSES, best=True)
    for field in fields(moments.Moments):
        np.testing.assert_array_equal(
            getattr(found.moments, field.name), getattr(moments.zero(1, shape[3]), field.name), err_msg=field.name
        )
    assert not found.classes.total.any()
    assert found.best.shape == (1, 0, shape[3])


def test_summarise__compares_with_the_threshold_in_the_precision_of_the_values():
    block = np.full((1, 2, 1, 1, 1), 0.1, np.float32)
    assert summarise(block, threshold=0.1).moments.active == 0
    assert summarise(block.astype(np.float64), threshold=0.1).moments.active == 2


def test_summarise__gives_only_what_is_asked_for(rng):
    found = summarise(rng.standard_normal((1, 3, 1, 2, 4)))
    assert found.classes is None
    assert found.best is None


@pytest.mark.parametrize("codes", [[0, 3, 1], [0, -1, 1], [0, 1], [[0, 1, 2]]])
def test_summarise__refuses_codes_out_of_bounds(codes):
    block = np.zeros((1, 3, 1, 2, 1))
    with pytest.raises(InvalidInputError, match="class codes"):
        summarise(block, codes=np.array(codes), n_classes=3)
    with pytest.raises(InvalidInputError, match="class codes"):
        classes.update(block, np.array(codes), 3)


def test_summarise__in_two_threads_equals_one(rng, shape):
    blocks = [rng.standard_normal(shape, dtype=np.float32) for _ in range(8)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda block: summarise(block, best=True), blocks))
    for block, found in zip(blocks, together, strict=True):
        alone = summarise(block, best=True)
        for field in fields(moments.Moments):
            np.testing.assert_array_equal(getattr(found.moments, field.name), getattr(alone.moments, field.name))
        np.testing.assert_array_equal(found.best, alone.best)


def looks_during(call):
    """How often another thread comes to run Python while `call` does."""
    call()  # compiled by now
    looks, done = [], threading.Event()

    def look():
        while not done.wait(0.0005):
            looks.append(time.perf_counter())

    watcher = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)  # the lock changes hands only where it is let go
    watcher.start()
    try:
        start = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        sys.setswitchinterval(interval)
        done.set()
        watcher.join()
    return sum(start < moment < end for moment in looks)


@pytest.mark.parametrize("row", [(1, 64, 1), (1, 64, 4), (1, 64, 49), (8, 64, 1)], ids=str)
def test_summarise__lets_other_threads_run(row):
    block = np.ones((1, (1 << 24) // int(np.prod(row)), *row), np.float32)
    assert max(looks_during(lambda: summarise(block)) for _ in range(5)) > 2


def test_topk__lets_other_threads_run():
    block = np.repeat(np.arange(6000, dtype=np.float32), 20).reshape(1, 6000, 1, 20, 1)
    assert max(looks_during(lambda: topk.update(block, np.arange(6000), 200)) for _ in range(5)) > 2


@pytest.mark.skipif(codecs._EXTEND is None, reason="the checksum's C function is hidden here")
def test_crc32c__lets_other_threads_run():
    block = memoryview(np.ones(1 << 27, np.uint8))
    assert max(looks_during(lambda: codecs.crc32c(block)) for _ in range(5)) > 2


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels of other systems may hide it")
def test_crc32c__finds_its_c_function():
    assert codecs._EXTEND is not None


IMPORTS = "import ndt_store, ndt_store.views.fused, ndt_store.views.moments, ndt_store.views.topk"


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        (f"{IMPORTS}; m = ndt_store.views.moments; m.finalise(m.merge(m.zero(1, 2), m.zero(1, 2)))", "False"),
        (f"{IMPORTS}; import numpy; ndt_store.views.moments.update(numpy.ones((1, 1, 1, 1, 1)))", "True"),
    ],
)
def test_numba_is_imported_by_the_first_kernel_that_runs(program, loaded):
    code = f"{program}\nimport sys; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == loaded


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    tried = []

    def njit(*, cache=False, **options):
        tried.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(jit.numba, "njit", njit)
    assert jit.jit()(abs) is abs
    assert tried == [True, False]
