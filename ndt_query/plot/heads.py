"""Figures of heads: dendrograms over training, and what each head is worth."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, layer_colours, step_axis, styled, tail
from ndt_store.dims import CHECKPOINT, HEAD, LAYER, STEP
from ndt_store.errors import DimensionError

__all__ = ["head_clusters", "head_importance"]

GREY: Final = "#666666"
MOST_TREES: Final = 6
MOST_HEADS: Final = 24


@styled
def head_clusters(result: xr.Dataset) -> Figure:
    """Draw the dendrogram of heads at some checkpoints, with their clusters and whether there are any.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.cluster_heads`.

    Returns
    -------
    Figure
        Double column; at most six checkpoints. Leaves are heads, coloured by their cluster of k-means; above, the
        silhouette with k clusters and its p value against one normal cloud.

    Raises
    ------
    DimensionError
        The Dataset has no linkage.
    """
    if "linkage" not in result or "member" not in result.dims:
        raise DimensionError("The result has no linkage over member: pass that of cluster_heads.")
    places = np.unique(np.linspace(0, result.sizes[CHECKPOINT] - 1, MOST_TREES).round().astype(int))
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.9 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in panels[len(places) :]:
        axes.set_axis_off()
    numbers = {layer: n for n, layer in enumerate(dict.fromkeys(str(one) for one in result["layer_of"].values))}
    leaves = [
        f"{numbers[str(layer)]}.{head}"
        for layer, head in zip(result["layer_of"].values, result["head_of"].values, strict=True)
    ]
    k = int(result.attrs.get("k", result.sizes["cluster"]))
    for axes, place in zip(panels, places, strict=False):
        one = result.isel({CHECKPOINT: int(place)})
        drawn: Any = dendrogram(
            one["linkage"].values,
            ax=axes,
            labels=leaves,
            color_threshold=0,
            above_threshold_color=GREY,
            leaf_font_size=6,
        )
        for text, leaf in zip(axes.get_xticklabels(), drawn["leaves"], strict=True):
            text.set_color(OKABE_ITO[int(one["label"].values[leaf]) % len(OKABE_ITO)])
        at = one.sel(k=k)
        axes.set_title(
            f"step {int(one[CHECKPOINT])}: silhouette {float(at['silhouette']):.2f}, p {float(at['p_value']):.2g}",
            fontsize=6.5,
        )
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", rotation=90 if len(leaves) > MOST_HEADS // 2 else 0)
    panels[0].set_ylabel("Ward distance")
    names = "; ".join(f"{n}: {tail(layer, 30)}" for layer, n in numbers.items())
    figure.supxlabel(f"layer.head, coloured by cluster ({names})", fontsize=6.5, color=GREY)
    return figure


@styled
def head_importance(result: xr.Dataset, *, method: str = "zero", step: int | None = None) -> Figure:
    """Draw what each head is worth, and whether its gradient would have told.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.head_importance`.
    method : str
        Of the ablation.
    step : int, optional
        Checkpoint of the bars; the last by default.

    Returns
    -------
    Figure
        Double column. Left: what accuracy falls by without each head, with intervals; filled where q is below 5%.
        Middle: the fall of the margin over training. Right: gradient importance against the fall of the margin.

    Raises
    ------
    DimensionError
        The Dataset has no accuracy_drop, or neither the method nor the step.
    """
    if "accuracy_drop" not in result:
        raise DimensionError("The result has no accuracy_drop: pass that of head_importance.")
    steps = result[STEP].values
    at = int(steps[-1]) if step is None else step
    if method not in result["ablation"].values or at not in steps:
        raise DimensionError(
            f"The result has no method {method!r} at step {at}: it has "
            f"{', '.join(str(one) for one in result['ablation'].values)}."
        )
    layers = [str(one) for one in result[LAYER].values]
    colours = layer_colours(layers)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])
    now, place, ticks = result.sel({"ablation": method, STEP: at}), 0, []
    for layer in layers:
        one = now.sel({LAYER: layer})
        for head in one[HEAD].values:
            cell = one.sel({HEAD: head})
            if bool(cell["accuracy_drop"].isnull()):
                continue
            drop = float(cell["accuracy_drop"])
            reach = [[drop - float(cell["accuracy_drop_low"])], [float(cell["accuracy_drop_high"]) - drop]]
            sure = float(cell["q_value"]) < 0.05
            left.errorbar(
                [drop],
                [place],
                xerr=reach,
                fmt="o",
                color=colours[layer],
                mfc=colours[layer] if sure else "white",
                capsize=1.5,
                elinewidth=0.8,
            )
            series = result.sel({"ablation": method, LAYER: layer, HEAD: head})
            middle.plot(
                steps,
                series["margin_drop"],
                color=colours[layer],
                linewidth=0.9,
                label=tail(layer, 26) if head == one[HEAD].values[0] else None,
            )
            right.plot(float(cell["gradient_importance"]), float(cell["margin_drop"]), "o", color=colours[layer])
            ticks.append(f"{layers.index(layer)}.{head}")
            place += 1
    left.axvline(0, color=GREY, linewidth=0.6)
    left.set_yticks(range(place), ticks, fontsize=6 if place <= MOST_HEADS else 4)
    left.invert_yaxis()
    left.set_xlabel("accuracy lost without it")
    left.set_ylabel("layer.head")
    left.set_title(f"step {at}; filled: q < 5%", fontsize=6.5, color=GREY)
    step_axis(middle, steps, 1.7)
    middle.axhline(0, color=GREY, linewidth=0.6)
    middle.set_ylabel("margin lost without it")
    right.axhline(0, color=GREY, linewidth=0.6)
    right.set_xlabel("gradient importance")
    right.set_ylabel("margin lost")
    right.set_title(
        f"rank correlation {float(now['rank_correlation']):.2f}, p {float(now['rank_p_value']):.2g}", fontsize=6.5
    )
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), handlelength=1.2)
    return figure
