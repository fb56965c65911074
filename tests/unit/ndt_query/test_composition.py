"""Composition: planted sums are found with their parts, noise gives nothing, and promises about bad input hold."""

import json
import tracemalloc

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import ThreadpoolController, threadpool_limits

import ndt_query as nq
from ndt_query.composing import LEVEL, Composing
from ndt_query.composition import ALPHAS
from ndt_store import open_store
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError
from ndt_store.testing import simulate_store
from ndt_store.views.samples import deal_groups

from .sources import CountingStorage, labelled, reads

N = 120


@pytest.fixture
def layers(rng):
    """Two checkpoints; at the second, late unit 2 is the sum of early units 1, 4 and 9."""
    early = labelled(rng.gamma(0.5, size=(2, N, 12, 2, 3)))
    late = rng.standard_normal((2, N, 5))
    parts = early.isel(checkpoint=1, unit=[1, 4, 9]).mean(("y", "x")).values
    late[1, :, 2] = parts @ [1.0, -1.0, 1.0] / parts.std() + 0.2 * rng.standard_normal(N)
    return early, labelled(late).assign_attrs(layer="conv2")


def test_compose__finds_the_planted_sum_and_its_parts(layers):
    found = nq.compose(*layers, k=3)
    assert found["composed"].values.tolist() == [[False] * 5, [False, False, True, False, False]]
    hit = found.isel(checkpoint=1, unit=2)
    assert hit["r2"] > 0.9
    assert hit["r2_low"] < hit["r2"] < hit["r2_high"] <= 1
    assert sorted(hit["early_unit"].values.tolist()) == [1, 4, 9]
    signs = dict(zip(hit["early_unit"].values.tolist(), np.sign(hit["coefficient"].values).tolist(), strict=True))
    assert signs == {1: 1, 4: -1, 9: 1}
    assert hit["share"].sum() > 0.8
    assert (hit["leave_out"] > 0.1).all()
    assert (np.diff(np.abs(hit["coefficient"])) <= 0).all()
    # One unit among five, above all shuffles of all units: 1 / (m + 1), not 5 times that.
    assert hit["p_value"] == pytest.approx(1 / (51 * 5))
    assert hit["q_value"] == pytest.approx(1 / 51)
    assert found.attrs["layer"] == "conv2"
    assert found.attrs["early_layer"] == "conv1"


def test_compose__equals_the_nested_search_of_scikit_learn(layers):
    found = nq.compose(*layers, seed=4, interval="none").isel(checkpoint=1)
    x = layers[0].isel(checkpoint=1).mean(("y", "x")).values
    folds = deal_groups(N, 10, 4) % 5
    assert np.bincount(folds).tolist() == [24] * 5
    for u in (0, 2):
        y = layers[1].values[1, :, u]
        errors = totals = 0.0
        for k in range(5):
            train, test = folds != k, folds == k
            search = GridSearchCV(
                make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS},
                cv=PredefinedSplit(folds[train]), scoring="neg_mean_squared_error",
            ).fit(x[train], y[train])  # fmt: skip
            error, total = ((y[test] - search.predict(x[test])) ** 2).sum(), ((y[test] - y[train].mean()) ** 2).sum()
            assert found["r2_by_fold"].values[k, u] == pytest.approx(1 - error / total, abs=1e-8)
            errors, totals = errors + error, totals + total
        assert found["r2"].values[u] == pytest.approx(1 - errors / totals, abs=1e-8)


def test_compose__of_noise_composes_nothing_where_the_in_sample_score_is_high(rng):
    # The study's own case: n = 160 examples, p = 128 units, and an R2 of 0.76 on the training data.
    early, late = labelled(rng.standard_normal((1, 160, 128))), labelled(rng.standard_normal((1, 160, 64)))
    found = nq.compose(early, late, alphas=[10.0], interval="none").isel(checkpoint=0)
    assert 0.7 < found["r2_in_sample"].mean() < 0.82
    assert (found["r2"] < 0).all()
    assert not found["composed"].any()
    free = nq.compose(early, late, interval="none").isel(checkpoint=0)
    assert free["r2"].mean() <= 0
    assert free["r2"].max() < 0.2
    assert not free["composed"].any()


