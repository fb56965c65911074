"""What the study of a CNN shows: its figures, and the numbers of its tables."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
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
        pairs = {_pair(part): part for part in _parts(study.children["composition"]).values()}
        figures["composition"] = composed_share(pairs)
    return figures


def _parts(node: xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the Datasets below a node, by what they are of."""
    return {unquote(name): one.to_dataset() for name, one in node.children.items()}


def _pair(part: xr.Dataset) -> tuple[str, str]:
    return str(part.attrs["early_layer"]), str(part.attrs["layer"])


def cnn_tables(study: xr.DataTree) -> dict[str, Any]:
    """Return what ``cnn_study.html.j2`` shows beside figures: a row for each layer and for each pair of layers."""
    found, did = study["emergence"].to_dataset(), study["performance"].to_dataset()
    waking = study["waking"].to_dataset()
    # A unit that wakes up at a jump does so between the moments about it as well: each counts once.
    names = waking["layer_of"].values.astype(str).tolist() if waking.sizes["woken_unit"] else []
    woken = Counter(layer for layer, _ in set(zip(names, waking["unit"].values.tolist(), strict=True)))
    rows = []
    for layer in found[LAYER].values:
        one = found.sel({LAYER: layer})
        ends = {key: _share(one, place) for key, place in _ENDS.items()}
        when = "limits overlap" if one["half"].isnull() else f"{int(one['half_after'])} to {int(one['half'])}"
        awake = woken[str(layer)]
        rows.append({"layer": str(layer), "units": int(one["n_units"]), **ends, "when": when, "woken": awake})
    composed = []
    for part in _parts(study.children["composition"]).values() if "composition" in study.children else ():
        made, varying = (one.sum(UNIT).values for one in (part["composed"], part["r2"].notnull()))
        composed.append(
            {"pair": " to ".join(_pair(part)), **{key: f"{made[at]} of {varying[at]}" for key, at in _ENDS.items()}}
        )
    accuracy = [f"{float(did['accuracy'][place]):.1%}" for place in (0, -1)]
    steps = found[CHECKPOINT].values
    return {
        "rows": rows, "composed": composed, "accuracy": accuracy, "steps": (int(steps[0]), int(steps[-1])),
        "left_out": str(study.attrs.get("left_out", "")),
    }  # fmt: skip


def _share(one: xr.Dataset, place: int) -> str:
    low, high = float(one["share_low"][place]), float(one["share_high"][place])
    if np.isnan(low):
        return "\u2013"
    return f"{float(one['share'][place]):.0%} ({low:.0%} to {high:.0%})"
