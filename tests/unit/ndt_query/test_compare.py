"""Runs compared: planted curves, alignment, groups, pairs, and what makes runs hard to compare."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
import ndt_store
from ndt_query.compare import differing
from ndt_query.kernels.curves import area, first_reached, resampled, smooth
from ndt_store import Column, SeriesWriter, open_store
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .runs import GROUPS, LAYERS, STEPS, four_runs, tracked, with_batch_size


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return four_runs(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def compared(stores):
    return nq.compare_runs(stores, groups=GROUPS)


@pytest.fixture
def with_batches(stores, monkeypatch):
    return with_batch_size(monkeypatch, stores)


def test_curves__are_those_of_their_definitions():
    places = np.arange(0, 100, 1.0)
    rising = 1 - np.exp(-places / 10)
    final = np.median(rising[-5:])
    expected = [-10 * np.log(1 - fraction * final) for fraction in (0.5, 0.9)]
    np.testing.assert_allclose(first_reached(places, rising, (0.5, 0.9)), expected, atol=0.1)
    assert np.isnan(first_reached(places, np.full(100, math.nan), (0.5,))).all()
    assert first_reached(places, np.ones(100), (0.5,)).tolist() == [0.0]
    assert np.isnan(first_reached(np.arange(5.0), np.array([0.1, 0.5, 0.8, 0.9, 0.95]), (0.5,))).all()
    spike = np.zeros(100)
    spike[50] = 1.0
    assert smooth(spike).max() == 0
    np.testing.assert_allclose(area(places, rising, 0, 99), np.trapezoid(rising, places) / 99)
    np.testing.assert_allclose(area(places, places, 0.5, 10.25), (0.5 + 10.25) / 2)  # between measurements
    broken = np.where(places == 5, math.nan, places)
    np.testing.assert_allclose(area(places, broken, 0, 10), 5)
    assert np.isnan(
        [area(places, rising, 50, 50), area(places, rising, 0, 100), area(places, broken * math.nan, 0, 1)]
    ).all()
    np.testing.assert_array_equal(resampled(places, broken, np.array([4.0, 5, 99])), [4, 5, 99])
    assert np.isnan(resampled(places, broken * math.nan, np.array([4.0]))).all()
    np.testing.assert_array_equal(
        resampled(np.array([0.0, 1, 1, 2]), np.array([0.0, 5, 7, 9]), np.array([1.0, 3.0])), [5, np.nan]
    )


def test_comparison__of_a_run_that_learns_twice_as_fast(stores, compared):
    assert compared["layer"].values.tolist() == ["relu"] * 4  # the classifier is as wide as there are classes
    assert compared["n_jumps"].sel(run="fast 1") >= 1
    assert (compared["n_jumps"].sel(run=["slow 0", "slow 1", "fast 0"]) == 0).all()
    assert compared["first_jump_phase"].sel(run="fast 1") == pytest.approx(200 / 395, abs=0.02)
    assert compared["n_tracked_layers"].values.tolist() == [2.0] * 4
    assert (compared["area"].sel(run=["fast 0", "fast 1"]) > compared["area"].sel(run="slow 1")).all()
    assert compared["examples_to"].isnull().all()  # no recipe says how large a batch is
    last = nq.disentanglement(stores["slow 0"]["relu"].activations.isel(checkpoint=[-1])).isel(checkpoint=0)
    assert float(compared["separability_accuracy"].sel(run="slow 0")) == float(last["accuracy"])
    did = nq.performance(stores["slow 0"]).isel(checkpoint=-1)
    assert float(compared["final_accuracy"].sel(run="slow 0")) == float(did["accuracy"])


def test_comparison__counts_examples_where_a_recipe_says_how_many_a_step_takes(with_batches):
    found = nq.compare_runs(with_batches, by="examples")
    half = found["examples_to"].sel(fraction=0.5)
    assert float(half.sel(run="slow 0")) == pytest.approx(64 * 50 * math.log(2), rel=0.1)
    assert float(half.sel(run="slow 0") / half.sel(run="fast 0")) == pytest.approx(2, rel=0.15)
    assert found["at"].values[-1] == 64 * 395
    assert found["group"].values.tolist() == ["slow"] * 4


def test_alignment__by_loss_puts_curves_of_different_pace_on_each_other(stores, compared):
    same = {name: stores[name] for name in ("slow 0", "fast 0")}
    by_loss = nq.compare_runs(same, by="loss")
    assert float(np.abs(by_loss["learned"].diff("run")).max()) < 0.01
    by_step = compared["learned"].sel(run=list(same))
    assert float(np.abs(by_step.diff("run")).max()) > 0.15
    np.testing.assert_allclose(
        compared["learned"].sel(run="slow 0"), 0.9 * (1 - np.exp(-compared["at"] / 50)), atol=0.01
    )


def test_groups__have_students_intervals_over_runs(compared):
    groups = nq.compare_groups(compared)
    assert groups["group"].values.tolist() == ["slow", "fast"]
    assert groups["n_runs"].values.tolist() == [2, 2]
    values = compared["area"].values[:2]
    low, high = scipy.stats.t.interval(0.95, 1, values.mean(), scipy.stats.sem(values))
    one = groups.sel(group="slow")
    np.testing.assert_allclose([one["area"], one["area_low"], one["area_high"]], [values.mean(), low, high])
    wider = nq.compare_groups(compared, confidence=0.99)
    assert json.loads(wider.attrs["parameters"])["confidence"] == 0.99
    assert (wider["area_low"] < groups["area_low"]).all()
    alone = nq.compare_groups(compared.isel(run=[0, 2]))
    assert alone["area_low"].isnull().all()
    with pytest.raises(NotFoundError, match="pass that of compare_runs"):
        nq.compare_groups(xr.Dataset())


def test_comparison__of_stores_that_were_not_tracked_goes_by_checkpoints(tmp_path):
    for name in "ab":
        simulate_store(tmp_path / f"{name}.zarr", checkpoints=range(0, 120, 10), n_examples=30, layers=LAYERS)
    found = nq.compare_runs([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert found["run"].values.tolist() == ["a", "b"]
    assert found["n_jumps"].isnull().all()
    store = open_store(tmp_path / "a.zarr")
    dims = nq.dimensionality(store["relu"], interval="none")["participation_ratio"]
    assert float(found["dimension_final"][0]) == pytest.approx(float(dims[-1]))
    assert found["group"].values.tolist() == ["simulated"] * 2


def test_comparison__of_noise_has_no_growth_and_of_a_broken_layer_goes_on(stores, tmp_path):
    path = tmp_path / "noise.zarr"
    simulate_store(path, checkpoints=(0, 395), n_examples=30, layers=LAYERS)
    rng = np.random.default_rng(0)
    rows = {"participation_ratio": Column(("layer",)), "validation_loss": Column(), "validation_accuracy": Column()}
    with SeriesWriter.open(path, rows=rows, coords={"layer": list(LAYERS)}) as writer:
        for step in STEPS:
            value = 5 + 0.1 * rng.standard_normal(2)
            value[1] = np.nan if step == 50 else value[1]
            writer.append(int(step), participation_ratio=value, validation_loss=2.0, validation_accuracy=0.5)
    found = nq.compare_runs({"noise": open_store(path), "slow": stores["slow 0"]})
    assert np.isnan(found["growth_r2"].sel(run="noise"))
    assert found["n_tracked_layers"].values.tolist() == [1.0, 2.0]
    assert found["last_checkpoint"].values.tolist() == [395, 395]


def test_comparison__is_of_steps_that_all_runs_measured(stores, tmp_path):
    short = tracked(tmp_path / "short.zarr", 1.0)
    kept = short.training.isel(step=slice(40))
    path = tmp_path / "stopped.zarr"
    simulate_store(path, checkpoints=(0, 195), n_examples=30, layers=LAYERS)
    rows = {"participation_ratio": Column(("layer",)), "validation_loss": Column(), "validation_accuracy": Column()}
    with SeriesWriter.open(path, rows=rows, coords={"layer": list(LAYERS)}) as writer:
        for step in kept["step"].values:
            writer.append(int(step), **{name: kept[name].sel(step=step).values for name in rows})
    found = nq.compare_runs({"whole": stores["slow 0"], "stopped": open_store(path)})
    assert float(found["area"].diff("run")[0]) == pytest.approx(0, abs=1e-9)
    assert found["last_checkpoint"].values.tolist() == [395, 195]


def test_smooth_pairs__keep_the_number_of_a_seed(stores, tmp_path):
    untracked = simulate_store(tmp_path / "b.zarr", checkpoints=(0, 395), n_examples=30, layers=LAYERS).store
    runs = {"a0": stores["slow 0"], "a1": untracked, "a2": stores["slow 1"], "b0": stores["fast 0"],
            "b1": stores["fast 1"]}  # fmt: skip
    pairs = nq.smooth_pairs(runs, nq.compare_runs(runs, groups=["a", "a", "a", "b", "b"]))
    assert list(zip(pairs["first"].values, pairs["second"].values, strict=True)) == [("a0", "b0")]


def test_comparison__of_few_checkpoints_has_no_fit_of_growth(tmp_path):
    for name in "ab":
        simulate_store(tmp_path / f"{name}.zarr", checkpoints=(0, 10), n_examples=30, layers=LAYERS)
    found = nq.compare_runs([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert found["growth_r2"].isnull().all()
    assert found["separability_accuracy"].notnull().all()


def test_comparison__of_a_training_without_validation_goes_by_checkpoints_but_for_jumps(tmp_path):
    for name in "ab":
        simulate_store(
            tmp_path / f"{name}.zarr", n_examples=30, layers=LAYERS, checkpoints=range(0, 120, 10), n_tracked=40
        )
    found = nq.compare_runs([tmp_path / "a.zarr", tmp_path / "b.zarr"])
    assert found["learned"].notnull().all()
    tracked = nq.detect_jumps(open_store(tmp_path / "a.zarr").training)
    assert found["n_jumps"].values.tolist() == [tracked.sizes["jump"]] * 2
    assert found["n_tracked_layers"].values.tolist() == [2.0] * 2


def written(path, steps, dimension, learned, loss):
    """A store with a training that is given, row by row."""
    simulate_store(path, checkpoints=(int(steps[0]), int(steps[-1])), n_examples=30, layers=LAYERS)
    rows = {"participation_ratio": Column(("layer",)), "validation_loss": Column(), "validation_accuracy": Column()}
    with SeriesWriter.open(path, rows=rows, coords={"layer": list(LAYERS)}) as writer:
        for n, step in enumerate(steps):
            writer.append(int(step), participation_ratio=np.full(2, dimension[n]), validation_loss=loss[n],
                          validation_accuracy=learned[n])  # fmt: skip
    return open_store(path)


def test_comparison__passes_over_measurements_that_are_missing(stores, tmp_path):
    learned = 0.9 * (1 - np.exp(-STEPS / 50))
    gaps = np.isin(np.arange(len(STEPS)), [0, 20])
    store = written(tmp_path / "gaps.zarr", STEPS, np.full(len(STEPS), 5.0), np.where(gaps, math.nan, learned),
                    np.where(gaps, math.nan, 2 - learned))  # fmt: skip
    runs = {"whole": stores["slow 0"], "gaps": store}
    found = nq.compare_runs(runs)
    within = STEPS >= 5  # both measured accuracy from here on
    expected = np.trapezoid(learned[within], STEPS[within]) / 390
    np.testing.assert_allclose(found["area"], expected, atol=1e-4)
    assert found["learned"].sel(run="gaps").isnull().values.tolist() == (found["at"] < 5).values.tolist()
    assert np.isnan(found["growth_r2"].sel(run="gaps"))  # a dimension that stands still does not grow
    assert float(found["n_jumps"].sel(run="gaps")) == 0
    by_loss = nq.compare_runs(runs, by="loss")
    assert by_loss["learned"].notnull().all()
    np.testing.assert_allclose(by_loss["area"], found["area"])  # whatever curves are aligned by


def test_area__is_over_the_same_steps_whatever_steps_were_measured(tmp_path):
    runs = {}
    for name, steps in (("often", np.arange(0, 400)), ("seldom", np.arange(100, 392, 17))):
        runs[name] = written(tmp_path / f"{name}.zarr", steps, 5 + steps / 100, steps / 400, 2 - steps / 400)
    found = nq.compare_runs(runs)
    last = np.arange(100, 392, 17)[-1]
    np.testing.assert_allclose(found["area"], (100 + last) / 2 / 400)


def test_comparison__of_runs_that_share_no_step_goes_by_loss(stores, tmp_path):
    learned = 1 - np.exp(-STEPS / 50)
    later = written(tmp_path / "later.zarr", STEPS + 1000, 2 + learned, learned, 2 - 2 * learned)
    runs = {"sooner": stores["slow 0"], "later": later}
    with pytest.raises(InvalidInputError, match="The runs share no step: align them by another"):
        nq.compare_runs(runs)
    found = nq.compare_runs(runs, by="loss")
    assert found["learned"].notnull().all()
    assert found["area"].isnull().all()
    assert nq.plot.compare_runs(found).axes[0].get_xlabel() == "least loss so far, nats"


def test_comparison__of_stores_without_classes_or_scores_is_of_dimension(stores, tmp_path, monkeypatch):
    one = simulate_store(
        tmp_path / "one.zarr", checkpoints=range(0, 120, 10), n_examples=30, layers=LAYERS, n_classes=1
    )
    runs = {"one": one.store, "slow": stores["slow 0"]}
    found = nq.compare_runs(runs)
    assert np.isnan(found["separability_accuracy"].sel(run="one"))
    assert found["separability_accuracy"].sel(run="slow").notnull()
    whole = type(one.store).root
    monkeypatch.setattr(
        type(one.store), "root", property(lambda self: whole.fget(self).drop_vars(["loss", "prediction", "logits"]))
    )
    bare = nq.compare_runs(runs)
    assert np.isnan(bare["final_accuracy"]).all()
    assert np.isnan(bare["learned"].sel(run="one")).all()
    assert bare["dimension"].notnull().all()
    np.testing.assert_allclose(bare["area"].sel(run="slow"), np.trapezoid(0.9 * (1 - np.exp(-STEPS / 50)), STEPS) / 395,
                               rtol=1e-6)  # fmt: skip
    assert len(nq.plot.compare_runs(bare).axes) == 4
    with pytest.raises(InvalidInputError, match="no finite loss at two measurements"):
        nq.compare_runs(runs, by="loss")


def test_comparison__names_what_is_wrong(stores, tmp_path):
    one = {"slow 0": stores["slow 0"]}
    with pytest.raises(InvalidInputError, match="There is 1 run: a comparison needs two"):
        nq.compare_runs(one)
    for groups in (["a"], "abcd"):
        with pytest.raises(InvalidInputError, match="groups are .* for 4 runs"):
            nq.compare_runs(stores, groups=groups)
    with pytest.raises(NotFoundError, match="layer names the run 'slow 9'"):
        nq.compare_runs(stores, layer={"slow 9": "relu"})
    with pytest.raises(InvalidInputError, match="is given twice"):
        nq.compare_runs([stores["slow 0"], stores["fast 0"], stores["slow 0"]])
    single = [
        simulate_store(tmp_path / f"{n}.zarr", checkpoints=(0,), n_examples=30, layers=LAYERS).store for n in "xy"
    ]
    with pytest.raises(InvalidInputError, match="one checkpoint and no tracked training"):
        nq.compare_runs(single)
    with pytest.raises(NotFoundError, match="no activations of 'conv': it has relu, classifier"):
        nq.compare_runs(stores, layer="conv")
    with pytest.raises(InvalidInputError, match="how many examples a step takes"):
        nq.compare_runs(stores, by="examples")
    with pytest.raises(InvalidInputError, match="by="):
        nq.compare_runs(stores, by="time")
    with pytest.raises(NotFoundError):
        nq.compare_runs([tmp_path / "no.zarr", tmp_path / "nothing.zarr"])


def test_smooth_pairs__are_seed_by_seed_and_know_the_rougher_one(tmp_path):
    made = {}
    for group, noise in (("calm", 0.01), ("rough", 0.5)):
        for seed in range(2):
            path = tmp_path / f"{group}{seed}.zarr"
            simulate_store(path, checkpoints=(0, 395), n_examples=30, layers=LAYERS)
            rng = np.random.default_rng(seed)
            rows = {
                "participation_ratio": Column(("layer",)),
                "validation_loss": Column(),
                "validation_accuracy": Column(),
            }
            with SeriesWriter.open(path, rows=rows, coords={"layer": list(LAYERS)}) as writer:
                for step in STEPS:
                    value = 5 + step / 100 + noise * rng.standard_normal(2)
                    writer.append(int(step), participation_ratio=value, validation_loss=2 - step / 400,
                                  validation_accuracy=step / 400)  # fmt: skip
            made[f"{group}{seed}"] = open_store(path)
    compared = nq.compare_runs(made, groups=["calm", "calm", "rough", "rough"])
    pairs = nq.smooth_pairs(made, compared)
    assert list(zip(pairs["first"].values, pairs["second"].values, strict=True)) == [
        ("calm0", "rough0"), ("calm1", "rough1"),
    ]  # fmt: skip
    assert (pairs["log_variance_ratio"] < -1).all()
    direct = nq.smoothness(
        *(made[name].training["participation_ratio"].sel(layer="relu") for name in ("calm0", "rough0"))
    )
    np.testing.assert_allclose(pairs["log_variance_ratio"][0], direct["log_variance_ratio"])
    assert nq.smooth_pairs(made, compared.assign_coords(group=("run", ["one"] * 4))).sizes.get("pair", 0) == 0


def test_comparison__says_how_curves_were_measured(tmp_path):
    runs = {}
    for name, shape, attrs in (
        ("maps", (4, 3, 3), {"positions": "flatten", "n_validation": 120, "centre": True}),
        ("means", (4, 3, 3), {"positions": "mean", "n_validation": 120, "centre": True}),
        ("plain", (4,), {"positions": "mean", "n_validation": 120, "centre": True}),
        ("raw", (4,), {"positions": "mean", "n_validation": 120, "centre": False}),
    ):
        path = tmp_path / f"{name}.zarr"
        simulate_store(path, checkpoints=(0, 95), n_examples=30, layers={"a": shape})
        rows = {"participation_ratio": Column(("layer",)), "validation_loss": Column(), "validation_accuracy": Column()}
        with SeriesWriter.open(path, rows=rows, coords={"layer": ["a"]}, attrs=attrs) as writer:
            for step in range(0, 100, 5):
                writer.append(step, participation_ratio=[2.0 + step], validation_loss=2.0 / (1 + step),
                              validation_accuracy=step / 100)  # fmt: skip
        runs[name] = open_store(path)
    found = nq.compare_runs(runs, groups=list(runs))
    assert found["positions"].values.tolist() == ["flatten", "mean", "", ""]
    tracked = "validation set of 120 examples"
    assert found["curves_from"].values.tolist() == [tracked, tracked, tracked, f"{tracked}, uncentred"]
    # What has no positions is the same in either way.
    assert differing(found.sel(run=["maps", "plain"])) == []
    (said,) = differing(found.sel(run=["maps", "means", "plain"]))
    assert said.endswith("so their dimensions may not compare: flatten of maps; mean of means")
    (said,) = differing(found.sel(run=["plain", "raw"]))
    assert said.endswith(f"{tracked} of plain; {tracked}, uncentred of raw")


def test_comparison__takes_runs(stores):
    runs = ndt_store.open_runs([stores["slow 0"], stores["fast 0"]], names=["a", "b"])
    assert nq.compare_runs(runs)["run"].values.tolist() == ["a", "b"]


def test_comparison__of_other_data_says_so(compared):
    other = compared.assign_coords(data=("run", ["mnist", "mnist", "fashion-mnist", ""]))
    (said,) = differing(other)
    first, second, third, _ = compared["run"].values
    assert said == (
        "the runs saw other data, so their numbers differ for that reason too: "
        f"mnist of {first}, {second}; fashion-mnist of {third}"
    )
    assert differing(compared) == []


def test_comparison__names_the_run_that_is_at_fault(stores, tmp_path):
    one = simulate_store(tmp_path / "one.zarr", checkpoints=(0,), n_examples=30, layers=LAYERS).store
    with pytest.raises(InvalidInputError, match="Run 'single' has one checkpoint and no tracked training"):
        nq.compare_runs({"slow": stores["slow 0"], "single": one})
    none = simulate_store(tmp_path / "none.zarr", n_examples=30, layers=LAYERS, n_committed=0).store
    with pytest.raises(DimensionError, match="Run 'none'"):
        nq.compare_runs({"slow": stores["slow 0"], "none": none})


def test_pairs_and_groups__name_what_is_wrong(stores, compared):
    with pytest.raises(NotFoundError, match="The comparison is of run 'slow 0': give its store"):
        nq.smooth_pairs([stores["slow 0"], stores["fast 0"]], compared)
    with pytest.raises(NotFoundError, match="has no run: pass that of compare_runs"):
        nq.smooth_pairs(stores, xr.Dataset())
    with pytest.raises(InvalidInputError, match="no run left"):
        nq.compare_groups(compared.isel(run=[]))
    for wrong, said in ((3, "3 is no run"), ([1, 2], "1 is no run")):
        with pytest.raises(InvalidInputError, match=said):
            ndt_store.open_runs(wrong)
    with pytest.raises(InvalidInputError, match="names are 'ab': give a list"):
        ndt_store.open_runs([stores["slow 0"], stores["fast 0"]], names="ab")
