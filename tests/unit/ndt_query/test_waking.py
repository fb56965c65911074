"""Units that wake up are counted and described where they were planted, and nowhere in noise."""

import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.moments import default_pairs
from ndt_store import Column, SeriesWriter, open_store, open_training
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

STEPS = (0, 10, 40, 100)
N, N_UNITS = 60, 8


def values(rng):
    """ReLU-like; units 1 and 2 wake up at step 40, 2 for class 2 alone; unit 5 never fires."""
    found = np.maximum(rng.standard_normal((4, N, N_UNITS, 3, 3)), 0)
    found[:2, :, [1, 2]] = 0
    found[:, :, 5] = 0
    found[2:, :, 2] = 0
    found[2:, np.arange(N) % 3 == 2, 2] = 4 + rng.random((2, N // 3, 3, 3))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(3)
    planted = {"layers/conv/activations": values(rng), "layers/fc/activations": 0.1 + rng.random((4, N, 5))}
    return simulate_store(
        tmp_path_factory.mktemp("waking") / "r.zarr", checkpoints=STEPS, n_examples=N,
        layers={"conv": (N_UNITS, 3, 3), "fc": (5,)}, kinds=("activations",), planted=planted,
    ).store  # fmt: skip


@pytest.fixture(scope="module")
def found(store):
    return nq.waking_units(store, {"jump": [(10, 40)], "control": [(0, 10), (40, 100)]}, k=3)


def test_counts__are_those_that_were_planted(found):
    assert found["role"].values.tolist() == ["jump", "control", "control"]
    assert found["woken"].sel(layer="conv").values.tolist() == [2, 0, 0]
    assert found["dead_before"].sel(layer="conv").values.tolist() == [3, 3, 1]
    assert (found["woken"].sel(layer="fc") == 0).all()
    one = found.isel(moment=0).sel(layer="conv")
    low, high = nq.clopper_pearson(2, 3)
    assert [float(one[name]) for name in ("share", "share_low", "share_high")] == pytest.approx(
        [2 / 3, float(low), float(high)]
    )
    assert found["share"].sel(layer="fc").isnull().all()
    assert found["share_high"].sel(layer="fc").isnull().all()


def test_woken_units__are_described_at_the_later_checkpoint(found, store):
    assert found["unit"].values.tolist() == [1, 2]
    assert found["layer_of"].values.tolist() == ["conv", "conv"]
    assert found["moment_of"].values.tolist() == [0, 0]
    acts = store["conv"].activations.sel(checkpoint=40)
    np.testing.assert_allclose(found["rate_after"], (acts.sel(unit=[1, 2]) > 0).any(("y", "x")).mean("example"))
    means = acts.mean(("y", "x")).groupby("label").mean().transpose("unit", "label").sel(unit=[1, 2])
    np.testing.assert_allclose(found["class_mean"], means, rtol=1e-5)
    top = nq.top_examples(acts, 3).sel(unit=[1, 2])
    np.testing.assert_array_equal(found["example"], top["example"])
    np.testing.assert_array_equal(found["value"], top["value"])


def test_woken_units__that_answer_to_a_class_are_told_from_those_that_do_not(found):
    assert found["preferred_class"].values[1] == 2
    assert found["selectivity_index"].values[1] == pytest.approx(1)
    assert found["q_value"].values[1] < 0.05
    assert found["q_value"].values[0] > 0.05
    np.testing.assert_allclose(found["q_value"], nq.fdr(found["p_value"].values))


def test_noise__wakes_nothing(tmp_path, rng):
    store = simulate_store(tmp_path / "r.zarr", layers={"conv": (20, 3, 3)}, n_examples=40).store
    found = nq.waking_units(store, [(0, 10), (10, 100)])
    assert int(found["woken"].sum()) == 0
    assert found.sizes["woken_unit"] == 0
    assert found["role"].values.tolist() == ["", ""]


def test_schedule_pairs__are_those_that_were_kept():
    values = np.random.default_rng(0).standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    schedule = nq.jump_schedule(nq.detect_jumps(values, np.arange(100) * 5, n_null=99))
    kept = schedule["keep"].values
    pairs = nq.schedule_pairs(schedule, kept)
    assert pairs["jump"] == ((290, 310),)
    control = int(schedule["centre"].values[schedule["role"].values == "control"][0])
    assert pairs["control"] == ((control - 10, control + 10),)
    assert nq.schedule_pairs(schedule, kept, offset=10)["jump"] == ((250, 350),)
    assert nq.schedule_pairs(schedule, [290])["jump"] == ()


def test_waking_units__names_what_is_wrong(store):
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        nq.waking_units(store, [(0, 11)])
    with pytest.raises(InvalidInputError, match="runs backwards"):
        nq.waking_units(store, [(10, 0)])
    with pytest.raises(InvalidInputError, match="0 is no pair of checkpoints: expected two different training steps"):
        nq.waking_units(store, [0, 10])
    with pytest.raises(InvalidInputError, match="'jumps' is no role"):
        nq.waking_units(store, {"jumps": [(0, 10)]})
    with pytest.raises(InvalidInputError, match="at least one"):
        nq.waking_units(store, [])
    with pytest.raises(InvalidInputError, match="k="):
        nq.waking_units(store, [(0, 10)], k=0)


def test_result__says_what_it_is(found):
    assert found.attrs["what"] == "units that wake up"
    assert '"min_rate": 0.01' in found.attrs["parameters"]
    assert "layer" not in found.attrs


def test_figure__draws_shares_and_curves(found, tmp_path, rng):
    figure = nq.plot.waking_units(found)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_xticklabels()] == ["10–40", "0–10", "40–100"]
    assert right.get_title(loc="left") == "selectivity of 2 woken units"
    picky = right.get_lines()[1].get_ydata()
    means = found["class_mean"].values[1]
    np.testing.assert_allclose(picky, -np.sort(-means / means.max()))
    quiet = simulate_store(tmp_path / "r.zarr", layers={"conv": (20, 3, 3)}, n_examples=40).store
    empty = nq.plot.waking_units(nq.waking_units(quiet, [(0, 10)]))
    assert empty.axes[1].get_title(loc="left") == "selectivity of 0 woken units"
    with pytest.raises(DimensionError, match="pass that of waking_units"):
        nq.plot.waking_units(found[["unit"]])


def test_figure__pictures_what_drives_the_units_that_fire_most(found, store):
    figure = nq.plot.woken_examples(found, store.root["input"], store.root["label"])
    titles = [text.get_text() for axes in figure.axes for text in axes.texts]
    order = np.argsort(-found["rate_after"].values)
    assert [title.splitlines()[0] for title in titles] == [f"conv, unit {found['unit'].values[at]}" for at in order]
    assert {title.splitlines()[2] for title in titles} == {"step 40"}
    shown = [axes.get_xlabel().splitlines()[0] for axes in figure.axes if axes.get_images()]
    assert shown[:3] == [f"{value:.3g}" for value in found["value"].values[order[0]]]
    with pytest.raises(NotFoundError, match="No unit woke up"):
        nq.plot.woken_examples(found.isel(woken_unit=slice(0)), store.root["input"])


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_command__counts_or_lists(store, found, capsys, tmp_path):
    figure = tmp_path / "w.png"
    code, out, err = run(capsys, "waking", store.path, "--pair", "10:40", "--format", "json", "--figure", figure)
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["layer"], row["woken"], row["dead_before"]) for row in rows] == [("conv", 2, 3), ("fc", 0, 0)]
    assert figure.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run(capsys, "waking", store.path, "--pair", "10:40", "--list", "--format", "json")
    assert [(row["layer_of"], row["unit"], row["after"]) for row in json.loads(out)] == [
        ("conv", 1, 40),
        ("conv", 2, 40),
    ]
    code, out, _ = run(capsys, "waking", store.path, "--layer", "conv", "--format", "json")
    assert [(row["before"], row["after"]) for row in json.loads(out)] == [(0, 10), (10, 40), (40, 100)]
    assert run(capsys, "waking", store.path, "--pair", "40")[0] == 2


