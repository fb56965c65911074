"""Tracked training: the same weights as without, and the same rows through any number of kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import capture
import ndt_store
from capture._training_state import TrainingState
from capture.checkpoints import checkpoint_path
from capture.data import ImageData, load_digits
from capture.recipe import Recipe, TrainingRecipe, parse_recipe
from capture.series import TrackedSeries, Tracking
from capture.tracking import Tracker
from capture.training import TrainingResult, evaluate, train, train_recipe
from ndt_store.errors import InvalidInputError, NotFoundError, ResumeMismatchError
from ndt_store.views.spectrum import MEASURES

STEPS = 12
SETTINGS = TrainingRecipe(steps=STEPS, batch_size=64, log_every=5, checkpoints=[0, 5, 9, 12])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_digits("train").first(300)


def model(seed: int = 0) -> nn.Module:
    """A model whose training also depends on torch's random state and on buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10)
        )


def tracking(net: nn.Module, store: Path, every: int = 2, **options: Any) -> Tracking:
    validation = load_digits("test").balanced(30)
    return Tracking(Tracker(net, validation.inputs, validation.labels, ["0", "2", "5"], **options), store, every)


def tracked(data: ImageData, folder: Path, *, settings: TrainingRecipe = SETTINGS, **options: Any) -> TrainingResult:
    net = model()
    return train(settings, net, data, save=folder / "weights", tracking=tracking(net, folder / "run.zarr"), **options)


class KilledError(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, *, recorded: bool) -> None:
    """Die where the row of a step would be recorded, before or after it is."""
    record = TrackedSeries.record

    def dying(self: TrackedSeries, now: int, *values: float) -> None:
        if recorded or now != step:
            record(self, now, *values)
        if now == step:
            raise KilledError

    monkeypatch.setattr(TrackedSeries, "record", dying)


def rows(folder: Path) -> xr.Dataset:
    return ndt_store.open_training(folder / "run.zarr")


def weights_of(folder: Path) -> dict[str, bytes]:
    # The state names the tracking, so that it differs where the weights do not.
    return {path.name: path.read_bytes() for path in sorted((folder / "weights").glob("step-*"))}


def test_tracking__does_not_change_the_training(data: ImageData, tmp_path: Path) -> None:
    plain = train(SETTINGS, model(), data, save=tmp_path / "plain" / "weights")
    beside = tracked(data, tmp_path / "tracked")
    assert beside.weights_digest == plain.weights_digest
    assert weights_of(tmp_path / "tracked") == weights_of(tmp_path / "plain")
    assert beside.log.rows == plain.log.rows
    logs = [(tmp_path / name / "weights" / "training-log.csv").read_bytes() for name in ("plain", "tracked")]
    assert logs[0] == logs[1]


