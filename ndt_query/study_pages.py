"""What a study of a CNN leaves behind: five figures for a paper, its numbers as arrays, and one page with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import xarray as xr
from matplotlib.figure import Figure

from ndt_query.pages import figure_source, render, write_page
from ndt_query.plot.composition import composed_share
from ndt_query.plot.measures import selectivity
from ndt_query.plot.study import emergence, hierarchy
from ndt_query.plot.style import save
from ndt_query.plot.waking import waking_units, woken_examples
from ndt_store.dims import CHECKPOINT, LAYER, UNIT
from ndt_store.errors import NotFoundError, StorageError

__all__ = ["study_figures", "study_files", "study_page"]

FORMATS: Final = (".pdf", ".png")
NUMBERS: Final = "study.zarr"
_ENDS: Final = {"first": 0, "last": -1}


def study_figures(study: xr.DataTree) -> dict[str, Figure]:
    """Draw the figures of a study: hierarchy, emergence, selectivity, composition, waking, and stimuli of woken units.

    Raises
    ------
    NotFoundError
        The tree is no study.
    """
    missing = [name for name in ("selectivity", "waking", "emergence", "performance") if name not in study.children]
    if missing:
        raise NotFoundError(f"The DataTree has no group {missing[0]}: pass what cnn_study gave.")
    figures = {
        "emergence": emergence(study["emergence"].to_dataset()),
        "selectivity": selectivity(_parts(study.children["selectivity"])),
        "waking": waking_units(study["waking"].to_dataset()),
    }
    if "types" in study.children:
        figures = {"hierarchy": hierarchy(_parts(study.children["types"])), **figures}
    if "stimuli" in study.children:
        stimuli = study["stimuli"].to_dataset()
        figures["stimuli"] = woken_examples(study["waking"].to_dataset(), stimuli["input"], stimuli["label"])
    if "composition" in study.children:
        pairs = {_pair(name): part for name, part in _parts(study.children["composition"]).items()}
        figures["composition"] = composed_share(pairs)
    return figures


def study_page(study: xr.DataTree, out_dir: str | Path) -> Path:
    """Write a study's figures, each as PDF and PNG, its page, and its numbers.

    Parameters
    ----------
    study : DataTree
        From `cnn_study`.
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
    StorageError
        The folder cannot be written.
    """
    values, out = study_files(study, out_dir), Path(out_dir)
    page = render("study.html.j2", "Study of a CNN", study=values, store=str(study.attrs.get("store", "")))
    return write_page(page, out / "index.html", "The study")


def study_files(study: xr.DataTree, out_dir: str | Path) -> dict[str, Any]:
    """Write a study's figures and numbers into a folder, and return what a page shows of them.

    Parameters
    ----------
    study : DataTree
    out_dir : str or Path

    Returns
    -------
    dict
        ``figures`` as of `figure_source`, ``rows`` for each layer, ``composed`` for each pair of layers, ``accuracy``
        and ``steps`` at the first and the last moment: what ``cnn_study.html.j2`` takes.

    Raises
    ------
    NotFoundError, StorageError
        As in `study_page`.
    """
    figures, out = study_figures(study), Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in FORMATS:
                save(figure, out / f"{name}{suffix}")
        _as_stored(study).to_zarr(out / NUMBERS, mode="w", zarr_format=3, consolidated=False)
    except OSError as error:
        raise StorageError(f"The study cannot be written to {out}: {error.strerror}; give another folder.") from error
    return {"figures": [figure_source(name, figure) for name, figure in figures.items()], **_tables(study)}


def _parts(node: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets below a node, by their path from it."""
    return {one.relative_to(node): one.to_dataset() for one in node.subtree if one.has_data and one is not node}


def _pair(name: str) -> tuple[str, str]:
    early, _, late = name.partition("--")
    return early, late


def _as_stored(study: xr.DataTree) -> xr.DataTree:
    """Return the study with its texts as objects: Zarr knows no texts of one length."""
    nodes = {}
    for node in study.subtree:
        found = node.to_dataset()
        texts = [name for name, one in found.variables.items() if one.dtype.kind == "U"]
        nodes[node.path] = found.assign({name: found[name].astype(object) for name in texts})
    return xr.DataTree.from_dict(nodes)


def _tables(study: xr.DataTree) -> dict[str, Any]:
    found, did = study["emergence"].to_dataset(), study["performance"].to_dataset()
    woken = study["waking"].to_dataset()["woken"].sum("moment")
    rows = []
    for layer in found[LAYER].values:
        one = found.sel({LAYER: layer})
        ends = {key: _share(one, place) for key, place in _ENDS.items()}
        when = "not beyond doubt" if one["half"].isnull() else f"{int(one['half_after'])} to {int(one['half'])}"
        awake = int(woken.sel({LAYER: layer}))
        rows.append({"layer": str(layer), "units": int(one["n_units"]), **ends, "when": when, "woken": awake})
    composed = []
    for name, part in _parts(study.children["composition"]).items() if "composition" in study.children else ():
        made, varying = (one.sum(UNIT).values for one in (part["composed"], part["r2"].notnull()))
        composed.append(
            {"pair": " to ".join(_pair(name)), **{key: f"{made[at]} of {varying[at]}" for key, at in _ENDS.items()}}
        )
    accuracy = [f"{float(did['accuracy'][place]):.1%}" for place in (0, -1)]
    steps = found[CHECKPOINT].values
    return {"rows": rows, "composed": composed, "accuracy": accuracy, "steps": (int(steps[0]), int(steps[-1]))}


def _share(one: xr.Dataset, place: int) -> str:
    low, high = float(one["share_low"][place]), float(one["share_high"][place])
    return f"{float(one['share'][place]):.0%} ({low:.0%} to {high:.0%})"
