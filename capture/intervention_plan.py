"""What a study of interventions will do, before anything is trained: moments, arms, settings, and what it will cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    asked = recipe.tracking or TrackingRecipe()
    interval = asked.every if every is None else every
    for name, value in (("n_steps", n_steps), ("every", interval)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(f"{name} is {described(value)}, expected a whole number of at least 1.")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 <= noise < math.inf:
        raise InvalidInputError(f"noise is {described(noise)}, expected a finite number of at least 0.")
    chosen = tuple(seeds)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in chosen)
    if not chosen or not whole or len(set(chosen)) != len(chosen):
        raise InvalidInputError(f"seeds is {chosen!r}, expected one or more different whole numbers from 0.")
    found = checked_moments(moments, chosen, recipe.training.steps - n_steps)
    globs = asked.layers or recipe.capture.layers if layers is None else layers
    return InterventionPlan(
        recipe, found, n_steps, float(noise), interval, (globs,) if isinstance(globs, str) else tuple(globs)
    )