def test_tracking__keeps_a_row_at_0_and_every_n_steps(data: ImageData, tmp_path: Path) -> None:
    tracked(data, tmp_path)
    found = rows(tmp_path)
    assert found["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert found["layer"].values.tolist() == ["0", "2", "5"]
    columns = {"loss", "accuracy", "validation_loss", "validation_accuracy", "weights_fingerprint", "gradient_norm"}
    assert set(found.data_vars) == {*columns, *MEASURES}
    for name in MEASURES:
        assert found[name].dims == ("step", "layer")
        assert found[name].dtype == np.float64
        assert np.isfinite(found[name]).all()
    for name in ("loss", "accuracy", "validation_loss", "validation_accuracy"):
        assert found[name].dims == ("step",)
        assert np.isnan(found[name].values[0]) == (name in ("loss", "accuracy"))
        assert np.isfinite(found[name].values[1:]).all()
    assert (found.attrs["every"], found.attrs["n_validation"]) == (2, 30)
    assert (found.attrs["positions"], found.attrs["centre"]) == ("flatten", True)
    assert "what" in found.attrs


def test_tracking__rows_are_those_of_the_weights_and_batches_of_their_steps(data: ImageData, tmp_path: Path) -> None:
    settings = TrainingRecipe(steps=STEPS, batch_size=64, log_every=1, checkpoints={"every": 2})
    result = tracked(data, tmp_path, settings=settings)
    found = rows(tmp_path)
    validation = load_digits("test").balanced(30)
    for step, path in result.checkpoints:
        net = model()
        net.load_state_dict(capture.load_weights(path))
        row = found.sel(step=step)
        loss, accuracy = evaluate(net, validation)
        assert row["validation_loss"].item() == pytest.approx(loss, rel=1e-5)
        assert row["validation_accuracy"].item() == pytest.approx(accuracy)
        expected = Tracker(net, validation.inputs, validation.labels, ["0", "2", "5"]).measure()
        for name in MEASURES:
            np.testing.assert_array_equal(row[name].values, expected.dimensionality[name])
    log = {step: (loss, accuracy) for step, loss, accuracy in result.log.rows}
    for step in found["step"].values[1:]:
        assert (found["loss"].sel(step=step).item(), found["accuracy"].sel(step=step).item()) == log[step]


def test_tracking__can_be_read_while_the_training_goes_on(data: ImageData, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def look(_step: int, *_: Any) -> None:
        seen.append(rows(tmp_path)["step"].values.tolist())

    settings = TrainingRecipe(steps=STEPS, batch_size=64, log_every=1, checkpoints=[0, 6, 12])
    tracked(data, tmp_path, settings=settings, progress=look)
    # What a saved state needs was safe before it: that of step 6 is seen at the update after it.
    assert seen[6][:4] == [0, 2, 4, 6]
    assert all(now == list(range(0, 2 * len(now), 2)) for now in seen)


@pytest.mark.parametrize("killed_at", [0, 2, 6, 12])
@pytest.mark.parametrize("recorded", [False, True])
def test_tracking__killed_and_resumed_gives_the_same_rows_and_weights(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, recorded: bool
) -> None:
    tracked(data, tmp_path / "through")
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at, recorded=recorded)
        with pytest.raises(KilledError):
            tracked(data, tmp_path / "killed")
    result = tracked(data, tmp_path / "killed")
    assert result.n_trained == STEPS - max(step for step in (0, 5, 9) if step < max(killed_at, 1))
    xr.testing.assert_identical(rows(tmp_path / "killed"), rows(tmp_path / "through"))
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "through")


def test_tracking__killed_after_the_state_is_saved_resumes_from_it(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = TrainingState.save

    def save_and_die(self: TrainingState, folder: Path) -> None:
        save(self, folder)
        if self.step == 9:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save_and_die)
        # Rows that were not flushed are lost with the process.
        patch.setattr(ndt_store.SeriesWriter, "close", lambda self: self._lock.release())
        with pytest.raises(KilledError):
            tracked(data, tmp_path / "killed")
    assert rows(tmp_path / "killed")["step"].values.tolist() == [0, 2, 4, 6, 8]
    assert tracked(data, tmp_path / "killed").n_trained == 3
    tracked(data, tmp_path / "through")
    xr.testing.assert_identical(rows(tmp_path / "killed"), rows(tmp_path / "through"))


@pytest.mark.parametrize("loss", ["store", "checkpoint"])
def test_tracking__starts_over_where_rows_or_weights_are_gone(data: ImageData, tmp_path: Path, loss: str) -> None:
    tracked(data, tmp_path)
    before, weights = rows(tmp_path), weights_of(tmp_path)
    if loss == "store":
        shutil.rmtree(tmp_path / "run.zarr")
    else:
        checkpoint_path(tmp_path / "weights", 5).unlink()
    assert tracked(data, tmp_path).n_trained == STEPS
    xr.testing.assert_identical(rows(tmp_path), before)
    assert weights_of(tmp_path) == weights