@pytest.mark.parametrize("kind", ["independent", "correlated", "sparse"])
def test_compose__of_noise_is_above_the_null_no_more_often_than_its_level(rng, kind):
    hits, p_values = 0, []
    for run in range(60):
        x, y = rng.standard_normal((1, 60, 8)), rng.standard_normal((1, 60, 20))
        if kind == "correlated":
            y = y[..., :1] + 0.3 * y
        if kind == "sparse":
            x, y[..., :10] = x * (rng.random(x.shape) < 0.1), y[..., :10] * (rng.random((1, 60, 10)) < 0.06)
        found = nq.compose(labelled(x), labelled(y), seed=run, interval="none", n_permutations=39)
        hits += bool((found["q_value"] <= LEVEL).any())
        p_values.append(found["p_value"].values)
    assert hits <= 9  # 3 expected; more than 9 has probability 0.001
    p = np.concatenate(p_values, axis=None)
    assert np.nanmean(p <= 0.05) < 0.09
    assert np.nanmean(p <= 0.5) == pytest.approx(0.5, abs=0.12)


def test_compose__needs_both_the_threshold_and_the_null(layers, rng):
    strict = nq.compose(*layers, threshold=0.99)
    assert (strict["q_value"] <= LEVEL).sum() == 1
    assert not strict["composed"].any()
    early, late = labelled(rng.standard_normal((1, 24, 3))), labelled(rng.standard_normal((1, 24, 30)))
    lax = nq.compose(early, late, threshold=0.0)
    assert (lax["r2"] > 0).sum() > 1
    assert not lax["composed"].any()


@pytest.mark.parametrize("n_permutations", [19, 20, 39, 59, 99])
def test_compose__finds_one_unit_with_as_few_shuffles_as_it_takes(layers, n_permutations):
    # With 19, q is 0.05 itself, give or take its rounding.
    found = nq.compose(*layers, n_permutations=n_permutations, interval="none")
    assert found["composed"].sum() == 1


def test_compose__null_is_the_score_of_shuffled_examples(layers):
    early, late = (one.isel(checkpoint=1) for one in layers)
    found = nq.compose(early, late, n_permutations=19, seed=7, interval="none")
    order = np.random.default_rng(7).permutation(N)
    by_hand = nq.compose(early, late.copy(data=late.values[order]), n_permutations=19, seed=7, interval="none")
    np.testing.assert_allclose(found["null_r2"].values[0], by_hand["r2"], atol=1e-10)
    assert found["null_r2"].dims == ("permutation", "unit")


def test_compose__interval_is_that_of_doing_everything_again_without_each_group(layers):
    early, late = (one.isel(checkpoint=1) for one in layers)
    found = nq.compose(early, late, folds=3)
    groups = deal_groups(N, 6, 0)
    x, y = early.mean(("y", "x")).values, late.values
    without = []
    for group in range(6):
        kept = groups != group
        folds = groups[kept] % 3
        scores = []
        for u in range(5):
            errors = totals = 0.0
            for k in range(3):
                train, test = folds != k, folds == k
                search = GridSearchCV(
                    make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": ALPHAS},
                    cv=PredefinedSplit(folds[train]), scoring="neg_mean_squared_error",
                ).fit(x[kept][train], y[kept][train, u])  # fmt: skip
                target = y[kept][test, u]
                errors += ((target - search.predict(x[kept][test])) ** 2).sum()
                totals += ((target - y[kept][train, u].mean()) ** 2).sum()
            scores.append(1 - errors / totals)
        without.append(scores)
    expected = nq.jackknife(without, found["r2"].values)
    np.testing.assert_allclose(found["r2_low"], expected.low, atol=1e-7)
    np.testing.assert_allclose(found["r2_high"], np.minimum(expected.high, 1), atol=1e-7)


