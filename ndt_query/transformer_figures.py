"""What the study of a transformer shows: its figures, and the numbers of its tables."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ndt_query.plot.attention import attention_measures, attention_patterns, head_specialisation
from ndt_query.plot.flow import attention_flow, bottlenecks
from ndt_query.plot.heads import head_clusters, head_importance
from ndt_store.dims import CHECKPOINT, HEAD, LAYER

__all__ = ["transformer_figures", "transformer_tables"]

ENDS: Final = (0, -1)


def transformer_figures(study: xr.DataTree) -> dict[str, Figure]:
    """Draw patterns and measures of heads, and what else is there: specialisation, clusters, importance, flow."""
    held = {name: node.to_dataset() for name, node in study.children.items()}
    figures = {
        "patterns": attention_patterns(held["patterns"]),
        "measures": attention_measures(held["measures"]),
    }
    if "specialisation" in held:
        figures["specialisation"] = head_specialisation(held["specialisation"], categories=held.get("categories"))
    if "clusters" in held:
        figures["clusters"] = head_clusters(held["clusters"])
    if "importance" in held:
        figures["importance"] = head_importance(held["importance"])
    if "flow" in held:
        figures["flow"] = attention_flow(held["patterns"], held["flow"])
        if "image" in held:
            image = held["image"]
            grid = int(image.attrs["rows"]), int(image.attrs["columns"])
            figures["bottlenecks"] = bottlenecks(
                held["flow"], image["image"].values, grid, n_prefix=int(image.attrs["n_prefix"])
            )
    return figures


def transformer_tables(study: xr.DataTree) -> dict[str, Any]:
    """Return what ``transformer_study.html.j2`` shows beside figures: a row for each head, and one for each layer."""
    measures, did = study["measures"].to_dataset(), study["performance"].to_dataset()
    steps = measures[CHECKPOINT].values
    accuracy = [f"{float(did['accuracy'][place]):.1%}" for place in ENDS]
    heads = [
        _head(study, measures, str(layer), place)
        for layer in measures[LAYER].values
        for place in range(measures.sizes[HEAD])
        if bool(measures["entropy"].sel({LAYER: layer}).isel({HEAD: place}).notnull().any())
    ]
    return {
        "heads": heads, "layers": _layers(study), "accuracy": accuracy, "steps": (int(steps[0]), int(steps[-1])),
    }  # fmt: skip


def _head(study: xr.DataTree, measures: xr.Dataset, layer: str, place: int) -> dict[str, str]:
    one = measures.sel({LAYER: layer}).isel({HEAD: place})
    found = {
        "layer": layer,
        "head": str(one[HEAD].item() if HEAD in one.coords else place),
        "entropy": _ends(one["entropy"].values, ".2f"),
        "distance": _ends(one["distance"].values, ".2f"),
        "selective": "",
        "selective_q": "",
        "category": "",
        "class_accuracy": "",
        "importance": "",
        "importance_interval": "",
    }
    if "selectivity" in study.children:
        told = study["selectivity"].to_dataset().sel({LAYER: layer}).isel({HEAD: place, CHECKPOINT: -1})
        found["selective"] = f"{float(told['eta_squared']):.2f}"
        found["selective_q"] = f"q {float(told['q_value']):.2g}"
    called = study["categories"].to_dataset()["category"] if "categories" in study.children else None
    if called is not None and layer in called[LAYER].values:
        called = called.sel({LAYER: layer}).isel({CHECKPOINT: -1})
        if place < called.sizes[HEAD]:
            found["category"] = str(called.isel({HEAD: place}).item())
            probed = study["probes"].to_dataset().sel({LAYER: layer}).isel({HEAD: place})
            found["class_accuracy"] = _ends(probed["class_accuracy"].values, ".0%")
    if "importance" in study.children:
        worth = study["importance"].to_dataset()
        if layer in worth[LAYER].values:
            drop = worth.isel({"step": -1, "ablation": 0}).sel({LAYER: layer}).isel({HEAD: place})
            low, high = float(drop["accuracy_drop_low"]), float(drop["accuracy_drop_high"])
            found["importance"] = f"{float(drop['accuracy_drop']):.1%}"
            found["importance_interval"] = f"{low:.1%} to {high:.1%}"
    return found


def _layers(study: xr.DataTree) -> list[dict[str, str]]:
    if "specialisation" not in study.children:
        return []
    found = study["specialisation"].to_dataset()
    rows = []
    for layer in found[LAYER].values:
        one = found.sel({LAYER: layer})
        when = "limits overlap" if bool(one["half"].isnull()) else f"{int(one['half_after'])} to {int(one['half'])}"
        rows.append(
            {
                "layer": str(layer),
                "first": _with_interval(one.isel({CHECKPOINT: 0})),
                "last": _with_interval(one.isel({CHECKPOINT: -1})),
                "p": f"{float(one['p_value'][-1]):.2g}",
                "when": when,
            }
        )
    return rows


def _with_interval(one: xr.Dataset) -> str:
    low, high = float(one["specialisation_low"]), float(one["specialisation_high"])
    return f"{float(one['specialisation']):.3f} ({low:.3f} to {high:.3f})"


def _ends(values: Any, form: str) -> str:
    first, last = (float(np.asarray(values)[place]) for place in ENDS)
    return f"{first:{form}} to {last:{form}}"