def test_tracking__a_finished_training_is_not_repeated(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(data, tmp_path)
    before = rows(tmp_path)
    monkeypatch.setattr(Tracker, "measure", None)
    assert tracked(data, tmp_path).n_trained == 0
    xr.testing.assert_identical(rows(tmp_path), before)


def test_tracking__without_a_folder_begins_its_rows_anew(data: ImageData, tmp_path: Path) -> None:
    for _ in range(2):
        net = model()
        result = train(SETTINGS, net, data, tracking=tracking(net, tmp_path / "run.zarr"))
        assert result.n_trained == STEPS
    assert rows(tmp_path)["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]


def test_tracking__is_part_of_what_a_training_folder_holds(data: ImageData, tmp_path: Path) -> None:
    tracked(data, tmp_path)
    net = model()
    for name, other in {"every": {"every": 3}, "positions": {"positions": "mean"}}.items():
        with pytest.raises(ResumeMismatchError) as caught:
            train(SETTINGS, net, data, save=tmp_path / "weights", tracking=tracking(net, tmp_path / "new", **other))
        assert caught.value.field == f"tracking.{name}"
    with pytest.raises(ResumeMismatchError, match="tracking.every = 2, and this one has null"):
        train(SETTINGS, model(), data, save=tmp_path / "weights")
    assert not (tmp_path / "new").exists()


def test_tracking__a_folder_trained_without_it_stays_valid_without_it(data: ImageData, tmp_path: Path) -> None:
    train(SETTINGS, model(), data, save=tmp_path / "weights")
    assert train(SETTINGS, model(), data, save=tmp_path / "weights").n_trained == 0
    with pytest.raises(ResumeMismatchError, match="tracking.every = null, and this one has 2"):
        tracked(data, tmp_path)


def test_tracking__refuses_a_store_with_the_series_of_another_training(data: ImageData, tmp_path: Path) -> None:
    tracked(data, tmp_path)
    before = rows(tmp_path)
    net = model()
    with pytest.raises(ResumeMismatchError, match="seed"):
        train(SETTINGS, net, data, seed=1, save=tmp_path / "other", tracking=tracking(net, tmp_path / "run.zarr"))
    xr.testing.assert_identical(rows(tmp_path), before)


def test_tracking__other_checkpoints_give_the_same_series(data: ImageData, tmp_path: Path) -> None:
    tracked(data, tmp_path)
    before = rows(tmp_path)
    net = model()
    store = tmp_path / "run.zarr"
    train(SETTINGS, net, data, save=tmp_path / "other", schedule=[7], tracking=tracking(net, store))
    xr.testing.assert_identical(rows(tmp_path), before)


def test_tracking__refuses_another_model_and_a_rule_that_is_none(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="another model than the one trained"):
        train(SETTINGS, model(), data, tracking=tracking(model(), tmp_path / "run.zarr"))
    with pytest.raises(InvalidInputError, match="tracking every 0 steps"):
        tracking(model(), tmp_path / "run.zarr", every=0)
    assert not (tmp_path / "run.zarr").exists()


def small_recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "small",
        "model": {"name": "cnn", "options": {"channels": [4]}},
        "data": {"name": "digits", "mean": 0.3, "std": 0.4},
        "training": {"steps": 6, "batch_size": 64, "checkpoints": [0, 3, 6]},
        "capture": {"layers": ["relu1", "classifier"]},
        "tracking": {"every": 2, "n_examples": 20},
    }
    return parse_recipe(content | changes)


def test_train_recipe__tracks_what_the_recipe_asks(tmp_path: Path) -> None:
    recipe = small_recipe(tracking={"every": 3, "n_examples": 20, "layers": ["conv1"], "measures": ["stable_rank"]})
    train_recipe(recipe, tmp_path / "weights", store=tmp_path / "run.zarr")
    found = rows(tmp_path)
    assert found["step"].values.tolist() == [0, 3, 6]
    assert found["layer"].values.tolist() == ["conv1"]
    assert set(found.data_vars) & set(MEASURES) == {"stable_rank"}
    data = recipe.tracking_data()
    net = recipe.build_model(data)
    expected = Tracker(net, data.inputs, data.labels, ["conv1"]).measure()
    assert found["stable_rank"].sel(step=0).item() == expected.dimensionality["stable_rank"][0]


def test_train_recipe__tracks_the_captured_layers_by_default_and_nothing_without_a_store(tmp_path: Path) -> None:
    train_recipe(small_recipe(), tmp_path / "weights", store=tmp_path / "run.zarr")
    assert rows(tmp_path)["layer"].values.tolist() == ["relu1", "classifier"]
    train_recipe(small_recipe(), tmp_path / "untracked")
    with pytest.raises(NotFoundError):
        ndt_store.open_training(tmp_path / "untracked")


def test_train_recipe__tracked_survives_a_real_kill(tmp_path: Path) -> None:
    code = """
    import os, signal, sys, torch
    torch.set_num_threads(1)
    from capture.recipe import parse_recipe
    from capture.series import TrackedSeries
    from capture.training import train_recipe
    from tests_recipe import RECIPE
    record = TrackedSeries.record
    def dying(self, step, *values):
        record(self, step, *values)
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    TrackedSeries.record = dying
    train_recipe(parse_recipe(RECIPE), sys.argv[1] + "/weights", store=sys.argv[1] + "/run.zarr")
    """
    recipe = small_recipe()
    (tmp_path / "tests_recipe.py").write_text(f"RECIPE = {recipe.model_dump(mode='json')!r}\n")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    for name in ("killed", "through"):
        train_recipe(recipe, tmp_path / name / "weights", store=tmp_path / name / "run.zarr")
    xr.testing.assert_identical(rows(tmp_path / "killed"), rows(tmp_path / "through"))
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "through")


