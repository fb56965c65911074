"""What the study of a CNN shows: its figures, and the numbers of its tables."""

from __future__ import annotations

from typing import Any, Final

import xarray as xr
from matplotlib.figure import Figure

from ndt_query.plot.composition import composed_share
from ndt_query.plot.measures import selectivity
from ndt_query.plot.study import emergence, hierarchy
from ndt_query.plot.waking import waking_units, woken_examples
from ndt_store.dims import CHECKPOINT, LAYER, UNIT

__all__ = ["cnn_figures", "cnn_tables"]

_ENDS: Final = {"first": 0, "last": -1}


def cnn_figures(study: xr.DataTree) -> dict[str, Figure]:
    """Draw hierarchy, emergence, selectivity, composition, waking, and stimuli of woken units."""
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


def _parts(node: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets below a node, by their path from it."""
    return {one.relative_to(node): one.to_dataset() for one in node.subtree if one.has_data and one is not node}


def _pair(name: str) -> tuple[str, str]:
    early, _, late = name.partition("--")
    return early, late


def cnn_tables(study: xr.DataTree) -> dict[str, Any]:
    """Return what ``cnn_study.html.j2`` shows beside figures: a row for each layer and for each pair of layers."""
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
