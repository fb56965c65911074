"""What a study of interventions will do, before anything is trained: moments, arms, settings, and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from capture._describe import described
from capture.moments import Moment, Moments, checked_moments
from capture.recipe import Recipe
from capture.recipe_tables import TrackingRecipe
from ndt_store.errors import InvalidInputError

__all__ = ["ARMS", "InterventionPlan", "plan_interventions"]

ARMS: Final = ("normal", "frozen", "perturbed")


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """A study of interventions. Make one with `plan_interventions`, which checks it.

    Parameters
    ----------
    recipe : Recipe
        Its seed is replaced by each of the study's.
    moments : mapping of int to tuple of Moment
        By seed, by step.
    n_steps : int
        Updates that an intervention lasts.
    noise : float
        Standard deviation of what perturbs a gradient, in units of the root mean square of that parameter's gradient.
    every : int
        Steps between measurements.
    layers : tuple of str
        Globs of the layers that are measured.
    """

    recipe: Recipe
    moments: Mapping[int, tuple[Moment, ...]]
    n_steps: int
    noise: float
    every: int
    layers: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, as given."""
        return tuple(self.moments)

    @property
    def n_arms(self) -> int:
        """Trainings, whole or from a moment on: one a seed, and two a moment."""
        return sum(1 + 2 * len(moments) for moments in self.moments.values())

    @property
    def n_updates(self) -> int:
        """Updates of all trainings together; each frozen one costs a forward pass only, and counts as one."""
        steps = self.recipe.training.steps
        return sum(steps + sum(2 * (steps - m.step + 1) for m in moments) for moments in self.moments.values())

    @property
    def tracking(self) -> TrackingRecipe:
        """The recipe's ``[tracking]``, or its defaults."""
        return self.recipe.tracking or TrackingRecipe()

    @property
    def settings(self) -> dict[str, Any]:
        """What is said of the study in its results, as JSON values."""
        return {
            "recipe": self.recipe.name,
            "model": self.recipe.model.name,
            "data": self.recipe.data.name,
            "steps": self.recipe.training.steps,
            "n_steps": self.n_steps,
            "noise": self.noise,
            "every": self.every,
            "positions": self.tracking.positions,
            "n_validation": self.tracking.n_examples,
            "validation_split": self.tracking.split,
            "layers": list(self.layers),
        }


def plan_interventions(
    recipe: Recipe,
    *,
    moments: Moments,
    seeds: Sequence[int] = (0, 1, 2),
    n_steps: int = 20,
    noise: float = 1.0,
    every: int | None = None,
    layers: Sequence[str] | None = None,
) -> InterventionPlan:
    """Check what a study of interventions is asked for; parameters are those of `capture.run_interventions`.

    Raises
    ------
    InvalidInputError
        Something is not possible; names it.
    """
    if not isinstance(recipe, Recipe):
        raise InvalidInputError(f"recipe is {described(recipe)}, expected a Recipe: load it with capture.load_recipe.")
    asked = recipe.tracking or TrackingRecipe()
    interval = asked.every if every is None else every
    for name, value in (("n_steps", n_steps), ("every", interval)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InvalidInputError(f"{name} is {described(value)}, expected a whole number of at least 1.")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise InvalidInputError(f"noise is {described(noise)}, expected a finite number of at least 0.")
    chosen = _seeds(seeds)
    last = recipe.training.steps - int(n_steps)
    if last < 1:
        raise InvalidInputError(
            f"n_steps is {n_steps}, and the training has {recipe.training.steps} steps: expected fewer, so that at "
            "least one update follows an intervention."
        )
    found = checked_moments(moments, chosen, last)
    latest = max(moment.step for some in found.values() for moment in some)
    # Measurements are compared from the first one on that is not before the state from which the arms begin.
    if -(-(latest - 1) // interval) * interval + interval > recipe.training.steps:
        raise InvalidInputError(
            f"every is {interval}, which leaves fewer than two measurements from the latest moment, step {latest}, to "
            f"the end, step {recipe.training.steps}: measure more often, or leave that moment out."
        )
    globs = asked.layers or recipe.capture.layers if layers is None else layers
    if isinstance(globs, str) or not isinstance(globs, Sequence):
        globs = (globs,)
    if not all(isinstance(one, str) for one in globs):
        raise InvalidInputError(f"layers is {described(layers)}, expected globs over names of layers.")
    return InterventionPlan(recipe, found, int(n_steps), float(noise), int(interval), tuple(globs))


def _seeds(given: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(given) if isinstance(given, Iterable) else ()
    whole = all(isinstance(seed, int | np.integer) and not isinstance(seed, bool) and seed >= 0 for seed in chosen)
    if not chosen or not whole or len(set(chosen)) != len(chosen):
        raise InvalidInputError(f"seeds is {described(given)}, expected one or more different whole numbers from 0.")
    return tuple(int(seed) for seed in chosen)
