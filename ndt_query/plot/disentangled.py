"""The figure of how far classes have come apart over training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ndt_query.plot.geometry import GREY, NAME, SHADE, layer_parts
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    MOST_NAMED,
    Result,
    interval_band,
    layer_colours,
    percent_axis,
    step_axis,
    styled,
    tail,
)
from ndt_store.dims import CHECKPOINT, LAYER

__all__ = ["disentanglement"]

FEW: Final = 5


@styled
def disentanglement(result: Result) -> Figure:
    """Draw how far classes have come apart over training, a line for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint[, layer]) or mapping of layers to Datasets
        From `ndt_query.disentanglement`.

    Returns
    -------
    Figure
        Double column: accuracy on held-out examples with its interval, grey what shuffled labels give, in all layers;
        silhouette with its interval; separation, on a logarithmic axis; components that hold 95% of the variance of a
        class, the mean over classes, and of up to five layers a band from the least class to the most; intrinsic
        dimension by TwoNN. Layers run from dark to light where there are more than seven.

    Raises
    ------
    DimensionError
        The result is another one, or has no checkpoints.
    """
    parts = layer_parts(result, "silhouette", "disentanglement")
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.9), layout="constrained")
    grid = figure.subplots(2, 3)
    accuracy, silhouette, separation, of_class, intrinsic, names = grid.flat
    _controls(accuracy, parts)
    shade = 0.18 if len(parts) <= FEW else 0.07
    for name, part in parts.items():
        steps, look = part[CHECKPOINT].values, {"color": colours[name], "marker": "o", "markersize": 2}
        band = {"color": colours[name], "alpha": shade}
        for axes, measure in ((accuracy, "accuracy"), (silhouette, "silhouette")):
            interval_band(axes, steps, part[f"{measure}_low"], part[f"{measure}_high"], **band)
            axes.plot(steps, part[measure], **look)
        separation.plot(steps, part["separation"], **look)
        dims = part["class_dimension"].transpose("class", CHECKPOINT).values
        if len(parts) <= FEW:
            interval_band(of_class, steps, dims.min(axis=0), dims.max(axis=0), **band)
        of_class.plot(steps, dims.mean(axis=0), **look)
        intrinsic.plot(steps, part["intrinsic_dimension"], label=tail(name, NAME), **look)
    percent_axis(accuracy)
    accuracy.set_ylim(top=1.02)
    silhouette.axhline(0, color=GREY, linewidth=0.5)
    if all(bool((part["separation"] > 0).all()) for part in parts.values()):
        separation.set_yscale("log")
    for axes in (of_class, intrinsic):
        axes.set_ylim(0, 1.08 * axes.dataLim.y1 if np.isfinite(axes.dataLim.y1) and axes.dataLim.y1 > 0 else 1)
    titles = ("accuracy, held out", "silhouette", "between over within classes", "components of a class",
              "intrinsic dimension (TwoNN)")  # fmt: skip
    every = np.unique(np.concatenate([part[CHECKPOINT].values for part in parts.values()]))
    for place, (axes, title) in enumerate(zip(grid.flat, titles, strict=False)):
        axes.set_title(title)
        step_axis(axes, every, 1.8, label=place >= 2)
    _key(names, intrinsic, parts)
    return figure


def _controls(axes: Axes, parts: Mapping[str, xr.Dataset]) -> None:
    """Shade what shuffled labels give in any layer: of each layer alone it would hide the lines."""
    table = xr.concat([part["control"] for part in parts.values()], LAYER)
    low, high = table.min(LAYER).values, table.max(LAYER).values
    steps = table[CHECKPOINT].values
    if len(steps) > 1:
        axes.fill_between(steps, low, high, color=SHADE, linewidth=0, alpha=0.7)
        axes.plot(steps, (low + high) / 2, color=GREY, linewidth=0.8, linestyle=":")
    else:
        axes.axhspan(low[0], high[0], color=SHADE, linewidth=0, alpha=0.7)
        axes.axhline((low[0] + high[0]) / 2, color=GREY, linewidth=0.8, linestyle=":")


def _key(axes: Axes, drawn: Axes, parts: Mapping[str, xr.Dataset]) -> None:
    """Name layers, the grey of shuffled labels, and the intervals, where a panel is empty."""
    axes.set_axis_off()
    handles, labels = drawn.get_legend_handles_labels()
    n = len(labels)
    some = range(n) if n <= MOST_NAMED else np.linspace(0, n - 1, MOST_NAMED).round().astype(int)
    shade = mpl.patches.Patch(color=SHADE, alpha=0.7, linewidth=0)
    control = (shade, mpl.lines.Line2D([], [], color=GREY, linewidth=0.8, linestyle=":"))
    axes.legend([*(handles[place] for place in some), control], [*(labels[place] for place in some), "shuffled labels"],
                loc="upper left", borderaxespad=0, ncols=1 if len(some) < 8 else 2, columnspacing=0.8,
                handlelength=1.2, fontsize=6.5)  # fmt: skip
    attrs = next(iter(parts.values())).attrs
    confidence = json.loads(attrs.get("parameters", "{}")).get("confidence")
    if confidence is not None:
        text = f"{confidence:.0%} intervals over {attrs.get('n_examples', '')} examples"
        axes.text(0, 0, text, transform=axes.transAxes, fontsize=6.5, color=GREY)
