"""What the study of smooth learning shows: its figures, and the numbers of its table."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ndt_query.plot.disentangled import disentanglement
from ndt_query.plot.geometry import subspace_drift, subspace_overlap
from ndt_query.plot.gradients import gradient_anomalies, gradient_flow
from ndt_query.plot.measures import dimensionality, performance
from ndt_query.plot.similarity import cka_matrix
from ndt_store.dims import CHECKPOINT, LAYER

__all__ = ["mlp_figures", "mlp_tables"]

ENDS: Final = (0, -1)
DRAWN: Final = {
    "performance": performance,
    "dimensionality": dimensionality,
    "overlap": subspace_overlap,
    "drift": subspace_drift,
    "cka": cka_matrix,
    "disentanglement": disentanglement,
    "flow": gradient_flow,
    "anomalies": gradient_anomalies,
}


def mlp_figures(study: xr.DataTree) -> dict[str, Figure]:
    """Draw what is there of dimension, subspaces, similarity, disentanglement and gradients."""
    return {name: draw(study[name].to_dataset()) for name, draw in DRAWN.items() if name in study.children}


def mlp_tables(study: xr.DataTree) -> dict[str, Any]:
    """Return what ``mlp_study.html.j2`` shows beside figures: a row for each layer, and verdicts in words."""
    did = study["performance"].to_dataset()
    steps = did[CHECKPOINT].values
    layers = [_layer(study, str(layer)) for layer in study["dimensionality"].to_dataset()[LAYER].values]
    accuracy = [f"{float(did['accuracy'][place]):.1%}" for place in ENDS]
    return {
        "layers": layers, "changes": _changes(study), "warning": _warning(study), "accuracy": accuracy,
        "steps": (int(steps[0]), int(steps[-1])),
    }  # fmt: skip


def _layer(study: xr.DataTree, layer: str) -> dict[str, str]:
    row = {"layer": layer, "dimension": _ends(study, "dimensionality", layer, "participation_ratio", ".1f")}
    row["accuracy"] = _ends(study, "disentanglement", layer, "accuracy", ".0%")
    row["silhouette"] = _ends(study, "disentanglement", layer, "silhouette", ".2f")
    row["intrinsic"] = _ends(study, "disentanglement", layer, "intrinsic_dimension", ".1f")
    one = _of(study, "drift", layer)
    row["smoothness"] = "" if one is None else _smooth(one)
    one = _of(study, "growth", layer)
    row["growth"] = "" if one is None else _growth(one)
    return row


def _smooth(one: xr.Dataset) -> str:
    score = float(one["smoothness"])
    return f"{score:.2f} (p {float(one['p_value']):.2g})" if np.isfinite(score) else ""


def _growth(one: xr.Dataset) -> str:
    if not bool(one["growth"]):
        return "none beyond noise"
    falls = "falls" if float(one["rate"]) < 0 else "rises"
    middle, observed = float(one["midpoint"]), one["observed"]
    last = float(observed[observed.dims[-1]][-1])
    when = f"half by step {middle:.0f}" if 0 <= middle <= last else "with no middle in this training"
    return f"{falls} on the whole, {when}, R2 {float(one['r2']):.2f}"


def _of(study: xr.DataTree, node: str, layer: str) -> xr.Dataset | None:
    if node not in study.children:
        return None
    found = study[node].to_dataset()
    if LAYER not in found.dims or layer not in found[LAYER].values:
        return None
    return found.sel({LAYER: layer})


def _ends(study: xr.DataTree, node: str, layer: str, name: str, form: str) -> str:
    one = _of(study, node, layer)
    if one is None:
        return ""
    said = []
    for place in ENDS:
        now = one.isel({CHECKPOINT: place})
        text = f"{float(now[name]):{form}}" if np.isfinite(now[name]) else "\u2013"
        if f"{name}_low" in now and np.isfinite(now[f"{name}_low"]):
            text += f" ({float(now[f'{name}_low']):{form}} to {float(now[f'{name}_high']):{form}})"
        said.append(text)
    return "; then ".join(said) if any("(" in text for text in said) else " to ".join(said)


def _changes(study: xr.DataTree) -> list[dict[str, str]]:
    if "transition" not in study.children:
        return []
    found = study["transition"].to_dataset()
    rows = []
    for name in found["measure"].values:
        one = found.sel(measure=name)
        half = float(one["half_step"])
        rows.append(
            {
                "measure": str(name),
                "change": str(one["change"].item()),
                "p": f"{float(one['p_value']):.2g}",
                "half": "" if np.isnan(half) else f"{half:.0f}",
                "share": f"{float(one['largest_share']):.0%} (smooth: up to {float(one['null_share_95']):.0%})",
            }
        )
    return rows


def _warning(study: xr.DataTree) -> str:
    if "anomalies" not in study.children:
        return ""
    found = study["anomalies"].to_dataset()
    n, jumps, norms = (found.sizes[dim] for dim in ("anomaly", "jump", "step"))
    said = f"{n} of {norms} norms of the gradient stand out, and dimension jumps {jumps} times"
    if n and jumps:
        said += (
            f": {int(found['n_warned'])} jumps have an anomaly within ten measurements before, "
            f"{float(found['warned_by_chance']):.2g} with shuffled timing (p {float(found['warning_p_value']):.2g})"
        )
    return f"{said}."
