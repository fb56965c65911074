"""`ndt jumps`: a row for each jump of what was tracked, or one sentence."""

import json

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import Column, SeriesWriter, open_training
from ndt_store.cli import main

LAYERS = ["conv1", "conv2", "fc"]
N = 120


def tracked(path, jump=9.0):
    """A training whose layer conv2 jumps at step 350."""
    rng = np.random.default_rng(0)
    ratio = 5 + 0.5 * rng.standard_normal((N, 3))
    ratio[70:, 1] += 0.5 * jump
    columns = {"participation_ratio": Column(("layer",)), "loss": Column(), "still": Column(("layer",))}
    with SeriesWriter.open(path, rows=columns, coords={"layer": LAYERS}, flush_interval_s=1000.0) as writer:
        for k in range(N):
            loss = np.nan if k == 0 else np.exp(-k / 20) + 0.01 * rng.standard_normal()
            writer.append(5 * k, participation_ratio=ratio[k], loss=loss, still=np.ones(3))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tracked(tmp_path_factory.mktemp("jumps") / "run.zarr")


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    return tracked(tmp_path_factory.mktemp("smooth") / "run.zarr", jump=0.0)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_rows__are_what_the_function_finds(store, capsys):
    code, out, err = run(capsys, "jumps", store, "--format", "json")
    rows = json.loads(out)
    found = nq.detect_jumps(open_training(store))
    assert (code, err) == (0, "")
    assert [row["layer"] for row in rows] == ["conv2"]
    assert rows[0]["step"] == 350
    for name in ("size", "size_error", "size_in_noise", "p_value", "q_value", "low", "high"):
        assert rows[0][name] == found[name].values[0]
    assert rows[0]["phase"] == pytest.approx(350 / 595)


def test_table_and_csv__have_the_same_columns(store, capsys):
    names = ["layer", "step", "low", "high", "size", "size_error", "size_in_noise", "phase", "p_value", "q_value"]
    assert run(capsys, "jumps", store, "--format", "csv")[1].splitlines()[0].split(",") == names
    assert run(capsys, "jumps", store)[1].split()[: len(names)] == names


def test_no_jumps__is_one_sentence(smooth, capsys):
    code, out, err = run(capsys, "jumps", smooth)
    assert (code, err) == (0, "")
    assert out.startswith("No jumps of participation_ratio at a false discovery rate of 0.05: the least p value is 0.")
    assert out.count("\n") == 1
    assert any(f"of {name} at step" in out for name in LAYERS)


def test_no_jumps__leave_stdout_to_machines(smooth, capsys):
    code, out, err = run(capsys, "jumps", smooth, "--format", "json")
    assert (code, json.loads(out)) == (0, [])
    assert "No jumps" in err


def test_layers__are_chosen_by_name(store, capsys):
    out = run(capsys, "jumps", store, "--layer", "conv*", "--format", "json")[1]
    assert [row["layer"] for row in json.loads(out)] == ["conv2"]
    assert "No jumps" in run(capsys, "jumps", store, "--layer", "fc")[1]
    code, _, err = run(capsys, "jumps", store, "--layer", "relu*")
    assert code == 2
    assert "tracked no layer like 'relu*': it tracked conv1, conv2, fc." in err


def test_a_loss__begins_with_the_first_batch(store, capsys):
    code, out, err = run(capsys, "jumps", store, "--measure", "loss")
    assert code == 0
    assert "loss begins at step 5." in err
    assert "No jumps of loss" in out


def test_what_never_changes__has_no_jumps(store, capsys):
    assert run(capsys, "jumps", store, "--measure", "still")[1] == "still never changes: no jumps.\n"


def test_alpha__sets_the_level(store, capsys):
    assert "rate of 1e-06" in run(capsys, "jumps", store, "--alpha", "0.000001", "--layer", "fc")[1]
    code, _, err = run(capsys, "jumps", store, "--alpha", "2")
    assert code == 2
    assert "alpha=2.0 is not a level" in err


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figure__is_drawn(store, capsys, tmp_path, suffix):
    target = tmp_path / f"jumps{suffix}"
    code, _, err = run(capsys, "jumps", store, "--figure", target)
    assert code == 0
    assert f"wrote {target}" in err
    assert target.stat().st_size > 5_000


def test_wrong_usage__is_one_sentence(store, capsys, tmp_path):
    code, _, err = run(capsys, "jumps", store, "--figure", tmp_path / "jumps.doc")
    assert code == 2
    assert "is no picture: end the name in .png, .svg, .pdf." in err
    code, _, err = run(capsys, "jumps", store, "--measure", "rank")
    assert code == 2
    assert "no measure 'rank' over step" in err
    code, _, err = run(capsys, "jumps", tmp_path / "nothing.zarr")
    assert code == 2
