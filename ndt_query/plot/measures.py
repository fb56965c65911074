"""Figures of measures over training: dimension and performance with intervals, the distribution of selectivity."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from ndt_query.inputs import one_of
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    OKABE_ITO,
    SINGLE_COLUMN,
    Result,
    interval_band,
    layer_colours,
    layer_legend,
    percent_axis,
    plain,
    results_by_layer,
    step_axis,
    styled,
)
from ndt_store.dims import CHECKPOINT
from ndt_store.views.spectrum import MEASURES

__all__ = ["bands", "columns_of", "dimensionality", "performance", "selectivity"]

NAMES: Final = {
    "stable_rank": "stable rank",
    "participation_ratio": "participation ratio",
    "participation_ratio_corrected": "participation ratio, corrected",
    "energy_dims_90": "components for 90% of variance",
    "energy_dims_95": "components for 95% of variance",
    "nuclear_ratio": "nuclear ratio",
    "effective_rank": "effective rank",
    "selectivity_index": "selectivity index",
    "d_prime": "$d'$",
    "auroc": "AUROC",
}
GREY: Final = "#666666"
LEVEL: Final = 0.05
COLUMNS: Final = 5


@styled
def dimensionality(result: xr.Dataset, *, measure: str = "participation_ratio") -> Figure:
    """Draw a measure of dimension over training, a line with its interval for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint[, layer])
        From `ndt_query.dimensionality`.
    measure : str
        Which of its measures.

    Returns
    -------
    Figure
        Single column, bands are the intervals of the result.
    """
    one_of("measure", measure, (*MEASURES, "participation_ratio_corrected"))
    parts = results_by_layer(result)
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(SINGLE_COLUMN + (1.1 if len(parts) > 1 else 0), 2.5), layout="constrained")
    axes = figure.add_subplot()
    for name, part in parts.items():
        steps = part[CHECKPOINT].values
        interval_band(axes, steps, part[f"{measure}_low"], part[f"{measure}_high"], color=colours[name])
        axes.plot(steps, part[measure], marker="o", color=colours[name], label=plain(name))
    step_axis(axes, result[CHECKPOINT].values, 2.8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(NAMES[measure])
    parameters = json.loads(result.attrs.get("parameters", "{}"))
    if parameters.get("interval", "none") != "none":
        axes.set_title(_intervals_text(result, parameters["confidence"]), color=GREY, fontsize=7)
    layer_legend(figure, axes)
    return figure


@styled
def performance(result: xr.Dataset) -> Figure:
    """Draw loss and accuracy on the probe set over training, with their intervals.

    Parameters
    ----------
    result : Dataset (checkpoint,)
        From `ndt_query.performance`.

    Returns
    -------
    Figure
        Two small panels side by side.
    """
    part = next(iter(results_by_layer(result).values()))
    steps = part[CHECKPOINT].values
    figure = Figure(figsize=(4.8, 1.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, colour in ((left, "loss", OKABE_ITO[1]), (right, "accuracy", OKABE_ITO[0])):
        interval_band(axes, steps, part[f"{name}_low"], part[f"{name}_high"], color=colour)
        axes.plot(steps, part[name], marker="o", color=colour)
        axes.set_ylabel(name)
        step_axis(axes, steps, 1.8)
    confidence = json.loads(part.attrs.get("parameters", "{}")).get("confidence")
    if confidence is not None:
        left.set_title(_intervals_text(part, confidence), color=GREY, fontsize=7)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1.02)
    percent_axis(right)
    return figure


@styled
def selectivity(result: Result, *, measure: str = "auto") -> Figure:
    """Draw the distribution of selectivity over units and training, a panel for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint, unit), DataTree or mapping of layers to Datasets
        From `ndt_query.selectivity_index`.
    measure : {"auto", "selectivity_index", "d_prime", "auroc"}
        The index is NaN for signed units. ``"auto"`` draws it, and the AUROC for layers in which it is not defined for
        most units that vary, at most checkpoints.

    Returns
    -------
    Figure
        At most double column. Above: median, quartiles and the 5th to 95th percentile of units whose measure is
        defined; panels of the same measure share an axis. Below: the fraction of all units with q < 0.05, where there
        are p values.
    """
    one_of("measure", measure, ("auto", "selectivity_index", "d_prime", "auroc"))
    parts = results_by_layer(result)
    tested = any(bool(part["q_value"].notnull().any()) for part in parts.values())
    n_columns = columns_of(len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    width = min(DOUBLE_COLUMN, 2.2 * n_columns + 0.6)
    rows = [1.6, 1] if tested else [1]
    figure = Figure(figsize=(width, (1.55 + 0.85 * tested) * n_rows + 0.25), layout="constrained")
    grid = figure.add_gridspec(n_rows * len(rows), n_columns, height_ratios=rows * n_rows)
    panel = (width - 0.6) / n_columns - 0.15
    upper: dict[str, Any] = {}
    lower: Any = None
    left = ""
    for place, (name, part) in enumerate(parts.items()):
        row, column = divmod(place, n_columns)
        drawn = _defined_measure(part) if measure == "auto" else measure
        axes = figure.add_subplot(grid[row * len(rows), column], sharey=upper.get(drawn))
        upper.setdefault(drawn, axes)
        steps = part[CHECKPOINT].values
        bands(axes, steps, part[drawn].values)
        axes.set_title(f"{plain(name, 20)}  ({part.sizes['unit']} units)")
        named = column == 0 or drawn != left
        left = drawn
        axes.tick_params(labelleft=named, labelbottom=not tested)
        axes.set_ylabel(NAMES[drawn] if named else "")
        step_axis(axes, steps, panel, label=not tested)
        if tested:
            lower = figure.add_subplot(grid[row * 2 + 1, column], sharey=lower)
            lower.plot(steps, (part["q_value"] < LEVEL).mean("unit"), marker="o", color=OKABE_ITO[1])
            lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            lower.set_ylim(-0.04, 1.04)
            lower.tick_params(labelleft=column == 0)
            lower.set_ylabel(f"$q < {LEVEL}$" if column == 0 else "")
            step_axis(lower, steps, panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _intervals_text(result: xr.Dataset, confidence: float) -> str:
    n = result.attrs.get("n_examples", "")
    return f"{confidence:.0%} intervals over {n} examples" if n else f"{confidence:.0%} intervals over examples"


def columns_of(n_panels: int) -> int:
    """Columns that leave the fewest places empty, the most of them where that is the same."""
    if n_panels <= COLUMNS:
        return n_panels
    return min(range(COLUMNS, 2, -1), key=lambda columns: -n_panels % columns)


def _defined_measure(part: xr.Dataset) -> str:
    # Units that never vary have neither index nor d-prime, and say nothing about the layer's sign.
    varies = part["d_prime"].notnull()
    defined = (part["selectivity_index"].notnull() & varies).sum("unit") * 2 >= varies.sum("unit")
    return "selectivity_index" if bool(defined.mean() >= 0.5) else "auroc"


def bands(axes: Any, steps: NDArray[Any], values: NDArray[np.float64]) -> None:
    """Draw quantiles of units (checkpoint, unit) over steps."""
    # A layer may be all NaN at some checkpoint, which has no quantiles.
    quantiles = np.full((5, len(steps)), np.nan)
    for c, row in enumerate(values):
        defined = row[np.isfinite(row)]
        if defined.size:
            quantiles[:, c] = np.quantile(defined, [0.05, 0.25, 0.5, 0.75, 0.95])
    band = {"color": OKABE_ITO[0], "linewidth": 0}
    axes.fill_between(steps, quantiles[0], quantiles[4], alpha=0.15, label="5 to 95% of units", **band)
    axes.fill_between(steps, quantiles[1], quantiles[3], alpha=0.3, label="quartiles", **band)
    axes.plot(steps, quantiles[2], marker="o", color=OKABE_ITO[0], label="median")
