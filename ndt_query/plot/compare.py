"""The figure of runs compared: dimension, learning, jumps, and how far classes came apart."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from ndt_query.plot.style import DOUBLE_COLUMN, layer_colours, percent_axis, plain, step_axis, styled
from ndt_store.dims import RUN
from ndt_store.errors import DimensionError

__all__ = ["compare_runs"]

AT: Final = "at"
AXES: Final = {"step": "training step", "examples": "examples seen", "loss": "least loss so far, nats"}
NAME_WIDTH: Final = 0.048
LEGEND_WIDTH: Final = 0.06
"""Inches of a character of a group's name at an axis and in the legend, about."""


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
        thin lines are runs, thick ones the means of groups. Below: jumps of each run, with the largest in standard
        deviations of the noise, and linear accuracy of the layer on held-out examples at the end, with intervals over
        examples. Where batches are known there is a fifth: examples seen until accuracy was at fractions of its final
        value. Dots are runs, bars the means of groups all of whose runs have the number.

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
    counted = bool(np.isfinite(comparison["examples_to"]).any())
    grid, n_below = figure.add_gridspec(2, 6), 3 if counted else 2
    first, second = (figure.add_subplot(grid[0, 3 * n : 3 * n + 3]) for n in range(2))
    span = 6 // n_below
    jumped, apart, *rest = (figure.add_subplot(grid[1, span * n : span * (n + 1)]) for n in range(n_below))
    width = 1.65 if counted else 2.9
    parameters = json.loads(comparison.attrs.get("parameters", "{}"))
    by = str(parameters.get("by", "step"))
    for axes, name, label in (
        (first, "dimension", plain(str(parameters.get("measure", "dimension")).replace("_", " "))),
        (second, "learned", "accuracy"),
    ):
        _curves(axes, comparison, name, groups, colours)
        axes.set_ylabel(label)
        if by == "loss":
            axes.xaxis.set_major_formatter(lambda value, _: f"{-value:.3g}")
        else:
            step_axis(axes, comparison[AT].values, 2.8)
        axes.set_xlabel(AXES[by])
    first.set_ylim(bottom=0)
    percent_axis(second)
    _strip(jumped, comparison, "n_jumps", groups, colours, width)
    _largest(jumped, comparison, groups)
    jumped.set_ylabel("jumps, all layers")
    jumped.set_ylim(-0.3, max(1.0, float(np.nanmax(np.append(comparison["n_jumps"].values, 0.0)))) * 1.2 + 0.3)
    jumped.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    _strip(apart, comparison, "separability_accuracy", groups, colours, width)
    apart.set_ylabel("linear accuracy, held out")
    percent_axis(apart)
    for axes in rest:
        _examples(axes, comparison, groups, colours)
    handles, labels = first.get_legend_handles_labels()
    longest = max(len(label) for label in labels) * LEGEND_WIDTH + 0.4
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, int(DOUBLE_COLUMN / longest)))
    return figure


def _curves(axes: Axes, comparison: xr.Dataset, name: str, groups: list[str], colours: dict[str, Any]) -> None:
    for group in groups:
        rows = comparison[name].values[comparison["group"].values == group]
        for row in rows:
            axes.plot(comparison[AT], row, color=colours[group], linewidth=0.5, alpha=0.6)
        # Where a run of a group was not measured, the mean would be one of others.
        axes.plot(comparison[AT], rows.mean(axis=0), color=colours[group], linewidth=1.6, label=plain(group))


def _of(comparison: xr.Dataset, group: str) -> xr.Dataset:
    return comparison.isel({RUN: np.flatnonzero(comparison["group"].values == group)})


def _beside(place: float, n: int) -> Any:
    """Places of the runs of a group, side by side."""
    return place + (np.arange(n) - (n - 1) / 2) * min(0.2, 0.6 / n)


def _strip(
    axes: Axes, comparison: xr.Dataset, name: str, groups: list[str], colours: dict[str, Any], width: float
) -> None:
    """Draw a number of each run beside those of its group, with its interval where it has one, and the mean."""
    for place, group in enumerate(groups):
        chosen = _of(comparison, group)
        values = chosen[name].values
        beside = _beside(place, len(values))
        if f"{name}_low" in chosen:
            reach = [values - chosen[f"{name}_low"].values, chosen[f"{name}_high"].values - values]
            axes.errorbar(beside, values, reach, fmt="o", color=colours[group], capsize=2, elinewidth=0.9)
        else:
            axes.plot(beside, values, "o", color=colours[group], clip_on=False)
        _mean(axes, place, 0.35, values, colours[group])
    axes.set_xticks(range(len(groups)), _fitting([plain(group, 20) for group in groups], width))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.grid(visible=False, axis="x")


def _fitting(names: list[str], width: float) -> list[str]:
    """Return names, in two lines each where they would touch in one; nothing where they would all the same."""
    for shown in (names, [name.replace("_", "\n", 1) for name in names]):
        longest = max(len(line) for name in shown for line in name.splitlines() or [""])
        if len(names) * longest * NAME_WIDTH < width:
            return shown
    return [""] * len(names)  # the legend has them


def _mean(axes: Axes, place: float, reach: float, values: Any, colour: Any) -> None:
    # As in the table: without the number of a run there is no mean of the group.
    if np.isfinite(values).all():
        axes.plot([place - reach, place + reach], [values.mean()] * 2, color=colour, linewidth=1.0)


def _largest(axes: Axes, comparison: xr.Dataset, groups: list[str]) -> None:
    """Write above each run that jumps how large its largest jump is."""
    for place, group in enumerate(groups):
        chosen = _of(comparison, group)
        beside = _beside(place, chosen.sizes[RUN])
        for x, n, size in zip(beside, chosen["n_jumps"].values, chosen["largest_jump"].values, strict=True):
            if n > 0:
                axes.annotate(f"{size:.2g} SD", (x, n), (0, 3), textcoords="offset points", ha="center", fontsize=6)


def _examples(axes: Axes, comparison: xr.Dataset, groups: list[str], colours: dict[str, Any]) -> None:
    """Draw the examples that each run saw until its accuracy was at fractions of its final value."""
    fractions = comparison["fraction"].values
    share = 0.8 / len(groups)
    for n in range(len(fractions)):
        for which, group in enumerate(groups):
            place = n + (which - (len(groups) - 1) / 2) * share
            values = _of(comparison, group)["examples_to"].values[:, n]
            axes.plot(_beside(place, len(values)) if len(groups) == 1 else np.full(len(values), place), values, "o",
                      color=colours[group], markersize=2.5, alpha=0.7)  # fmt: skip
            _mean(axes, place, share * 0.4, values, colours[group])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(fractions)), [f"{fraction:.0%}" for fraction in fractions])
    axes.set_xlabel("of final accuracy")
    axes.set_ylabel("examples seen")
    axes.grid(visible=False, axis="x")
