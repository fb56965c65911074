"""From a recipe to a store: what `ndt capture`, `plan`, `receptive-fields` and `ablate-heads` do, as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from capture._training_state import chosen_steps
from capture.ablation import ablate_heads
from capture.checkpoints import list_checkpoints
from capture.fields import receptive_fields
from capture.forecast import Forecast
from capture.modelstate import as_device
from capture.recipe import Recipe
from capture.run import capture
from capture.session import Session
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store
from ndt_store.storage import Storage

__all__ = ["ablation_of_recipe", "capture_recipe", "fields_of_recipe", "plan_recipe", "trained_checkpoints"]


def capture_recipe(
    recipe: Recipe,
    store: str | os.PathLike[str] | Storage,
    checkpoints: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    check_disk: bool = True,
    progress: bool = True,
) -> Store:
    """Capture the checkpoints that a recipe's training kept; run it again to resume.

    Parameters
    ----------
    recipe : Recipe
        Its every key is part of the capture's identity. Where the training chose its checkpoints otherwise
        (`capture.replay.train_keeping`), these take the place of the recipe's.
    store, checkpoints : path
        Where the store is or will be, and the folder that `capture.training.train_recipe` filled.
    data_dir : path, optional
        See `capture.data.load_data`.
    device : str
        Where the model runs.
    check_disk : bool
        Refuse when the capture could take more than the disk has free.
    progress : bool
        Draw bars on stderr.

    Raises
    ------
    NotFoundError
        A checkpoint of the recipe is not in the folder.
    NdtError
        As `capture.capture` does.
    """
    place = as_device(device)
    recipe, steps = trained_checkpoints(recipe, checkpoints)
    data = recipe.probe_data(data_dir)
    model = recipe.build_model(data).to(place)
    return capture(
        model, data, store=store, checkpoints=steps, progress=progress, check_disk=check_disk, **_options(recipe)
    )


def fields_of_recipe(
    recipe: Recipe,
    store: str | os.PathLike[str] | Storage,
    checkpoints: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    **options: Any,
) -> xr.Dataset:
    """Find the receptive fields of the weights that a recipe's training kept, and write them into its store.

    Parameters
    ----------
    recipe, store, checkpoints, data_dir, device
        As in `capture_recipe`.
    steps : sequence of int, optional
        Some of the checkpoints, by default all.
    layers : sequence of str, optional
        By default those of the recipe's ``[capture]``.
    **options
        As in `capture.receptive_fields`.

    Raises
    ------
    InvalidInputError
        A step is no checkpoint of the recipe.
    NdtError
        As `capture_recipe` and `capture.receptive_fields` do.
    """
    place, data, found = as_device(device), recipe.probe_data(data_dir), _wanted(recipe, checkpoints, steps)
    return receptive_fields(
        recipe.build_model(data).to(place),
        data,
        layers=list(layers or recipe.capture.layers),
        store=store,
        checkpoints=found,
        **options,
    )


def ablation_of_recipe(
    recipe: Recipe,
    store: str | os.PathLike[str] | Storage,
    checkpoints: str | os.PathLike[str],
    *,
    steps: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    **options: Any,
) -> xr.Dataset:
    """Ablate the heads of the weights that a recipe's training kept, and write what comes of it into its store.

    Parameters
    ----------
    recipe, store, checkpoints, data_dir, device
        As in `capture_recipe`.
    steps : sequence of int, optional
        Some of the checkpoints, by default all.
    layers : sequence of str, optional
        By default all modules that attend.
    **options
        As in `capture.ablate_heads`.

    Raises
    ------
    InvalidInputError
        A step is no checkpoint of the recipe.
    NdtError
        As `capture_recipe` and `capture.ablate_heads` do.
    """
    place, data, found = as_device(device), recipe.probe_data(data_dir), _wanted(recipe, checkpoints, steps)
    return ablate_heads(
        recipe.build_model(data).to(place),
        data,
        layers=list(layers or ["**"]),
        store=store,
        checkpoints=found,
        batch_size=recipe.capture.batch_size,
        **options,
    )


def _wanted(recipe: Recipe, checkpoints: str | os.PathLike[str], steps: Sequence[int] | None) -> list[tuple[int, Path]]:
    """Return the kept weights at some steps, or at all."""
    recipe, found = trained_checkpoints(recipe, checkpoints)
    missing = sorted(set(steps or ()) - set(recipe.training.checkpoints))
    if missing:
        raise InvalidInputError(
            f"Step {missing[0]} is no checkpoint of recipe {recipe.name!r}, expected some of "
            f"{', '.join(map(str, recipe.training.checkpoints))}."
        )
    return [(step, weights) for step, weights in found if not steps or step in steps]


def trained_checkpoints(recipe: Recipe, checkpoints: str | os.PathLike[str]) -> tuple[Recipe, list[tuple[int, Path]]]:
    """Return a recipe with the checkpoints that its training kept, and the files of them.

    Raises
    ------
    NotFoundError
        One of them is not in the folder.
    """
    chosen = chosen_steps(checkpoints)
    recipe = recipe if chosen is None else recipe.with_checkpoints(chosen)
    found = dict(list_checkpoints(checkpoints)) if Path(checkpoints).is_dir() else {}
    missing = [step for step in recipe.training.checkpoints if step not in found]
    if missing:
        raise NotFoundError(
            f"{checkpoints} lacks {len(missing)} of {len(recipe.training.checkpoints)} checkpoints of recipe "
            f"{recipe.name!r}, the first is step {missing[0]}: run `ndt train` with this recipe and folder first."
        )
    return recipe, [(step, found[step]) for step in recipe.training.checkpoints]


def plan_recipe(
    recipe: Recipe, store: str | os.PathLike[str], *, data_dir: str | os.PathLike[str] | None = None
) -> Forecast:
    """Forecast what capturing a recipe takes; needs no trained weights and writes nothing."""
    data = recipe.probe_data(data_dir)
    model = recipe.build_model(data)
    return Session(model, data, store=store, checkpoints=recipe.training.checkpoints, **_options(recipe)).forecast


def _options(recipe: Recipe) -> dict[str, Any]:
    asked = recipe.capture
    return {
        "layers": list(asked.layers),
        "kinds": list(asked.kinds),
        "gradient_of": asked.gradient_of,
        "dtype": asked.dtype,
        "batch_size": asked.batch_size,
        "compression": asked.compression,
        "block_nbytes": asked.block_nbytes,
        "model_name": recipe.model.name,
        "identity": {"recipe": recipe.model_dump(mode="json")},
    }