def session_of(net: nn.Module, store: Path, n: int = 300) -> capture.Session:
    digits = load_digits("train").first(n)
    return capture.Session(net, digits, store=store, layers=["0", "2", "5"], progress=False)


def test_session_track__appends_rows_beside_the_checkpoints(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    digits = load_digits("train").first(64)
    inputs, labels = torch.from_numpy(digits.inputs), torch.from_numpy(digits.labels)
    with session_of(net, tmp_path / "run.zarr") as session:
        session.track(0)
        for step in range(1, 7):
            loss = nn.functional.cross_entropy(net(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 2 == 0:
                session.track(step, loss=loss.item(), accuracy=0.5)
            if step in (3, 6):
                session.capture(step)
    store = ndt_store.open_store(tmp_path / "run.zarr")
    assert store.checkpoints.tolist() == [3, 6]
    found = store.training
    assert found["step"].values.tolist() == [0, 2, 4, 6]
    assert found["layer"].values.tolist() == ["0", "2", "5"]
    assert np.isnan(found["loss"].values[0])
    assert (np.diff(found["loss"].values[1:]) < 0).all()
    assert found["accuracy"].values[1:].tolist() == [0.5] * 3
    assert "every" not in found.attrs
    assert ndt_store.verify(store, read_data=True).ok


def test_session_track__measures_some_of_a_large_probe_set_and_all_of_a_small_one(tmp_path: Path) -> None:
    for n, expected in ((300, 120), (50, 50)):
        with session_of(model(), tmp_path / f"{n}.zarr", n) as session:
            session.track(0)
        found = ndt_store.open_training(tmp_path / f"{n}.zarr")
        assert found.attrs["n_validation"] == expected
    digits = load_digits("train").first(50)
    direct = Tracker(model(), digits.inputs, digits.labels, ["0", "2", "5"]).measure()
    for name in MEASURES:
        np.testing.assert_array_equal(found[name].values[0], direct.dimensionality[name])


def test_session_track__draws_the_same_examples_from_a_sorted_probe_set(tmp_path: Path) -> None:
    digits = load_digits("train")
    order = np.argsort(digits.labels, kind="stable")
    net = model()
    with capture.Session(
        net, digits.select(order), store=tmp_path / "run.zarr", layers=["5"], progress=False
    ) as session:
        session.track(0)
        tracker = session._series._tracker
    counts = np.bincount(tracker._labels.numpy(), minlength=10)
    assert counts.sum() == 120
    assert counts.min() >= 4


def test_session_track__of_a_training_that_goes_back_drops_the_later_rows(tmp_path: Path) -> None:
    with session_of(model(), tmp_path / "run.zarr") as session:
        for step in (0, 5, 10, 15):
            session.track(step, loss=1.0)
        with pytest.raises(InvalidInputError, match="increase"):
            session.track(15)
    with session_of(model(), tmp_path / "run.zarr") as session:
        session.track(10, loss=2.0)
        session.track(15, loss=2.0)
    found = ndt_store.open_training(tmp_path / "run.zarr")
    assert found["step"].values.tolist() == [0, 5, 10, 15]
    assert found["loss"].values.tolist() == [1.0, 1.0, 2.0, 2.0]


def test_session_track__needs_an_open_session(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="The session is not open"):
        session_of(model(), tmp_path / "run.zarr").track(0)
    assert not (tmp_path / "run.zarr").exists()
