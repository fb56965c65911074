"""Figures of what was measured while training: trajectories with their jumps, and jumps against their null."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ndt_query.jumps import JUMP, MEASURED_LAYER, MEASUREMENT
from ndt_query.plot.measures import NAMES
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, SINGLE_COLUMN, plain, step_axis, styled
from ndt_store.dims import LAYER
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = ["jump_nulls", "trajectories"]

MOST_ROWS: Final = 40
PANEL: Final = 2.0
SERIES, LEVEL, MARK = "#9a9a9a", OKABE_ITO[0], OKABE_ITO[1]


@styled
def trajectories(jumps: xr.Dataset, training: xr.Dataset | None = None) -> Figure:
    """Draw what was measured over training with its jumps, a panel for each layer, and the loss beside it.

    Parameters
    ----------
    jumps : Dataset
        From `ndt_query.detect_jumps`.
    training : Dataset (step,), optional
        With ``loss`` or ``validation_loss``, as from `ndt_store.open_training`.

    Returns
    -------
    Figure
        At most double column. Grey: the measurements; blue: the fitted level with a 95% band. Each jump is a line at
        its first measurement, in a band over the 95% interval of its position; all of them are drawn thin in the panel
        of the loss.

    Raises
    ------
    NotFoundError
        The Datasets are not what they should be.
    """
    parts = _by_layer(jumps)
    losses = _losses(training)
    n_panels = len(parts) + bool(losses)
    n_columns = min(3, n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    width = min(DOUBLE_COLUMN, max(SINGLE_COLUMN, 2.4 * n_columns))
    figure = Figure(figsize=(width, 1.55 * n_rows + 0.3), layout="constrained")
    panels = [figure.add_subplot(n_rows, n_columns, place + 1) for place in range(n_panels)]
    bottom = range(max(0, n_panels - n_columns), n_panels)
    steps = jumps[MEASUREMENT].values
    measure = str(json.loads(jumps.attrs.get("parameters", "{}")).get("measure", ""))
    for place, (axes, (name, part)) in enumerate(zip(panels, parts.items(), strict=False)):
        _trajectory(axes, part)
        count = part.sizes[JUMP]
        found = f"{count or 'no'} jump{'' if count == 1 else 's'}"
        axes.set_title(f"{plain(name, 24)}: {found}" if name else found)
        step_axis(axes, steps, PANEL, label=place in bottom)
        if place % n_columns == 0:
            axes.set_ylabel(NAMES.get(measure, plain(measure)))
    if losses:
        axes = panels[-1]
        for (name, (at, values)), colour in zip(losses.items(), (OKABE_ITO[2], OKABE_ITO[6]), strict=False):
            axes.plot(at, values, color=colour, linewidth=0.9, label=name)
        for step in np.unique(jumps["step"].values):
            axes.axvline(step, color=MARK, linewidth=0.5)
        axes.set_title("loss")
        axes.set_ylim(bottom=0)
        step_axis(axes, steps, PANEL)
        axes.legend(loc="upper right", handlelength=1.2, borderaxespad=0.1)
    return figure


def _trajectory(axes: Axes, part: xr.Dataset) -> None:
    steps = part[MEASUREMENT].values
    level, half = part["level"].values, 1.96 * part["level_error"].values
    axes.plot(steps, part["series"], ".", color=SERIES, markersize=1.6)
    axes.fill_between(steps, level - half, level + half, color=LEVEL, alpha=0.2, linewidth=0)
    axes.plot(steps, level, color=LEVEL, linewidth=0.9)
    for low, high, step in zip(part["low"].values, part["high"].values, part["step"].values, strict=True):
        axes.axvspan(low, high, color=MARK, alpha=0.2, linewidth=0)
        axes.axvline(step, color=MARK, linewidth=0.8)


@styled
def jump_nulls(jumps: xr.Dataset) -> Figure:
    """Draw the strength of each jump beside the strengths that series without it have.

    Parameters
    ----------
    jumps : Dataset
        From `ndt_query.detect_jumps`.

    Returns
    -------
    Figure
        Single column and a half, a row for each jump and, hollow, for the strongest change of each layer that is no
        jump. Bars: 5 to 95% of the strongest changes of simulated series; ticks: their median. Strength is the square
        root of twice the log likelihood ratio, about the size over its standard error.

    Raises
    ------
    InvalidInputError
        There are more than 40 rows: select layers.
    """
    rows: list[tuple[str, float, NDArray[np.float64], str, bool]] = []
    for name, part in _by_layer(jumps).items():
        label = f"{plain(name, 20)}  " if name else ""
        for place in range(part.sizes[JUMP]):
            one = part.isel({JUMP: place})
            text = f"{float(one['size']):+.3g}, $q$ = {float(one['q_value']):.2g}"
            rows.append((f"{label}{int(one['step'])}", float(one["strength"]), one["null_strength"].values, text, True))
        if part["next_null_strength"].notnull().any():
            text = f"$p$ = {float(part['next_p_value']):.2g}"
            where, null = int(part["next_step"]), part["next_null_strength"].values
            rows.append((f"{label}{where}", float(part["next_strength"]), null, text, False))
    if len(rows) > MOST_ROWS:
        raise InvalidInputError(f"There are {len(rows)} jumps and layers to draw: expected at most {MOST_ROWS}.")
    figure = Figure(figsize=(5.2, 0.75 + 0.19 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, strength, null, text, jump) in enumerate(rows):
        low, middle, high = np.nanquantile(null, [0.05, 0.5, 0.95])
        axes.barh(place, high - low, left=low, height=0.5, color="#d0d0d0")
        axes.plot([middle, middle], [place - 0.25, place + 0.25], color="#777777", linewidth=0.8)
        axes.plot(strength, place, "o", color=MARK, markerfacecolor=MARK if jump else "white", clip_on=False)
        axes.annotate(text, (strength, place), (5, 0), textcoords="offset points", va="center", fontsize=6)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("strength; bars: 5 to 95% of series without it")
    return figure


def _by_layer(jumps: xr.Dataset) -> dict[str, xr.Dataset]:
    """Split into one Dataset a layer."""
    missing = [name for name in ("step", "level", "next_null_strength") if name not in jumps]
    if missing:
        raise NotFoundError(f"The Dataset has no {missing[0]!r}: pass a result of detect_jumps.")
    if MEASURED_LAYER not in jumps.dims:
        return {str(jumps.attrs.get(LAYER, "")): jumps}
    return {
        str(name): jumps.isel({JUMP: np.flatnonzero(jumps[LAYER].values == name)}).sel({MEASURED_LAYER: name})
        for name in jumps[MEASURED_LAYER].values
    }


def _losses(training: xr.Dataset | None) -> dict[str, tuple[Any, Any]]:
    if training is None:
        return {}
    names = [name for name in ("loss", "validation_loss") if name in training]
    if not names:
        raise NotFoundError("The training has neither loss nor validation_loss: pass what open_training gives.")
    shown = {"loss": "training", "validation_loss": "validation"}
    return {shown[name]: (training["step"].values, training[name].values) for name in names}
