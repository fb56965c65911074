"""`ndt receptive-fields` and `ndt fields`: what is measured, kept and printed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import open_store
from ndt_store.cli import main

RECIPE = """
name = "tiny"
[model]
name = "cnn"
[model.options]
channels = [4, 6]
[data]
name = "digits"
[training]
steps = 12
batch_size = 32
checkpoints = [0, 6, 12]
[probe]
n_examples = 30
[capture]
layers = ["relu1", "pool2", "classifier"]
"""
COMMAND = ("receptive-fields", "tiny.toml", "--examples", "20", "--groups", "5", "--units", "3")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    for command in ("train", "capture"):
        assert run(capsys, command, "tiny.toml")[0] == 0
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_receptive_fields__measures_keeps_and_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *COMMAND, "--step", "0", "--step", "12", "--format", "json")
    assert code == 0, err
    assert "receptive fields: done" in err
    store = open_store("runs/tiny.zarr")
    held = store.experiment("receptive_fields")
    assert held["layer"].values.tolist() == ["relu1", "pool2", "classifier"]
    assert held["step"].values.tolist() == [0, 12]
    assert held["size"].sel(axis="x").values.tolist() == [3, 10, 8]
    assert held.sizes["unit"] == 3
    digests = store.root["weights_digest"].sel(checkpoint=[0, 12])
    assert held["weights_digest"].values.tolist() == digests.values.tolist()
    found = nq.receptive_field(store)
    rows = json.loads(out)
    assert len(rows) == 3 * 2 * 2
    assert sum(row["n_units"] > 0 for row in rows) >= 8
    for row in rows:
        one = found.sel(layer=row["layer"], axis=row["axis"], step=row["step"])
        assert (row["size"], row["stride"], row["n_units"]) == (one["size"], one["stride"], one["n_units"])
        if row["n_units"] == 0:
            assert row["width"] is None
            continue
        assert row["width"] == pytest.approx(one["layer_width"].item())
        assert (row["low"], row["high"]) == pytest.approx(
            (one["layer_width_low"].item(), one["layer_width_high"].item())
        )
    code, again, err = run(capsys, "fields", "runs/tiny.zarr", "--format", "json", "--figure", "fields.png")
    assert (code, again) == (0, out), err
    assert (folder / "fields.png").stat().st_size > 10_000
    assert "20 examples in 5 groups" in err


def test_receptive_fields__again_does_nothing_and_others_take_replace(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, *COMMAND, "--layer", "relu*")[0] == 0
    first = open_store("runs/tiny.zarr").experiment("receptive_fields").load()
    assert first["layer"].values.tolist() == ["relu1", "relu2"]
    assert first["step"].values.tolist() == [0, 6, 12]
    code, out, err = run(capsys, *COMMAND, "--layer", "relu*")
    assert (code, "relu2" in out, "receptive fields: done" in err) == (0, True, False)
    code, _, err = run(capsys, *COMMAND)
    assert (code, "holds receptive fields of other layers" in err) == (3, True)
    assert run(capsys, *COMMAND, "--replace", "--units", "all")[0] == 0
    replaced = open_store("runs/tiny.zarr").experiment("receptive_fields")
    assert replaced.sizes["unit"] == 10
    assert np.isnan(replaced["effective"].sel(layer="relu1").isel(unit=4)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", "7"), "Step 7 is no checkpoint of recipe 'tiny', expected some of 0, 6, 12."),
        (("--units", "0"), "--units is '0': expected a whole number of at least 1, or all."),
        (("--layer", "conv9"), "layer pattern 'conv9' names none"),
    ],
)
def test_receptive_fields__that_cannot_be_made(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *COMMAND, *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_fields__of_a_store_without_them_says_how_to_make_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "fields", "runs/tiny.zarr")
    assert code == 2
    assert "make it with `ndt receptive-fields` or capture.receptive_fields first" in " ".join(err.split())
