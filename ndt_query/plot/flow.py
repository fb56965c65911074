"""Figures of flow: attention from token to token through all layers, and the tokens that everything has to pass."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, step_axis, styled, tail
from ndt_store.dims import CHECKPOINT, HEAD, KEY, LAYER, QUERY
from ndt_store.errors import DimensionError

__all__ = ["attention_flow", "bottlenecks"]

GREY: Final = "#666666"
LEAST: Final = 0.02
"""Of the widest edge: thinner ones are not drawn."""


@styled
def attention_flow(patterns: xr.Dataset, metrics: xr.Dataset, *, checkpoint: int | None = None) -> Figure:
    """Draw which tokens attend to which through the layers, and how flow changes over training.

    Parameters
    ----------
    patterns : Dataset (checkpoint, layer, head, query, key)
        From `ndt_query.mean_pattern`, of layers in order of depth.
    metrics : Dataset
        From `ndt_query.flow_metrics` of the same layers.
    checkpoint : int, optional
        Of the diagram; the last by default.

    Returns
    -------
    Figure
        Double column. Left: tokens at each depth, the inputs at the bottom; a line is attention, mean over heads and
        examples, as wide as what it carries is beside the other lines of its layer; what passes by the residual stream
        has no line. Orange tokens are bottlenecks. Right: flow entropy, input diversity
        and output concentration over training, with intervals.

    Raises
    ------
    DimensionError
        The results are others.
    """
    if "pattern" not in patterns or LAYER not in patterns.dims or "throughput" not in metrics:
        raise DimensionError("The results have no pattern and throughput: pass those of mean_pattern and flow_metrics.")
    steps = metrics[CHECKPOINT].values if CHECKPOINT in metrics.dims else np.empty(0)
    at = int(steps[-1]) if checkpoint is None and len(steps) else checkpoint
    shown, flow = (one.sel({CHECKPOINT: at}) if CHECKPOINT in one.dims else one for one in (patterns, metrics))
    mean = shown["pattern"].mean(HEAD).transpose(LAYER, QUERY, KEY).values
    passed = flow["throughput"].transpose("depth", "token").values
    depth, n = passed.shape
    # What passes an edge: what passes its upper end, times its attention; the outputs have even shares.
    above = [*passed[1:], np.full(n, 1 / n)]
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.9 * depth + 1.6), layout="constrained")
    left, *right = figure.subplot_mosaic([["d", "a"], ["d", "b"], ["d", "c"]], width_ratios=[2.2, 1]).values()
    lines, widths = [], []
    for level in range(depth):
        carried = above[level][:, None] * mean[level]
        largest = np.nanmax(carried)
        for query, key in zip(*np.nonzero(carried > LEAST * largest), strict=True):
            lines.append([(key, level), (query, level + 1)])
            widths.append(2.2 * carried[query, key] / largest)
    left.add_collection(LineCollection(lines, linewidths=widths, colors=OKABE_ITO[0], alpha=0.45))
    stuck = flow["bottleneck"].transpose("depth", "token").values
    for level in range(depth + 1):
        share = above[-1] if level == depth else passed[level]
        colours = [OKABE_ITO[1] if level < depth and stuck[level, token] else "#333333" for token in range(n)]
        left.scatter(range(n), [level] * n, s=6 + 500 / n * share * n / 4, color=colours, zorder=3)
    left.set_yticks(
        range(depth + 1), [f"before {tail(str(one), 22)}" for one in flow[LAYER].values] + ["output"], fontsize=6
    )
    left.set_xlabel("token")
    left.set_xlim(-0.8, n - 0.2)
    left.grid(visible=False)
    left.set_title(f"step {at}; orange: bottlenecks" if at is not None else "orange: bottlenecks", fontsize=7)
    for axes, name in zip(right, ("flow_entropy", "input_diversity", "output_concentration"), strict=True):
        if len(steps):
            axes.fill_between(
                steps, metrics[f"{name}_low"], metrics[f"{name}_high"], alpha=0.2, linewidth=0, color=OKABE_ITO[0]
            )
            axes.plot(steps, metrics[name], marker="o", color=OKABE_ITO[0])
            step_axis(axes, steps, 1.9, label=axes is right[-1])
            axes.tick_params(labelbottom=axes is right[-1])
        axes.set_title(name.replace("_", " "), fontsize=7)
    return figure


@styled
def bottlenecks(
    metrics: xr.Dataset, inputs: Any, grid: tuple[int, int], *, n_prefix: int = 0, checkpoint: int | None = None
) -> Figure:
    """Draw on an image how much of all flow passes each patch, at each depth.

    Parameters
    ----------
    metrics : Dataset
        From `ndt_query.flow_metrics`.
    inputs : ndarray (row, column) or (example, row, column)
        An image, or several, of which the mean is drawn.
    grid : (rows, columns)
        Of the patches, in reading order.
    n_prefix : int
        Tokens before the patches; they are left out.
    checkpoint : int, optional
        The last by default.

    Returns
    -------
    Figure
        A panel for each depth: the image in grey, patches tinted by their share over the even one, bottlenecks framed.

    Raises
    ------
    DimensionError
        The grid has not as many patches as there are tokens, or the image is none.
    """
    at = metrics.isel({CHECKPOINT: -1}) if checkpoint is None else metrics.sel({CHECKPOINT: checkpoint})
    passed = at["throughput"].transpose("depth", "token").values[:, n_prefix:]
    stuck = at["bottleneck"].transpose("depth", "token").values[:, n_prefix:]
    image = np.asarray(inputs, dtype=np.float64)
    image = image.mean(axis=0) if image.ndim == 3 else image
    if image.ndim != 2 or grid[0] * grid[1] != passed.shape[1]:
        raise DimensionError(
            f"An image of shape {image.shape} and a grid of {grid} do not fit {passed.shape[1]} tokens: expected rows "
            "times columns to be these."
        )
    depth, n = passed.shape
    figure = Figure(figsize=(min(DOUBLE_COLUMN, 1.9 * depth + 0.8), 2.1), layout="constrained")
    panels = figure.subplots(1, depth, squeeze=False)[0]
    height, wide = image.shape[0] / grid[0], image.shape[1] / grid[1]
    largest = max(2.0, float(np.nanmax(passed)) * n)
    tint: Any = None
    for level, axes in enumerate(panels):
        axes.imshow(image, cmap="gray", extent=(0, image.shape[1], image.shape[0], 0))
        tint = axes.imshow(passed[level].reshape(grid) * n, cmap="viridis", alpha=0.55, vmin=0, vmax=largest,
                           extent=(0, image.shape[1], image.shape[0], 0))  # fmt: skip
        for token in np.flatnonzero(stuck[level]):
            row, column = divmod(int(token), grid[1])
            corner = column * wide, row * height
            axes.add_patch(Rectangle(corner, wide, height, fill=False, edgecolor=OKABE_ITO[1], linewidth=1.4))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.set_title(f"before {tail(str(at[LAYER].values[level]), 20)}", fontsize=6.5)
    figure.colorbar(tint, ax=list(panels), shrink=0.8, label="share over even share")
    return figure
