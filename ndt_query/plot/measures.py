"""Figures of measures over training: dimension with intervals, and the distribution of selectivity."""

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
from ndt_query.kernels.spectrum import MEASURES
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    OKABE_ITO,
    SINGLE_COLUMN,
    layer_colours,
    layer_legend,
    results_by_layer,
    step_axis,
    styled,
)
from ndt_store.dims import CHECKPOINT

__all__ = ["dimensionality", "selectivity"]

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
LEVEL: Final = 0.05
COLUMNS: Final = 4


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
        axes.fill_between(
            steps, part[f"{measure}_low"], part[f"{measure}_high"], color=colours[name], alpha=0.18, linewidth=0
        )
        axes.plot(steps, part[measure], marker="o", color=colours[name], label=name)
    step_axis(axes, result[CHECKPOINT].values)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(NAMES[measure])
    parameters = json.loads(result.attrs.get("parameters", "{}"))
    if parameters.get("interval", "none") != "none":
        axes.set_title(f"{parameters['confidence']:.0%} intervals over examples", color="#666666", fontsize=7)
    layer_legend(figure, axes)
    return figure


@styled
def selectivity(result: xr.Dataset | xr.DataTree, *, measure: str = "selectivity_index") -> Figure:
    """Draw the distribution of selectivity over units and training, a panel for each layer.

    Parameters
    ----------
    result : Dataset (checkpoint, unit) or DataTree
        From `ndt_query.selectivity_index`.
    measure : {"selectivity_index", "d_prime", "auroc"}
        The index is NaN for signed layers, which the other two serve.

    Returns
    -------
    Figure
        Double column. Above: median, quartiles and the 5th to 95th percentile of units whose measure is defined. Below:
        the fraction of all units with q < 0.05, where there are p values.
    """
    one_of("measure", measure, ("selectivity_index", "d_prime", "auroc"))
    parts = results_by_layer(result)
    tested = any(bool(part["q_value"].notnull().any()) for part in parts.values())
    n_columns = min(COLUMNS, len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    height = 1.55 + 0.85 * tested
    figure = Figure(figsize=(DOUBLE_COLUMN, height * n_rows + 0.25), layout="constrained")
    grid = figure.add_gridspec(n_rows * (1 + tested), n_columns, height_ratios=([1.6, 1] if tested else [1]) * n_rows)
    top: Any = None
    bottom: Any = None
    for place, (name, part) in enumerate(parts.items()):
        row, column = divmod(place, n_columns)
        axes = figure.add_subplot(grid[row * (1 + tested), column], sharey=top)
        top = top or axes
        steps = part[CHECKPOINT].values
        _bands(axes, steps, part[measure].values)
        axes.set_title(f"{name}  ({part.sizes['unit']} units)")
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel(NAMES[measure])
        step_axis(axes, steps, label=not tested)
        if tested:
            axes.tick_params(labelbottom=False)
            lower = figure.add_subplot(grid[row * 2 + 1, column], sharey=bottom)
            bottom = bottom or lower
            lower.plot(steps, (part["q_value"] < LEVEL).mean("unit"), marker="o", color=OKABE_ITO[1])
            lower.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            lower.set_ylim(-0.04, 1.04)
            lower.tick_params(labelleft=column == 0)
            if column == 0:
                lower.set_ylabel(f"$q < {LEVEL}$")
            step_axis(lower, steps)
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _bands(axes: Any, steps: NDArray[Any], values: NDArray[np.float64]) -> None:
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
