"""The commands that run a model: plan, train, capture. Each parses, delegates and prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from ndt_store.cliparts import emit, format_option, tell
from ndt_store.nbytes import human_nbytes
from ndt_store.progress import progress_bar

__all__ = ["capture", "plan", "train"]

F = TypeVar("F", bound=Callable[..., Any])

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False),
    envvar="NDT_DATA_DIR",
    show_envvar=True,
    help="Folder that holds mnist/ and fashion-mnist/.",
)
_checkpoints = click.option(
    "--checkpoints", type=click.Path(file_okay=False), help="Folder of the weights; default runs/NAME-checkpoints."
)
_store = click.option("--store", type=click.Path(), help="Where the store is or will be; default runs/NAME.zarr.")
_device = click.option("--device", default="cpu", show_default=True, help="Where the model runs, for example cuda.")
_recipe = click.argument("recipe")


def _folders(name: str, checkpoints: str | None, store: str | None) -> tuple[Path, Path]:
    return Path(checkpoints or f"runs/{name}-checkpoints"), Path(store or f"runs/{name}.zarr")


@click.command()
@_recipe
@_store
@_data_dir
@format_option
def plan(recipe: str, store: str | None, data_dir: str | None, output_format: str) -> None:
    """Forecast what capturing RECIPE takes: bytes by layer and kind, memory, room. Writes nothing.

    RECIPE is a TOML file or the name of a built-in one: demo, cnn_deep, transformer_shallow, mlp_narrow.
    """
    from capture.from_recipe import plan_recipe
    from capture.recipe import load_recipe

    loaded = load_recipe(recipe)
    _, path = _folders(loaded.name, None, store)
    forecast = plan_recipe(loaded, path, data_dir=data_dir)
    emit(forecast.rows(), output_format, columns=("layer", "kind", "bytes"))
    tell(
        f"{path}: {forecast.n_checkpoints} checkpoints take {human_nbytes(forecast.total_nbytes)} before compression "
        f"({human_nbytes(forecast.free_nbytes)} free) and {human_nbytes(forecast.memory_nbytes)} of memory beside the "
        "model."
    )


@click.command()
@_recipe
@_checkpoints
@_data_dir
@_device
def train(recipe: str, checkpoints: str | None, data_dir: str | None, device: str) -> None:
    """Train RECIPE and keep its checkpoints as safetensors. Run it again to resume.

    RECIPE is a TOML file or the name of a built-in one: demo, cnn_deep, transformer_shallow, mlp_narrow.
    """
    from capture.recipe import load_recipe
    from capture.training import train_recipe

    loaded = load_recipe(recipe)
    folder, _ = _folders(loaded.name, checkpoints, None)
    with progress_bar(f"training {loaded.name}") as advance:
        result = train_recipe(
            loaded,
            folder,
            data_dir=data_dir,
            device=device,
            progress=lambda step, n_steps, _loss, _accuracy: advance(step, n_steps),
        )
    done = f"{result.n_trained} steps trained" if result.n_trained else "was trained already"
    tell(f"{folder}: {done}, {len(result.checkpoints)} checkpoints, weights {result.weights_digest[:12]}.")


@click.command()
@_recipe
@_checkpoints
@_store
@_data_dir
@_device
@click.option(
    "--disk-check/--no-disk-check", default=True, help="Refuse a capture that uncompressed would not fit the disk."
)
def capture(
    recipe: str, checkpoints: str | None, store: str | None, data_dir: str | None, device: str, disk_check: bool
) -> None:
    """Capture the checkpoints of RECIPE into a store. Run it again to resume.

    RECIPE is a TOML file or the name of a built-in one: demo, cnn_deep, transformer_shallow, mlp_narrow.
    """
    from capture.from_recipe import capture_recipe
    from capture.recipe import load_recipe

    loaded = load_recipe(recipe)
    folder, path = _folders(loaded.name, checkpoints, store)
    made = capture_recipe(loaded, path, folder, data_dir=data_dir, device=device, check_disk=disk_check)
    tell(f"{path}: {len(made.checkpoints)} checkpoints of {len(made.layers)} layers, {len(made.examples)} examples.")
