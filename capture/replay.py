"""Which weights of a training to keep: as the recipe says, on a schedule, or around moments that the training shows.

Moments are known once the training is over, when their weights are gone. So it is run twice. The first pass is tracked
and keeps no weights but the last; a schedule (`capture.schedules`) finds the moments in what was tracked; the second
pass repeats the training bit for bit and keeps the weights at just these. Every tracked row carries a fingerprint of
the weights, so that a second pass that strays from the first is found out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from capture._training_state import kept_weights
from capture.checkpoints import weights_fingerprint
from capture.recipe import Recipe
from capture.schedules import load_schedule
from capture.training import TrainingResult, train_recipe
from ndt_store.errors import CaptureError, InvalidInputError, NdtError
from ndt_store.reader import open_training

__all__ = ["FIRST_FOLDER", "Kept", "as_keep", "train_keeping"]

FIRST_FOLDER: Final = "first-pass"
"""Folder of the first pass, inside the folder of the weights."""

Schedule = Sequence[int] | Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Kept:
    """A training with the checkpoints that were asked for.

    Parameters
    ----------
    result : TrainingResult
        Of the pass that kept the weights.
    said : str
        How their steps were chosen, for people.
    """

    result: TrainingResult
    said: str


def train_keeping(
    recipe: Recipe,
    save: str | os.PathLike[str],
    *,
    keep: str | Schedule = "recipe",
    store: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Kept:
    """Train a recipe and keep the weights that are asked for; run it again to resume.

    Parameters
    ----------
    recipe : Recipe
    save : path
        Where the weights go, as for `capture.training.train_recipe`.
    keep : str, sequence of int or mapping
        ``"recipe"``: the recipe's own checkpoints. ``"all"``: every tracked step. Steps, ``{"every": N}`` or
        ``{"log": N}``: these (`capture.schedule.checkpoint_steps`). Any other name: the schedule that a package offers
        under it, such as ``"jumps"``, over a first pass in ``save/first-pass``; the recipe's own checkpoints are kept
        beside them.
    store : path, optional
        Where the rows go that are tracked; needed for ``"all"`` and for moments.
    **options
        ``data_dir``, ``device`` and ``progress`` of `capture.training.train_recipe`; `progress` sees each pass.

    Returns
    -------
    Kept

    Raises
    ------
    InvalidInputError
        The recipe is not tracked, where that is needed; there is no such schedule.
    ResumeMismatchError
        The folder or the store holds another training, for instance because the recipe was changed between the passes.
    CaptureError
        The second pass gave other weights than the first.
    NdtError
        As `capture.training.train_recipe`.

    Notes
    -----
    Moments cost a second training. Two passes give the same weights on the same machine with the same number of
    threads; that they did is checked at every kept step that was tracked, and at the end.
    """
    if keep == "recipe":
        return Kept(train_recipe(recipe, save, store=store, **options), "the recipe's checkpoints")
    if not isinstance(keep, str):
        chosen = recipe.with_checkpoints(keep)
        return Kept(train_recipe(chosen, save, store=store, kept_by=str(keep), **options), "the steps asked for")
    schedule = None if keep == "all" else load_schedule(keep)
    if recipe.tracking is None or store is None:
        raise InvalidInputError(
            f"keep={keep!r} goes by what is tracked, and recipe {recipe.name!r} "
            + ("has no table tracking: add one." if recipe.tracking is None else "was given no store: give one.")
        )
    if keep == "all":
        chosen = recipe.with_checkpoints({"every": recipe.tracking.every})
        return Kept(train_recipe(chosen, save, store=store, kept_by=keep, **options), "every tracked step")
    assert schedule is not None
    last = recipe.training.steps
    first = train_recipe(recipe.with_checkpoints([last]), Path(save) / FIRST_FOLDER, store=store, **options)
    tracked = open_training(store)
    wanted = schedule(tracked, seed=recipe.seed)["step"].values
    moments = sorted({int(step) for step in wanted.ravel() if step >= 0})
    steps = sorted({*recipe.training.checkpoints, *moments})
    result = train_recipe(recipe.with_checkpoints(steps), save, kept_by=keep, **options)
    _require_same(tracked, kept_weights(save))
    if result.weights_digest != first.weights_digest:
        raise _strayed(last)
    said = f"the recipe's checkpoints, and {len(moments)} steps by schedule {keep!r}"
    return Kept(result, said if moments else f"schedule {keep!r} finds no moment, so the recipe's checkpoints")


def as_keep(text: str) -> str | Schedule:
    """Read what a command line says of the weights to keep: a name, ``every=N``, ``log=N``, or steps and commas.

    Raises
    ------
    InvalidInputError
        It begins like a schedule and is none.
    """
    form, equals, number = text.partition("=")
    try:
        if equals:
            return {form: int(number)}
        if text[:1].isdigit():
            steps = [int(step) for step in text.split(",")]
            if len(set(steps)) != len(steps):
                raise ValueError("a step is there twice")
            return steps
    except ValueError:
        raise InvalidInputError(
            f"keep is {text!r}: expected recipe, all, jumps, every=N, log=N, or steps, each once, as in 0,50,700."
        ) from None
    return text


def _require_same(tracked: xr.Dataset, digests: Mapping[int, str]) -> None:
    """Compare the kept weights with the fingerprints of the first pass, at the steps that were tracked."""
    seen = dict(zip(tracked["step"].values.tolist(), tracked["weights_fingerprint"].values.tolist(), strict=True))
    for step, digest in digests.items():
        if step in seen and np.int64(seen[step]) != weights_fingerprint(digest):
            raise _strayed(step)


def _strayed(step: int) -> NdtError:
    return CaptureError(
        f"The second pass has other weights than the first at step {step}: training is repeatable on one machine with "
        "one number of threads; run both passes there, or keep all checkpoints in the first (--keep all)."
    )
