"""The command that studies a transformer."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from ndt_store.cliparts import store_argument, tell
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store

__all__ = ["transformer"]


@click.command()
@store_argument
@click.option("--out", type=click.Path(file_okay=False), help="Folder of page and figures; default STORE-transformer.")
@click.option(
    "--layer", "layers", multiple=True, help="Layers that attend, in order of depth; repeatable; default all."
)
@click.option(
    "--checkpoint", "checkpoints", type=int, multiple=True,
    help="Moments; repeatable. By default at most eight that span training.",
)  # fmt: skip
@click.option("--clusters", "k", type=click.IntRange(min=2), default=3, show_default=True, help="Clusters of heads.")
def transformer(store: str, out: str | None, layers: tuple[str, ...], checkpoints: tuple[int, ...], k: int) -> None:
    """Study a transformer: how its heads attend, when they specialise, of what kinds they are, and what flows.

    Writes a page, figures as PDF and PNG, and all numbers as one Zarr tree. Let the first checkpoint be that of the
    untrained network: it is the base rate of everything.
    """
    from ndt_query.study_pages import require_study_folder, study_page
    from ndt_query.transformer_study import transformer_study

    path = Path(store)
    folder = Path(out) if out is not None else path.with_name(f"{path.stem}-transformer")
    require_study_folder(folder)
    with progress_bar("studying") as advance:
        study = transformer_study(
            open_store(store), layers=layers or None, checkpoints=checkpoints or None, k=k, progress=advance
        )
    page = study_page(study, folder)
    tell(f"{folder}: figures as PDF and PNG, numbers in study.zarr.")
    click.echo(str(page))
