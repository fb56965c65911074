"""The command that studies a CNN."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from ndt_query.cam_cli import pair_option
from ndt_store.cliparts import store_argument, tell
from ndt_store.dims import ATTENTIONS
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store

__all__ = ["cnn"]


@click.command()
@store_argument
@click.option("--out", type=click.Path(file_okay=False), help="Folder of page, figures and numbers; default STORE-cnn.")
@click.option("--layer", "layers", multiple=True, help="Layers in order of depth; repeatable. All by default.")
@click.option(
    "--checkpoint", "checkpoints", type=int, multiple=True,
    help="Moments; repeatable. By default the first checkpoint and five more that span training.",
)  # fmt: skip
@pair_option("Between which units wake up; by default from moment to moment.")
def cnn(
    store: str,
    out: str | None,
    layers: tuple[str, ...],
    checkpoints: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...] | None,
) -> None:
    """Study a CNN: what its units answer to, when that emerged, what wakes up, and what is made of what.

    Writes a page, its figures as PDF and PNG, and all numbers as one Zarr tree. Let the first checkpoint be that of
    the untrained network: it is the base rate of everything.
    """
    from ndt_query.study import cnn_study
    from ndt_query.study_pages import require_study_folder, study_page

    path, opened = Path(store), open_store(store)
    folder = Path(out) if out is not None else path.with_name(f"{path.stem}-cnn")
    require_study_folder(folder)
    with progress_bar("studying") as advance:
        study = cnn_study(opened, layers=layers or None, checkpoints=checkpoints or None, pairs=pairs, progress=advance)
    page = study_page(study, folder)
    tell(f"{folder}: figures as PDF and PNG, numbers in study.zarr.")
    if any(ATTENTIONS in opened.schema.kinds(name) for name in opened.layers):
        tell("The store holds attention too: `ndt transformer` studies it.")
    click.echo(str(page))
