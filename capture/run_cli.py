"""`ndt run`: a recipe from its first weights to its report, in one command that goes on wherever it was stopped."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from capture.cli import data_dir_option, device_option, load, recipe_argument, seed_option, store_option, weights_option
from ndt_store.cliparts import in_turn

__all__ = ["run"]


@click.command()
@recipe_argument
@seed_option
@weights_option
@store_option
@data_dir_option
@device_option
@click.option("--keep", default="jumps", show_default=True, help="Which weights to keep, as for `ndt train`.")
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the report; default STORE-report.")
@click.pass_context
def run(
    ctx: click.Context,
    recipe: str,
    seed: int | None,
    checkpoints: str | None,
    store: str | None,
    data_dir: str | None,
    device: str,
    keep: str,
    out: str | None,
) -> None:
    """Track, detect, train again, capture, verify and report RECIPE. Run it again to go on where it was stopped.

    Each stage is a command of its own, and is done once: train, capture, verify, jumps, report.
    """
    loaded, folder, path = load(recipe, seed, checkpoints, store)
    asked = [
        recipe,
        *([] if seed is None else ["--seed", str(seed)]),
        "--checkpoints",
        str(folder),
        "--store",
        str(path),
    ]
    asked += [*([] if data_dir is None else ["--data-dir", data_dir]), "--device", device]
    commands = [
        ("train", *asked, "--keep", keep),
        ("capture", *asked),
        ("verify", str(path), "--read-data"),
        *([("jumps", str(path))] if loaded.tracking else []),
        ("report", str(path), *([] if out is None else ["--out", str(Path(out))])),
    ]
    in_turn(ctx, commands)
