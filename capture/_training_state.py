"""What a training folder holds besides its checkpoints: the state to go on from, the log, and a lock.

``training-state.safetensors`` is one file, replaced atomically: the weights, the optimiser's tensors and the
random number generators' states as tensors, and in its header one JSON object with the step, the identity of
the training and the digest of every checkpoint written so far. So a kill at any moment leaves a state that
agrees with itself. ``training-log.csv`` may run ahead of it; rows after the state's step are dropped on
resume.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from capture.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_into,
    load_weights,
    save_weights,
    weights_digest,
)
from capture.training_log import TrainingLog, load_training_log
from ndt_store.errors import (
    AlreadyExistsError,
    IntegrityError,
    NdtError,
    ResumeMismatchError,
    StorageError,
    StoreLockedError,
)

__all__ = ["KEPT_BY", "TrainingState", "chosen_steps", "kept_weights", "locked"]

STATE_NAME = "training-state.safetensors"
LOCK_NAME = ".training.lock"
KEPT_BY = "training.kept_by"
"""Key of the identity that says how checkpoints were chosen, where that was not by the recipe."""


@dataclass(slots=True)
class TrainingState:
    """A training in progress: model, optimiser, log, and what makes it this training and no other.

    Parameters
    ----------
    model, optimizer
        Changed in place by training and by `resume`.
    identity : mapping of str to JSON value
        Flat; what must be equal for a resume.
    step : int
        Updates made.
    weights : dict of str to str
        Digest of each checkpoint written, by step as text, as JSON wants it.
    log : TrainingLog
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    identity: Mapping[str, Any]
    step: int = 0
    weights: dict[str, str] = field(default_factory=dict)
    log: TrainingLog = field(default_factory=TrainingLog)

    def save_checkpoint(self, folder: Path) -> None:
        """Write the weights as the checkpoint of the current step."""
        weights = self.model.state_dict()
        digest = weights_digest(weights)
        save_weights(checkpoint_path(folder, self.step), weights, {"step": str(self.step)})
        self.weights[str(self.step)] = digest

    def save(self, folder: Path) -> None:
        """Write the log, then the state."""
        self.log.save(folder)
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in values.items() if value is not None}
        tensors["rng/cpu"] = torch.get_rng_state()
        for device in _cuda_devices(self.model):
            tensors["rng/cuda"] = torch.cuda.get_rng_state(device)
        header = {"identity": dict(self.identity), "step": self.step, "weights": self.weights}
        save_weights(folder / STATE_NAME, tensors, {"training": json.dumps(header)})

    def require_same(self, folder: Path) -> None:
        """Refuse a folder that holds something else.

        Raises
        ------
        ResumeMismatchError
            The folder holds another training.
        AlreadyExistsError
            The folder holds checkpoints and no state.
        IntegrityError
            The state file is damaged.
        """
        path = folder / STATE_NAME
        if path.is_file():
            _refuse_difference(_read_header(path)["identity"], self.identity, folder)
        elif list_checkpoints(folder):
            raise AlreadyExistsError(
                f"{folder} holds checkpoints that no training state belongs to, expected an empty folder or one "
                "that a training left; choose another folder."
            )

    def resume(self, folder: Path, usable: Callable[[int], bool]) -> bool:
        """Take over what a folder holds of this training; False where it holds nothing that can be used.

        A checkpoint that is missing or does not hold the weights that were written makes the state unusable:
        the training then starts over, with the same result.

        Parameters
        ----------
        folder : Path
            One that `require_same` lets pass.
        usable : callable of a step
            Whether what is kept elsewhere reaches to the step of the state; where it does not, the state is unusable.
        """
        path = folder / STATE_NAME
        if not path.is_file():
            return False
        header = _read_header(path)
        if not usable(header["step"]):
            return False
        if not all(_holds(checkpoint_path(folder, int(step)), digest) for step, digest in header["weights"].items()):
            return False
        tensors = load_weights(path)
        load_into(self.model, _under("model/", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors["rng/cpu"])
        for device in _cuda_devices(self.model):
            if "rng/cuda" in tensors:
                torch.cuda.set_rng_state(tensors["rng/cuda"], device)
        self.step, self.weights = header["step"], header["weights"]
        self.log = load_training_log(folder, self.step)
        return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a training folder for this process; the lock ends with the process, however it ends.

    Raises
    ------
    StoreLockedError
        Another process trains there.
    StorageError
        The folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_NAME).open("a")
    except OSError as error:
        raise StorageError(f"Cannot train into {folder} ({error}), expected a folder to write to.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreLockedError(
                f"Another process is training into {folder}; wait for it to end or choose another folder."
            ) from error
        for stale in folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        yield


def kept_weights(folder: str | os.PathLike[str]) -> dict[int, str]:
    """Return the digests of the checkpoints that the training in a folder has written, by step.

    Raises
    ------
    IntegrityError
        Its state is damaged.
    """
    return {int(step): str(digest) for step, digest in _read_header(Path(folder) / STATE_NAME)["weights"].items()}


def chosen_steps(folder: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Return the steps whose weights the training in a folder keeps, None where a recipe chose them or none began.

    Raises
    ------
    IntegrityError
        Its state is damaged.
    """
    path = Path(folder) / STATE_NAME
    identity = _read_header(path)["identity"] if path.is_file() else {}
    return tuple(identity["training.checkpoints"]) if KEPT_BY in identity else None


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["training"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{path} is not a training state ({error}); remove the training folder and train again.", str(path)
        ) from error
    return dict(header)


def _refuse_difference(recorded: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    for name in [*given, *(name for name in recorded if name not in given)]:
        if recorded.get(name) != given.get(name):
            raise ResumeMismatchError(
                f"{folder} holds a training with {name} = {json.dumps(recorded.get(name))}, and this one has "
                f"{json.dumps(given.get(name))}; repeat the first command, or choose another folder.",
                name,
            )


def _holds(path: Path, digest: str) -> bool:
    try:
        return weights_digest(load_weights(path)) == digest
    except NdtError:
        return False


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.is_cuda}, key=str)[:1]
