"""The figure of runs compared: dimension, learning, jumps, and how far classes came apart."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ndt_query.plot.style import DOUBLE_COLUMN, layer_colours, percent_axis, plain, step_axis, styled
from ndt_store.dims import RUN
from ndt_store.errors import DimensionError

__all__ = ["compare_runs"]

AT: Final = "at"
AXES: Final = {"step": "training step", "examples": "examples seen", "loss": "validation loss, falling"}


@styled
def compare_runs(comparison: xr.Dataset) -> Figure:
    """Draw runs side by side, in the colours of their groups.

    Parameters
    ----------
    comparison : Dataset (run)
        From `ndt_query.compare_runs`.

    Returns
    -------
    Figure
        Double column, four panels. Above: dimension of the compared layer and accuracy along what runs are aligned by;
        thin lines are runs, thick ones the means of groups. Below: jumps of each run, and linear accuracy of the layer
        on held-out examples at the end, with 95% intervals over examples; a bar is the mean of a group.

    Raises
    ------
    DimensionError
        The Dataset is another one.
    """
    if "learned" not in comparison or "group" not in comparison.coords:
        raise DimensionError("The result has no learned and group: pass that of compare_runs.")
    groups = list(dict.fromkeys(str(one) for one in comparison["group"].values))
    colours = layer_colours(groups)
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.4), layout="constrained")
    panels = figure.subplots(2, 2)
    parameters = json.loads(comparison.attrs.get("parameters", "{}"))
    by = str(parameters.get("by", "step"))
    for axes, name, label in (
        (panels[0, 0], "dimension", plain(str(parameters.get("measure", "dimension")).replace("_", " "))),
        (panels[0, 1], "learned", "accuracy"),
    ):
        _curves(axes, comparison, name, groups, colours)
        axes.set_ylabel(label)
        if by == "loss":
            axes.set_xlabel(AXES[by])
            axes.xaxis.set_major_formatter(lambda value, _: f"{-value:.2g}")
        else:
            step_axis(axes, comparison[AT].values, 2.8)
            axes.set_xlabel(AXES[by])
    panels[0, 0].set_ylim(bottom=0)
    percent_axis(panels[0, 1])
    _strip(panels[1, 0], comparison, "n_jumps", groups, colours)
    panels[1, 0].set_ylabel("jumps, all layers")
    panels[1, 0].set_ylim(-0.3, max(1.0, float(np.nanmax(np.append(comparison["n_jumps"].values, 0.0)))) + 0.5)
    panels[1, 0].yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _strip(panels[1, 1], comparison, "separability_accuracy", groups, colours)
    panels[1, 1].set_ylabel("linear accuracy, held out")
    percent_axis(panels[1, 1])
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


def _curves(axes: Axes, comparison: xr.Dataset, name: str, groups: list[str], colours: dict[str, Any]) -> None:
    for group in groups:
        rows = comparison[name].values[comparison["group"].values == group]
        for row in rows:
            axes.plot(comparison[AT], row, color=colours[group], linewidth=0.5, alpha=0.6)
        axes.plot(comparison[AT], rows.mean(axis=0), color=colours[group], linewidth=1.6, label=plain(group))


def _strip(axes: Axes, comparison: xr.Dataset, name: str, groups: list[str], colours: dict[str, Any]) -> None:
    """Draw a number of each run beside those of its group, with its interval where it has one, and the mean."""
    for place, group in enumerate(groups):
        chosen = comparison.isel({RUN: np.flatnonzero(comparison["group"].values == group)})
        values = chosen[name].values
        beside = place + (np.arange(len(values)) - (len(values) - 1) / 2) * min(0.2, 0.6 / len(values))
        if f"{name}_low" in chosen:
            reach = [values - chosen[f"{name}_low"].values, chosen[f"{name}_high"].values - values]
            axes.errorbar(beside, values, reach, fmt="o", color=colours[group], capsize=2)
        else:
            axes.plot(beside, values, "o", color=colours[group], clip_on=False)
        if np.isfinite(values).any():
            mean = float(np.nanmean(values))
            axes.plot([place - 0.35, place + 0.35], [mean, mean], color=colours[group], linewidth=1.0)
    axes.set_xticks(range(len(groups)), [plain(group, 20) for group in groups])
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(visible=False, axis="x")
