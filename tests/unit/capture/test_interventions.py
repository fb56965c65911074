"""Interventions: arms that share all but the intervention, the same bits every time, a study that survives a kill."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import capture
from capture import arms as arms_module
from capture import kept_arms
from capture.batches import batch_positions, evaluate
from capture.data import load_data
from capture.intervention_plan import plan_interventions
from capture.interventions import run_interventions, run_plan
from capture.moments import Moment
from capture.recipe import Recipe, parse_recipe
from capture.training import train
from ndt_store import open_store, write_experiment
from ndt_store.errors import (
    CaptureError,
    IntegrityError,
    InvalidInputError,
    ResumeMismatchError,
    StorageError,
    StoreLockedError,
)
from ndt_store.testing import simulate_store

STEPS, N = 10, 2
MOMENTS: dict[int, list[tuple[Any, ...]]] = {0: [(3, "jump", 0), (6, "control", 0)], 4: [(5, "jump", 1)]}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def recipe(**changes: Any) -> Recipe:
    """A training that also depends on torch's random state: a transformer with dropout."""
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "name": "transformer",
            "options": {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_feedforward": 16, "dropout": 0.2},
        },
        "data": {"name": "digits"},
        "training": {"steps": STEPS, "batch_size": 32, "learning_rate": 1e-2},
        "capture": {"layers": ["encoder.layers.0", "classifier"]},
        "tracking": {"every": 2, "n_examples": 30},
    }
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    return parse_recipe(content)


def run(folder: Path, **changes: Any) -> xr.Dataset:
    options: dict[str, Any] = {"moments": MOMENTS, "seeds": (0, 4), "n_steps": N, "folder": folder}
    return run_interventions(changes.pop("recipe", recipe()), **(options | changes))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    torch.set_num_threads(1)
    return run(tmp_path_factory.mktemp("arms"))


def plain(seed: int, *, skipped: range = range(0), noisy: range = range(0), noise: float = 1.0) -> nn.Module:
    """The same training in plain torch: batches left out, or gradients with noise, at some updates (counted from 1)."""
    own = recipe().with_seed(seed)
    data = own.training_data()
    model = own.build_model(data).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for update in range(1, STEPS + 1):
            batch = batch_positions(seed, update - 1, len(data), 32)
            logits = model(torch.from_numpy(data.inputs[batch]))
            if update in skipped:
                continue
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[batch])).backward()
            if update in noisy:
                rng = np.random.default_rng((seed, noisy.start, update))
                for parameter in model.parameters():
                    g = parameter.grad.numpy()
                    rms = np.sqrt(np.square(g, dtype=np.float64).mean())
                    g += rng.standard_normal(g.shape, np.float32) * np.float32(noise * rms)
            optimizer.step()
    return model


def test_normal__is_plain_training_bit_for_bit(result: xr.Dataset) -> None:
    for seed in (0, 4):
        own = recipe().with_seed(seed)
        data = own.training_data()
        trained = train(own.training, own.build_model(data), data, seed=seed)
        found = set(result["weights_digest"].sel(seed=seed, arm="normal").values) - {""}
        assert found == {trained.weights_digest}


@pytest.mark.parametrize(("seed", "moment", "step"), [(0, 0, 3), (0, 1, 6), (4, 0, 5)])
def test_frozen__leaves_out_its_batches_and_goes_on(result: xr.Dataset, seed: int, moment: int, step: int) -> None:
    model = plain(seed, skipped=range(step, step + N))
    expected = evaluate(model, load_data("digits", "test"))
    found = result.sel(seed=seed, moment=moment, arm="frozen")
    assert (found["final_loss"], found["final_accuracy"]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("seed", "moment", "step"), [(0, 0, 3), (0, 1, 6), (4, 0, 5)])
def test_perturbed__adds_noise_of_the_gradients_own_size(result: xr.Dataset, seed: int, moment: int, step: int) -> None:
    expected = evaluate(plain(seed, noisy=range(step, step + N)), load_data("digits", "test"))
    found = result.sel(seed=seed, moment=moment, arm="perturbed")
    assert (found["final_loss"], found["final_accuracy"]) == pytest.approx(expected, abs=1e-4)


def test_perturbed_without_noise__is_normal_although_another_arm_ran_between(tmp_path: Path) -> None:
    found = run(tmp_path, noise=0, seeds=(0,))
    normal, perturbed = (found.sel(arm=arm, drop=True) for arm in ("normal", "perturbed"))
    assert perturbed.identical(normal)
    assert not found.sel(arm="frozen", drop=True).equals(normal)


