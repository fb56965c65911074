"""Deterministic training that keeps its checkpoints and survives being killed.

The same settings, seed, data and initial weights give the same weights, bit for bit, on the same machine with
the same number of threads, whether the training ran through or was killed and repeated any number of times.
Three things make it so: the batches of step n follow from the seed and n alone, every kernel is a
deterministic one, and the state that a resume starts from holds all that the next step depends on.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from capture._reproducible import deterministic, mode
from capture._training_state import KEPT_BY, TrainingState, locked
from capture.batches import batch_positions, evaluate, one_device
from capture.checkpoints import checkpoint_path, weights_digest
from capture.data import ImageData
from capture.heap import freed_memory_kept
from capture.modelstate import as_device
from capture.recipe import Recipe, TrainingRecipe
from capture.schedule import checkpoint_steps
from capture.series import TrackedSeries, Tracking, recipe_tracking
from capture.training_log import TrainingLog, load_training_log
from capture.updates import Updates, make_optimizer
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = [
    "TrainingLog",
    "TrainingResult",
    "batch_positions",
    "evaluate",
    "load_training_log",
    "train",
    "train_recipe",
]

Progress = Callable[[int, int, float, float], None]

_NOT_OF_A_SERIES: Final = ("training.checkpoints", "training.log_every", KEPT_BY)
"""What may differ between trainings whose tracked series are the same."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a training left.

    Parameters
    ----------
    checkpoints : tuple of (int, Path)
        Step and file of each kept checkpoint, by step; empty when nothing was saved.
    log : TrainingLog
    weights_digest : str
        Of the final weights.
    n_trained : int
        Updates made by this call: 0 when the folder held the finished training.
    """

    checkpoints: tuple[tuple[int, Path], ...]
    log: TrainingLog
    weights_digest: str
    n_trained: int


def train_recipe(
    recipe: Recipe,
    save: str | os.PathLike[str],
    *,
    store: str | os.PathLike[str] | None = None,
    kept_by: str = "",
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train what a recipe describes; run it again to resume.

    Parameters
    ----------
    recipe : Recipe
    save : path
        Its identity is the recipe's seed, the tables ``model``, ``data``, ``training`` and, where it is tracked,
        ``tracking``; what is captured may change.
    store : path, optional
        Where the recipe's ``[tracking]`` puts its rows. Without it, or without that table, nothing is tracked.
    kept_by : str
        How the checkpoints were chosen, where that was not by the recipe: part of the identity, and what tells
        `capture.from_recipe.capture_recipe` to take the folder's checkpoints for the recipe's.
    data_dir : path, optional
        See `capture.data.load_data`.
    device : str or torch.device
        Where to train. Initial weights are always drawn on the CPU.
    progress
        See `train`.

    Raises
    ------
    NdtError
        As `train`, `capture.data.load_data` and `capture.models.build_model` do.
    """
    place, data = as_device(device), recipe.training_data(data_dir)
    model = recipe.build_model(data).to(place)
    tables = recipe.model_dump(mode="json", include={"model", "data"})
    return train(
        recipe.training,
        model,
        data,
        seed=recipe.seed,
        save=save,
        tracking=None if store is None else recipe_tracking(recipe, model, store, data_dir),
        progress=progress,
        identity={f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}
        | ({KEPT_BY: kept_by} if kept_by else {}),
    )


