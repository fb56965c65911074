"""More examples than a batch: the terms of batches add up to the formula's, in bounded memory, whatever the order."""

import tracemalloc

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.kernels.similarity import deal_batches, u_centred, u_centred_triangle
from ndt_store import open_store
from ndt_store.errors import InvalidInputError, MemoryBudgetError
from ndt_store.testing import simulate_store
from ndt_store.views.samples import packed

from .sources import CountingStorage, labelled
from .test_similarity import array, by_formula, hsic


def summed(x, y, batches):
    """CKA of the paper: unbiased HSIC of each batch as Song et al. write it, added up before the ratio."""
    terms = [[hsic(a[rows] @ a[rows].T, b[rows] @ b[rows].T) for a, b in ((x, y), (x, x), (y, y))] for rows in batches]
    xy, xx, yy = np.sum(terms, axis=0)
    return xy / np.sqrt(xx * yy)


@pytest.mark.parametrize(("n", "size"), [(17, 16), (500, 64), (5000, 64)])
def test_batches__hold_every_example_once_and_are_about_equal(n, size):
    batches = deal_batches(n, size, 3)
    assert np.sort(np.concatenate(batches)).tolist() == list(range(n))
    sizes = [len(rows) for rows in batches]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert all((np.diff(rows) > 0).all() for rows in batches)
    again, other = deal_batches(n, size, 3), deal_batches(n, size, 4)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_batches__of_more_examples_than_they_hold_are_drawn_from_all(rng):
    batches = deal_batches(5000, 64, 3, 16)
    assert [len(rows) for rows in batches] == [64] * 16
    drawn = np.concatenate(batches)
    assert len(np.unique(drawn)) == 16 * 64
    assert np.histogram(drawn, 5, (0, 5000))[0].min() > 150  # 205 each on average, 13 standard error
    x = rng.standard_normal((600, 5))
    some = nq.cka(array(x), array(x[:, :3] + 1), batch_size=32, n_permutations=1)
    assert (some.attrs["n_examples"], some.attrs["n_batches"], some.attrs["n_in_batches"]) == (600, 16, 512)
    every = nq.cka(array(x), array(x[:, :3] + 1), batch_size=32, n_permutations=1, max_batches=None)
    assert every.attrs["n_in_batches"] == 600
    assert float(some["cka"]) == pytest.approx(float(every["cka"]), abs=0.05)
    assert nq.cka_matrix({"x": labelled(x[None])}, batch_size=32, max_batches=2).attrs["n_in_batches"] == 64


