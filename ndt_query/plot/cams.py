"""Figures of Grad-CAM: inputs with their maps before and after and the raw difference, and mean maps of classes."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from ndt_query.inputs import class_name
from ndt_query.plot.style import DOUBLE_COLUMN, plain, styled
from ndt_query.tiles import DIFFERENCES, MAPS, as_tiles
from ndt_store.dims import CHECKPOINT, CLASS, EXAMPLE, X, Y
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["cams", "class_cams"]

MOST_EXAMPLES: Final = 12
MOST_CLASSES: Final = 20
CELL: Final = 0.72
"""Inches of one map."""


@styled
def cams(comparison: xr.Dataset, inputs: xr.DataArray | None = None) -> Figure:
    """Draw maps before, after, and their raw difference, a column for each example.

    Parameters
    ----------
    comparison : Dataset (example, y, x)
        From `ndt_query.cam_difference`, of at most 12 examples.
    inputs : DataArray (example, ...), optional
        Images, drawn above the maps.

    Returns
    -------
    Figure
        At most double column. The maps of an example are on one scale, from 0 to its limit, which stands below it, and
        the difference is on a symmetric one, from -limit to limit.

    Raises
    ------
    DimensionError
        The Dataset is no comparison of maps over y and x, or the inputs are no images.
    InvalidInputError
        There are more than 12 examples, or none.
    NotFoundError
        An example is not among the inputs.
    """
    if "difference" not in comparison or set(comparison["difference"].dims) != {EXAMPLE, Y, X}:
        raise DimensionError("The result has no difference over example, y and x: pass that of cam_difference.")
    n = comparison.sizes[EXAMPLE]
    if not 0 < n <= MOST_EXAMPLES:
        raise InvalidInputError(f"There are {n} examples to draw: expected 1 to {MOST_EXAMPLES}; select some.")
    shown = comparison.transpose(EXAMPLE, Y, X).compute()
    steps = json.loads(shown.attrs.get("parameters", "{}"))
    rows = [("before", f"step {steps.get('before', '')}"), ("after", f"step {steps.get('after', '')}"),
            ("difference", "difference")]  # fmt: skip
    pictures = None if inputs is None else as_tiles(_of_examples(inputs, shown[EXAMPLE].values))
    if inputs is not None and pictures is None:
        raise DimensionError(f"The inputs have dims {inputs.dims} and are no images: leave inputs out.")
    figure, axes = _grid(n, len(rows) + (pictures is not None), side=0.75)
    for column in range(n):
        one = shown.isel({EXAMPLE: column})
        limit = float(one["limit"]) or 1.0
        top = 0
        if pictures is not None:
            axes[0][column].imshow(pictures.of(int(one[EXAMPLE])))
            top = 1
        for row, (name, _) in enumerate(rows, top):
            low, colours = (-limit, DIFFERENCES) if name == "difference" else (0.0, MAPS)
            axes[row][column].imshow(one[name], cmap=colours, vmin=low, vmax=limit)
        if "label" in one.coords:
            axes[0][column].set_title(plain(class_name(shown["label"], one["label"].item()), 11), fontsize=6)
        axes[-1][column].set_xlabel(f"{int(one[EXAMPLE])}\n±{limit:.2g}", fontsize=6, labelpad=1.5)
    for row, text in enumerate([*(["input"] if pictures is not None else []), *(text for _, text in rows)]):
        axes[row][0].set_ylabel(text, rotation=0, ha="right", va="center", labelpad=4, fontsize=7)
    return figure


def _of_examples(inputs: xr.DataArray, examples: NDArray[Any]) -> xr.DataArray:
    missing = np.setdiff1d(examples, inputs[EXAMPLE].values)
    if missing.size:
        raise NotFoundError(f"inputs lack example {missing[0]} and {missing.size - 1} more: pass the whole probe set.")
    return inputs.sel({EXAMPLE: examples})


@styled
def class_cams(result: xr.Dataset) -> Figure:
    """Draw the mean map of each class, a row for each checkpoint.

    Parameters
    ----------
    result : Dataset ([checkpoint,] class, y, x)
        From `ndt_query.class_cams`, of maps or of differences; of at most 20 classes.

    Returns
    -------
    Figure
        At most double column. One symmetric scale for all maps if any value is negative, else one from 0; it is stated.

    Raises
    ------
    DimensionError
        The Dataset is no such result.
    InvalidInputError
        There are more than 20 classes or checkpoints.
    """
    if "mean" not in result or not {CLASS, Y, X} <= set(result["mean"].dims):
        raise DimensionError("The result has no mean over class, y and x: pass that of class_cams.")
    mean = result["mean"].compute()
    mean = mean if CHECKPOINT in mean.dims else mean.expand_dims(CHECKPOINT)
    mean = mean.transpose(CHECKPOINT, CLASS, Y, X)
    n_rows, n = mean.sizes[CHECKPOINT], mean.sizes[CLASS]
    if max(n, n_rows) > MOST_CLASSES:
        raise InvalidInputError(f"There are {n_rows} by {n} maps to draw: expected at most {MOST_CLASSES} each way.")
    limit = float(np.nanmax(np.abs(mean.values))) or 1.0
    signed = bool((mean < 0).any())
    figure, axes = _grid(n, n_rows, side=0.75)
    for row in range(n_rows):
        for column in range(n):
            drawn = axes[row][column].imshow(
                mean.values[row, column], cmap=DIFFERENCES if signed else MAPS, vmin=-limit if signed else 0, vmax=limit
            )
        if CHECKPOINT in result.dims:
            text = f"step {int(mean[CHECKPOINT][row])}"
            axes[row][0].set_ylabel(text, rotation=0, ha="right", va="center", labelpad=4, fontsize=7)
    labels = result[CLASS]
    for column, (label, count) in enumerate(zip(labels.values, result["n_examples"].values, strict=True)):
        axes[0][column].set_title(plain(class_name(labels, label), 11), fontsize=6)
        axes[-1][column].set_xlabel(f"n = {count}", fontsize=6, labelpad=1.5)
    bar = figure.colorbar(drawn, ax=[one for row in axes for one in row], fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=6)
    return figure


def _grid(n_columns: int, n_rows: int, side: float) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with bare square axes; `side` inches on the left are for names."""
    cell = min(CELL, (DOUBLE_COLUMN - side) / n_columns)
    narrow = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(n_columns * cell + side, n_rows * cell + 0.5), layout=narrow)
    grid: Any = figure.subplots(n_rows, n_columns, squeeze=False)
    axes: NDArray[Any] = grid
    for one in axes.ravel():
        one.set_xticks([])
        one.set_yticks([])
        one.grid(visible=False)
        for spine in one.spines.values():
            spine.set_visible(False)
    return figure, axes.tolist()
