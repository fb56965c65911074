"""Figures of similarity: layers against layers at a checkpoint, and checkpoints against checkpoints of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_query.plot.style import DOUBLE_COLUMN, SINGLE_COLUMN, plain, styled, tail
from ndt_store.dims import CHECKPOINT, LAYER
from ndt_store.errors import DimensionError

__all__ = ["cka_matrix"]

DIMS: Final = (LAYER, CHECKPOINT, "other_layer", "other_checkpoint")
PER_ROW: Final = 3
MOST_MOMENTS: Final = 3
MOST_LAYERS: Final = 12
MOST_TICKS: Final = {LAYER: 16, CHECKPOINT: 6}
MOST_WRITTEN: Final = 6
"""Rows and columns up to which values are written into the cells."""


@dataclass(frozen=True)
class _Panel:
    """One heat map: values (row, column), and what its rows and columns are."""

    title: str
    values: NDArray[np.float64]
    dim: str
    rows: NDArray[Any]
    columns: NDArray[Any]


@styled
def cka_matrix(result: xr.Dataset) -> Figure:
    """Draw CKA of all pairs as heat maps: of layers at some checkpoints, then of checkpoints in each layer.

    Parameters
    ----------
    result : Dataset (layer, checkpoint, other_layer, other_checkpoint)
        From `ndt_query.cka_matrix`, of one run or of two.

    Returns
    -------
    Figure
        Layers against layers at the first, the middle and the last checkpoint that both sides have; below, checkpoints
        against checkpoints in each layer that both sides have, of more than 12 in some along the depth. Two layers over
        several checkpoints have one panel for both of them in place of layers against layers; nothing is drawn against
        itself alone. Layers and checkpoints go rightwards and upwards; of two runs, the first goes upwards. One scale
        from 0 to 1 for all; values below 0 are shown as 0, and grey is NaN.

    Raises
    ------
    DimensionError
        The result is another.
    """
    if "cka" not in result or set(result["cka"].dims) != set(DIMS):
        raise DimensionError(
            f"The result has no cka over {', '.join(DIMS)}: got {dict(result.sizes)}; pass that of "
            "ndt_query.cka_matrix, whole."
        )
    cka = result["cka"].transpose(*DIMS).compute()
    n_layers, n_steps, n_others, n_other_steps = cka.shape
    groups = [
        _of_layers(cka) if max(n_layers, n_others) > (2 if max(n_steps, n_other_steps) > 1 else 1) else [],
        _of_checkpoints(cka) if max(n_steps, n_other_steps) > 1 else [],
    ]
    groups = [group for group in groups if group] or [_of_layers(cka)]
    heights = _heights(groups)
    n_columns = min(PER_ROW, max(map(len, groups)))
    width = SINGLE_COLUMN if n_columns == 1 else DOUBLE_COLUMN
    figure = Figure(figsize=(width, sum(heights) + 0.25), layout="constrained")
    grid = figure.subplots(len(heights), n_columns, squeeze=False, height_ratios=heights)
    scale = mpl.colormaps["viridis"].with_extremes(bad="#bbbbbb")
    row, image = 0, None
    for group in groups:
        for place, panel in enumerate(group):
            axes = grid[row + place // PER_ROW, place % PER_ROW]
            image = axes.imshow(np.maximum(panel.values, 0), cmap=scale, vmin=0, vmax=1, origin="lower")
            _labelled(axes, panel)
            if result.attrs.get("n_runs", 1) > 1:
                axes.set_xlabel(": ".join(filter(None, ("other run", axes.get_xlabel()))), fontsize=6.5, labelpad=1)
                axes.set_ylabel("" if place % PER_ROW else "first run", fontsize=6.5, labelpad=1)
        n_rows = -(-len(group) // PER_ROW)
        for axes in grid[row : row + n_rows].flat[len(group) :]:
            axes.set_axis_off()
        row += n_rows
    assert image is not None
    said = "debiased linear CKA; below 0 shown as 0" + ("; grey: NaN" if np.isnan(cka).any() else "")
    figure.colorbar(image, ax=grid, location="right", aspect=30, fraction=0.03).set_label(said, fontsize=7)
    return figure


def _of_layers(cka: xr.DataArray) -> list[_Panel]:
    held, other = cka[CHECKPOINT].values, cka["other_checkpoint"].values
    common = [step for step in held if step in other]
    some = np.unique(np.linspace(0, len(common) - 1, min(MOST_MOMENTS, len(common))).round().astype(int))
    moments = [(common[place], common[place]) for place in some] if common else [(held[-1], other[-1])]
    return [
        _Panel(
            f"step {one}" if one == two else f"step {one}, other at {two}",
            cka.sel({CHECKPOINT: one, "other_checkpoint": two}).values,
            LAYER,
            cka[LAYER].values,
            cka["other_layer"].values,
        )
        for one, two in moments
    ]


def _of_checkpoints(cka: xr.DataArray) -> list[_Panel]:
    names, other = cka[LAYER].values, cka["other_layer"].values
    pairs = [(name, name) for name in names if name in other] or [(names[-1], other[-1])]
    if len(pairs) == len(names) == len(other) == 2:
        pairs.append((names[0], other[1]))
    some = np.unique(np.linspace(0, len(pairs) - 1, min(MOST_LAYERS, len(pairs))).round().astype(int))
    said = "" if len(some) == len(pairs) else f" ({{}} of {len(pairs)})"
    return [
        _Panel(
            (tail(str(one), 26) if one == two else f"{tail(str(one), 16)} (up), {tail(str(two), 16)}")
            + said.format(place + 1),
            cka.sel({LAYER: one, "other_layer": two}).values,
            CHECKPOINT,
            cka[CHECKPOINT].values,
            cka["other_checkpoint"].values,
        )
        for place, (one, two) in ((place, pairs[place]) for place in some)
    ]


def _heights(groups: list[list[_Panel]]) -> list[float]:
    """Inches of each row of panels: cells are square, names beside them take from their width, those below add."""
    beside = max(_longest(panel.rows) for group in groups for panel in group)
    square = max(1.3, 2.0 - 0.055 * beside)
    return [
        square + 0.35 + (0.055 * _longest(panel.columns) if panel.dim == LAYER else 0.15)
        for group in groups
        for panel in group[::PER_ROW]
    ]


def _longest(names: NDArray[Any]) -> int:
    return max(len(tail(str(name), 14)) for name in names)


def _labelled(axes: Axes, panel: _Panel) -> None:
    axes.grid(visible=False)
    axes.set_title(panel.title, fontsize=7)
    for axis, names in ((axes.yaxis, panel.rows), (axes.xaxis, panel.columns)):
        every = math.ceil(len(names) / MOST_TICKS[panel.dim])
        # The last is always named, and those that would stand close to it are not.
        ticks = [place for place in range(0, len(names), every) if place <= len(names) - 1 - every] + [len(names) - 1]
        upright = axis is axes.xaxis and panel.dim == LAYER
        text = [tail(str(names[at]), 14) if panel.dim == LAYER else plain(f"{int(names[at])}") for at in ticks]
        axis.set_ticks(ticks, text, fontsize=6, rotation=90 if upright else 0)
        axis.set_tick_params(length=2, pad=1.5)
    if panel.dim == CHECKPOINT:
        axes.set_xlabel("training step", fontsize=6.5, labelpad=1)
    if max(panel.values.shape) <= MOST_WRITTEN:
        size = 5.5 if max(panel.values.shape) <= 4 else 4.8
        for (row, column), value in np.ndenumerate(panel.values):
            shown = "" if np.isnan(value) else f"{round(float(value), 2) + 0.0:.2f}"
            dark = value < 0.65
            axes.text(column, row, shown, ha="center", va="center", fontsize=size, color="white" if dark else "black")
