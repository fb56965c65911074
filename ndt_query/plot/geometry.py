"""Figures of geometry over training: overlap and drift of subspaces, explained variance, how far classes come apart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    MOST_NAMED,
    SINGLE_COLUMN,
    Result,
    layer_colours,
    percent_axis,
    results_by_layer,
    step_axis,
    styled,
    tail,
)
from ndt_store.dims import CHECKPOINT, LAYER
from ndt_store.errors import DimensionError

__all__ = ["components", "disentanglement", "subspace_drift", "subspace_overlap"]

GREY: Final = "#666666"
SHADE: Final = "#bdbdbd"
COLUMNS: Final = 4
FEW: Final = 5
MOST_TICKS: Final = 5
NAME: Final = 20


@styled
def subspace_overlap(result: Result) -> Figure:
    """Draw how far subspaces of all pairs of checkpoints overlap, a matrix for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint, other_checkpoint[, layer]) or mapping of layers to Datasets
        From `ndt_query.subspace_overlap`.

    Returns
    -------
    Figure
        At most double column. Checkpoints are drawn in their order, at even distance. All matrices share a scale from 0
        to 1; the title of each says what random subspaces would overlap by.

    Raises
    ------
    DimensionError
        The result is another one.
    """
    parts = _parts(result, "overlap", "subspace_overlap")
    n_columns = min(COLUMNS, len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    width = SINGLE_COLUMN if len(parts) == 1 else min(DOUBLE_COLUMN, 2.3 * n_columns + 0.6)
    panel = (width - 0.9) / n_columns
    figure = Figure(figsize=(width, (panel + 0.45) * n_rows + 0.35), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    image: Any = None
    for place, (axes, (name, part)) in enumerate(zip(grid.flat, parts.items(), strict=False)):
        steps = part[CHECKPOINT].values
        matrix = part["overlap"].transpose(CHECKPOINT, "other_checkpoint").values
        image = axes.imshow(matrix, vmin=0, vmax=1, origin="lower")
        axes.grid(visible=False)
        axes.set_title(f"{tail(name, NAME)}\nchance {float(part['chance']):.2g}", fontsize=7)
        _tick_checkpoints(axes, steps, place % n_columns == 0)
        if place + n_columns >= len(parts):
            axes.set_xlabel("checkpoint")
    _blank(grid, len(parts))
    bar = figure.colorbar(image, ax=grid, shrink=0.9 if n_rows == 1 else 0.5, pad=0.02)
    bar.set_label("overlap of subspaces")
    bar.outline.set_linewidth(0.4)
    return figure


def _blank(grid: Any, used: int) -> None:
    for axes in list(grid.flat)[used:]:
        axes.set_axis_off()


def _tick_checkpoints(axes: Axes, steps: NDArray[Any], named: bool) -> None:
    """Name some checkpoints on both axes, always the first and the last."""
    some = np.unique(np.linspace(0, len(steps) - 1, min(MOST_TICKS, len(steps))).round().astype(int))
    texts = [f"{steps[place]:,}".replace(",", "\u2009") for place in some]
    axes.set_xticks(some, texts, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(some, texts if named else [""] * len(some))
    axes.set_ylabel("checkpoint" if named else "")


@styled
def subspace_drift(result: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """Draw how far subspaces turn from checkpoint to checkpoint, and whether they do so smoothly.

    Parameters
    ----------
    result : Dataset (transition[, layer]) or mapping of layers to Datasets
        From `ndt_query.subspace_drift`.

    Returns
    -------
    Figure
        Double column. Left: the drift up to each checkpoint since the one before, a line a layer, and dashed what
        random subspaces drift by. Right: the smoothness of each layer, a dot, filled where p is at most 5%, and a bar
        from the least to what 5% of the surrogates stay below, with p beside.

    Raises
    ------
    DimensionError
        The result is another one.
    """
    parts = _parts(result, "smoothness", "subspace_drift", over="transition")
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(DOUBLE_COLUMN, max(2.5, 0.9 + 0.2 * len(parts))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    for level in sorted({1 - float(part["chance"]) for part in parts.values()}):
        left.axhline(level, color=GREY, linestyle="--", linewidth=0.7)
    left.plot([], [], color=GREY, linestyle="--", linewidth=0.7, label="random subspaces")
    for name, part in parts.items():
        left.plot(part["after"].values, part["drift"].values, marker="o", color=colours[name])
    left.set_ylim(0, 1.02)
    left.set_ylabel("drift since the checkpoint before")
    step_axis(left, next(iter(parts.values()))["after"].values, 3.6)
    left.legend(loc="upper right", borderaxespad=0.1)
    for place, (name, part) in enumerate(parts.items()):
        score, null, p = (float(part[one]) for one in ("smoothness", "null_05", "p_value"))
        right.barh(place, null, height=0.6, color=SHADE, alpha=0.6, linewidth=0)
        right.plot(score, place, "o", color=colours[name], clip_on=False, markersize=4,
                   markerfacecolor=colours[name] if p <= 0.05 else "white")  # fmt: skip
        right.annotate(f"$p$ = {p:.2g}", (1.04, place), xycoords=("axes fraction", "data"), va="center", fontsize=6,
                       annotation_clip=False)  # fmt: skip
    right.set_yticks(range(len(parts)), [tail(name, NAME) for name in parts])
    right.set_ylim(len(parts) - 0.4, -0.6)
    right.set_xlim(0, 1)
    right.grid(visible=False, axis="y")
    right.set_xlabel("smoothness; grey: 5% of surrogates lie here")
    return figure


@styled
def components(result: Result) -> Figure:
    """Draw the share of variance that the first components hold, a panel for each layer and a line a checkpoint.

    Parameters
    ----------
    result : DataTree, Dataset (checkpoint, rank) or mapping of layers to Datasets
        From `ndt_query.pca`.

    Returns
    -------
    Figure
        At most double column. Lines run from dark, early, to light, late.

    Raises
    ------
    DimensionError
        The result is another one.
    """
    parts = _parts(result, "explained_variance_ratio", "pca")
    n_columns = min(COLUMNS, len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    width = SINGLE_COLUMN if len(parts) == 1 else min(DOUBLE_COLUMN, 2.2 * n_columns + 0.6)
    figure = Figure(figsize=(width, 1.6 * n_rows + 0.5), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    most = max(part.sizes[CHECKPOINT] for part in parts.values())
    scale = mpl.colormaps["viridis"].resampled(max(2, most))
    for place, (axes, (name, part)) in enumerate(zip(grid.flat, parts.items(), strict=False)):
        share = part["explained_variance_ratio"].transpose(CHECKPOINT, "rank").values.cumsum(axis=1)
        ranks = np.arange(1, share.shape[1] + 1)
        for c, row in enumerate(share):
            axes.plot(ranks, row, color=scale(c / max(1, most - 1) * 0.92), linewidth=0.8,
                      marker="." if len(ranks) <= 20 else None, markersize=2.5)  # fmt: skip
        axes.set_title(tail(name, NAME))
        axes.set_ylim(0, 1.02)
        percent_axis(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if place + n_columns >= len(parts):
            axes.set_xlabel("components")
        if place % n_columns == 0:
            axes.set_ylabel("of the variance")
    _blank(grid, len(parts))
    steps = max((part[CHECKPOINT].values for part in parts.values()), key=len)
    shown = mpl.colors.ListedColormap(scale(np.linspace(0, 0.92, max(2, most))))
    colours = mpl.cm.ScalarMappable(mpl.colors.Normalize(-0.5, max(2, most) - 0.5), shown)
    some = np.unique(np.linspace(0, most - 1, min(MOST_TICKS, most)).round().astype(int))
    bar = figure.colorbar(colours, ax=grid, pad=0.02, shrink=0.9)
    bar.set_ticks(some.tolist(), labels=[f"{steps[c]:,}".replace(",", "\u2009") for c in some])
    bar.set_label("checkpoint")
    bar.outline.set_linewidth(0.4)
    return figure


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
    parts = _parts(result, "silhouette", "disentanglement")
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.9), layout="constrained")
    grid = figure.subplots(2, 3)
    accuracy, silhouette, separation, of_class, intrinsic, names = grid.flat
    _controls(accuracy, parts)
    shade = 0.18 if len(parts) <= FEW else 0.07
    for name, part in parts.items():
        steps, look = part[CHECKPOINT].values, {"color": colours[name], "marker": "o", "markersize": 2}
        band = {"color": colours[name], "linewidth": 0}
        for axes, measure in ((accuracy, "accuracy"), (silhouette, "silhouette")):
            axes.fill_between(steps, part[f"{measure}_low"], part[f"{measure}_high"], alpha=shade, **band)
            axes.plot(steps, part[measure], **look)
        separation.plot(steps, part["separation"], **look)
        dims = part["class_dimension"].transpose("class", CHECKPOINT).values
        if len(parts) <= FEW:
            of_class.fill_between(steps, dims.min(axis=0), dims.max(axis=0), alpha=shade, **band)
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
    axes.fill_between(table[CHECKPOINT].values, low, high, color=SHADE, linewidth=0, alpha=0.7)
    axes.plot(table[CHECKPOINT].values, (low + high) / 2, color=GREY, linewidth=0.8, linestyle=":")


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


def _parts(result: Any, needed: str, source: str, over: str = CHECKPOINT) -> dict[str, xr.Dataset]:
    """Split by layer, and see that it is the right result."""
    if over == CHECKPOINT:
        parts = results_by_layer(result)
    elif not isinstance(result, xr.Dataset):
        parts = dict(result)
    elif LAYER in result.dims:
        parts = {str(name): result.sel({LAYER: name}) for name in result[LAYER].values}
    else:
        parts = {str(result.attrs.get(LAYER, "layer")): result}
    for part in parts.values():
        if needed not in part or over not in part.dims:
            raise DimensionError(f"The result has no {needed} over {over}: pass that of {source}.")
    return parts
