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
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capture._reproducible import deterministic, mode
from capture._training_state import TrainingLog, TrainingState, load_training_log, locked
from capture.checkpoints import checkpoint_path, weights_digest
from capture.data import ImageData
from capture.modelstate import as_device
from capture.recipe import Recipe, TrainingRecipe
from capture.schedule import checkpoint_steps
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
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train what a recipe describes; run it again to resume.

    Parameters
    ----------
    recipe : Recipe
    save : path
        Its identity is the recipe's seed and tables ``model``, ``data``, ``training``; what is captured may change.
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
        progress=progress,
        identity={f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()},
    )


def train(
    settings: TrainingRecipe,
    model: nn.Module,
    data: ImageData,
    *,
    seed: int = 0,
    schedule: Sequence[int] | Mapping[str, int] | None = None,
    save: str | os.PathLike[str] | None = None,
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
    progress : callable (step, n_steps, loss, accuracy), optional
        Called after each logged update with the loss and accuracy of its batch.
    identity : mapping of str to JSON value, optional
        More that must be equal for a resume, besides settings, schedule, seed, data and initial weights.
    state_interval_s : float
        The state is saved with each checkpoint and after so many seconds without one.

    Raises
    ------
    InvalidInputError
        A batch is larger than the data, or the model's parameters are on several devices.
    CaptureError
        The loss is NaN or infinite.
    ResumeMismatchError
        The folder holds another training; the message names what differs, with both values.
    StoreLockedError
        Another process trains into the folder.
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
    device = _device(model)
    steps = settings.checkpoints if schedule is None else checkpoint_steps(settings.steps, schedule)
    state = TrainingState(model, _optimizer(settings, model), _identity(settings, steps, seed, data, model, identity))
    with ExitStack() as stack:
        stack.enter_context(deterministic(seed, device))
        stack.enter_context(mode(model, training=True))
        folder = None if save is None else Path(save)
        if folder is not None:
            stack.enter_context(locked(folder))
            if not state.resume(folder):
                state.save(folder)
        begun = state.step
        _run(settings, state, data, seed, frozenset(steps), folder, progress, state_interval_s)
    kept = () if folder is None else tuple((step, checkpoint_path(folder, step)) for step in steps)
    return TrainingResult(kept, state.log, weights_digest(model.state_dict()), state.step - begun)


def _run(
    settings: TrainingRecipe,
    state: TrainingState,
    data: ImageData,
    seed: int,
    schedule: frozenset[int],
    folder: Path | None,
    progress: Progress | None,
    state_interval_s: float,
) -> None:
    device = _device(state.model)
    inputs, labels = _tensor(data.inputs, device), _tensor(data.labels, device)
    saved_at, saved_step = time.monotonic(), state.step
    while True:
        if folder is not None:
            due = state.step in schedule and str(state.step) not in state.weights
            if due:
                state.save_checkpoint(folder)
            late = state.step == settings.steps or time.monotonic() - saved_at > state_interval_s
            if due or (late and state.step > saved_step):
                state.save(folder)
                saved_at, saved_step = time.monotonic(), state.step
        if state.step == settings.steps:
            state.optimizer.zero_grad(set_to_none=True)
            return
        batch = _tensor(batch_positions(seed, state.step, len(data), settings.batch_size), device)
        targets = labels[batch]
        state.optimizer.zero_grad(set_to_none=True)
        logits = state.model(inputs[batch])
        loss = nn.functional.cross_entropy(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        state.step += 1
        # Reading the loss waits for the device, so it is read only where it is wanted.
        if state.step % settings.log_every == 0 or state.step == settings.steps:
            accuracy = (logits.detach().argmax(dim=1) == targets).float().mean().item()
            row = (state.step, loss.item(), accuracy)
            if not math.isfinite(row[1]):
                raise CaptureError(
                    f"The loss is {row[1]} at step {state.step} of {settings.steps}, expected a finite number; "
                    f"lower training.learning_rate (now {settings.learning_rate}) or check the inputs."
                )
            state.log.rows.append(row)
            if progress is not None:
                progress(state.step, settings.steps, row[1], row[2])


def batch_positions(seed: int, step: int, n_examples: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Return the positions in the data of the batch that update ``step + 1`` uses.

    Epoch e is the permutation of ``numpy.random.default_rng([seed, e])``, cut into batches of equal size;
    what is left over at its end is not used.
    """
    epoch, batch = divmod(step, n_examples // batch_size)
    return _epoch(seed, epoch, n_examples)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n_examples: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n_examples)


def evaluate(model: nn.Module, data: ImageData, batch_size: int = 1000) -> tuple[float, float]:
    """Return a model's mean cross-entropy (nats) and accuracy (0 to 1) on images, in evaluation mode."""
    device = _device(model)
    loss = correct = 0.0
    with torch.inference_mode(), mode(model, training=False):
        for start in range(0, len(data), batch_size):
            logits = model(_tensor(data.inputs[start : start + batch_size], device))
            labels = _tensor(data.labels[start : start + batch_size], device)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss / len(data), correct / len(data)


def _optimizer(settings: TrainingRecipe, model: nn.Module) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(trainable, lr=rate, weight_decay=decay)
    return torch.optim.SGD(trainable, lr=rate, momentum=settings.momentum, weight_decay=decay)


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


def _device(model: nn.Module) -> torch.device:
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no device, having none"
        raise InvalidInputError(f"The model's parameters are on {found}, expected one device; move it with model.to.")
    return devices.pop()


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    # from_numpy warns of read-only arrays; only those are copied.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
