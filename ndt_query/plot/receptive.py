"""Figure of receptive fields: effective maps within the theoretical square, and widths over layers and training."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, layer_colours, plain, step_axis, styled
from ndt_store.dims import LAYER, STEP, UNIT
from ndt_store.errors import DimensionError

__all__ = ["receptive_fields"]

MOST_MAPS: Final = 6
SQUARE: Final = OKABE_ITO[1]
GREY: Final = "#777777"


@styled
def receptive_fields(result: xr.Dataset) -> Figure:
    """Draw effective receptive fields within the theoretical ones, and how wide they are.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.receptive_field`, of images.

    Returns
    -------
    Figure
        Double column. Above: the effective field of up to six layers, evenly chosen, at the first and the last step,
        on the whole input; each unit's map is scaled to a sum of one before the mean over units, colours go with the
        square root up to the largest value of the map, and the orange line is the theoretical field as far as it lies
        within the input. Below: widths of all layers, mean over units and axes of each, with intervals over examples,
        beside the theoretical sizes; with two steps or more also over training.

    Raises
    ------
    DimensionError
        The result is another one, of one layer alone, or of series.
    """
    if "layer_width" not in result or LAYER not in result.dims:
        raise DimensionError("The result has no layer_width over layers: pass that of receptive_field, of all layers.")
    if "row" not in result["effective"].dims:
        raise DimensionError("The result is of series: its maps have no rows to draw, plot layer_width over layers.")
    names = [str(name) for name in result[LAYER].values]
    steps = result[STEP].values
    shown = [
        names[n] for n in np.unique(np.linspace(0, len(names) - 1, min(MOST_MAPS, len(names))).round().astype(int))
    ]
    rows = [0, len(steps) - 1] if len(steps) > 1 else [0]
    height = len(rows) * DOUBLE_COLUMN / max(len(shown), 4) + 2.4
    figure = Figure(figsize=(DOUBLE_COLUMN, height), layout="constrained")
    above, below = (figure.add_subfigure(part) for part in figure.add_gridspec(2, 1, height_ratios=[height - 2.2, 2.2]))
    grid = above.subplots(len(rows), len(shown), squeeze=False)
    for r, step in enumerate(rows):
        for c, name in enumerate(shown):
            _map(grid[r, c], result.sel({LAYER: name}).isel({STEP: step}))
            if r == 0:
                grid[r, c].set_title(plain(name, 20))
        grid[r, 0].set_ylabel(f"step {steps[step]}")
    panels = below.subplots(1, 2 if len(steps) > 1 else 1, squeeze=False)[0]
    _by_layer(panels[0], result, names, rows)
    if len(steps) > 1:
        _over_steps(panels[1], result, names)
    return figure


def _map(axes: Axes, one: xr.Dataset) -> None:
    """Draw the mean map of a layer on the whole input."""
    extent = one["input_size"].values
    size, start = one["crop_size"].values, one["crop_start"].values
    maps = one["effective"].transpose(UNIT, "row", "column").values.astype(np.float64)[:, : size[0], : size[1]]
    masses = maps.sum((1, 2))
    whole = np.zeros(extent)
    seen = masses > 0
    if seen.any():
        scaled = (maps[seen] / masses[seen, None, None]).mean(0)
        whole[start[0] : start[0] + size[0], start[1] : start[1] + size[1]] = scaled
    axes.imshow(whole, norm=PowerNorm(0.5, vmin=0, vmax=float(whole.max()) or 1.0), cmap="viridis")
    if str(one["kind"].values) != "unknown":
        corner = (start[1] - 0.5, start[0] - 0.5)
        axes.add_patch(
            Rectangle(corner, size[1], size[0], fill=False, edgecolor=SQUARE, linewidth=1.2, clip_on=False, zorder=3)
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _by_layer(axes: Axes, result: xr.Dataset, names: list[str], rows: list[int]) -> None:
    places = np.arange(len(names))
    axes.plot(places, result["size"].mean("axis"), "_", color=GREY, markersize=14, label="theoretical size")
    axes.axhline(float(result["input_size"].mean()), color=GREY, linewidth=0.7, linestyle=":", label="input")
    for n, step in enumerate(rows):
        middle, reach = _widths(result.isel({STEP: step}))
        at = places + (0.16 * (n - 0.5) if len(rows) > 1 else 0)
        label = f"effective width, step {result[STEP].values[step]}"
        axes.errorbar(at, middle, np.nan_to_num(reach), fmt="so"[n], color=OKABE_ITO[n], capsize=2, elinewidth=1,
                      markersize=3.5, label=label)  # fmt: skip
    axes.set_xticks(places, [plain(name, 16) for name in names])
    if len(names) > 4:
        axes.tick_params(axis="x", labelrotation=45)
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("input pixels")
    axes.legend(loc="upper left", handlelength=1.2)


def _over_steps(axes: Axes, result: xr.Dataset, names: list[str]) -> None:
    colours = layer_colours(names)
    for name in names:
        middle, reach = _widths(result.sel({LAYER: name}))
        steps = result[STEP].values
        axes.fill_between(steps, middle - reach[0], middle + reach[1], color=colours[name], alpha=0.18, linewidth=0)
        axes.plot(steps, middle, "o-", color=colours[name], label=plain(name, 20))
    step_axis(axes, result[STEP].values, DOUBLE_COLUMN / 2.6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("effective width (pixels)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.4)


def _widths(one: xr.Dataset) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return widths, mean over axes, and how far their intervals reach down and up, as wide as those of each axis."""
    middle = one["layer_width"]
    down, up = middle - one["layer_width_low"], one["layer_width_high"] - middle
    return middle.mean("axis", skipna=False).values, np.stack([d.mean("axis", skipna=False).values for d in (down, up)])
