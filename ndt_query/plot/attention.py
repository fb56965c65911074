"""Figures of attention: mean patterns of heads, their measures over training, and when heads came to differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    OKABE_ITO,
    SINGLE_COLUMN,
    layer_colours,
    layer_legend,
    plain,
    step_axis,
    styled,
    tail,
)
from ndt_store.dims import CHECKPOINT, HEAD, LAYER
from ndt_store.errors import DimensionError, NotFoundError

__all__ = ["attention_measures", "attention_patterns", "head_specialisation"]

GREY: Final = "#666666"
CELL: Final = 0.62
"""Inches of one pattern."""

MOST_ROWS: Final = 16
MOST_MOMENTS: Final = 8
NAMES: Final = {
    "entropy": "entropy",
    "hoyer": "Hoyer sparsity",
    "gini": "Gini index",
    "share": "keys above 0.1",
    "distance": "distance, tokens",
}


@styled
def attention_patterns(result: xr.Dataset, *, checkpoints: Sequence[int] | None = None) -> Figure:
    """Draw the mean attention pattern of each head, a row, at each checkpoint, a column.

    Parameters
    ----------
    result : Dataset (checkpoint, [layer,] head, query, key)
        From `ndt_query.mean_pattern`.
    checkpoints : sequence of int, optional
        By default at most eight that span those of the result.

    Returns
    -------
    Figure
        At most double column. Rows of a pattern are queries, columns keys. Each head's row has one scale, from 0 to its
        largest value, which stands at its right. At most 16 heads, those of the first layers.

    Raises
    ------
    DimensionError
        The result has no patterns over checkpoints.
    """
    if "pattern" not in result or CHECKPOINT not in result["pattern"].dims:
        raise DimensionError("The result has no pattern over checkpoint: pass that of mean_pattern for several.")
    steps = [int(one) for one in result[CHECKPOINT].values]
    if checkpoints is None:
        places = np.unique(np.linspace(0, len(steps) - 1, MOST_MOMENTS).round().astype(int))
        checkpoints = [steps[place] for place in places]
    rows = _heads(result["pattern"].sel({CHECKPOINT: list(checkpoints)}))[:MOST_ROWS]
    n_columns = len(checkpoints)
    cell = min(CELL, (DOUBLE_COLUMN - 1.5) / n_columns)
    figure = Figure(figsize=(n_columns * cell + 1.5, len(rows) * cell + 0.35), layout="constrained")
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    for row, (line, (name, patterns)) in enumerate(zip(grid, rows, strict=True)):
        largest = float(patterns.max())
        for axes, step, pattern in zip(line, checkpoints, patterns.values, strict=True):
            axes.imshow(pattern, vmin=0, vmax=largest if np.isfinite(largest) and largest else 1, cmap="viridis")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"{step:,}".replace(",", "\u2009"), loc="center", fontsize=7)
        line[0].set_ylabel(plain(name, 26), rotation=0, ha="right", va="center", fontsize=6)
        line[-1].annotate(
            f"{largest:.2g}", (1.06, 0.5), xycoords="axes fraction", va="center", fontsize=5.5, color=GREY
        )
    figure.supxlabel("training step above; queries down, keys across", fontsize=7, color=GREY)
    return figure


@styled
def attention_measures(result: xr.Dataset, *, measures: Sequence[str] | None = None) -> Figure:
    """Draw measures of attention over training, a line for each head.

    Parameters
    ----------
    result : Dataset (checkpoint, [layer,] head)
        From `ndt_query.attention_entropy`, `attention_sparsity` or `attention_distance`, or several of them merged.
    measures : sequence of str, optional
        By default those of the result, four at most.

    Returns
    -------
    Figure
        At most double column; a panel for each measure, a colour for each layer. Bands are the intervals of the result.

    Raises
    ------
    DimensionError
        The result has no such measure, or no checkpoints.
    """
    held = [name for name in NAMES if name in result]
    chosen = list(measures) if measures is not None else [name for name in held if name != "share"][:4]
    missing = [name for name in chosen if name not in held]
    if missing or not chosen or CHECKPOINT not in result.dims:
        raise DimensionError(
            f"The result has {', '.join(held) or 'no measure'} over {tuple(result.dims)}: expected "
            f"{missing[0] if missing else 'a measure of attention'} over checkpoint."
        )
    layers = (
        [str(one) for one in result[LAYER].values] if LAYER in result.dims else [str(result.attrs.get("layer", ""))]
    )
    colours = layer_colours(layers)
    steps = result[CHECKPOINT].values
    columns = min(2, len(chosen))
    width = min(DOUBLE_COLUMN, 2.9 * columns + 1.0)
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(width, 1.75 * rows + 0.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, chosen, strict=False):
        for layer in layers:
            part = result.sel({LAYER: layer}) if LAYER in result.dims else result
            for place, head in enumerate(part[HEAD].values):
                one = part.sel({HEAD: head}) if HEAD in part.indexes else part.isel({HEAD: place})
                if bool(one[name].isnull().all()):
                    continue
                axes.fill_between(
                    steps, one[f"{name}_low"], one[f"{name}_high"], color=colours[layer], alpha=0.12, linewidth=0
                )
                axes.plot(
                    steps,
                    one[name],
                    color=colours[layer],
                    linewidth=0.9,
                    label=tail(layer, 26) if place == 0 else None,
                )
        axes.set_ylabel(NAMES[name])
        step_axis(axes, steps, width / columns - 0.8)
    layer_legend(figure, panels[0])
    return figure


@styled
def head_specialisation(result: xr.Dataset, *, categories: xr.Dataset | None = None) -> Figure:
    """Draw how different the heads of each layer are over training.

    Parameters
    ----------
    result : Dataset (checkpoint, [layer])
        From `ndt_query.head_specialisation`, with ``half`` and ``half_after`` where the study added them.
    categories : Dataset (checkpoint, kind), optional
        From `ndt_query.head_categories`: a second panel.

    Returns
    -------
    Figure
        Left: lines are layers, with intervals, corrected for the bias of finite examples. Bars below span the two
        checkpoints between which half of a layer's rise happened. Right, with `categories`: shares of heads.

    Raises
    ------
    DimensionError
        The result has no specialisation over checkpoints.
    """
    if "specialisation" not in result or CHECKPOINT not in result.dims:
        raise DimensionError("The result has no specialisation over checkpoint: pass that of head_specialisation.")
    layers = [str(one) for one in result[LAYER].values] if LAYER in result.dims else [""]
    colours = layer_colours(layers)
    steps = result[CHECKPOINT].values
    wide = categories is not None
    figure = Figure(figsize=(DOUBLE_COLUMN if wide else SINGLE_COLUMN + 1.2, 2.9), layout="constrained")
    timed = "half" in result
    ratios = [3, max(0.8, 0.25 * len(layers))] if timed else [1]
    grid = figure.add_gridspec(len(ratios), 2 if wide else 1, height_ratios=ratios)
    axes = figure.add_subplot(grid[0, 0])
    below = figure.add_subplot(grid[1, 0], sharex=axes) if timed else None
    for place, layer in enumerate(layers):
        one = result.sel({LAYER: layer}) if LAYER in result.dims else result
        low, high = one["specialisation_low"], one["specialisation_high"]
        axes.fill_between(steps, low, high, color=colours[layer], alpha=0.15, linewidth=0)
        axes.plot(steps, one["specialisation"], marker="o", color=colours[layer], label=tail(layer, 26) or None)
        if below is not None and np.isfinite(one["half"]):
            below.plot(
                [one["half_after"], one["half"]],
                [place, place],
                color=colours[layer],
                linewidth=4,
                solid_capstyle="butt",
            )
    axes.set_ylim(bottom=min(0.0, float(result["specialisation_low"].min())))
    axes.set_ylabel("divergence of heads, bits")
    if below is not None:
        axes.tick_params(labelbottom=False)
        below.set_yticks(range(len(layers)), [tail(one, 20) for one in layers], fontsize=5.5)
        below.set_ylim(len(layers) - 0.4, -0.6)
        below.set_ylabel("half risen", fontsize=6.5)
    step_axis(below if below is not None else axes, steps, 2.6)
    if categories is not None:
        _categories(figure.add_subplot(grid[:, 1]), categories)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(3, len(labels)), handlelength=1.2)
    return figure


def _categories(axes: Axes, categories: xr.Dataset) -> None:
    """Stack the shares of heads of each category over checkpoints."""
    if "share" not in categories or "kind" not in categories.dims:
        raise NotFoundError("The categories have no share over kind: pass those of head_categories.")
    steps = categories[CHECKPOINT].values
    bottom: Any = np.zeros(len(steps))
    places = np.arange(len(steps))
    for colour, name in zip((*OKABE_ITO[:4], "#d9d9d9"), categories["kind"].values, strict=False):
        share = categories["share"].sel(kind=name).values
        axes.bar(places, share, 0.75, bottom, color=colour, label=str(name))
        bottom = bottom + share
    axes.set_xticks(places, [str(step) for step in steps], fontsize=6, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_ylim(0, 1)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("share of heads")
    axes.set_xlabel("training step")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=6, handlelength=1.0, columnspacing=0.9)


def _heads(patterns: xr.DataArray) -> list[tuple[str, xr.DataArray]]:
    """Return name and patterns (checkpoint, query, key) of each head, without what pads it to other layers' tokens."""
    found = []
    layers = [str(one) for one in patterns[LAYER].values] if LAYER in patterns.dims else [""]
    for layer in layers:
        part = patterns.sel({LAYER: layer}) if LAYER in patterns.dims else patterns
        for place in range(part.sizes[HEAD]):
            one = part.isel({HEAD: place}).transpose(CHECKPOINT, ...)
            one = one.dropna("query", how="all").dropna("key", how="all")
            if one.size:
                head = part[HEAD].values[place] if HEAD in part.coords else place
                found.append((f"{layer[-18:]} {head}".strip(), one.compute()))
    return found
