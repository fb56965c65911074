"""`ndt run`: a recipe from its first weights to its report, in one command that goes on wherever it was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from capture.cli import data_dir_option, device_option, load, recipe_argument, seed_option, store_option, weights_option
from ndt_store.cliparts import in_turn
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, CHECKPOINT, GRADIENTS, X, Y
from ndt_store.reader import Store, open_store

if TYPE_CHECKING:
    from capture.recipe import Recipe

__all__ = ["run"]


@click.command()
@recipe_argument
@seed_option
@weights_option
@store_option
@data_dir_option
@device_option
@click.option(
    "--keep", help="Which weights to keep, as for `ndt train`; default jumps where the recipe is tracked, else recipe."
)
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
    keep: str | None,
    out: str | None,
) -> None:
    """Track, detect, train again, capture, verify and report RECIPE. Run it again to go on where it was stopped.

    Each stage is a command of its own, and is done once: train, capture, verify, jumps; of a transformer ablate-heads;
    of a CNN receptive-fields, and cams where gradients were captured; report.
    """
    loaded, folder, path = load(recipe, seed, checkpoints, store)
    asked = [recipe, *([] if seed is None else ["--seed", str(seed)]), "--checkpoints", str(folder)]
    asked += ["--store", str(path), *([] if data_dir is None else ["--data-dir", data_dir]), "--device", device]
    keep = keep or ("jumps" if loaded.tracking else "recipe")
    in_turn(ctx, _stages(loaded, path, asked, keep, out))


def _stages(loaded: Recipe, path: Path, asked: Sequence[str], keep: str, out: str | None) -> Iterator[tuple[str, ...]]:
    """Give one command after the other; what the later ones are depends on what was captured."""
    from capture.ablation import EXPERIMENT as ABLATION
    from capture.field_experiment import EXPERIMENT as FIELDS

    yield ("train", *asked, "--keep", keep)
    yield ("capture", *asked)
    yield ("verify", str(path), "--read-data")
    if loaded.tracking:
        yield ("jumps", str(path))
    store = open_store(path)
    kinds = {kind for kind, dims in _captured(store) if {Y, X} <= set(dims)}
    attends = any(kind == ATTENTIONS for kind, _ in _captured(store))
    if attends and ABLATION not in store.experiments:
        yield ("ablate-heads", *asked)
    if ACTIVATIONS in kinds and FIELDS not in store.experiments and not attends:
        yield ("receptive-fields", *asked)
    if GRADIENTS in kinds and _has_right_examples(store):
        yield ("cams", str(path))
    yield ("report", str(path), *([] if out is None else ["--out", str(Path(out))]))


def _has_right_examples(store: Store) -> bool:
    """Whether there are two checkpoints to compare and examples that the network has right at the last."""
    root = store.root
    if len(store.checkpoints) < 2 or "prediction" not in root:
        return False
    return bool((root["prediction"].isel({CHECKPOINT: -1}) == root["label"]).any())


def _captured(store: Store) -> Iterator[tuple[str, tuple[str, ...]]]:
    for layer in store.layers:
        for kind in store.schema.kinds(layer):
            yield kind, tuple(str(dim) for dim in store[layer][kind].dims)
