"""Debiased CKA is that of its formula, 1 for what is rotated, and 0 on average where biased CKA is nearly 1."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_store import index_store
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NdtError
from ndt_store.testing import simulate_store

from .sources import CountingStorage, labelled


def array(values):
    return xr.DataArray(values, {"example": np.arange(len(values))}, ("example", "unit"))


def hsic(k, l):  # noqa: E741 - the letters of the paper
    """The unbiased estimate as Song et al. write it."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    first = np.trace(k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)
    return first / (n * (n - 3))


def by_formula(x, y):
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def biased(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_cka__is_that_of_its_formula(rng):
    x = rng.standard_normal((40, 6)) + 2
    y = x[:, :3] @ rng.standard_normal((3, 9)) + rng.standard_normal((40, 9))
    assert float(nq.cka(array(x), array(y))["cka"]) == pytest.approx(by_formula(x, y))


def test_cka__of_what_is_rotated_scaled_and_moved_is_one(rng):
    x = rng.standard_normal((60, 7))
    turned = 0.01 * x @ np.linalg.qr(rng.standard_normal((7, 7)))[0] + 300
    found = nq.cka(array(x), array(turned))
    assert float(found["cka"]) == pytest.approx(1, abs=1e-9)
    assert float(found["p_value"]) == pytest.approx(1 / 200)
    assert float(found["cka_low"]) == pytest.approx(1, abs=1e-6)


def test_cka__of_independent_data_is_zero_where_the_biased_one_is_not():
    """The gallery of old mistakes: 0.89 at n = 64, p = 512."""
    rng = np.random.default_rng(0)
    draws = [(rng.standard_normal((64, 512)), rng.standard_normal((64, 512))) for _ in range(30)]
    wrong = np.mean([biased(x, y) for x, y in draws])
    assert wrong == pytest.approx(0.89, abs=0.01)
    ours = [nq.cka(array(x), array(y), n_permutations=19) for x, y in draws]
    values = np.array([float(one["cka"]) for one in ours])
    assert abs(values.mean()) < 3 * values.std() / 30**0.5 + 1e-3
    assert np.abs(values).max() < 0.1
    p = np.array([float(one["p_value"]) for one in ours])
    assert (p <= 0.05).mean() <= 0.2


def test_interval__holds_the_truth_about_as_often_as_it_says():
    """Two views of three common factors: the truth from very many examples."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((3, 8)), rng.standard_normal((3, 8))

    def draw(n):
        z = rng.standard_normal((n, 3))
        return z @ a + rng.standard_normal((n, 8)), z @ b + rng.standard_normal((n, 8))

    truth = by_formula(*draw(4000))
    inside = 0
    for _ in range(60):
        found = nq.cka(*map(array, draw(120)), n_permutations=1)
        inside += float(found["cka_low"]) <= truth <= float(found["cka_high"])
    assert inside >= 51  # of 57 expected


def test_matrix__is_cka_of_every_pair(rng):
    layers = {
        "conv": labelled(rng.standard_normal((2, 30, 4, 3, 3)).astype(np.float32)),
        "fc": labelled(rng.standard_normal((2, 30, 6)).astype(np.float32)),
    }
    for positions in ("flatten", "mean"):
        found = nq.cka_matrix(layers, positions=positions)["cka"]
        assert found.dims == ("layer", "checkpoint", "other_layer", "other_checkpoint")
        for one in ("conv", "fc"):
            for other in ("conv", "fc"):
                expected = nq.cka(layers[one].isel(checkpoint=0), layers[other].isel(checkpoint=1), positions=positions)
                got = found.sel(layer=one, other_layer=other, checkpoint=0, other_checkpoint=100)
                assert float(got) == pytest.approx(float(expected["cka"]), abs=2e-6)
        np.testing.assert_allclose([found.values[a, c, a, c] for a in range(2) for c in range(2)], 1, rtol=1e-5)


def test_matrix__of_two_runs(rng):
    one, other = labelled(rng.standard_normal((2, 30, 5))), labelled(rng.standard_normal((3, 30, 7)))
    found = nq.cka_matrix(one, other)["cka"]
    assert found.shape == (1, 2, 1, 3)
    expected = by_formula(one.values[1], other.values[2])
    assert float(found[0, 1, 0, 2]) == pytest.approx(expected, abs=1e-5)


def test_views__answer_without_reading_a_block(tmp_path):
    storage = CountingStorage(tmp_path / "r.zarr")
    storage.reads = []
    simulate_store(storage, n_examples=20, layers={"a": (8, 4, 4), "b": (5, 3, 3)}, kinds=("activations",))
    from ndt_store import open_store

    store = open_store(storage)
    from_values = nq.cka_matrix({name: store[name].activations.compute() for name in store.layers})
    index_store(store, gram=("flatten",))
    storage.reads.clear()
    found = nq.cka_matrix(store)
    assert storage.reads == []
    np.testing.assert_allclose(found["cka"], from_values["cka"], atol=1e-6)
    some = {name: store[name].activations.isel(example=slice(0, 12)) for name in store.layers}
    part = nq.cka_matrix(some)
    assert storage.reads == []
    expected = nq.cka_matrix({name: one.compute() for name, one in some.items()})
    np.testing.assert_allclose(part["cka"], expected["cka"], atol=1e-6)


def test_what_does_not_vary_is_nan_and_so_is_a_nan(rng):
    x = rng.standard_normal((20, 4))
    found = nq.cka(array(x), array(np.full((20, 3), 0.1)))
    assert np.isnan(float(found["cka"]))
    assert np.isnan(float(found["p_value"]))
    y = x.copy()
    y[3, 1] = np.nan
    assert np.isnan(float(nq.cka(array(x), array(y))["cka"]))


def test_examples_are_matched_by_label(rng):
    x = array(rng.standard_normal((20, 4)))
    shuffled = x.isel(example=rng.permutation(20))
    assert float(nq.cka(x, shuffled)["cka"]) == pytest.approx(1)


def test_cka__over_checkpoints(rng):
    acts = labelled(rng.standard_normal((3, 30, 5)))
    along = nq.cka(acts, acts.isel(checkpoint=2))
    assert along["cka"].dims == ("checkpoint",)
    assert float(along["cka"][2]) == pytest.approx(1)
    assert float(along["cka"][0]) < 0.5


def test_cka__names_what_is_wrong(rng):
    x = array(rng.standard_normal((20, 4)))
    with pytest.raises(InvalidInputError, match="There are 5 examples"):
        nq.cka(x[:5], x[:5])
    with pytest.raises(DimensionError, match="other examples"):
        nq.cka(x, x.assign_coords(example=np.arange(20) + 7))
    acts = labelled(rng.standard_normal((3, 20, 5)))
    with pytest.raises(DimensionError, match="other checkpoints"):
        nq.cka(acts, acts.isel(checkpoint=slice(0, 2)))
    with pytest.raises(DimensionError, match="Layer 'b' has other examples"):
        nq.cka_matrix({"a": acts, "b": acts.isel(example=slice(0, 10))})
    with pytest.raises(MemoryBudgetError, match="cka_matrix is projected"):
        nq.cka_matrix(acts, memory="1 kB")
    with pytest.raises(InvalidInputError, match="positions"):
        nq.cka(x, x, positions="samples")


def test_interval__stays_where_cka_can_be():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 40))
    y = x[:, :3] * 3 + rng.standard_normal((9, 3))
    x[0] *= 6
    y[0] *= 4
    found = nq.cka(array(x), array(y), n_permutations=1)  # of nine examples, of which one is all that varies
    assert (float(found["cka_low"]), float(found["cka_high"])) == (-1, 1)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (lambda x: nq.cka(x, x, seed=-1), "seed=-1 is not possible"),
        (lambda x: nq.cka_matrix({"x": x}, seed="a"), "seed='a' is not possible"),
        (lambda x: nq.cka(x, x, seed=None), "seed=None is not possible"),
        (lambda x: nq.cka(x.isel(unit=[]), x), "empty along unit"),
        (lambda x: nq.cka(x.values, x), "One layer is asked for, .*such as store.'fc'.: got a ndarray"),
        (lambda x: nq.cka(x, x, max_batches=0), "max_batches=0 is not possible"),
        (lambda x: nq.cka(x, x, confidence="a"), "confidence='a' is not a level"),
        (lambda x: nq.cka(x, x, memory=""), "memory='' is not a size"),
        (lambda x: nq.cka(x, x, memory=[1]), "is not a size"),
        (lambda x: nq.cka(x.assign_coords(label=("example", np.arange(20))), x.assign_coords(
            label=("example", np.arange(20) % 3))), "other labels of the same examples"),
        (lambda x: nq.cka_matrix({"x": x.assign_coords(label=("example", np.arange(20)))}, {"x": x.assign_coords(
            label=("example", np.arange(20) % 3))}), "other labels of its examples"),
    ],
)  # fmt: skip
def test_cka__names_what_it_cannot_take(rng, question, said):
    x = array(rng.standard_normal((20, 4))).assign_coords(example=np.arange(20))
    with pytest.raises(NdtError, match=said):
        question(x)


def test_cka__takes_numpy_numbers(rng):
    x = array(rng.standard_normal((40, 4)))
    found = nq.cka(x, x, batch_size=np.int64(20), n_groups=np.int32(3), n_permutations=np.int64(3), seed=np.int64(1),
                   memory=np.int64(10**9))  # fmt: skip
    assert found.drop_attrs().identical(nq.cka(x, x, batch_size=20, n_groups=3, n_permutations=3, seed=1).drop_attrs())
