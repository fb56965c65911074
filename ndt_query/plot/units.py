"""Figure of one unit: what drove it most, how its values lie, which classes it answers to, and how that came about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ndt_query.inputs import class_name
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, percent_axis, plain, step_axis, styled
from ndt_store.dims import CHECKPOINT, CLASS
from ndt_store.errors import DimensionError

__all__ = ["unit_profile", "unit_types"]

MOST_RANKS: Final = 12
FEW_CLASSES: Final = 20


@styled
def unit_types(shares: Mapping[str, xr.Dataset]) -> Figure:
    """Draw how types of units emerge over training, a panel for each layer.

    Parameters
    ----------
    shares : mapping of layer to Dataset (checkpoint, type)
        From `ndt_query.type_shares`.

    Returns
    -------
    Figure
        At most double column. Share of all units of each type but the unclassified, with 95% Clopper-Pearson bands;
        dotted, the share at the first checkpoint: what the rule says of units that have learned nothing.

    Raises
    ------
    DimensionError
        A Dataset holds no shares of types.
    """
    for name, part in shares.items():
        if "share_low" not in part or "type" not in part.dims:
            raise DimensionError(f"The result of layer {name} has no shares of types: pass that of type_shares.")
    n = max(1, len(shares))
    columns = min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(min(DOUBLE_COLUMN, 2.6 * columns + 0.4), 1.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (name, part) in zip(grid, shares.items(), strict=False):
        steps = part[CHECKPOINT].values
        drawn = [str(one) for one in part["type"].values if one != "unclassified"]
        for one, colour in zip(drawn, OKABE_ITO, strict=False):
            line = part.sel(type=one)
            axes.fill_between(steps, line["share_low"], line["share_high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(steps, line["share"], marker="o", color=colour, label=one, clip_on=False)
            axes.axhline(float(line["share"][0]), color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(plain(name, 30))
        step_axis(axes, steps, 2.0)
        axes.set_ylim(0, 1)
        percent_axis(axes)
    for axes in grid[n:]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel("units")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4, handletextpad=0.3)
    return figure


@styled
def unit_profile(profile: xr.Dataset) -> Figure:
    """Draw what is known of one unit.

    Parameters
    ----------
    profile : Dataset
        From `ndt_query.unit_profile`.

    Returns
    -------
    Figure
        Double column. Above, where the inputs are images: what the unit saw when it was driven most, the strongest
        first, with activation and class; grey is outside of the image. Below: the values other than zero over examples
        and positions, the mean of each class at the checkpoint looked at, and its mean and firing rate over training.

    Raises
    ------
    DimensionError
        The Dataset is no profile.
    """
    if "class_mean" not in profile or "bin_edge" not in profile:
        raise DimensionError("The result has no class_mean and bin_edge: pass that of unit_profile.")
    has_patches = "patch" in profile
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.4 if has_patches else 2.3), layout="constrained")
    panels: Any = figure
    if has_patches:
        parts: Any = figure.subfigures(2, 1, height_ratios=[1, 2])
        panels = parts[1]
        _patches(parts[0], profile)
    axes = panels.subplots(1, 3)
    _values(axes[0], profile)
    _classes(axes[1], profile)
    _training(axes[2], profile)
    layer, unit, at = (profile[name].item() for name in ("layer", "unit", "at"))
    figure.suptitle(f"{plain(str(layer), 40)}, unit {unit}, step {at}", fontsize=8, x=0.01, ha="left")
    return figure


def _patches(figure: Any, profile: xr.Dataset) -> None:
    n = min(profile.sizes["rank"], MOST_RANKS)
    axes = figure.subplots(1, n, squeeze=False)[0]
    patches = np.moveaxis(profile["patch"].values[:n], 1, -1)
    low, high = np.nanmin(patches), np.nanmax(patches)
    scaled = (patches - low) / ((high - low) or 1.0)
    colours = mpl.colormaps["gray"].with_extremes(bad="#b9c4d0")
    for one, patch, value, label in zip(axes, scaled, profile["value"].values, profile["label"].values, strict=False):
        one.set_xticks([])
        one.set_yticks([])
        one.grid(visible=False)
        if patch.shape[-1] == 3:
            one.imshow(np.where(np.isfinite(patch), patch, 0.75))
        else:
            one.imshow(np.ma.masked_invalid(patch[..., 0]), cmap=colours, vmin=0, vmax=1)
        name = plain(class_name(profile["class_mean"], label), 11)
        one.set_xlabel(f"{value:.3g}\n{name}", fontsize=5.5, labelpad=1.5, linespacing=1.0)


def _values(axes: Axes, profile: xr.Dataset) -> None:
    axes.stairs(profile["count"], profile["bin_edge"], fill=True, color=OKABE_ITO[0], alpha=0.8)
    if profile["count"].values.any():
        axes.set_yscale("log")
    axes.set_xlabel("activation")
    axes.set_ylabel("examples and positions")
    axes.set_title(f"{float(profile['zero_fraction']):.0%} are zero", color="#666666", fontsize=7)


def _classes(axes: Axes, profile: xr.Dataset) -> None:
    means = profile["class_mean"].sel({CHECKPOINT: profile["at"].item()})
    places = np.arange(means.sizes[CLASS])
    preferred = means[CLASS].values == profile["preferred_class"].item()
    axes.bar(places, means, color=np.where(preferred, OKABE_ITO[1], "#b0b0b0"), width=0.8)
    axes.axhline(0, color="#444444", linewidth=0.6)
    if len(places) <= FEW_CLASSES:
        names = [plain(class_name(profile["class_mean"], label), 11) for label in means[CLASS].values]
        axes.set_xticks(places, names)
        for label in axes.get_xticklabels():
            label.set(rotation=60, ha="right", rotation_mode="anchor", fontsize=5.5)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("mean activation")
    p, auroc = float(profile["p_value"]), float(profile["auroc"])
    axes.set_title(f"AUROC {auroc:.3f}, $p$ = {p:.2g}", color="#666666", fontsize=7)


def _training(axes: Axes, profile: xr.Dataset) -> None:
    steps = profile[CHECKPOINT].values
    axes.plot(steps, profile["mean"], marker="o", color=OKABE_ITO[0], clip_on=False)
    axes.set_ylabel("mean activation", color=OKABE_ITO[0])
    if (profile["mean"] >= 0).all():
        axes.set_ylim(bottom=0)
    other = axes.twinx()
    other.plot(steps, profile["firing_rate"], marker="s", color=OKABE_ITO[1], clip_on=False)
    other.set_ylim(0, 1.02)
    other.set_ylabel("firing rate", color=OKABE_ITO[1])
    other.grid(visible=False)
    step_axis(axes, steps, 1.6)
