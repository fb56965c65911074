"""Figures of units that wake up: how many at each moment, which classes those respond to, and what drives them."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ndt_query.inputs import class_name
from ndt_query.plot.activations import top_examples
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, layer_colours, percent_axis, plain, styled
from ndt_query.waking import WOKEN, pictured
from ndt_store.dims import EXAMPLE, LAYER
from ndt_store.errors import DimensionError, NotFoundError

__all__ = ["waking_units", "woken_examples"]

DODGE: Final = 0.7
MOST_CURVES: Final = 200
MARKERS: Final = {"jump": "D", "control": "s", "": "o"}


@styled
def waking_units(result: xr.Dataset) -> Figure:
    """Draw the share of dead units that wake up at each moment, and the selectivity curves of those that do.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.waking_units`.

    Returns
    -------
    Figure
        Double column. Left: for each moment and layer the units that woke up, as a share of those that were dead, with
        95% Clopper-Pearson limits; diamonds are jumps, squares controls, circles other moments. Right: the mean
        activation of each woken unit for each class, divided by its largest and in falling order, with their median;
        orange where the unit answers to a class at a false discovery rate of 5%.

    Raises
    ------
    DimensionError
        The Dataset is another one.
    """
    if "woken" not in result or "share_low" not in result:
        raise DimensionError("The result has no woken and share_low: pass that of waking_units.")
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.6, 1])
    _shares(left, result)
    _curves(right, result)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=5, handletextpad=0.3)
    return figure


def woken_examples(result: xr.Dataset, inputs: xr.DataArray, labels: xr.DataArray | None = None) -> Figure:
    """Draw the inputs that drive the woken units that fire in most examples, a row for each unit.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.waking_units`.
    inputs : DataArray (example, ...)
        Images or vectors, with ``example`` labels: the whole probe set, or those that the result names.
    labels : DataArray (example,), optional
        Classes, with names in the attribute ``class_names``.

    Returns
    -------
    Figure
        At most double column and six rows. Beside each row the class that the unit prefers and the checkpoint at which
        it is awake; under each picture its largest activation.

    Raises
    ------
    NotFoundError
        No unit woke up, or an example is not among the inputs.
    """
    if not result.sizes.get(WOKEN):
        raise NotFoundError("No unit woke up in this result: there is nothing to picture.")
    rows, titles = [], []
    for place in pictured(result):
        one = result.isel({WOKEN: int(place)})
        after = int(result["after"].values[int(one["moment_of"])])
        preferred = one["preferred_class"].item()
        name = class_name(labels, preferred) if labels is not None else str(preferred)
        rows.append(one[["value", EXAMPLE]])
        titles.append(f"{str(one['layer_of'].item())[-20:]}, unit {int(one['unit'])}\n{name[:20]}\nstep {after}")
    return top_examples(rows, inputs, titles=titles, labels=labels)


def _shares(axes: Axes, result: xr.Dataset) -> None:
    layers = [str(one) for one in result[LAYER].values]
    colours = layer_colours(layers)
    places = np.arange(result.sizes["moment"])
    for column, layer in enumerate(layers):
        part = result.sel({LAYER: layer})
        at = places + DODGE * ((column + 0.5) / len(layers) - 0.5)
        share = part["share"].values
        reach = np.abs(np.stack([share - part["share_low"].values, part["share_high"].values - share]))
        named = False
        for role in dict.fromkeys(str(one) for one in result["role"].values):
            here = (result["role"].values == role) & np.isfinite(share)
            if here.any():
                axes.errorbar(at[here], share[here], reach[:, here], fmt=MARKERS[role], color=colours[layer],
                              capsize=1.5, elinewidth=0.8, markersize=3,
                              label=None if named else plain(layer, 20))  # fmt: skip
                named = True
    names = [f"{before}–{after}" for before, after in zip(result["before"].values, result["after"].values, strict=True)]
    axes.set_xticks(places, names)
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="right", rotation_mode="anchor", fontsize=6)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=False, axis="x")
    percent_axis(axes)
    axes.set_ylabel("of the dead units")
    axes.set_title("units that wake up")


def _curves(axes: Axes, result: xr.Dataset) -> None:
    n = result.sizes.get("woken_unit", 0)
    # A unit may wake up in more than one of the pairs that were asked about.
    distinct = (
        len(set(zip(result["layer_of"].values.tolist(), result["unit"].values.tolist(), strict=True))) if n else 0
    )
    axes.set_title(f"selectivity of {distinct} woken unit{'s' * (distinct != 1)}")
    axes.set_xlabel("classes, in falling order")
    axes.set_ylabel("mean over largest mean")
    if not n or "class_mean" not in result:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    means = result["class_mean"].transpose("woken_unit", "class").values
    largest = np.abs(means).max(axis=1, keepdims=True)
    curves = -np.sort(-np.divide(means, largest, out=np.zeros_like(means), where=largest > 0), axis=1)
    ranks = np.arange(1, curves.shape[1] + 1)
    picky = result["q_value"].values < 0.05
    for curve, some in zip(curves[:MOST_CURVES], picky, strict=False):
        axes.plot(ranks, curve, color=OKABE_ITO[1] if some else "#9a9a9a", linewidth=0.5, alpha=0.6)
    axes.plot(ranks, np.median(curves, axis=0), color="#000000", linewidth=1.5)
    axes.set_xticks(ranks if len(ranks) <= 12 else ranks[:: len(ranks) // 6])
    axes.set_ylim(min(0.0, float(curves.min())), 1.02)
