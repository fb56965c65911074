"""`ndt study`: several recipes with several seeds each, from first weights to one comparison, in one command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import rich_click as click

from capture.cli import data_dir_option, device_option
from ndt_store.cliparts import in_turn, tell
from ndt_store.errors import InvalidInputError
from ndt_store.progress import progress_bar

if TYPE_CHECKING:
    from capture.recipe import Recipe

__all__ = ["study"]

DEFAULT: Final = ("mlp_narrow", "transformer_shallow", "cnn_deep")
REPORT: Final = "index.html"


@click.command()
@click.argument("recipes", nargs=-1, metavar="[RECIPE]...")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Seeds of each: 0, 1, 2, ...")
@click.option("--out", default="runs/study", show_default=True, type=click.Path(file_okay=False),
              help="Folder of stores, weights, reports and the comparison.")  # fmt: skip
@click.option("--by", type=click.Choice(("step", "examples", "loss")), default="step", show_default=True,
              help="What the trajectories of the comparison are aligned by.")  # fmt: skip
@data_dir_option
@device_option
@click.pass_context
def study(
    ctx: click.Context,
    recipes: tuple[str, ...],
    seeds: int,
    out: str,
    by: str,
    data_dir: str | None,
    device: str,
) -> None:
    """Run recipes with several seeds each, and compare them. Run it again to go on where it was stopped.

    Each run is what `ndt run` makes: weights, store and report. A run whose report is there is not made again; delete
    the report to have it made anew. Without RECIPE the study's three are run: mlp_narrow, transformer_shallow and
    cnn_deep. The comparison is the page index.html in the folder, its figures as PDF and PNG, and its numbers as
    comparison.zarr.
    """
    from capture.recipe import load_recipe

    names = recipes or DEFAULT
    if seeds * len(names) < 2:
        raise InvalidInputError("A study compares two runs or more: ask for more seeds or recipes.")
    loaded = [load_recipe(name) for name in names]
    called = [one.name for one in loaded]
    if len(set(called)) < len(called):
        raise InvalidInputError(f"The recipes are called {', '.join(called)}: give each once, under a name of its own.")
    folder = Path(out)
    runs = [(recipe, f"{one.name}-seed{seed}", seed) for seed in range(seeds) for recipe, one in
            zip(names, loaded, strict=True)]  # fmt: skip
    place = ["--device", device, *([] if data_dir is None else ["--data-dir", data_dir])]
    for number, (recipe, name, seed) in enumerate(runs, 1):
        if _report(folder, name).is_file():
            _require_same(folder / f"{name}.zarr", load_recipe(recipe).with_seed(seed))
            tell(f"{name}: its report is there ({number} of {len(runs)}).")
            continue
        tell(f"{name}: run {number} of {len(runs)}.")
        in_turn(ctx, [("run", recipe, "--seed", str(seed), *_places(folder, name), *place)])
    click.echo(str(_compared(folder, [name for _, name, _ in runs], by)))


def _require_same(store: Path, recipe: Recipe) -> None:
    """Raise where a finished run is of another recipe, or its store is gone."""
    from ndt_store.reader import open_store

    made = dict(open_store(store).provenance.get("identity", {})).get("recipe", {})
    wanted = recipe.model_dump(mode="json")
    other = next((key for key in wanted if key in made and made[key] != wanted[key]), None)
    if other is not None:
        raise InvalidInputError(
            f"{store} was made with {other} = {made[other]} and the recipe now has {wanted[other]}: give another "
            "--out, or remove that run."
        )


def _places(folder: Path, name: str) -> tuple[str, ...]:
    """Options that say where a run lies; names are the same whatever seed is a recipe's own."""
    return (
        "--checkpoints", str(folder / f"{name}-checkpoints"), "--store", str(folder / f"{name}.zarr"),
        "--out", str(folder / f"{name}-report"),
    )  # fmt: skip


def _report(folder: Path, name: str) -> Path:
    return folder / f"{name}-report" / REPORT


def _compared(folder: Path, names: Sequence[str], by: str) -> Path:
    from ndt_query.compare import compare_runs
    from ndt_query.comparison_page import comparison_page, smooth_pairs
    from ndt_store.reader import open_store

    stores = {name: open_store(folder / f"{name}.zarr") for name in names}
    with progress_bar("comparing") as advance:
        comparison = compare_runs(stores, by=by, progress=advance)  # type: ignore[arg-type]
    reports = {name: f"{name}-report/{REPORT}" for name in names}
    return comparison_page(comparison, folder, smooth=smooth_pairs(stores, comparison), reports=reports)
