"""The arms of one seed: its training as it is, and what becomes of it when it is interfered with at a moment.

1. The training is made once, undisturbed, and measured on the way: that is the arm ``normal`` of every moment.
2. Just before a moment, weights, buffers, the optimiser's state and torch's random states are copied. From there the
   arms ``frozen`` and ``perturbed`` are trained to the end, and each time everything is put back.
3. The undisturbed training goes on as if nothing had happened.

Batch n follows from the seed and n alone, and the random states go on alike in all arms, so that at the same step all
of them see the same images and draw the same dropout masks. What differs between two arms is the intervention.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from capture._reproducible import deterministic, mode
from capture._training_state import TrainingState
from capture.batches import evaluate
from capture.checkpoints import weights_digest
from capture.data import ImageData
from capture.intervention_plan import ARMS, InterventionPlan
from capture.kept_arms import MEASURES, Arm, KeptArms
from capture.moments import Moment
from capture.tracking import Tracker
from capture.updates import Updates, make_optimizer
from ndt_store.errors import CaptureError

__all__ = ["Course", "Images"]

_NOT_OF_A_COURSE: Final = ("checkpoints", "log_every")
"""Keys of ``[training]`` that change what is kept of a training and not the training."""

_INTERVENTIONS: Final = ARMS[1:]


@dataclass(frozen=True, slots=True)
class Images:
    """What all arms are trained, tracked and tested on."""

    training: ImageData
    validation: ImageData
    test: ImageData


class Course:
    """The training of one seed, and its arms.

    Parameters
    ----------
    plan : InterventionPlan
    seed : int
        One of the plan's.
    images : Images
    device : torch.device
    """

    def __init__(self, plan: InterventionPlan, seed: int, images: Images, device: torch.device) -> None:
        recipe = plan.recipe.with_seed(seed)
        self.seed, self._plan, self._recipe, self._images, self._device = seed, plan, recipe, images, device
        model = recipe.build_model(images.training).to(device)
        asked = plan.tracking
        self._tracker = Tracker(
            model, images.validation.inputs, images.validation.labels, plan.layers,
            measures=MEASURES, positions=asked.positions,
        )  # fmt: skip
        self._state = TrainingState(model, make_optimizer(recipe.training, model), {})
        self._updates = Updates(recipe.training, images.training, seed, device)
        self._initial = weights_digest(model.state_dict())

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are measured."""
        return self._tracker.layers

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values of an arm, beside its moment, as JSON values."""
        tables = self._recipe.model_dump(mode="json", include={"model", "data", "training"})
        written = {
            f"{table}.{key}": value
            for table, keys in tables.items()
            for key, value in keys.items()
            if key not in _NOT_OF_A_COURSE
        }
        tracked = {f"tracking.{key}": value for key, value in self._tracker.identity.items()}
        plan = self._plan
        return {
            **written,
            "seed": self.seed,
            "n_steps": plan.n_steps,
            "noise": plan.noise,
            "every": plan.every,
            **tracked,
            "data_digest": self._images.training.digest,
            "test_digest": self._images.test.digest,
            "initial_weights_digest": self._initial,
        }

    def run(self, kept: KeptArms, done: Callable[[], None]) -> None:
        """Train every arm that is not kept yet, and keep it.

        Parameters
        ----------
        kept : KeptArms
            Of this course.
        done : callable
            Called after each arm of the plan, also where it was kept.
        """
        moments = self._plan.moments[self.seed]
        wanted = {moment: tuple(arm for arm in _INTERVENTIONS if not kept.holds(arm, moment)) for moment in moments}
        whole = not kept.holds("normal")
        for _ in range(sum(2 - len(arms) for arms in wanted.values()) + (not whole)):
            done()
        with deterministic(self.seed, self._device), mode(self._state.model, training=True):
            series = self._series("normal", 1)
            series.record_if_due()
            for moment, arms in wanted.items():
                if arms:
                    self._go_on(moment.step - 1, series)
                    before = _Snapshot(self._state)
                    for arm in arms:
                        kept.keep(self._interfere(arm, moment), arm, moment)
                        before.put_back(self._state)
                        done()
            if whole:
                self._go_on(self._recipe.training.steps, series)
                kept.keep(self._finished(series), "normal")
                done()

    def _interfere(self, arm: str, moment: Moment) -> Arm:
        series = self._series(arm, moment.step)
        series.record_if_due()
        until = self._state.step + self._plan.n_steps
        if arm == "frozen":
            self._go_on(until, series, self._updates.leave_out)
        else:
            self._go_on(until, series, functools.partial(self._perturbed, moment))
        self._go_on(self._recipe.training.steps, series)
        return self._finished(series)

    def _perturbed(self, moment: Moment, state: TrainingState) -> None:
        key = (self.seed, moment.step, state.step + 1)
        self._updates.make(state, functools.partial(_add_noise, noise=self._plan.noise, key=key))

    def _go_on(self, until: int, series: _Series, update: Callable[[TrainingState], object] | None = None) -> None:
        move = update or self._updates.make
        while self._state.step < until:
            move(self._state)
            series.record_if_due()

    def _series(self, arm: str, first: int) -> _Series:
        what = f"arm {arm!r} of seed {self.seed}" + (f" at step {first}" if arm != "normal" else "")
        return _Series(self._tracker, self._state, self._plan.every, self._recipe.training.steps, what)

    def _finished(self, series: _Series) -> Arm:
        loss, accuracy = evaluate(self._state.model, self._images.test)
        return series.finished(loss, accuracy, weights_digest(self._state.model.state_dict()))


class _Series:
    """Measurements of one arm, every so many steps and at the end."""

    def __init__(self, tracker: Tracker, state: TrainingState, every: int, last: int, what: str) -> None:
        self._tracker, self._state, self._every, self._last, self._what = tracker, state, every, last, what
        self._steps: list[int] = []
        self._rows: list[Mapping[str, Any]] = []

    def record_if_due(self) -> None:
        step = self._state.step
        if step % self._every and step != self._last:
            return
        found = self._tracker.measure()
        if not math.isfinite(found.validation_loss):
            raise CaptureError(
                f"The validation loss is {found.validation_loss} at step {step} of {self._what}, expected a finite "
                "number; perturb with less noise, or lower training.learning_rate."
            )
        self._steps.append(step)
        self._rows.append(
            {
                "validation_loss": found.validation_loss,
                "validation_accuracy": found.validation_accuracy,
                **found.dimensionality,
            }
        )

    def finished(self, loss: float, accuracy: float, digest: str) -> Arm:
        columns = {name: np.array([row[name] for row in self._rows]) for name in self._rows[0]}
        return Arm(np.array(self._steps), columns, loss, accuracy, digest)


class _Snapshot:
    """All that the rest of a training depends on, copied."""

    def __init__(self, state: TrainingState) -> None:
        self._step = state.step
        self._tensors = [tensor.detach().clone() for tensor in _tensors(state.model)]
        self._optimizer = copy.deepcopy(state.optimizer.state_dict())
        self._devices = sorted({t.device for t in self._tensors if t.is_cuda}, key=str)
        self._random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    def put_back(self, state: TrainingState) -> None:
        with torch.no_grad():
            for tensor, before in zip(_tensors(state.model), self._tensors, strict=True):
                tensor.copy_(before)
        # A copy, because the optimiser takes the tensors themselves and goes on to change them.
        state.optimizer.load_state_dict(copy.deepcopy(self._optimizer))
        state.step = self._step
        torch.set_rng_state(self._random[0])
        for device, value in zip(self._devices, self._random[1], strict=True):
            torch.cuda.set_rng_state(value, device)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _add_noise(model: nn.Module, noise: float, key: Sequence[int]) -> None:
    """Add normal noise to each parameter's gradient, in proportion to its root mean square; the key decides it all."""
    rng = np.random.default_rng(key)
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is not None:
            drawn = torch.from_numpy(np.asarray(rng.standard_normal(tuple(gradient.shape), np.float32)))
            size = gradient.square().mean().sqrt() * noise
            gradient.add_(drawn.to(gradient) * size)
