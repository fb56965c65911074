"""Figures of the study of a CNN: the hierarchy of its features, and when each layer came to tell classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

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
from ndt_store.dims import CHECKPOINT, LAYER
from ndt_store.errors import DimensionError

__all__ = ["emergence", "hierarchy"]

GREY: Final = "#d9d9d9"
MOST_STANDING: Final = 8


@styled
def hierarchy(shares: Mapping[str, xr.Dataset]) -> Figure:
    """Draw which kinds of units each layer has at the end, beside what the same rule says of the first checkpoint.

    Parameters
    ----------
    shares : mapping of layer to Dataset (checkpoint, type)
        From `ndt_query.type_shares`, in order of depth.

    Returns
    -------
    Figure
        At most double column. Two bars a layer: pale, the first checkpoint; full, the last. Numbers beside them are
        units. The bars of many layers lie.

    Raises
    ------
    DimensionError
        A Dataset holds no shares of types.
    """
    for name, part in shares.items():
        if "share" not in part or "type" not in part.dims:
            raise DimensionError(f"The result of layer {name} has no shares of types: pass that of type_shares.")
    n, lying = len(shares), len(shares) > MOST_STANDING
    size = (SINGLE_COLUMN + 1.1, 0.7 + 0.17 * n) if lying else (min(DOUBLE_COLUMN, 1.6 + 1.1 * n), 2.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    draw = axes.barh if lying else axes.bar
    kinds = [str(one) for one in next(iter(shares.values()))["type"].values]
    colours = dict(zip(kinds, (*OKABE_ITO[: len(kinds) - 1], GREY), strict=True))
    for place, part in enumerate(shares.values()):
        for offset, row, alpha in ((-0.2, 0, 0.45), (0.2, -1, 1.0)):
            bottom = 0.0
            for kind in kinds:
                share = float(part["share"].sel(type=kind)[row])
                named = kind if place == 0 and row == -1 else None
                draw(place + offset, share, 0.36, bottom, color=colours[kind], alpha=alpha, label=named)
                bottom += share
        at, align = ((1.01, place), ("left", "center")) if lying else ((place, 1.01), ("center", "bottom"))
        axes.annotate(f"{int(part['count'][-1].sum())}", at, ha=align[0], va=align[1], fontsize=6)
    of_shares, of_layers = (axes.xaxis, axes.yaxis) if lying else (axes.yaxis, axes.xaxis)
    of_layers.set_ticks(range(n), [plain(name, 16) for name in shares], fontsize=6 if lying else None)
    of_layers.grid(visible=False)
    of_shares.set_ticks([0, 0.25, 0.5, 0.75, 1.0])
    of_shares.set_major_formatter(PercentFormatter(1.0, decimals=0))
    of_shares.set_label_text("units")
    if lying:
        axes.set(xlim=(0, 1.08), ylim=(n - 0.4, -0.6))
    else:
        axes.set_ylim(0, 1.08)
    steps = next(iter(shares.values()))[CHECKPOINT].values
    axes.set_title(f"pale: step {steps[0]}; full: step {steps[-1]}", color="#666666", fontsize=7)
    figure.legend(loc="outside right upper")
    return figure


@styled
def emergence(result: xr.Dataset) -> Figure:
    """Draw the share of units that tell a class over training, and when half of its rise had happened.

    Parameters
    ----------
    result : Dataset (checkpoint, layer)
        From ``cnn_study(store)["emergence"]``.

    Returns
    -------
    Figure
        Single column. Bands: 95% Clopper-Pearson. The bar of a layer spans the two checkpoints between which half of
        its rise happened; a layer whose limits overlap has none.

    Raises
    ------
    DimensionError
        The Dataset is another one.
    """
    if "share_low" not in result or "half_after" not in result:
        raise DimensionError("The result has no share_low and half_after: pass that of cnn_study.")
    layers = [str(one) for one in result[LAYER].values]
    colours = layer_colours(layers)
    height = max(0.75, 0.15 * len(layers))
    figure = Figure(figsize=(SINGLE_COLUMN + 1.1, 2.25 + height), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[2.25, height], sharex=True)
    steps = result[CHECKPOINT].values
    for place, layer in enumerate(layers):
        one = result.sel({LAYER: layer})
        above.fill_between(steps, one["share_low"], one["share_high"], color=colours[layer], alpha=0.15, linewidth=0)
        above.plot(steps, one["share"], marker="o", color=colours[layer], label=plain(layer), clip_on=False)
        if np.isfinite(one["half"]):
            ends = [float(one["half_after"]), float(one["half"])]
            below.plot(ends, [place, place], color=colours[layer], linewidth=4, solid_capstyle="butt")
    above.set_ylim(0, 1.02)
    percent_axis(above)
    above.set_ylabel("units")
    auroc = result.attrs.get("least_auroc", "")
    above.set_title(f"tell a class: AUROC of {auroc} or more", fontsize=7, color="#666666")
    below.set_yticks(range(len(layers)), [plain(one, 14) for one in layers], fontsize=6)
    below.set_ylim(len(layers) - 0.4, -0.6)
    below.set_ylabel("half risen")
    step_axis(below, steps, 2.6)
    layer_legend(figure, above)
    return figure