def test_result__begins_where_the_arms_agree_and_has_no_numbers_before(result: xr.Dataset) -> None:
    assert result["step"].values.tolist() == [2, 4, 6, 8, 10]
    assert result["layer"].values.tolist() == ["encoder.layers.0", "classifier"]
    assert dict(result["final_accuracy"].sizes) == {"seed": 2, "moment": 2, "arm": 3}
    for seed, moment, first in ((0, 0, 2), (0, 1, 6), (4, 0, 4)):
        here = result.sel(seed=seed, moment=moment)
        for name in ("validation_loss", "validation_accuracy", "participation_ratio", "stable_rank"):
            there = here[name].notnull()
            assert there.where(here["step"] >= first, ~there).all(), name
    begin = result.sel(seed=0, moment=0, step=2)
    for name in ("validation_loss", "participation_ratio"):
        values = begin[name]
        assert (values == values.isel(arm=0)).all()
    frozen = result["participation_ratio"].sel(seed=0, moment=0, arm="frozen")
    assert (frozen.sel(step=4) == frozen.sel(step=2)).all()
    assert (frozen.sel(step=6) != frozen.sel(step=2)).all()


def test_result__pads_seeds_that_have_fewer_moments(result: xr.Dataset) -> None:
    assert result["moment_step"].values.tolist() == [[3, 6], [5, -1]]
    assert result["role"].values.tolist() == [["jump", "control"], ["jump", ""]]
    assert result["jump"].values.tolist() == [[0, 0], [1, -1]]
    padded = result.sel(seed=4, moment=1)
    assert padded["weights_digest"].values.tolist() == [""] * 3
    assert all(padded[name].isnull().all() for name in padded.data_vars if name != "weights_digest")


def test_result__measures_what_the_series_of_a_training_holds(result: xr.Dataset, tmp_path: Path) -> None:
    own = recipe()
    data, seen = own.training_data(), own.tracking_data()
    model = own.build_model(data)
    tracker = capture.Tracker(model, seen.inputs, seen.labels, own.capture.layers)
    train(own.training, model, data, tracking=capture.Tracking(tracker, tmp_path / "run.zarr", 2))
    from ndt_store import open_training

    series = open_training(tmp_path / "run.zarr").sel(step=slice(2, None))
    normal = result.sel(seed=0, moment=0, arm="normal")
    for name in ("validation_loss", "validation_accuracy", "participation_ratio", "stable_rank"):
        np.testing.assert_allclose(normal[name], series[name].transpose(*normal[name].dims), rtol=1e-12)


def test_run__twice_gives_the_same_dataset_whatever_torchs_state(result: xr.Dataset, tmp_path: Path) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert run(tmp_path).identical(result)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


class KilledError(BaseException):
    pass