def test_sorted_small_classes__do_not_bias_cka_of_a_store(tmp_path):
    """1,024 classes of four that lie together, which neighbours of a block share and other examples hardly ever do."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((2, 1024, 24))
    x, y = (np.repeat(one, 4, axis=0) + 0.5 * rng.standard_normal((4096, 24)) for one in means)
    values = {f"layers/{name}/activations": one[None].astype(np.float32) for name, one in (("x", x), ("y", y))}
    simulate_store(
        tmp_path / "r.zarr", checkpoints=(0,), n_examples=4096, layers={"x": (24,), "y": (24,)}, planted=values,
        kinds=("activations",), block_nbytes=64 * 96,
    )  # fmt: skip
    store = open_store(tmp_path / "r.zarr")
    whole = by_formula(x, y)
    pair = (store[name].activations.isel(checkpoint=0) for name in "xy")
    found = nq.cka(*pair, batch_size=256, n_permutations=1)
    assert float(found["cka_low"]) < whole < float(found["cka_high"])
    assert float(found["cka"]) == pytest.approx(whole, abs=0.01)
    runs = np.random.default_rng(1).permutation(4096 // 16).reshape(16, 16)
    clumped = [np.sort((run[:, None] * 16 + np.arange(16)).ravel()) for run in runs]
    assert summed(x, y, clumped) > whole + 0.02  # what runs of neighbours, dealt as they lie, would give


def test_blocks_are_read_once_for_all_batches_of_a_group(tmp_path, monkeypatch):
    storage = CountingStorage(tmp_path / "r.zarr")
    simulate_store(storage, checkpoints=(0,), n_examples=128, layers={"a": (64,)}, kinds=("activations",))
    acts = open_store(storage)["a"].activations
    acts.compute()
    n_blocks = len(storage.reads)
    storage.reads.clear()
    found = nq.cka_matrix(acts, batch_size=16)
    assert found.attrs["n_batches"] == 8
    assert n_blocks < len(storage.reads) <= 2 * n_blocks
    storage.reads.clear()
    pair = nq.cka(acts, acts, batch_size=16, n_permutations=2)
    assert 2 * n_blocks < len(storage.reads) <= 4 * n_blocks
    # Little room for what is kept, for samples, and in the budget, each by itself.
    for name, value in (("HELD_NBYTES", 500), ("TOGETHER_NBYTES", 5000)):
        with monkeypatch.context() as little:
            little.setattr(f"ndt_query.products.{name}", value)
            storage.reads.clear()
            assert nq.cka_matrix(acts, batch_size=16).identical(found)
            assert len(storage.reads) > 4 * n_blocks
    storage.reads.clear()
    assert nq.cka_matrix(acts, batch_size=16, memory="10 kB").identical(found)
    assert len(storage.reads) > 4 * n_blocks
    assert nq.cka(acts, acts, batch_size=16, n_permutations=2).identical(pair)


def test_cka__in_batches_of_selected_units_is_that_of_their_values(tmp_path):
    storage = CountingStorage(tmp_path / "r.zarr")
    simulate_store(storage, checkpoints=(0,), n_examples=96, layers={"a": (12, 4, 4)}, kinds=("activations",))
    acts = open_store(storage)["a"].activations.isel(checkpoint=0)
    acts.compute()
    n_blocks = len(storage.reads)
    for units in ([7, 2, 5, 11], slice(2, 9)):
        some = acts.isel(unit=units, example=slice(3, None, 2))
        storage.reads.clear()
        found = nq.cka(some, acts.isel(example=slice(3, None, 2)), batch_size=16, n_permutations=1)
        assert n_blocks < len(storage.reads) <= 2 * n_blocks
        values = acts.compute().isel(example=slice(3, None, 2))
        again = nq.cka(values.isel(unit=units), values, batch_size=16, n_permutations=1)
        assert float(found["cka"]) == pytest.approx(float(again["cka"]), abs=1e-9)


def test_batches_that_fit_one_at_a_time_are_taken_one_at_a_time(tmp_path):
    storage = CountingStorage(tmp_path / "r.zarr")
    simulate_store(
        storage, checkpoints=(0,), n_examples=1024, layers={"a": (80,)}, kinds=("activations",), block_nbytes=8192
    )
    acts = open_store(storage)["a"].activations
    acts.compute()
    n_blocks = len(storage.reads)
    least = 8 * 256**2 * 3 + 2 * 256 * 255
    storage.reads.clear()
    found = nq.cka_matrix(acts, batch_size=256, memory=least)
    assert len(storage.reads) > 3 * n_blocks
    storage.reads.clear()
    assert found.identical(nq.cka_matrix(acts, batch_size=256))
    assert len(storage.reads) == n_blocks
    with pytest.raises(MemoryBudgetError, match="cka_matrix is projected"):
        nq.cka_matrix(acts, batch_size=256, memory=least - 1)


def test_cka__in_batches_is_the_ratio_of_summed_terms(rng):
    x = rng.standard_normal((150, 6)) + 2
    y = x[:, :3] @ rng.standard_normal((3, 9)) + rng.standard_normal((150, 9))
    x[:70] *= 3  # batches differ in size of their terms, so that a mean of ratios would be another
    expected = summed(x, y, deal_batches(150, 40, 5))
    found = nq.cka(array(x), array(y), batch_size=40, seed=5, n_permutations=9)
    assert float(found["cka"]) == pytest.approx(expected, abs=1e-12)
    assert found.attrs["n_batches"] == 4
    matrix = nq.cka_matrix({"x": array(x), "y": array(y)}, batch_size=40, seed=5)["cka"]
    assert float(matrix.sel(layer="x", other_layer="y").squeeze()) == pytest.approx(expected, abs=2e-6)
    assert abs(by_formula(x, y) - expected) < 0.05


def test_cka__up_to_a_batch_is_what_it_was(rng):
    x, y = array(rng.standard_normal((40, 6))), array(rng.standard_normal((40, 5)))
    assert nq.cka(x, y, batch_size=40).drop_attrs().identical(nq.cka(x, y).drop_attrs())


def test_cka__in_batches_of_what_is_rotated_scaled_and_moved_is_one(rng):
    x = rng.standard_normal((200, 7))
    turned = 0.01 * x @ np.linalg.qr(rng.standard_normal((7, 7)))[0] + 300
    found = nq.cka(array(x), array(turned), batch_size=50, n_permutations=99)
    assert float(found["cka"]) == pytest.approx(1, abs=1e-9)
    assert float(found["cka_low"]) == pytest.approx(1, abs=1e-6)
    assert float(found["p_value"]) == pytest.approx(1 / 100)


def test_cka__in_batches_of_independent_data_is_zero():
    rng = np.random.default_rng(0)
    draws = [(rng.standard_normal((128, 256)), rng.standard_normal((128, 256))) for _ in range(40)]
    found = np.array([float(nq.cka(array(x), array(y), batch_size=32, n_permutations=1)["cka"]) for x, y in draws])
    assert abs(found.mean()) < 3 * found.std() / 40**0.5
    assert np.abs(found).max() < 0.1


def test_null__shuffles_within_batches_as_its_formula_does(rng):
    """The permuted terms of batches over the sizes of all: the same orders, through Song's formula."""
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((60, 3))
    batches = deal_batches(60, 30, 2)
    generator = np.random.default_rng(2)
    orders = [np.stack([generator.permutation(30) for _ in range(5)]) for _ in batches]
    expected = []
    for draw in range(5):
        moved = x.copy()
        for rows, order in zip(batches, orders, strict=True):
            moved[rows] = x[rows][order[draw]]
        expected.append(summed(moved, y, batches))
    found = nq.cka(array(x), array(y), batch_size=30, seed=2, n_permutations=5)
    assert float(found["null_95"]) == pytest.approx(np.quantile(expected, 0.95), abs=1e-12)