def test_compose__without_interval_leaves_it_out(layers):
    found = nq.compose(*layers, interval="none")
    assert np.isnan(found["r2_low"]).all()
    assert np.isnan(found["r2_high"]).all()
    assert np.isfinite(found["r2"]).all()


def test_compose__maximum_over_positions_is_another_question(rng):
    early = labelled(rng.standard_normal((1, N, 6, 3, 3)))
    late = labelled(early.max(("y", "x")).values[..., [2]] + early.max(("y", "x")).values[..., [5]])
    assert nq.compose(early, late, positions="max")["r2"].item() > 0.99
    assert nq.compose(early, late)["r2"].item() < 0.9


def test_compose__takes_tokens_and_positions_and_layers_datasets(rng):
    tokens, images = labelled(rng.standard_normal((1, 40, 3, 6))), labelled(rng.standard_normal((1, 40, 4, 2, 2)))
    found = nq.compose(tokens.to_dataset(), images.to_dataset(), interval="none")
    plain = nq.compose(tokens.mean("token"), images.mean(("y", "x")), interval="none")
    np.testing.assert_allclose(found["r2"], plain["r2"], atol=1e-12)
    with pytest.raises(NotFoundError, match="has no activations"):
        nq.compose(tokens.to_dataset().rename(activations="gradients"), images)


def test_compose__takes_checkpoints_apart(layers):
    both = nq.compose(*layers)
    one = nq.compose(*(layer.sel(checkpoint=100) for layer in layers))
    assert "checkpoint" not in one.dims
    for name in one.data_vars:
        np.testing.assert_array_equal(both[name].sel(checkpoint=100), one[name], err_msg=name)
    assert both["checkpoint"].values.tolist() == [0, 100]


def test_compose__labels_contributors_by_their_labels(layers):
    early = layers[0].assign_coords(unit=np.arange(12) * 10 + 3)
    hit = nq.compose(early, layers[1], k=3).isel(checkpoint=1, unit=2)
    assert sorted(hit["early_unit"].values.tolist()) == [13, 43, 93]
    assert nq.compose(early, layers[1], k=99, interval="none").sizes["rank"] == 12


def test_compose__of_units_that_never_vary_or_hold_a_nan_is_nan_for_these_alone(layers):
    early, late = layers
    values = late.values.copy()
    values[1, :, 0] = 0.1
    values[1, 3, 4] = np.nan
    values[1, 5, 3] = np.inf
    found = nq.compose(early, late.copy(data=values)).isel(checkpoint=1)
    for name in ("r2", "r2_low", "r2_high", "r2_in_sample", "p_value", "q_value", "alpha"):
        assert np.isnan(found[name]).values.tolist() == [True, False, False, True, True], name
    assert np.isnan(found["null_r2"]).all("permutation").values.tolist() == [True, False, False, True, True]
    assert found["early_unit"].values[[0, 3, 4]].tolist() == [[-1] * 10] * 3
    assert np.isnan(found["coefficient"]).all("rank").values.tolist() == [True, False, False, True, True]
    assert found["composed"].values.tolist() == [False, False, True, False, False]
    assert found["nan_count"].values.tolist() == [0, 0, 0, 0, 1]
    # They are no tests either: two units, and one above all shuffles.
    assert found["p_value"].values[2] == pytest.approx(1 / (51 * 2))


def test_compose__of_an_early_layer_with_a_nan_is_nan_at_that_checkpoint(layers):
    early, late = layers
    values = early.values.copy()
    values[0, 3, 2, 1, 1] = np.nan
    found = nq.compose(early.copy(data=values), late)
    assert np.isnan(found["r2"]).all("unit").values.tolist() == [True, False]
    assert found["early_nan_count"].values.tolist() == [1, 0]
    assert found["composed"].sum("unit").values.tolist() == [0, 1]


