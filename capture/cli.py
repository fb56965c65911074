"""The commands that run a model: plan, train, capture. Each parses, delegates and prints."""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from capture._builtin import recipe_names
from ndt_store.cliparts import emit, format_option, tell
from ndt_store.nbytes import human_nbytes
from ndt_store.progress import progress_bar

if TYPE_CHECKING:
    from capture.recipe import Recipe

__all__ = [
    "capture",
    "data_dir_option",
    "device_option",
    "load",
    "plan",
    "recipe_argument",
    "seed_option",
    "store_option",
    "train",
    "weights_option",
]

F = TypeVar("F", bound=Callable[..., Any])

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    envvar="NDT_DATA_DIR",
    show_envvar=True,
    help="Folder that holds mnist/ and fashion-mnist/, or what torchvision downloads.",
)
weights_option = click.option(
    "--checkpoints", type=click.Path(file_okay=False), help="Folder of the weights; default runs/NAME-checkpoints."
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Another seed of the same recipe; what is named by default is then NAME-seedN.",
)
store_option = click.option("--store", type=click.Path(), help="Where the store is or will be; default runs/NAME.zarr.")
device_option = click.option("--device", default="cpu", show_default=True, help="Where the model runs, such as cuda.")


def recipe_argument(function: F) -> F:
    """Add the argument RECIPE, and say in the command's help what it may be."""
    names = ", ".join(recipe_names())
    function.__doc__ = f"{cleandoc(function.__doc__ or '')}\n\nRECIPE is a TOML file or a built-in one: {names}."
    return click.argument("recipe")(function)


def load(recipe: str, seed: int | None, checkpoints: str | None, store: str | None) -> tuple[Recipe, Path, Path]:
    """Load a recipe with the seed asked for; return it with the folder of its weights and the place of its store."""
    from capture.recipe import load_recipe

    loaded = load_recipe(recipe)
    name = loaded.name
    if seed is not None and seed != loaded.seed:
        loaded, name = loaded.with_seed(seed), f"{name}-seed{seed}"
    return loaded, Path(checkpoints or f"runs/{name}-checkpoints"), Path(store or f"runs/{name}.zarr")


@click.command()
@recipe_argument
@seed_option
@store_option
@data_dir_option
@format_option
def plan(recipe: str, seed: int | None, store: str | None, data_dir: str | None, output_format: str) -> None:
    """Forecast what capturing RECIPE takes: bytes by layer and kind, memory, room. Writes nothing."""
    from capture.from_recipe import plan_recipe

    loaded, _, path = load(recipe, seed, None, store)
    forecast = plan_recipe(loaded, path, data_dir=data_dir)
    emit(forecast.rows(), output_format, columns=("layer", "kind", "bytes"))
    tell(
        f"{path}: {forecast.n_checkpoints} checkpoints take {human_nbytes(forecast.total_nbytes)} before compression "
        f"({human_nbytes(forecast.free_nbytes)} free) and {human_nbytes(forecast.memory_nbytes)} of memory beside the "
        "model."
    )


@click.command()
@recipe_argument
@seed_option
@weights_option
@store_option
@data_dir_option
@device_option
@click.option(
    "--keep",
    default="recipe",
    show_default=True,
    help="Which weights to keep: recipe; all (every tracked step); jumps (found in a first pass, kept in a second); "
    "every=N; log=N; or steps, as in 0,50,700.",
)
@click.option("--no-track", is_flag=True, help="Leave out what the recipe's [tracking] asks for.")
def train(
    recipe: str,
    seed: int | None,
    checkpoints: str | None,
    store: str | None,
    data_dir: str | None,
    device: str,
    keep: str,
    no_track: bool,
) -> None:
    """Train RECIPE and keep its checkpoints as safetensors. Run it again to resume.

    Where the recipe has a table [tracking], loss, accuracy and the dimension of each layer go to training/ of the store
    meanwhile; the weights are the same with and without.
    """
    from capture.replay import as_keep, train_keeping

    loaded, folder, path = load(recipe, seed, checkpoints, store)
    tracking = None if no_track else loaded.tracking
    with progress_bar(f"training {loaded.name}") as advance:
        kept = train_keeping(
            loaded,
            folder,
            keep=as_keep(keep),
            store=path if tracking else None,
            data_dir=data_dir,
            device=device,
            progress=lambda step, n_steps, _loss, _accuracy: advance(step, n_steps),
        )
    result = kept.result
    done = f"{result.n_trained} steps trained" if result.n_trained else "was trained already"
    tell(
        f"{folder}: {done}, {len(result.checkpoints)} checkpoints ({kept.said}), weights {result.weights_digest[:12]}."
    )
    if tracking:
        tell(f"{path}: training/ has a row every {tracking.every} steps.")


@click.command()
@recipe_argument
@seed_option
@weights_option
@store_option
@data_dir_option
@device_option
@click.option(
    "--disk-check/--no-disk-check", default=True, help="Refuse a capture that uncompressed would not fit the disk."
)
def capture(
    recipe: str,
    seed: int | None,
    checkpoints: str | None,
    store: str | None,
    data_dir: str | None,
    device: str,
    disk_check: bool,
) -> None:
    """Capture the checkpoints of RECIPE into a store. Run it again to resume."""
    from capture.from_recipe import capture_recipe

    loaded, folder, path = load(recipe, seed, checkpoints, store)
    made = capture_recipe(loaded, path, folder, data_dir=data_dir, device=device, check_disk=disk_check)
    tell(f"{path}: {len(made.checkpoints)} checkpoints of {len(made.layers)} layers, {len(made.examples)} examples.")
