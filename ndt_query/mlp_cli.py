"""The command that studies how a network's representations change."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from ndt_store.cliparts import store_argument, tell
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store

__all__ = ["mlp"]


@click.command()
@store_argument
@click.option("--out", type=click.Path(file_okay=False), help="Folder of page and figures; default STORE-mlp.")
@click.option("--layer", "layers", multiple=True, help="Layers in order of depth; repeatable; default all.")
@click.option("--checkpoint", "checkpoints", type=int, multiple=True, help="Moments; repeatable; default all.")
@click.option("-k", type=click.IntRange(min=1), default=5, show_default=True, help="Components that span a subspace.")
def mlp(store: str, out: str | None, layers: tuple[str, ...], checkpoints: tuple[int, ...], k: int) -> None:
    """Study how representations change: dimension, subspaces, CKA, disentanglement and gradients, smooth or sudden.

    Meant for MLPs, and right for any network. Writes a page, figures as PDF and PNG, and all numbers as one Zarr tree.
    Let the first checkpoint be that of the untrained network: it is the base rate of everything.
    """
    from ndt_query.mlp_study import mlp_study
    from ndt_query.study_pages import require_study_folder, study_page

    path, opened = Path(store), open_store(store)
    folder = Path(out) if out is not None else path.with_name(f"{path.stem}-mlp")
    require_study_folder(folder)
    with progress_bar("studying") as advance:
        study = mlp_study(opened, layers=layers or None, checkpoints=checkpoints or None, k=k, progress=advance)
    page = study_page(study, folder)
    tell(f"{folder}: figures as PDF and PNG, numbers in study.zarr.")
    click.echo(str(page))
