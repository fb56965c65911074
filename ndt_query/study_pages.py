"""What a study leaves behind: figures for a paper, its numbers as arrays, and one page with both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xarray as xr
from matplotlib.figure import Figure

from ndt_query.cnn_figures import cnn_figures, cnn_tables
from ndt_query.mlp_figures import mlp_figures, mlp_tables
from ndt_query.output import INDEX, require_free, staged, write_results
from ndt_query.pages import figure_source, render, write_page
from ndt_query.transformer_figures import transformer_figures, transformer_tables
from ndt_store.errors import NotFoundError

__all__ = ["KINDS", "StudyKind", "kind_of", "require_study_folder", "study_figures", "study_files", "study_page"]

NUMBERS: Final = "study.zarr"
TEMPLATE: Final = "study.html.j2"


@dataclass(frozen=True, slots=True)
class StudyKind:
    """How the study of one kind of network is shown.

    Parameters
    ----------
    name : str
        Also of its folder beside a report.
    network, section : str
        What it is a study of, and the heading of its section in a report.
    template : str
        What is shown of it, in ``ndt_query/templates``.
    groups : tuple of str
        That a tree of this kind has.
    figures : callable
        From the tree to figures by name.
    tables : callable
        From the tree to what else the template shows; ``accuracy`` and ``steps`` at its ends among it.
    """

    name: str
    network: str
    section: str
    template: str
    groups: tuple[str, ...]
    figures: Callable[[xr.DataTree], dict[str, Figure]]
    tables: Callable[[xr.DataTree], dict[str, Any]]


KINDS: Final = (
    StudyKind(
        "cnn", "CNN", "What emerges in the CNN", "cnn_study.html.j2",
        ("performance", "selectivity", "waking", "emergence"), cnn_figures, cnn_tables,
    ),
    StudyKind(
        "transformer", "transformer", "What the heads of the transformer do", "transformer_study.html.j2",
        ("performance", "measures", "patterns"), transformer_figures, transformer_tables,
    ),
    StudyKind(
        "mlp", "network's representations", "How representations change", "mlp_study.html.j2",
        ("performance", "dimensionality"), mlp_figures, mlp_tables,
    ),
)  # fmt: skip


def kind_of(study: xr.DataTree) -> StudyKind:
    """Return of what kind a study is.

    Raises
    ------
    NotFoundError
        The tree is no study.
    """
    for kind in KINDS:
        if all(name in study.children for name in kind.groups):
            return kind
    missing = next(name for name in KINDS[0].groups if name not in study.children)
    raise NotFoundError(
        f"The DataTree has no group {missing}: pass what cnn_study, transformer_study or mlp_study gave."
    )


def study_figures(study: xr.DataTree) -> dict[str, Figure]:
    """Draw the figures of a study.

    Raises
    ------
    NotFoundError
        The tree is no study.
    """
    return kind_of(study).figures(study)


def require_study_folder(out_dir: str | Path) -> None:
    """Raise what `study_page` would, before the work, where that can be told."""
    require_free(out_dir, TEMPLATE, (NUMBERS,))


def study_page(study: xr.DataTree, out_dir: str | Path) -> Path:
    """Write a study's figures, each as PDF and PNG, its page, and its numbers.

    Parameters
    ----------
    study : DataTree
        From `cnn_study`, `transformer_study` or `mlp_study`.
    out_dir : str or Path
        Folder, made where missing; an older study in it is replaced.

    Returns
    -------
    Path
        ``index.html``. Beside it lie the figures and ``study.zarr``, which ``xarray.open_datatree`` reads.

    Raises
    ------
    NotFoundError
        The tree is no study.
    InvalidInputError
        The folder is a store, or holds files of others; nothing is written.
    StorageError
        The folder cannot be written.
    """
    kind, store = kind_of(study), str(study.attrs.get("store", ""))
    with staged(out_dir, TEMPLATE, (NUMBERS,)) as folder:
        page = render(TEMPLATE, f"Study of a {kind.network}", study=study_files(study, folder), store=store)
        write_page(page, folder / INDEX, "The study")
    return Path(out_dir) / INDEX


def study_files(study: xr.DataTree, out_dir: str | Path) -> dict[str, Any]:
    """Write a study's figures and numbers into a folder, and return what a page shows of them.

    Parameters
    ----------
    study : DataTree
    out_dir : str or Path

    Returns
    -------
    dict
        ``template``, ``figures`` as of `figure_source`, ``left_out``, and the tables of the kind.

    Raises
    ------
    NotFoundError, StorageError
        As in `study_page`.
    """
    kind, out = kind_of(study), Path(out_dir)
    figures = kind.figures(study)
    write_results(out, figures, study, NUMBERS)
    sources = [figure_source(name, figure) for name, figure in figures.items()]
    left_out = str(study.attrs.get("left_out", ""))
    return {"template": kind.template, "figures": sources, "left_out": left_out, **kind.tables(study)}
