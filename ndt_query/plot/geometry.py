"""Figures of geometry over training: overlap and drift of subspaces, and explained variance."""

from __future__ import annotations

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

__all__ = ["components", "layer_parts", "subspace_drift", "subspace_overlap"]

GREY: Final = "#666666"
SHADE: Final = "#bdbdbd"
COLUMNS: Final = 4
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
    parts = layer_parts(result, "overlap", "subspace_overlap")
    figure, grid = _panels(len(parts), 2.3)
    n_rows, n_columns = grid.shape
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
    bar = figure.colorbar(image, ax=grid, shrink=0.9 if n_rows == 1 else 0.5, pad=0.02)
    bar.set_label("overlap of subspaces")
    bar.outline.set_linewidth(0.4)
    return figure


def _panels(n: int, width: float, height: float | None = None, **options: Any) -> tuple[Figure, Any]:
    """Make a panel for each of n layers, up to `COLUMNS` beside each other: square ones, or of a height in inches."""
    n_columns = min(COLUMNS, n)
    n_rows = math.ceil(n / n_columns)
    whole = SINGLE_COLUMN if n == 1 else min(DOUBLE_COLUMN, width * n_columns + 0.6)
    row = (whole - 0.9) / n_columns + 0.45 if height is None else height
    figure = Figure(figsize=(whole, row * n_rows + 0.4), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, **options)
    for axes in list(grid.flat)[n:]:
        axes.set_axis_off()
    return figure, grid


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
    parts = layer_parts(result, "smoothness", "subspace_drift", over="transition")
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
        said = "no turn"
        if np.isfinite(score):
            right.barh(place, null, height=0.6, color=SHADE, alpha=0.6, linewidth=0)
            right.plot(score, place, "o", color=colours[name], clip_on=False, markersize=4,
                       markerfacecolor=colours[name] if p <= 0.05 else "white")  # fmt: skip
            said = f"$p$ = {p:.2g}"
        right.annotate(said, (1.04, place), xycoords=("axes fraction", "data"), va="center", fontsize=6,
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
    parts = layer_parts(result, "explained_variance_ratio", "pca")
    figure, grid = _panels(len(parts), 2.2, 1.65, sharey=True)
    n_columns = grid.shape[1]
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
    steps = max((part[CHECKPOINT].values for part in parts.values()), key=len)
    shown = mpl.colors.ListedColormap(scale(np.linspace(0, 0.92, max(2, most))))
    colours = mpl.cm.ScalarMappable(mpl.colors.Normalize(-0.5, max(2, most) - 0.5), shown)
    some = np.unique(np.linspace(0, most - 1, min(MOST_TICKS, most)).round().astype(int))
    bar = figure.colorbar(colours, ax=grid, pad=0.02, shrink=0.9)
    bar.set_ticks(some.tolist(), labels=[f"{steps[c]:,}".replace(",", "\u2009") for c in some])
    bar.set_label("checkpoint")
    bar.outline.set_linewidth(0.4)
    return figure


def layer_parts(result: Any, needed: str, source: str, over: str = CHECKPOINT) -> dict[str, xr.Dataset]:
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