def train(
    settings: TrainingRecipe,
    model: nn.Module,
    data: ImageData,
    *,
    seed: int = 0,
    schedule: Sequence[int] | Mapping[str, int] | None = None,
    save: str | os.PathLike[str] | None = None,
    tracking: Tracking | None = None,
    progress: Progress | None = None,
    identity: Mapping[str, Any] | None = None,
    state_interval_s: float = 30.0,
) -> TrainingResult:
    """Train a model in place: cross-entropy, a fixed number of updates, checkpoints on the way.

    Parameters
    ----------
    settings : TrainingRecipe
    model : torch.nn.Module
        With its initial weights, on the device to train on; has the final weights afterwards.
    data : ImageData
        At least one batch; the incomplete batch at an epoch's end is left out.
    seed : int
        Orders the batches and seeds torch for dropout. Initial weights are the caller's.
    schedule : sequence of int or mapping, optional
        See `capture.schedule.checkpoint_steps`; default: the settings' own.
    save : path, optional
        Training folder, made where it is missing: ``step-*.safetensors``, ``training-log.csv`` and
        ``training-state.safetensors``. Where it holds this training, finished or not, that is taken over. By
        default nothing is saved.
    tracking : Tracking, optional
        Measures the model every so many steps and appends rows to a store, which changes nothing about the training.
        Where `save` holds a state whose rows are not all there, the training starts over.
    progress : callable (step, n_steps, loss, accuracy), optional
        Called after each logged update with the loss and accuracy of its batch.
    identity : mapping of str to JSON value, optional
        More that must be equal for a resume, besides settings, schedule, seed, data and initial weights.
    state_interval_s : float
        The state is saved with each checkpoint and after so many seconds without one.

    Raises
    ------
    InvalidInputError
        A batch is larger than the data, the model's parameters are on several devices, or another model is tracked.
    CaptureError
        The loss is NaN or infinite.
    ResumeMismatchError
        The folder or the store holds another training; the message names what differs, with both values.
    StoreLockedError
        Another process trains into the folder, or tracks into the store.
    AlreadyExistsError
        The folder holds checkpoints of something else.
    IntegrityError, StorageError
        The folder's files are damaged or cannot be written.

    Notes
    -----
    Torch's global random state and determinism flags are its own meanwhile and are put back, also after an
    exception. Buffers that a module keeps out of its state dict are not part of the state.
    """
    if settings.batch_size > len(data):
        raise InvalidInputError(
            f"training.batch_size is {settings.batch_size}, expected at most the {len(data)} images of {data.name!r}."
        )
    if tracking is not None and tracking.tracker.model is not model:
        raise InvalidInputError("tracking.tracker measures another model than the one trained: make it of this one.")
    device = one_device(model)
    steps = settings.checkpoints if schedule is None else checkpoint_steps(settings.steps, schedule)
    own = _identity(settings, steps, seed, data, model, identity)
    tracked = {} if tracking is None else {f"tracking.{key}": value for key, value in tracking.identity.items()}
    state = TrainingState(model, make_optimizer(settings, model), own | tracked)
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(freed_memory_kept())
        stack.enter_context(deterministic(seed, device))
        stack.enter_context(mode(model, training=True))
        folder = None if save is None else Path(save)
        if folder is not None:
            stack.enter_context(locked(folder))
            state.require_same(folder)
        series = None
        if tracking is not None:
            same = {key: value for key, value in own.items() if key not in _NOT_OF_A_SERIES}
            series = stack.enter_context(TrackedSeries(tracking.tracker, tracking.store, same, tracking.every))
        resumed = folder is not None and state.resume(folder, series.reaches if series else lambda _: True)
        if series is not None:
            series.go_back(state.step if resumed else -1)
        if folder is not None and not resumed:
            state.save(folder)
        begun = state.step
        _run(settings, state, data, seed, frozenset(steps), folder, series, progress, state_interval_s)
    kept = () if folder is None else tuple((step, checkpoint_path(folder, step)) for step in steps)
    return TrainingResult(kept, state.log, weights_digest(model.state_dict()), state.step - begun)


def _run(
    settings: TrainingRecipe,
    state: TrainingState,
    data: ImageData,
    seed: int,
    schedule: frozenset[int],
    folder: Path | None,
    series: TrackedSeries | None,
    progress: Progress | None,
    state_interval_s: float,
) -> None:
    updates = Updates(settings, data, seed, one_device(state.model))
    saved_at, saved_step = time.monotonic(), state.step
    if series is not None and series.last_step is None:
        series.record(state.step)
    while True:
        if folder is not None:
            due = state.step in schedule and str(state.step) not in state.weights
            if due:
                state.save_checkpoint(folder)
            late = state.step == settings.steps or time.monotonic() - saved_at > state_interval_s
            if due or (late and state.step > saved_step):
                if series is not None:
                    series.flush()
                state.save(folder)
                saved_at, saved_step = time.monotonic(), state.step
        if state.step == settings.steps:
            state.optimizer.zero_grad(set_to_none=True)
            return
        update = updates.make(state)
        logged = state.step % settings.log_every == 0 or state.step == settings.steps
        measured = series is not None and series.is_due(state.step)
        # Reading the loss waits for the device, so it is read only where it is wanted.
        if logged or measured:
            row = (state.step, update.loss.item(), update.accuracy)
            if not math.isfinite(row[1]):
                raise CaptureError(
                    f"The loss is {row[1]} at step {state.step} of {settings.steps}, expected a finite number; "
                    f"lower training.learning_rate (now {settings.learning_rate}) or check the inputs."
                )
            if series is not None and measured:
                series.record(*row)
            if logged:
                state.log.rows.append(row)
                if progress is not None:
                    progress(state.step, settings.steps, row[1], row[2])


def _identity(
    settings: TrainingRecipe,
    steps: tuple[int, ...],
    seed: int,
    data: ImageData,
    model: nn.Module,
    more: Mapping[str, Any] | None,
) -> dict[str, Any]:
    # What the user wrote comes first: a changed width is named as such, not as other initial weights.
    tables = {f"training.{key}": value for key, value in settings.model_dump(mode="json").items()}
    return {
        **(more or {}),
        **tables,
        "training.checkpoints": list(steps),
        "seed": seed,
        "data_digest": data.digest,
        "initial_weights_digest": weights_digest(model.state_dict()),
    }
