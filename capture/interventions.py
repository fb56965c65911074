"""run_interventions: what a training loses when it is frozen, or perturbed, at some of its moments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
import xarray as xr

from capture._describe import described
from capture._training_state import locked
from capture.arms import Course, Images
from capture.data import load_data
from capture.heap import freed_memory_kept
from capture.intervention_plan import ARMS, InterventionPlan, plan_interventions
from capture.kept_arms import MEASURES, Arm, KeptArms
from capture.modelstate import as_device
from capture.moments import Moment, Moments
from capture.recipe import Recipe
from ndt_store.dims import LAYER, STEP
from ndt_store.errors import InvalidInputError

__all__ = ["run_interventions", "run_plan"]

Progress = Callable[[int, int], None]

_NAMES: Final = {
    "validation_loss": ("cross-entropy on the validation set", "nat"),
    "validation_accuracy": ("accuracy on the validation set", "1"),
    "participation_ratio": ("participation ratio of the layer on the validation set", "1"),
    "stable_rank": ("stable rank of the layer on the validation set", "1"),
    "final_loss": ("cross-entropy of the final weights on the whole test split", "nat"),
    "final_accuracy": ("accuracy of the final weights on the whole test split", "1"),
    "weights_digest": ("SHA-256 of the final weights", ""),
    "moment_step": ("first update that is interfered with; -1 where a seed has no such moment", ""),
    "role": ("what the moment is: jump or control; empty where a seed has no such moment", ""),
    "jump": ("which jump the moment is, or is a control of; -1 where nobody says", ""),
}


def run_interventions(
    recipe: Recipe,
    *,
    moments: Moments,
    folder: str | os.PathLike[str],
    seeds: Sequence[int] = (0, 1, 2),
    n_steps: int = 20,
    noise: float = 1.0,
    every: int | None = None,
    layers: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> xr.Dataset:
    """Train a recipe with several seeds, undisturbed and with interventions at moments, and measure all of it.

    From the same weights, optimiser's state, random state and order of data just before a moment there are three arms:

    normal
        The training as it is. Its final weights are those of `capture.train`.
    frozen
        The next `n_steps` updates are left out: their batches run forward and nothing else happens, so that weights,
        buffers (running means of batch norm) and the optimiser's state (Adam's moments and its count of steps) stay as
        they were. Then it goes on with the batches that follow, to the same last step: an arm that was frozen has made
        `n_steps` updates fewer, and never learns from those batches at that place of the order.
    perturbed
        To the gradient of each parameter, in each of the next `n_steps` updates, normal noise is added that has `noise`
        times the root mean square of that gradient. Then it goes on as it is.

    Parameters
    ----------
    recipe : Recipe
    moments : sequence of (step, role) or (step, role, jump), or mapping of seed to such
        See `capture.moments.Moment`. ``step`` is the first update that is interfered with; ``role`` is ``"jump"`` or
        ``"control"``. A sequence is for every seed. A mapping has an entry for each, which may be empty or of another
        length.
    folder : path
        Where finished arms are kept; made where it is missing. Killed anywhere and called again, it goes on with the
        arm that was being trained, and gives the same Dataset. Moments and seeds may be added later.
    seeds : sequence of int
        Each is a training of its own: initial weights and order of data.
    n_steps : int
        Updates that an intervention lasts.
    noise : float
        0 gives the arm that is normal.
    every : int, optional
        Steps between measurements, by default those of the recipe's ``[tracking]``.
    layers : sequence of str, optional
        Globs of what is measured, by default those of the recipe's ``[tracking]``.
    data_dir : path, optional
        See `capture.data.load_data`.
    device : str or torch.device
    progress : callable of (arms finished, arms in all), optional

    Returns
    -------
    Dataset
        Over (seed, moment, arm): ``final_accuracy`` (0 to 1) and ``final_loss`` (nat) on the whole test split, and
        ``weights_digest`` of the final weights. Over (seed, moment, arm, step), on the recipe's validation set:
        ``validation_accuracy`` and ``validation_loss``, and with layer ``participation_ratio`` and ``stable_rank``.

        Coordinates are ``seed``, ``arm``, ``layer``, ``step`` (multiples of `every`, and the last step), and over
        (seed, moment) ``moment_step``, ``role`` and ``jump``. ``moment`` counts the moments of a seed by step; where a
        seed has fewer than others, ``moment_step`` and ``jump`` are -1, ``role`` and ``weights_digest`` empty, and
        numbers NaN. Values begin at the first multiple of `every` that is not before the state from which the arms
        begin, after ``moment_step - 1`` updates: where it is that state's, all three agree there. They are NaN before
        it. A layer that does not vary has no dimension, NaN.

        `ndt_store.write_experiment` keeps it; ``ndt_query.intervention_effects`` says what it means.

    Raises
    ------
    InvalidInputError
        An option or a moment is not possible; names it.
    ResumeMismatchError
        The folder holds arms with other settings; names the first that differs, with both values.
    IntegrityError
        A file in the folder is damaged.
    StoreLockedError
        Another process works in the folder.
    CaptureError
        The loss of an arm is NaN or infinite.
    NdtError
        As `capture.data.load_data` and `capture.Tracker` do.

    Notes
    -----
    Costs one training a seed and, for each moment, two from there on (`InterventionPlan.n_updates`), each with its
    measurements, about a fifth on top at ``every=5``. A copy of weights and optimiser's state is held beside the model.

    The same call gives the same Dataset, bit for bit, on the same machine with the same number of threads.
    """
    plan = plan_interventions(
        recipe, moments=moments, seeds=seeds, n_steps=n_steps, noise=noise, every=every, layers=layers
    )
    return run_plan(plan, folder, data_dir=data_dir, device=device, progress=progress)


def run_plan(
    plan: InterventionPlan,
    folder: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> xr.Dataset:
    """Do what `plan_interventions` planned; see `run_interventions`."""
    if not isinstance(folder, str | os.PathLike):
        raise InvalidInputError(f"folder is {described(folder)}, expected a path: finished arms are kept there.")
    place, n_done = as_device(device), 0

    def done() -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress(n_done, plan.n_arms)

    images = _images(plan, data_dir)
    with ExitStack() as stack:
        stack.enter_context(locked(Path(folder)))
        if place.type == "cpu":
            stack.enter_context(freed_memory_kept())
        courses = [Course(plan, seed, images, place) for seed in plan.seeds]
        layers = courses[0].layers
        # All of them first: nothing is trained when a later seed would be refused.
        kept = [KeptArms(Path(folder), course.seed, course.identity) for course in courses]
        for arms in kept:
            courses.pop(0).run(arms, done)
        return _dataset(plan, layers, kept, len(images.test))


def _images(plan: InterventionPlan, data_dir: str | os.PathLike[str] | None) -> Images:
    recipe = plan.recipe
    tracked = recipe if recipe.tracking else recipe.model_copy(update={"tracking": plan.tracking})
    test = load_data(recipe.data.name, "test", data_dir).standardised(recipe.data.mean, recipe.data.std)
    return Images(recipe.training_data(data_dir), tracked.tracking_data(data_dir), test)


def _dataset(plan: InterventionPlan, layers: tuple[str, ...], kept: Sequence[KeptArms], n_test: int) -> xr.Dataset:
    shape = (len(plan.seeds), max(map(len, plan.moments.values())), len(ARMS))
    step = _steps(plan)
    over_moments, over_arms = ("seed", "moment"), ("seed", "moment", "arm")
    over_steps = {name: (*over_arms, STEP, *((LAYER,) if name in MEASURES else ())) for name in list(_NAMES)[:4]}
    sizes = {STEP: len(step), LAYER: len(layers)}
    series = {name: np.full((*shape, *(sizes[dim] for dim in dims[3:])), np.nan) for name, dims in over_steps.items()}
    final = {name: np.full(shape, np.nan) for name in ("final_loss", "final_accuracy")}
    digests = np.full(shape, "", object)
    where, roles, jumps = np.full(shape[:2], -1), np.full(shape[:2], "", object), np.full(shape[:2], -1)
    for s, (arms, moments) in enumerate(zip(kept, plan.moments.values(), strict=True)):
        normal = arms.load("normal")
        for m, moment in enumerate(moments):
            where[s, m], roles[s, m], jumps[s, m] = moment
            for a, arm in enumerate(ARMS):
                result = _from(moment, normal) if arm == "normal" else arms.load(arm, moment)
                rows = np.searchsorted(step, result.step)
                for name, values in result.series.items():
                    series[name][s, m, a, rows] = values
                final["final_loss"][s, m, a] = result.final_loss
                final["final_accuracy"][s, m, a] = result.final_accuracy
                digests[s, m, a] = result.weights_digest
    dataset = xr.Dataset(
        {
            **{name: (over_steps[name], values) for name, values in series.items()},
            **{name: (over_arms, values) for name, values in final.items()},
            "weights_digest": (over_arms, digests),
        },
        {
            "seed": np.array(plan.seeds),
            "moment": np.arange(shape[1]),
            "arm": np.array(ARMS, object),
            STEP: step,
            LAYER: np.array(layers, object),
            "moment_step": (over_moments, where),
            "role": (over_moments, roles),
            "jump": (over_moments, jumps),
        },
        {"what": "trainings, undisturbed and with interventions at moments", **plan.settings, "n_test": n_test},
    )
    for name, (text, unit) in _NAMES.items():
        dataset[name].attrs = {"long_name": text, **({"units": unit} if unit else {})}
    return dataset


def _from(moment: Moment, arm: Arm) -> Arm:
    """Return an arm without what was measured before the moment."""
    after = arm.step >= moment.step - 1
    return replace(arm, step=arm.step[after], series={name: values[after] for name, values in arm.series.items()})


def _steps(plan: InterventionPlan) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    first = min(moment.step for moments in plan.moments.values() for moment in moments) - 1
    last = plan.recipe.training.steps
    return np.array([step for step in range(last + 1) if step >= first and (step % plan.every == 0 or step == last)])