def test_compose__of_a_dead_early_layer_predicts_nothing(layers):
    early, late = layers
    found = nq.compose(xr.zeros_like(early), late)
    np.testing.assert_allclose(found["r2"], 0, atol=1e-12)
    assert not found["composed"].any()
    assert (found["coefficient"] == 0).all()
    assert np.isnan(found["share"]).all()


def test_compose__of_a_unit_that_fires_once_has_no_interval(layers):
    values = layers[1].values.copy()
    values[1, :, 0] = 0
    values[1, 7, 0] = 5.0
    found = nq.compose(layers[0], layers[1].copy(data=values)).isel(checkpoint=1, unit=0)
    assert found["r2"] <= 0.3
    assert np.isnan(found["r2_low"])
    assert not found["composed"]


@pytest.mark.parametrize("chunks", [(1, 120, 12, 2, 3), (2, 50, 12, 2, 3), (1, 7, 5, 1, 3)])
def test_compose__of_any_chunks_equals_the_dense_answer(layers, chunks):
    early, late = layers
    dense = nq.compose(early, late)
    lazy = nq.compose(early.chunk(dict(zip(early.dims, chunks, strict=True))), late.chunk({"unit": 2, "example": 13}))
    assert all(one.chunks is not None for one in lazy.data_vars.values())
    xr.testing.assert_allclose(lazy.compute(), dense, rtol=1e-9)


def test_compose__takes_one_layer_in_memory_and_the_other_lazily(layers):
    early, late = layers
    found = nq.compose(early, late.chunk({"checkpoint": 1}), interval="none")
    assert found["r2"].chunks is not None
    np.testing.assert_allclose(found["r2"], nq.compose(early, late, interval="none")["r2"], rtol=1e-9)


def test_compose__of_the_maximum_of_positions_with_a_nan_is_nan(layers):
    early, late = layers
    values = late.values[..., None].repeat(3, axis=-1)[..., None].copy()
    values[0, 3, 1, 2, 0] = np.nan
    found = nq.compose(early, labelled(values), positions="max", interval="none")
    assert np.isnan(found["r2"]).values[0].tolist() == [False, True, False, False, False]
    assert found["nan_count"].values[0].tolist() == [0, 1, 0, 0, 0]


def test_compose__reads_each_block_once_when_it_is_computed(tmp_path):
    made = simulate_store(tmp_path / "s.zarr", n_examples=40).store
    store = open_store(CountingStorage(made.catalogue.storage.root), chunk_nbytes=4096)
    asked = nq.compose(store["conv1"], store["fc"], n_permutations=19)
    assert not reads(store)
    found = asked.compute()
    names = [name for name in reads(store) if "gradients" not in name]
    assert len(names) == len(set(names)) == len(reads(store))
    assert {name.split("/")[1] for name in names} == {"conv1", "fc"}
    dense = nq.compose(made["conv1"].load(), made["fc"].load(), n_permutations=19)
    xr.testing.assert_allclose(found, dense, rtol=1e-9)
    assert found.attrs["commits"] == [0, 10, 100]


def test_compose__keeps_to_the_budget(layers):
    early, late = (one.chunk({"checkpoint": 1}) for one in layers)
    with pytest.raises(MemoryBudgetError, match="compose is projected to take .* select fewer examples or units"):
        nq.compose(early, late, memory="10 MB")
    with dask.config.set(scheduler="synchronous"):
        nq.compose(early, late, memory="40 MB").compute()


@pytest.mark.parametrize("lazily", [False, True])
def test_compose__solves_with_one_thread_of_blas(layers, monkeypatch, lazily):
    seen = []
    solve = Composing._one

    def watched(self, x, y):
        seen.extend(one["num_threads"] for one in ThreadpoolController().info() if one["user_api"] == "blas")
        return solve(self, x, y)

    monkeypatch.setattr(Composing, "_one", watched)
    with threadpool_limits(2):
        nq.compose(*(one.chunk() if lazily else one for one in layers), interval="none").compute()
    assert seen
    assert set(seen) == {1}


