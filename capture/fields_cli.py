"""The command `ndt receptive-fields`: what units see of the input, measured at checkpoints, goes to the store."""

from __future__ import annotations

import rich_click as click

from capture.cli import data_dir_option, device_option, load, recipe_argument, seed_option, store_option, weights_option
from ndt_store.cliparts import format_option, in_turn
from ndt_store.errors import InvalidInputError

__all__ = ["receptive_fields"]


@click.command("receptive-fields")
@recipe_argument
@seed_option
@weights_option
@store_option
@click.option("--layer", "layers", metavar="GLOB", multiple=True, help="Layers; repeatable; default those captured.")
@click.option("--step", "steps", type=int, multiple=True, help="A checkpoint; repeatable; default all of them.")
@click.option("--examples", type=click.IntRange(min=1), default=64, show_default=True, help="Examples to average over.")
@click.option("--groups", type=click.IntRange(min=1), default=16, show_default=True, help="Groups for intervals.")
@click.option("--units", default="16", show_default=True, help="How many units of each layer, or all.")
@click.option("--replace", is_flag=True, help="Replace other receptive fields that the store holds.")
@data_dir_option
@device_option
@format_option
@click.pass_context
def receptive_fields(
    context: click.Context,
    recipe: str,
    seed: int | None,
    checkpoints: str | None,
    store: str | None,
    layers: tuple[str, ...],
    steps: tuple[int, ...],
    examples: int,
    groups: int,
    units: str,
    replace: bool,
    data_dir: str | None,
    device: str,
    output_format: str,
) -> None:
    """Measure receptive fields at the checkpoints of RECIPE: how far units see by theory, and how far they do.

    The result goes to experiments/receptive_fields of the store; a table of widths, as of `ndt fields`, is printed.
    """
    from capture.from_recipe import fields_of_recipe

    loaded, folder, path = load(recipe, seed, checkpoints, store)
    fields_of_recipe(
        loaded,
        path,
        folder,
        steps=steps,
        layers=layers,
        data_dir=data_dir,
        device=device,
        n_examples=examples,
        n_groups=groups,
        units=_count(units),
        replace=replace,
    )
    in_turn(context, [("fields", str(path), "--format", output_format)])


def _count(units: str) -> int | None:
    if units == "all":
        return None
    if not units.isdecimal() or int(units) < 1:
        raise InvalidInputError(f"--units is {units!r}: expected a whole number of at least 1, or all.")
    return int(units)
