"""The command that compares Grad-CAM before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from ndt_store.cliparts import store_argument, tell
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store

__all__ = ["cams", "pair_option"]

F = TypeVar("F", bound=Callable[..., Any])


def _pairs(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[int, int], ...] | None:
    found = []
    for text in texts:
        before, colon, after = text.partition(":")
        if not (colon and before.isdecimal() and after.isdecimal()):
            raise click.BadParameter(f"{text!r} is no pair of checkpoints such as 80:160.")
        found.append((int(before), int(after)))
    return tuple(found) or None


def pair_option(default: str) -> Callable[[F], F]:
    """Add the option ``--pair``; the command gets ``pairs``, None where there are none."""
    text = f"Checkpoints before and after; repeatable. {default}"
    return click.option("--pair", "pairs", metavar="80:160", multiple=True, callback=_pairs, help=text)


@click.command()
@store_argument
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the pages; default STORE-cams.")
@pair_option("By default five pairs that span training.")
@click.option("--layer", "layers", metavar="GLOB", multiple=True, default=("*",), help="Only such layers; repeatable.")
@click.option("--per-class", type=int, default=10, show_default=True, help="Examples of each class.")
@click.option("--signed", is_flag=True, help="Keep what speaks against the class: no ReLU.")
def cams(
    store: str,
    out: str | None,
    pairs: tuple[tuple[int, int], ...] | None,
    layers: tuple[str, ...],
    per_class: int,
    signed: bool,
) -> None:
    """Compare Grad-CAM before and after, on pages to look through, with the maps as arrays beside them.

    For each pair of checkpoints and each conv layer: examples of every class that the network has right after, their
    maps before and after on one scale, and the raw difference. Needs activations and gradients in the store.
    """
    from ndt_query.gallery import ARRAYS, cam_gallery

    path = Path(store)
    folder = Path(out) if out is not None else path.with_name(f"{path.stem}-cams")
    with progress_bar("comparing") as advance:
        page = cam_gallery(
            open_store(store),
            folder,
            pairs=pairs,
            layers=layers,
            n_per_class=per_class,
            signed=signed,
            progress=advance,
        )
    tell(f"{folder / ARRAYS}: the maps as arrays.")
    click.echo(str(page))
