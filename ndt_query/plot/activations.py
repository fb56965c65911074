"""Figures of units: how many are dead over training, and which inputs drive them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from ndt_query.inputs import class_name
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    SINGLE_COLUMN,
    Result,
    layer_colours,
    layer_legend,
    percent_axis,
    plain,
    results_by_layer,
    step_axis,
    styled,
)
from ndt_store.dims import CHECKPOINT, EXAMPLE
from ndt_store.errors import DimensionError, NotFoundError

__all__ = ["dead_units", "top_examples"]

CELL: Final = 0.62
"""Inches of one picture."""


@styled
def dead_units(result: Result) -> Figure:
    """Draw the fraction of units that never fire, over training, a line for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint, unit), DataTree or mapping of layers to Datasets
        From `ndt_query.dead_units`.

    Returns
    -------
    Figure
        Single column. A count of all units on the probe set, therefore without interval; its n is in the title.
    """
    parts = results_by_layer(result)
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(SINGLE_COLUMN + (1.1 if len(parts) > 1 else 0), 2.5), layout="constrained")
    axes = figure.add_subplot()
    for name, part in parts.items():
        steps = part[CHECKPOINT].values
        dead = part["dead"].mean("unit")
        axes.plot(steps, dead, marker="o", color=colours[name], label=plain(name), clip_on=False)
    step_axis(axes, steps, 2.8)
    axes.set_ylim(0, max(0.05, axes.get_ylim()[1]))
    percent_axis(axes)
    axes.set_ylabel("dead units")
    n = next(iter(parts.values())).attrs.get("n_examples")
    if n:
        axes.set_title(f"never active on {n} examples", color="#666666", fontsize=7)
    layer_legend(figure, axes)
    return figure


@styled
def top_examples(
    results: Sequence[xr.Dataset], inputs: xr.DataArray, *, titles: Sequence[str], labels: xr.DataArray | None = None
) -> Figure:
    """Draw the inputs that drive some units most, a row for each unit.

    Parameters
    ----------
    results : sequence of Dataset (rank,)
        From `ndt_query.top_examples`, each at one checkpoint and one unit.
    inputs : DataArray (example, ...)
        Images (row, column), (channel, row, column) or (row, column, channel), or vectors, with ``example`` labels. All
        are drawn on one scale.
    titles : sequence of str
        One for each unit.
    labels : DataArray (example,), optional
        Shown under each picture beside the activation, by name where the attribute ``class_names`` has one.

    Returns
    -------
    Figure
        At most double column; activations under each picture.

    Raises
    ------
    NotFoundError
        An example is not among the inputs.
    DimensionError
        The inputs are no images or vectors.
    """
    wanted = np.unique(np.concatenate([one[EXAMPLE].values for one in results]))
    missing = np.setdiff1d(wanted, inputs[EXAMPLE].values)
    if missing.size:
        raise NotFoundError(f"inputs lack example {missing[0]} and {missing.size - 1} more: pass the whole probe set.")
    shown = inputs.sel({EXAMPLE: wanted}).compute()
    low, high = float(shown.min()), float(shown.max())
    n_ranks = max(one.sizes["rank"] for one in results)
    cell = min(CELL, (DOUBLE_COLUMN - 1.2) / n_ranks)
    narrow = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(n_ranks * cell + 1.2, len(results) * (cell + 0.26) + 0.05), layout=narrow)
    grid = figure.add_gridspec(len(results), n_ranks + 1, width_ratios=[1.2 / cell, *[1.0] * n_ranks])
    for row, (one, title) in enumerate(zip(results, titles, strict=True)):
        name = figure.add_subplot(grid[row, 0])
        name.set_axis_off()
        name.text(0, 0.5, plain(title, 200), va="center", fontsize=7, transform=name.transAxes)
        for rank in range(one.sizes["rank"]):
            axes = figure.add_subplot(grid[row, rank + 1])
            example = one[EXAMPLE].values[rank]
            _draw_input(axes, shown.sel({EXAMPLE: example}).values, low, high)
            text = f"{one['value'].values[rank]:.3g}"
            if labels is not None:
                text += "\n" + plain(class_name(labels, labels.sel({EXAMPLE: example}).item()), 12)
            axes.set_xlabel(text, fontsize=5.5, labelpad=1.5, linespacing=1.0)
    return figure


def _draw_input(axes: Any, value: NDArray[Any], low: float, high: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    if value.ndim == 3 and value.shape[0] in (1, 3):
        value = np.moveaxis(value, 0, -1)
    if value.ndim == 3 and value.shape[-1] == 1:
        value = value[..., 0]
    if value.ndim == 2:
        axes.imshow(value, cmap="gray", vmin=low, vmax=high)
    elif value.ndim == 3 and value.shape[-1] == 3:
        axes.imshow((value - low) / (high - low or 1))
    elif value.ndim == 1:
        axes.plot(value, linewidth=0.6)
        axes.set_ylim(low, high)
        axes.set_box_aspect(1)
    else:
        raise DimensionError(f"An input of shape {value.shape} is neither image nor vector: pass inputs that are.")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
