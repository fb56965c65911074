"""Figures of gradients: how they flow through a network over training, and when their norm stands out."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ndt_query.gradients import MODULE
from ndt_query.plot.style import (
    DOUBLE_COLUMN,
    OKABE_ITO,
    layer_colours,
    layer_legend,
    plain,
    step_axis,
    styled,
)
from ndt_store.dims import CHECKPOINT, STEP
from ndt_store.errors import DimensionError

__all__ = ["gradient_anomalies", "gradient_flow"]


@styled
def gradient_flow(result: xr.Dataset) -> Figure:
    """Draw how large gradients are in each module over training, and how they change on their way to the input.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.gradient_flow`.

    Returns
    -------
    Figure
        Double column. Left: root mean square of the gradient in each module. Right: the same over that of the last
        module; the dotted line at 1 is a gradient that neither vanishes nor explodes.

    Raises
    ------
    DimensionError
        The Dataset is another one.
    """
    if "flow_ratio" not in result or "module_rms" not in result:
        raise DimensionError("The result has no module_rms and flow_ratio: pass that of gradient_flow.")
    modules = [str(one) for one in result[MODULE].values]
    colours = layer_colours(modules)
    steps = result[CHECKPOINT].values
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, label in (
        (panels[0], "module_rms", "gradient, root mean square"),
        (panels[1], "flow_ratio", "gradient over that of the last module"),
    ):
        for module in modules:
            values = result[name].sel({MODULE: module})
            axes.plot(
                steps, values.where(values > 0), marker="o", color=colours[module], label=plain(module or "model")
            )
        axes.set_yscale("log")
        axes.set_ylabel(label)
        step_axis(axes, steps, 2.4)
    panels[1].axhline(1.0, color="#444444", linewidth=0.8, linestyle=":")
    layer_legend(figure, panels[0])
    return figure


@styled
def gradient_anomalies(result: xr.Dataset) -> Figure:
    """Draw the norm of the gradient while training, with the band it is expected in, its anomalies, and jumps.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.gradient_anomalies`.

    Returns
    -------
    Figure
        Double column. Grey: the band that holds all values of a series without anomalies with 1 - alpha; full circles:
        anomalies; dashed: jumps of any layer.

    Raises
    ------
    DimensionError
        The Dataset is another one.
    """
    if "band_low" not in result or "is_anomaly" not in result:
        raise DimensionError("The result has no band_low and is_anomaly: pass that of gradient_anomalies.")
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.3), layout="constrained")
    axes = figure.add_subplot()
    steps = result[STEP].values
    axes.fill_between(steps, result["band_low"], result["band_high"], color="#bbbbbb", alpha=0.5, linewidth=0)
    axes.plot(steps, result["norm"], color=OKABE_ITO[0], linewidth=0.8)
    hits = result["is_anomaly"].values
    axes.plot(steps[hits], result["norm"].values[hits], "o", color=OKABE_ITO[1], markersize=4)
    for jump in result["jump_step"].values:
        axes.axvline(jump, color="#444444", linewidth=0.8, linestyle="--")
    axes.set_yscale("log")
    axes.set_ylabel("norm of the gradient")
    step_axis(axes, steps, 6.0, linear=True)
    n, jumps, warned = result.sizes["anomaly"], result.sizes["jump"], int(result["n_warned"])
    said = f"{n} anomal{'y' if n == 1 else 'ies'}"
    if n and jumps:
        chance, p_value = float(result["warned_by_chance"]), float(result["warning_p_value"])
        said += f"; before {warned} of {jumps} jumps, {chance:.2g} by chance, p {p_value:.2g}"
    elif np.isfinite(jumps):
        said += f", {jumps} jump{'' if jumps == 1 else 's'}"
    axes.set_title(said, fontsize=7, color="#666666")
    return figure