@pytest.mark.parametrize(("n", "p", "q"), [(200, 64, 32), (60, 96, 8), (900, 16, 16)])
def test_compose__takes_no_more_memory_than_it_projects(rng, monkeypatch, n, p, q):
    monkeypatch.setattr("ndt_query.kernels.ridge.BATCH_NBYTES", 1 << 20)
    asking = Composing(ALPHAS, deal_groups(n, 10), 5, 10, 0.7, 19, "jackknife", 0.95, 0, np.arange(p))
    rows = rng.standard_normal((1, n, p)), rng.standard_normal((1, n, q))
    tracemalloc.start()
    with threadpool_limits(1):
        asking(*rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    projected = asking.nbytes(n, p, q)
    assert projected / 4 < peak < projected


def test_compose__repeats_by_its_seed_and_says_what_it_did(layers):
    one, two = (nq.compose(*layers, seed=3, n_permutations=19) for _ in range(2))
    assert one.identical(two)
    other = nq.compose(*layers, seed=4, n_permutations=19)
    assert not one["r2"].equals(other["r2"])
    parameters = json.loads(one.attrs["parameters"])
    assert parameters["seed"] == 3
    assert parameters["folds"] == 5
    assert parameters["alphas"] == list(ALPHAS)
    assert one.attrs["n_examples"] == N


def test_compose__refuses_layers_that_do_not_match(layers):
    early, late = layers
    with pytest.raises(DimensionError, match="early has 120 and late 119 along example: select those that both have"):
        nq.compose(early, late.isel(example=slice(119)))
    with pytest.raises(InvalidInputError, match="differ in 120 labels of example, the first is 5 in early and 243 in"):
        nq.compose(early, late.isel(example=slice(None, None, -1)))
    with pytest.raises(InvalidInputError, match="differ in 1 labels of checkpoint, the first is 100 in early and 200"):
        nq.compose(early, late.assign_coords(checkpoint=[0, 200]))
    with pytest.raises(DimensionError, match="One of early and late has a dimension checkpoint"):
        nq.compose(early, late.isel(checkpoint=0))
    with pytest.raises(InvalidInputError, match="differ in 1 labels of checkpoint, the first is 0 in early and 100"):
        nq.compose(early.isel(checkpoint=0), late.isel(checkpoint=1))
    with pytest.raises(InvalidInputError, match="Coordinate unit of early has dtype <U1"):
        nq.compose(early.assign_coords(unit=list("abcdefghijkl")), late)


def test_compose__refuses_fewer_examples_than_two_a_fold(rng):
    early, late = labelled(rng.random((1, 9, 3))), labelled(rng.random((1, 9, 2)))
    with pytest.raises(DimensionError, match="5 folds need 10 examples or more: got 9; use fewer folds"):
        nq.compose(early, late)
    assert np.isfinite(nq.compose(early, late, folds=4)["r2"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 2}, "folds=2 is not possible: expected a whole number of at least 3"),
        ({"n_permutations": 18}, "n_permutations=18 is not possible: expected a whole number of at least 19"),
        ({"alphas": []}, r"alphas=\[\] is not possible: expected one number or more, all above 0"),
        ({"alphas": [1.0, 0.0]}, "all above 0"),
        ({"alphas": [np.nan]}, "all above 0"),
        ({"k": 0}, "k=0"),
        ({"threshold": 1.0}, "threshold=1.0"),
        ({"positions": "flatten"}, "positions='flatten' is not an option"),
        ({"interval": "bootstrap"}, "interval='bootstrap' is not an option"),
        ({"confidence": 95}, "confidence=95"),
        ({"seed": -1}, "seed=-1"),
        ({"memory": "much"}, "memory='much'"),
    ],
)
def test_compose__refuses_options_that_are_not_possible(layers, options, message):
    early, late = (one.chunk() for one in layers)
    with pytest.raises(InvalidInputError, match=message):
        nq.compose(early, late, **options)
