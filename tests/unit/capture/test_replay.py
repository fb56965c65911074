"""Weights around moments that a training shows: two passes, the same bits, and nothing else for any kind of `keep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import capture.replay as replay
from capture.checkpoints import checkpoint_path, list_checkpoints, load_weights, weights_digest, weights_fingerprint
from capture.from_recipe import capture_recipe
from capture.recipe import Recipe, parse_recipe
from capture.replay import FIRST_FOLDER, as_keep, train_keeping
from capture.training import train_recipe
from ndt_store import open_training
from ndt_store.errors import CaptureError, InvalidInputError, NotFoundError, ResumeMismatchError

STEPS = 12


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "small",
        "model": {"name": "cnn", "options": {"channels": [4]}},
        "data": {"name": "digits"},
        "training": {"steps": STEPS, "batch_size": 64, "checkpoints": [0, 6, 12]},
        "capture": {"layers": ["relu1"]},
        "probe": {"n_examples": 20},
        "tracking": {"every": 2, "n_examples": 20},
    }
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    return parse_recipe(content)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps that the schedule "jumps" finds; change the list to find others."""
    found = [4, 7, -1]

    def schedule(training: xr.Dataset, *, seed: int) -> xr.Dataset:
        assert training.sizes["step"] == 1 + STEPS // 2
        assert seed == 0
        return xr.Dataset({"step": ("moment", np.array(found, np.int64))})

    monkeypatch.setattr(replay, "load_schedule", lambda _name: schedule)
    return found


def kept(folder: Path) -> dict[int, str]:
    return {step: weights_digest(load_weights(path)) for step, path in list_checkpoints(folder)}


def test_moments_are_kept_with_the_weights_of_the_first_pass(moments: list[int], tmp_path: Path) -> None:
    made = train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    everything = recipe().with_checkpoints({"every": 1})
    train_recipe(everything, tmp_path / "plain")
    plain = kept(tmp_path / "plain")
    assert kept(tmp_path / "weights") == {step: plain[step] for step in (0, 4, 6, 7, STEPS)}
    assert "2 steps by schedule 'jumps'" in made.said

    tracked = open_training(tmp_path / "run.zarr")
    expected = [weights_fingerprint(plain[step]) for step in range(0, STEPS + 1, 2)]
    assert tracked["weights_fingerprint"].values.tolist() == expected


def test_a_replay_that_strays_is_found_out(moments: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stray(chosen: Recipe, save: Path, **options: Any) -> Any:
        # Stands for another number of threads: the second pass has another order of batches.
        return train_recipe(chosen if Path(save).name == FIRST_FOLDER else chosen.with_seed(1), save, **options)

    monkeypatch.setattr(replay, "train_recipe", stray)
    with pytest.raises(CaptureError, match=r"other weights than the first at step 0: .*--keep all"):
        train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")


def test_a_recipe_changed_between_the_passes_is_refused(moments: list[int], tmp_path: Path) -> None:
    train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    changed = recipe(training={"learning_rate": 0.01})
    with pytest.raises(ResumeMismatchError, match=r"learning_rate = 0\.001, and this one has 0\.01"):
        train_keeping(changed, tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")


def test_no_moment_keeps_the_recipes_checkpoints_and_says_so(moments: list[int], tmp_path: Path) -> None:
    moments[:] = [-1]
    made = train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    assert sorted(kept(tmp_path / "weights")) == [0, 6, 12]
    assert "finds no moment" in made.said


@pytest.mark.parametrize(
    ("keep", "steps"),
    [("recipe", [0, 6, 12]), ("all", [0, 2, 4, 6, 8, 10, 12]), ({"every": 5}, [0, 5, 10, 12]), ([3, 9], [3, 9])],
)
def test_one_pass_keeps_what_needs_no_moments(keep: Any, steps: list[int], tmp_path: Path) -> None:
    train_keeping(recipe(), tmp_path / "weights", keep=keep, store=tmp_path / "run.zarr")
    assert sorted(kept(tmp_path / "weights")) == steps
    assert not (tmp_path / "weights" / FIRST_FOLDER).exists()


def test_again_it_trains_nothing(moments: list[int], tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": "jumps", "store": tmp_path / "run.zarr"}
    first = train_keeping(recipe(), tmp_path / "weights", **options)
    again = train_keeping(recipe(), tmp_path / "weights", **options)
    assert (first.result.n_trained, again.result.n_trained) == (STEPS, 0)
    assert first.result.weights_digest == again.result.weights_digest


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 5, STEPS, STEPS + 3, 2 * STEPS])
def test_killed_in_either_pass_it_goes_on_to_the_same_end(moments: list[int], tmp_path: Path, killed_at: int) -> None:
    seen = 0

    def progress(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == killed_at:
            raise KilledError

    for name in ("killed", "whole"):
        options: dict[str, Any] = {"keep": "jumps", "store": tmp_path / f"{name}.zarr"}
        if name == "killed":
            with pytest.raises(KilledError):
                train_keeping(recipe(), tmp_path / name, progress=progress, **options)
        train_keeping(recipe(), tmp_path / name, **options)
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")
    assert open_training(tmp_path / "killed.zarr").identical(open_training(tmp_path / "whole.zarr"))


def test_a_capture_takes_the_checkpoints_that_were_kept(moments: list[int], tmp_path: Path) -> None:
    train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    store = capture_recipe(recipe(), tmp_path / "run.zarr", tmp_path / "weights", progress=False)
    assert store.checkpoints.tolist() == [0, 4, 6, 7, STEPS]
    assert store.training.sizes["step"] == 1 + STEPS // 2
    assert store.tree["training"].sizes["step"] == 1 + STEPS // 2


def test_a_capture_misses_a_checkpoint_that_was_chosen_and_is_gone(moments: list[int], tmp_path: Path) -> None:
    train_keeping(recipe(), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    checkpoint_path(tmp_path / "weights", 4).unlink()
    with pytest.raises(NotFoundError, match=r"lacks 1 of 5 checkpoints .* step 4"):
        capture_recipe(recipe(), tmp_path / "run.zarr", tmp_path / "weights", progress=False)


def test_what_is_not_tracked_has_no_moments(tmp_path: Path) -> None:
    content = recipe().model_dump(mode="json")
    del content["tracking"]
    with pytest.raises(InvalidInputError, match="has no table tracking: add one"):
        train_keeping(parse_recipe(content), tmp_path / "weights", keep="jumps", store=tmp_path / "run.zarr")
    with pytest.raises(InvalidInputError, match="was given no store"):
        train_keeping(recipe(), tmp_path / "weights", keep="all")


def test_an_unknown_schedule_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'jmups'"):
        train_keeping(recipe(), tmp_path / "weights", keep="jmups", store=tmp_path / "run.zarr")
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("text", "keep"),
    [("jumps", "jumps"), ("every=50", {"every": 50}), ("log=7", {"log": 7}), ("0,50,700", [0, 50, 700]), ("5", [5])],
)
def test_as_keep__reads_what_a_command_line_says(text: str, keep: Any) -> None:
    assert as_keep(text) == keep


@pytest.mark.parametrize("text", ["every=x", "0,fifty", "5-7", "0,5,0"])
def test_as_keep__refuses_what_is_no_schedule(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected recipe, all, jumps, every=N"):
        as_keep(text)