def test_sorted_classes__do_not_bias_cka():
    """Two layers that hold the class and nothing else in common: contiguous batches would see none of it."""
    rng = np.random.default_rng(3)
    classes = np.arange(2000) // 200
    means = rng.standard_normal((10, 5))
    x, y = (mean[classes] + rng.standard_normal((2000, 5)) for mean in (means, means[:, ::-1]))
    whole = by_formula(x, y)
    contiguous = summed(x, y, np.array_split(np.arange(2000), 20))
    lazily = [xr.DataArray(da.from_array(one, chunks=(40, 5)), dims=("example", "unit")) for one in (x, y)]
    for pair in ((array(x), array(y)), lazily):
        found = nq.cka(*pair, batch_size=100, n_permutations=1)
        assert float(found["cka"]) == pytest.approx(whole, abs=0.03)
        assert float(found["cka_low"]) < whole < float(found["cka_high"])
    assert abs(contiguous) < 0.1 < whole - 0.2


def test_batches_of_a_store__are_those_of_its_values(tmp_path):
    storage = CountingStorage(tmp_path / "r.zarr")
    layers = {"a": (8, 4, 4), "b": (5, 3, 3), "c": (6,)}
    simulate_store(storage, checkpoints=(0, 10), n_examples=90, layers=layers, kinds=("activations",))
    store = open_store(storage)
    read = {name: store[name].activations.compute() for name in store.layers}
    for positions in ("flatten", "mean"):
        found = nq.cka_matrix(store, positions=positions, batch_size=32)
        assert found.attrs["n_batches"] == 3
        np.testing.assert_allclose(
            found["cka"], nq.cka_matrix(read, positions=positions, batch_size=32)["cka"], atol=2e-6
        )
    pair = nq.cka(store["a"].sel(checkpoint=0), store["b"].sel(checkpoint=10), batch_size=32, n_permutations=1)
    found = nq.cka_matrix(store, batch_size=32)["cka"]
    assert float(pair["cka"]) == pytest.approx(float(found[0, 0, 1, 1]), abs=2e-6)
    assert pair.attrs["layer"] == "a"
    assert pair.attrs["other_layer"] == "b"
    backwards = store["b"].sel(checkpoint=10).isel(example=slice(None, None, -1))
    same = nq.cka(store["a"].sel(checkpoint=0), backwards, batch_size=32, n_permutations=1)
    assert float(same["cka"]) == pytest.approx(float(pair["cka"]), abs=1e-9)


@pytest.mark.parametrize(
    "question",
    [
        lambda acts: nq.cka_matrix(acts, batch_size=256),
        lambda acts: nq.cka(acts, acts, batch_size=256, n_groups=2, n_permutations=2),
    ],
)
def test_memory__does_not_grow_with_the_examples(rng, question):
    """What a question takes beside its arrays; `python -m benchmarks similarity` measures it on a store."""

    def peak(n):
        acts = labelled(rng.standard_normal((1, n, 50)))
        tracemalloc.start()
        question(acts)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(300)  # what is imported on the way
    small, large = peak(512), peak(2048)
    assert large < 1.1 * small
    assert large < 2048**2


def test_triangle__is_u_centred_as_the_matrix_is(rng):
    x = rng.standard_normal((30, 5)) * 1e-20
    gram = x @ x.T
    out = np.empty(30 * 29 // 2, np.float32)
    size = u_centred_triangle(packed(gram), 30, out)
    matrix, expected = u_centred(gram.copy())
    assert size == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(out, matrix[np.triu_indices(30, 1)], atol=1e-8)
    assert u_centred_triangle(packed(np.full((30, 30), 0.1)), 30, out) == 0
    assert (out == 0).all()


def test_what_varies_in_one_batch_alone_counts_there(rng):
    x = np.zeros((64, 4))
    batches = deal_batches(64, 32, 0)
    x[batches[1]] = rng.standard_normal((32, 4))
    y = rng.standard_normal((64, 4))
    expected = nq.cka(array(x), array(y), batch_size=32)
    assert float(expected["cka"]) == pytest.approx(summed(x, y, batches), abs=1e-12)
    x[batches[0][0], 0] = np.nan
    assert np.isnan(float(nq.cka(array(x), array(y), batch_size=32)["cka"]))
    matrix = nq.cka_matrix({"x": labelled(x[None]), "y": labelled(y[None])}, batch_size=32)["cka"].squeeze()
    assert np.isnan(matrix.values).tolist() == [[True, True], [True, False]]


def test_batch_size__names_what_is_possible(rng):
    x = array(rng.standard_normal((20, 4)))
    for question in (lambda: nq.cka(x, x, batch_size=15), lambda: nq.cka_matrix({"x": x}, batch_size=15)):
        with pytest.raises(InvalidInputError, match="batch_size=15 is not possible"):
            question()
