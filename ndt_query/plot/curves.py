"""Figures of single trajectories: logistic growth over the data, and two trajectories beside their derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, SINGLE_COLUMN, plain, step_axis, styled
from ndt_query.series import STEP
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import DimensionError

__all__ = ["growth", "smoothness"]

GREY: Final = "#666666"
NOTE: Final = 6.5
COLUMNS: Final = 3
N_BINS: Final = 40


def _training(result: xr.Dataset) -> str:
    """Return the dimension of training of a result."""
    for dim in (STEP, CHECKPOINT):
        if dim in result.dims:
            return dim
    raise DimensionError("The result has neither step nor checkpoint: draw one that spans training.")


def _even(steps: NDArray[Any]) -> bool:
    # A logarithmic axis would spend most of its width on few of many measurements.
    return len(np.unique(np.diff(steps))) == 1


@styled
def growth(result: xr.Dataset, *, label: str = "") -> Figure:
    """Draw fits of logistic growth over the series that they were fitted to, a panel for each series.

    Parameters
    ----------
    result : Dataset (..., step)
        From `ndt_query.fit_growth`.
    label : str
        Of the vertical axis: what was measured.

    Returns
    -------
    Figure
        At most double column. Points are the series; the line is the fit with the band of its interval, dotted where
        its midpoint is. A series that does not grow has neither, and says so.
    """
    time = _training(result)
    steps = result[time].values
    others = [str(dim) for dim in result["observed"].dims if dim != time]
    parts = result.stack(panel=others) if others else result.expand_dims("panel")
    n = parts.sizes["panel"]
    n_columns = min(COLUMNS, n)
    n_rows = -(-n // n_columns)
    width = SINGLE_COLUMN if n == 1 else min(DOUBLE_COLUMN, 2.4 * n_columns)
    figure = Figure(figsize=(width, 1.9 * n_rows + 0.3), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= n:
            axes.set_axis_off()
            continue
        one = parts.isel(panel=place)
        _draw_growth(axes, one, time)
        step_axis(axes, steps, width / n_columns - 0.6, label=place + n_columns >= n, linear=_even(steps))
        axes.set_title(", ".join(plain(str(one[dim].item()), 24) for dim in others))
        axes.set_ylabel(label if place % n_columns == 0 else "")
    return figure


def _draw_growth(axes: Axes, one: xr.Dataset, time: str) -> None:
    steps = one[time].values
    axes.plot(steps, one["observed"].values, linestyle="", marker=".", markersize=2.5, color=GREY, alpha=0.7)
    if not one["growth"].item():
        axes.set_title(f"no growth, {_p_text(one['p_value'].item())}", loc="right", color=GREY, fontsize=NOTE)
        return
    colour = OKABE_ITO[1]
    axes.fill_between(steps, one["fit_low"].values, one["fit_high"].values, color=colour, alpha=0.25, linewidth=0)
    axes.plot(steps, one["fit"].values, color=colour)
    if steps[0] <= one["midpoint"].item() <= steps[-1]:
        axes.axvline(one["midpoint"].item(), color=colour, linestyle=":", linewidth=0.8)
    note = f"$R^2$ = {one['r2'].item():.3g}"
    bound = [str(name) for name in one["parameter"].values[one["at_bound"].values]]
    if bound:
        note += f"; on its bound: {', '.join(bound)}"
    axes.set_title(note, loc="right", color=GREY, fontsize=NOTE)


@styled
def smoothness(result: xr.Dataset, *, names: Sequence[str] | None = None) -> Figure:
    """Draw two trajectories, and how their derivatives are distributed.

    Parameters
    ----------
    result : Dataset (series, step)
        From `ndt_query.smoothness`, of one pair.
    names : sequence of str, optional
        What the two are called; their labels without it.

    Returns
    -------
    Figure
        Double column. Left: the trajectories as shares of their ranges. Right: the densities of their derivatives with,
        above, one standard deviation to either side of 0 and its interval at the ends; the ratio of the variances with
        its interval and its p value in the title.
    """
    time = _training(result)
    if result["trajectory"].ndim != 2:
        raise DimensionError(f"The result has dims {result['trajectory'].dims}: select one pair of series.")
    shown = [plain(str(name), 24) for name in (result["series"].values if names is None else names)]
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = result[time].values
    for row, name, colour in zip(result["trajectory"].values, shown, OKABE_ITO, strict=False):
        left.plot(steps, row, color=colour, label=name)
    step_axis(left, steps, 2.9, linear=_even(steps))
    left.set_ylabel("share of its range")
    left.legend(loc="best")
    _draw_derivatives(right, result)
    return figure


def _draw_derivatives(axes: Axes, result: xr.Dataset) -> None:
    axes.set_xlabel("change per 1000 steps, in ranges")
    axes.set_ylabel("density")
    derivatives = 1000 * result["derivative"].values
    known = np.flatnonzero(np.isfinite(derivatives).all(axis=1))
    if known.size:
        first, last = np.quantile(derivatives[known], [0.002, 0.998])
        edges = np.linspace(first, last, N_BINS + 1)
        densities = {place: np.histogram(derivatives[place], edges, density=True)[0] for place in known}
        top = max(float(density.max()) for density in densities.values())
        for place, density in densities.items():
            axes.stairs(density, edges, color=OKABE_ITO[place], fill=True, alpha=0.2)
            axes.stairs(density, edges, color=OKABE_ITO[place], linewidth=1.0)
            _draw_spread(axes, result.isel(series=place), top * (1.25 - 0.12 * place), OKABE_ITO[place])
    note = "variance ratio unknown"
    if np.isfinite(result["log_variance_ratio"].item()):
        low, ratio, high = (np.exp(result[f"log_variance_ratio{end}"].item()) for end in ("_low", "", "_high"))
        p_value = result["log_variance_ratio_p_value"].item()
        note = f"variance ratio {ratio:.2g} ({low:.2g} to {high:.2g}), {_p_text(p_value)}"
    axes.set_title(f"{note}\nbars: one standard deviation either way, with its interval", color=GREY, fontsize=NOTE)


def _p_text(p_value: float) -> str:
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def _draw_spread(axes: Axes, one: xr.Dataset, height: float, colour: str) -> None:
    spread, low, high = (1000 * np.sqrt(one[f"variance{end}"].item()) for end in ("", "_low", "_high"))
    axes.plot([-spread, spread], [height, height], color=colour, linewidth=1.0)
    for side in (-1, 1):
        axes.plot([side * low, side * high], [height, height], color=colour, linewidth=3.5, solid_capstyle="butt")
