"""Figures of composition: R2 of late units against its null, and the share of them that is composed."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from ndt_query.graphs import Compositions
from ndt_query.inference import clopper_pearson
from ndt_query.plot.measures import bands, columns_of
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    OKABE_ITO,
    SINGLE_COLUMN,
    layer_colours,
    layer_legend,
    percent_axis,
    plain,
    step_axis,
    styled,
)
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.errors import DimensionError

__all__ = ["composed_share", "composition"]

GREY: Final = "#666666"
DODGE: Final = 0.03
MOST_DODGE: Final = 0.15
"""Inches that pairs of layers stand aside from each other, and all of them together."""
"""Inches between pairs of layers at the same step."""

FLOOR: Final = -0.25


@styled
def composition(result: xr.Dataset | Compositions) -> Figure:
    """Draw the held-out R2 of late units against that of shuffled examples, a panel for each pair of layers.

    Parameters
    ----------
    result : Dataset ([checkpoint,] unit) or mapping of pairs of layers to such
        From `ndt_query.compose` or `ndt_query.compose_pairs`.

    Returns
    -------
    Figure
        At most double column. Over checkpoints: median, quartiles and the 5th to 95th percentile of units, and all that
        shuffling gives in grey; a title counts composed units at the first and the last one. At one checkpoint: the
        share of units with a larger R2. The broken line is the threshold. What lies below -0.25 is drawn there.

    Raises
    ------
    DimensionError
        The result is another one.
    """
    parts = _parts(result)
    n_columns = columns_of(len(parts))
    n_rows = math.ceil(len(parts) / n_columns)
    width = min(DOUBLE_COLUMN, 2.3 * n_columns + 0.6)
    figure = Figure(figsize=(width, 2.0 * n_rows + 0.3), layout="constrained")
    first: Any = None
    for place, (name, part) in enumerate(parts.items()):
        over = CHECKPOINT in part.dims
        axes = figure.add_subplot(n_rows, n_columns, place + 1, sharey=first)
        first = first or axes
        threshold = json.loads(part.attrs["parameters"])["threshold"]
        if over:
            _over_training(axes, part, threshold, (width - 0.6) / n_columns - 0.15)
        else:
            _at_once(axes, part, threshold)
        named = place % n_columns == 0
        axes.set_ylabel(("held-out $R^2$" if over else "units above") if named else "")
        axes.tick_params(labelleft=named)
        composed, n = (one.sum(UNIT).values.reshape(-1) for one in (part["composed"], part["r2"].notnull()))
        before = f"{composed[0]}" if n[0] == n[-1] else f"{composed[0]} of {n[0]}"
        counts = f"{composed[-1]} of {n[-1]}"
        counts = counts if composed.size == 1 else f"{before} \u2192 {counts}"
        axes.set_title(f"{name}\n{counts} composed", linespacing=1.25)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@styled
def composed_share(result: xr.Dataset | Compositions) -> Figure:
    """Draw the share of late units that are composed over training, a line for each pair of layers.

    Parameters
    ----------
    result : Dataset (checkpoint, unit) or mapping of pairs of layers to such
        From `ndt_query.compose` or `ndt_query.compose_pairs`.

    Returns
    -------
    Figure
        Single column. Shares of the units that vary, with Clopper-Pearson intervals as if these units were independent
        draws; units of one layer are not, so that the intervals are the narrowest that could be right.

    Raises
    ------
    DimensionError
        The result is another one, or is of one checkpoint.
    """
    parts = _parts(result)
    colours = layer_colours(list(parts))
    figure = Figure(figsize=(SINGLE_COLUMN + (1.6 if len(parts) > 1 else 0), 2.5), layout="constrained")
    axes = figure.add_subplot()
    confidence = 0.95
    dodge = min(DODGE, MOST_DODGE / len(parts))
    for place, (name, part) in enumerate(parts.items()):
        if CHECKPOINT not in part.dims:
            raise DimensionError(f"The result of {name} has no dimension checkpoint: draw one that spans training.")
        steps = part[CHECKPOINT].values
        confidence = json.loads(part.attrs["parameters"])["confidence"]
        varying = part["r2"].notnull().sum(UNIT).values
        composed = part["composed"].sum(UNIT).values
        known = varying > 0
        share, low, high = (np.full(len(steps), np.nan) for _ in range(3))
        share[known] = composed[known] / varying[known]
        low[known], high[known] = clopper_pearson(composed[known], varying[known], confidence=confidence)
        reach = np.stack([share - low, high - share])
        aside = ScaledTranslation((place - (len(parts) - 1) / 2) * dodge, 0, figure.dpi_scale_trans)
        axes.errorbar(steps, share, reach, fmt="o-", color=colours[name], elinewidth=0.8, capsize=1.5, label=name,
                      transform=axes.transData + aside)  # fmt: skip
    all_steps = np.unique(np.concatenate([part[CHECKPOINT].values for part in parts.values()]))
    axes.update_datalim([(float(step), 0.0) for step in all_steps])  # lines that stand aside do not count for it
    step_axis(axes, all_steps, 2.8)
    axes.set_ylim(-0.03, 1.03)
    percent_axis(axes)
    axes.set_ylabel("composed units")
    axes.set_title(f"{confidence:.0%} intervals, of units that vary", color=GREY, fontsize=7)
    layer_legend(figure, axes)
    return figure


def _parts(result: xr.Dataset | Compositions) -> dict[str, xr.Dataset]:
    given: dict[str, xr.Dataset] = {}
    if isinstance(result, xr.Dataset):
        given[_name(result.attrs.get("early_layer", "early"), result.attrs.get("layer", "late"))] = result
    else:
        given = {_name(*pair): one for pair, one in result.items()}
    for name, one in given.items():
        if "null_r2" not in one or "composed" not in one:
            raise DimensionError(f"The result of {name} has no null_r2 and composed: pass that of compose.")
    if not given:
        raise DimensionError("There is no result to draw: pass that of compose or compose_pairs.")
    return {name: one.compute() for name, one in given.items()}


def _name(early: Any, late: Any) -> str:
    return f"{plain(str(early), 20)} \u2192 {plain(str(late), 20)}"


def _clipped(values: xr.DataArray, *dims: str) -> NDArray[np.float64]:
    return np.asarray(values.transpose(*dims).clip(min=FLOOR).values, dtype=np.float64)


def _over_training(axes: Axes, part: xr.Dataset, threshold: float, width: float) -> None:
    steps = part[CHECKPOINT].values
    null = _clipped(part["null_r2"], CHECKPOINT, "permutation", UNIT).reshape(len(steps), -1)
    known = np.isfinite(null).any(axis=1)
    low, high = (np.full(len(steps), np.nan) for _ in range(2))
    low[known], high[known] = np.nanmin(null[known], axis=1), np.nanmax(null[known], axis=1)
    axes.fill_between(steps, low, high, color=GREY, alpha=0.45, linewidth=0, label="shuffled, all")
    bands(axes, steps, _clipped(part["r2"], CHECKPOINT, UNIT))
    axes.axhline(threshold, color="#444444", linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_ylim(FLOOR - 0.04, 1.04)
    step_axis(axes, steps, width)


def _at_once(axes: Axes, part: xr.Dataset, threshold: float) -> None:
    for name, colour, label in (("null_r2", GREY, "shuffled"), ("r2", OKABE_ITO[0], "held out")):
        values = part[name].values
        shown = np.sort(np.clip(values[np.isfinite(values)], FLOOR, None))
        if shown.size:
            above = 1 - np.arange(shown.size + 1) / shown.size
            axes.step([FLOOR, *shown], above, where="post", color=colour, label=label)
    axes.axvline(threshold, color="#444444", linewidth=0.7, linestyle=(0, (4, 2)))
    axes.set_xlim(FLOOR - 0.04, 1.04)
    axes.set_ylim(-0.03, 1.03)
    percent_axis(axes)
    axes.set_xlabel("$R^2$")
