"""Commands that run a model: what they print, where they put it, and how they refuse."""

import json
import re

import pytest

import ndt_store
from capture.recipe import recipe_names
from ndt_store import open_store
from ndt_store.cli import main

RECIPE = """
name = "tiny"
[model]
name = "mlp_narrow"
[data]
name = "digits"
[training]
steps = 6
batch_size = 32
checkpoints = [0, 2, 6]
[probe]
n_examples = 50
[capture]
layers = ["relu*", "classifier"]
kinds = ["activations", "gradients"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_train_then_capture_makes_a_store_named_after_the_recipe(folder, capsys):
    code, out, err = run(capsys, "train", "tiny.toml")
    assert (code, out) == (0, "")
    assert "6 steps trained, 3 checkpoints" in err
    code, _, err = run(capsys, "capture", "tiny.toml")
    assert code == 0, err
    store = open_store("runs/tiny.zarr")
    assert store.checkpoints.tolist() == [0, 2, 6]
    assert store.layers == ("relu1", "relu2", "relu3", "relu4", "classifier")
    assert store.provenance["identity"]["recipe"]["training"]["steps"] == 6


def test_both_resume(folder, capsys):
    for _ in range(2):
        assert run(capsys, "train", "tiny.toml")[0] == 0
        code, _, err = run(capsys, "capture", "tiny.toml")
    assert code == 0
    assert "checkpoint 0" not in err


def test_train_tracks_into_the_store_that_is_captured_later(folder, capsys):
    (folder / "tiny.toml").write_text(RECIPE + "[tracking]\nevery = 2\nn_examples = 20\n")
    code, out, err = run(capsys, "train", "tiny.toml")
    assert (code, out) == (0, "")
    assert "runs/tiny.zarr: training/ has a row every 2 steps." in err
    before = ndt_store.open_training("runs/tiny.zarr")
    assert before["step"].values.tolist() == [0, 2, 4, 6]
    code, _, err = run(capsys, "info", "runs/tiny.zarr")
    assert code != 0
    assert "no capture yet" in err
    assert run(capsys, "capture", "tiny.toml")[0] == 0
    store = open_store("runs/tiny.zarr")
    assert store.training.identical(before)
    assert tuple(before["layer"].values) == store.layers
    assert store.provenance["identity"]["recipe"]["tracking"]["every"] == 2


def test_train_takes_a_store_and_leaves_tracking_out_when_told(folder, capsys):
    (folder / "tiny.toml").write_text(RECIPE + "[tracking]\nevery = 2\nn_examples = 20\n")
    code, _, err = run(capsys, "train", "tiny.toml", "--no-track")
    assert code == 0
    assert "training/" not in err
    assert not (folder / "runs" / "tiny.zarr").exists()
    code, _, err = run(capsys, "train", "tiny.toml", "--store", "elsewhere.zarr")
    assert code == 3
    assert "tracking.every = null, and this one has 2" in err
    assert run(capsys, "train", "tiny.toml", "--store", "elsewhere.zarr", "--checkpoints", "new")[0] == 0
    assert ndt_store.open_training("elsewhere.zarr").sizes["step"] == 4


def test_another_seed_has_weights_and_a_store_of_its_own(folder, capsys):
    for seed in ((), ("--seed", "0"), ("--seed", "2")):
        for command in ("train", "capture"):
            assert run(capsys, command, "tiny.toml", *seed)[0] == 0
    made = sorted(path.name for path in (folder / "runs").iterdir())
    assert made == ["tiny-checkpoints", "tiny-seed2-checkpoints", "tiny-seed2.zarr", "tiny.zarr"]
    stores = [open_store(f"runs/{name}.zarr") for name in ("tiny", "tiny-seed2")]
    assert [store.provenance["identity"]["recipe"]["seed"] for store in stores] == [0, 2]
    digests = [store.root["weights_digest"].values.tolist() for store in stores]
    assert not set(digests[0]) & set(digests[1])
    code, _, err = run(capsys, "plan", "tiny.toml", "--seed", "2")
    assert code == 0
    assert "runs/tiny-seed2.zarr: 3 checkpoints take" in err
    code, _, err = run(capsys, "train", "tiny.toml", "--seed", "-1")
    assert code == 2


@pytest.mark.parametrize("command", ["plan", "train", "capture"])
def test_help_lists_every_built_in_recipe(folder, capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    words = set(re.findall(r"\w+", out))
    assert not set(recipe_names()) - words


def test_plan_forecasts_by_layer_and_kind_and_writes_nothing(folder, capsys):
    code, out, err = run(capsys, "plan", "tiny.toml", "--format", "json")
    rows = {(row["layer"], row["kind"]): row["bytes"] for row in json.loads(out)}
    assert code == 0
    assert rows["relu1", "activations"] == 3 * (50 * 32 * 4 + 4)
    assert "3 checkpoints take" in err
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_capture_without_training_says_what_to_do(folder, capsys):
    code, _, err = run(capsys, "capture", "tiny.toml")
    assert code == 2
    assert "lacks 3 of 3 checkpoints of recipe 'tiny', the first is step 0: run `ndt train`" in err
    assert not (folder / "runs").exists()


def test_a_changed_recipe_is_refused_naming_key_and_both_values(folder, capsys):
    run(capsys, "train", "tiny.toml")
    run(capsys, "capture", "tiny.toml")
    (folder / "tiny.toml").write_text(RECIPE.replace("n_examples = 50", "n_examples = 40"))
    code, _, err = run(capsys, "capture", "tiny.toml")
    assert code == 3
    assert "recipe.probe.n_examples = 50 and this capture has 40" in err


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps = 6", "stepz = 6", "training.stepz"),
        ("steps = 6", "steps = 'six'", "training.steps"),
        ("mlp_narrow", "mlp_narow", "mlp_narrow"),
        ("[probe]", "[probe", "line"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence_that_names_the_key(folder, capsys, old, new, words):
    (folder / "tiny.toml").write_text(RECIPE.replace(old, new))
    code, _, err = run(capsys, "plan", "tiny.toml")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_an_unknown_recipe_is_one_sentence(folder, capsys):
    code, _, err = run(capsys, "train", "nonsense")
    assert code == 2
    assert "nonsense" in err


@pytest.mark.parametrize("command", ["train", "capture"])
def test_an_unusable_device_is_one_sentence(folder, capsys, command):
    code, out, err = run(capsys, command, "tiny.toml", "--device", "bogus")
    assert (code, out) == (2, "")
    assert "device is 'bogus', which cannot be used here" in err
    assert len(err.strip().splitlines()) == 1


def test_a_recipe_cannot_name_a_place_outside_its_folder(folder, capsys):
    (folder / "tiny.toml").write_text(RECIPE.replace('"tiny"', '"../../escaped"'))
    code, _, err = run(capsys, "train", "tiny.toml")
    assert code == 2
    assert 'name is "../../escaped", expected 1 to' in err
    assert "without slashes" in err
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_disk_that_cannot_hold_the_forecast_is_refused_unless_told_otherwise(folder, capsys, monkeypatch):
    import shutil

    run(capsys, "train", "tiny.toml")
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, _, err = run(capsys, "capture", "tiny.toml")
    assert code == 3
    assert "--no-disk-check" in err
    assert not (folder / "runs" / "tiny.zarr").exists()
    assert run(capsys, "capture", "tiny.toml", "--no-disk-check")[0] == 0