def killed(folder: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Run until the given call of a function, and die in it."""
    calls = itertools.count(1)
    original: Callable[..., Any] = getattr(module, name)

    def until(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KilledError
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, until)
        with pytest.raises(KilledError):
            run(folder)


@pytest.mark.parametrize("call", [1, 2, 5, 6])
def test_run__goes_on_after_a_death_before_any_arm_was_kept(
    result: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    killed(tmp_path, monkeypatch, kept_arms, "replace_file", call)
    assert len(list(tmp_path.glob("*.npz"))) == call - 1
    assert run(tmp_path).identical(result)


@pytest.mark.parametrize("call", [1, 13, 24])
def test_run__goes_on_after_a_death_within_an_arm(
    result: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    killed(tmp_path, monkeypatch, arms_module.Tracker, "measure", call)
    assert run(tmp_path).identical(result)


def test_run__keeps_finished_arms_and_counts_them(
    result: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    run(tmp_path, progress=lambda *counts: told.append(counts))
    assert told == [(n, 8) for n in range(1, 9)]
    files = {path: path.read_bytes() for path in tmp_path.glob("*.npz")}
    assert sorted(path.name for path in files) == [
        "seed-0-normal.npz",
        "seed-0-step-000003-frozen.npz",
        "seed-0-step-000003-perturbed.npz",
        "seed-0-step-000006-frozen.npz",
        "seed-0-step-000006-perturbed.npz",
        "seed-4-normal.npz",
        "seed-4-step-000005-frozen.npz",
        "seed-4-step-000005-perturbed.npz",
    ]
    told.clear()
    monkeypatch.setattr(arms_module.Updates, "make", None)  # nothing is trained
    assert run(tmp_path, progress=lambda *counts: told.append(counts)).identical(result)
    assert told == [(n, 8) for n in range(1, 9)]


def test_run__takes_more_moments_and_seeds_later(result: xr.Dataset, tmp_path: Path) -> None:
    run(tmp_path, moments=[(6, "control")], seeds=(0,))
    kept = (tmp_path / "seed-0-step-000006-frozen.npz").stat().st_ino
    assert run(tmp_path).identical(result)
    assert (tmp_path / "seed-0-step-000006-frozen.npz").stat().st_ino == kept


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"n_steps": 3}, "n_steps = 2"),
        ({"noise": 0.5}, "noise = 1.0"),
        ({"every": 5}, "every = 2"),
        ({"layers": ["classifier"]}, r"tracking\.layers = .*encoder"),
        ({"recipe": recipe(training={"learning_rate": 0.1})}, r"training\.learning_rate = 0\.01"),
        ({"recipe": recipe(data={"n_examples": 200})}, r"data\.n_examples = null"),
    ],
)
def test_run__refuses_a_folder_of_other_settings_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], field: str
) -> None:
    run(tmp_path, seeds=(4,))
    monkeypatch.setattr(arms_module.Updates, "make", None)  # also of seed 0, which comes first
    with pytest.raises(ResumeMismatchError, match=field):
        run(tmp_path, **changes)


def test_run__lets_what_is_kept_of_a_training_change(result: xr.Dataset, tmp_path: Path) -> None:
    run(tmp_path)
    assert run(tmp_path, recipe=recipe(training={"checkpoints": [0, 5], "log_every": 2})).identical(result)


def test_run__names_a_damaged_file(tmp_path: Path) -> None:
    run(tmp_path, seeds=(0,))
    path = tmp_path / "seed-0-step-000003-frozen.npz"
    content = path.read_bytes()
    for damaged in (content[:-40], b"", content[:200] + b"\x00" * 50 + content[250:]):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="seed-0-step-000003-frozen.npz cannot be read"):
            run(tmp_path, seeds=(0,))
    path.unlink()
    run(tmp_path, seeds=(0,))


def test_run__holds_its_folder(tmp_path: Path) -> None:
    def again(_done: int, _total: int) -> None:
        with pytest.raises(StoreLockedError, match=str(tmp_path)):
            run(tmp_path)

    run(tmp_path, seeds=(4,), progress=again)
    with pytest.raises(StorageError):
        run(tmp_path / "seed-4-normal.npz")


def test_run__refuses_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    own = recipe(training={"optimizer": "sgd"})
    with pytest.raises(CaptureError, match=r"validation loss is nan at step \d of arm 'perturbed' of seed 0 at step 3"):
        run(tmp_path, recipe=own, noise=1e30)


def test_result__is_kept_in_a_store_and_read_back(result: xr.Dataset, tmp_path: Path) -> None:
    store = simulate_store(tmp_path / "run.zarr").store
    write_experiment(store.path, "interventions", result)
    xr.testing.assert_identical(open_store(store.path).experiment("interventions").load(), result)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"moments": []}, "moments is empty"),
        ({"moments": {0: [], 4: ()}}, "moments is empty"),
        ({"moments": {0: MOMENTS[0]}}, "no entry for seed 4"),
        ({"moments": [(0, "jump")]}, "step 0, expected 1 to 8"),
        ({"moments": [(9, "jump")]}, "step 9, expected 1 to 8"),
        ({"moments": [(3, "leap")]}, "'jump' or 'control'"),
        ({"moments": [(3.5, "jump")]}, "whole numbers"),
        ({"moments": [(3, "jump", -2)]}, "whole numbers"),
        ({"moments": [3]}, "A moment is 3"),
        ({"moments": [(3, "jump"), (3, "control")]}, "Two moments are at step 3"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"every": 2.5}, "every is 2.5"),
        ({"noise": -1}, "noise is -1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"seeds": ()}, "seeds is"),
        ({"seeds": (0, 0)}, "seeds is"),
        ({"seeds": (-1, 4)}, "seeds is"),
        ({"seeds": 0}, "seeds is 0"),
        ({"moments": None}, "moments is None"),
        ({"layers": 3}, "layers is 3"),
        ({"n_steps": 200}, "n_steps is 200, and the training has"),
        ({"every": 1000}, "every is 1000, which leaves fewer than two measurements"),
    ],
)
def test_plan__refuses_what_is_not_possible(changes: dict[str, Any], match: str) -> None:
    options: dict[str, Any] = {"moments": MOMENTS, "seeds": (0, 4), "n_steps": N}
    with pytest.raises(InvalidInputError, match=match):
        plan_interventions(recipe(), **(options | changes))


def test_plan__takes_no_name_for_a_recipe_and_a_run_no_number_for_a_folder() -> None:
    with pytest.raises(InvalidInputError, match="recipe is 'cnn_deep', expected a Recipe"):
        plan_interventions("cnn_deep", moments=MOMENTS)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="folder is 5, expected a path"):
        run_plan(plan_interventions(recipe(), moments=MOMENTS, seeds=(0, 4), n_steps=N), 5)  # type: ignore[arg-type]


def test_plan__counts_arms_and_updates() -> None:
    plan = plan_interventions(recipe(), moments=MOMENTS, seeds=(0, 4), n_steps=N)
    assert plan.n_arms == 2 + 2 * 3
    assert plan.n_updates == 2 * STEPS + 2 * (8 + 5 + 6)
    assert plan.moments[0] == (Moment(3, "jump", 0), Moment(6, "control", 0))
    assert plan.every == 2
    assert plan.layers == ("encoder.layers.0", "classifier")
    same = plan_interventions(recipe(), moments=[(np.int64(5), "control")], n_steps=np.int64(N))
    assert same.moments == {seed: (Moment(5, "control"),) for seed in (0, 1, 2)}