def test_command__takes_the_jumps_of_the_training(tmp_path, capsys, rng):
    values = 20 + np.random.default_rng(0).standard_normal(100)
    values[60:] += 12
    with SeriesWriter.open(tmp_path / "r.zarr", rows={"participation_ratio": Column()}) as series:
        for n, value in enumerate(values):
            series.append(5 * n, participation_ratio=value)
    schedule = nq.jump_schedule(nq.detect_jumps(open_training(tmp_path / "r.zarr")))
    steps = tuple(schedule["keep"].values.tolist())
    simulate_store(tmp_path / "r.zarr", checkpoints=steps, layers={"fc": (4,)})
    code, out, err = run(capsys, "waking", tmp_path / "r.zarr", "--format", "json")
    assert code == 0, err
    rows = json.loads(out)
    assert ("jump", 290, 310) in [(row["role"], row["before"], row["after"]) for row in rows]
    assert {row["role"] for row in rows} == {"jump", "control"}
    pairs, said = default_pairs(open_store(tmp_path / "r.zarr"))
    assert pairs["jump"] == ((290, 310),)
    assert "jumps and controls" in said


def test_moments__without_a_training_span_it(store, tmp_path):
    pairs, said = default_pairs(store)
    assert pairs == ((0, 10), (10, 40), (40, 100))
    assert "Nothing was tracked" in said
    with pytest.raises(InvalidInputError, match="1 committed checkpoints"):
        default_pairs(simulate_store(tmp_path / "one.zarr", checkpoints=(0,)).store)


def test_waking__leaves_out_units_with_nan_at_either_checkpoint():
    values = np.zeros((2, 20, 4), np.float32)
    values[1] = 1
    values[1, 3, 2:] = np.nan
    acts = xr.DataArray(
        values, {"checkpoint": [0, 10], "label": ("example", np.arange(20) % 2), "unit": np.arange(4)},
        ("checkpoint", "example", "unit"),
    )  # fmt: skip
    found = nq.waking_units({"fc": acts}, [(0, 10)], n_permutations=9)
    assert tuple(found[name].item() for name in ("woken", "dead_before", "share")) == (2, 2, 1.0)
