"""The command `ndt ablate-heads`: what every head of attention is worth, measured at checkpoints, goes to the store."""

from __future__ import annotations

import rich_click as click

from capture.cli import data_dir_option, device_option, load, recipe_argument, seed_option, store_option, weights_option
from ndt_store.cliparts import format_option, in_turn

__all__ = ["ablate_heads"]


@click.command("ablate-heads")
@recipe_argument
@seed_option
@weights_option
@store_option
@click.option("--layer", "layers", metavar="GLOB", multiple=True, help="Modules that attend; repeatable; default all.")
@click.option("--step", "steps", type=int, multiple=True, help="A checkpoint; repeatable; default all of them.")
@click.option(
    "--method", "methods", type=click.Choice(("zero", "mean")), multiple=True, default=("zero", "mean"),
    show_default=True, help="What a head puts out instead: 0, or its mean over examples; repeatable.",
)  # fmt: skip
@click.option("--replace", is_flag=True, help="Replace another ablation that the store holds.")
@data_dir_option
@device_option
@format_option
@click.pass_context
def ablate_heads(
    context: click.Context,
    recipe: str,
    seed: int | None,
    checkpoints: str | None,
    store: str | None,
    layers: tuple[str, ...],
    steps: tuple[int, ...],
    methods: tuple[str, ...],
    replace: bool,
    data_dir: str | None,
    device: str,
    output_format: str,
) -> None:
    """Run the model without each head in turn, at the checkpoints of RECIPE: what each example makes of it.

    The result goes to experiments/head_ablation of the store; a table of what heads are worth, as of `ndt heads`, is
    printed.
    """
    from capture.from_recipe import ablation_of_recipe

    loaded, folder, path = load(recipe, seed, checkpoints, store)
    ablation_of_recipe(
        loaded, path, folder, steps=steps, layers=layers, data_dir=data_dir, device=device, methods=methods,
        replace=replace,
    )  # fmt: skip
    in_turn(context, [("heads", str(path), "--format", output_format)])
