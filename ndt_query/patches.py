"""Patches: which part of an input a position of a layer sees, from the layer's theoretical receptive field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import xarray as xr

from ndt_store.dims import X, Y
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = ["patch_bounds", "patch_span"]

AXIS: Final = "axis"


def patch_bounds(field: xr.Dataset, y: int | None, x: int, input_shape: Sequence[int]) -> tuple[slice, ...]:
    """Return which rows and columns of the input a position of a layer sees, cut off at the border of the input.

    Parameters
    ----------
    field : Dataset
        Of one layer: ``receptive_field(store, layer)``, or a selection of what ``capture.receptive_fields`` returned.
    y, x : int
        The position, as `ndt_query.top_examples` names it; None for `y` in layers over series. In a layer that sees
        the same everywhere any position will do.
    input_shape : sequence of int
        Of one input, or of all: the last entries are rows and columns.

    Returns
    -------
    tuple of slice
        For rows and columns, or for columns alone: ``image[(..., *patch_bounds(field, y, x, image.shape))]``.

    Raises
    ------
    InvalidInputError
        The layer's theoretical field is not known, or the position sees nothing of an input of this shape.
    DimensionError
        The field is of several layers, or of another number of axes than the input or the position.

    Examples
    --------
    >>> field = xr.Dataset(
    ...     {"size": ("axis", [4.0, 4.0]), "stride": ("axis", [2.0, 2.0]), "offset": ("axis", [0.5, 0.5]),
    ...      "kind": ((), "sliding"), "reason": ((), "")},
    ...     {"axis": ["y", "x"]},
    ... )
    >>> patch_bounds(field, 0, 13, (1, 28, 28))
    (slice(0, 3, None), slice(25, 28, None))
    """
    if "size" not in field or field["size"].dims != (AXIS,):
        raise DimensionError("The field is not that of one layer: select one, as receptive_field(store, 'conv1') does.")
    axes = [str(axis) for axis in field[AXIS].values]
    position = {Y: y, X: x}
    if len(input_shape) < len(axes) or any(position[axis] is None for axis in axes):
        raise DimensionError(
            f"The field has the axes {', '.join(axes)}: got position y={y}, x={x} in inputs of shape "
            f"{tuple(input_shape)}."
        )
    kind = str(field["kind"].values)
    if kind == "unknown":
        raise InvalidInputError(f"The theoretical field of the layer is not known ({field['reason'].item()}).")
    found = []
    for axis, extent in zip(axes, list(input_shape)[-len(axes) :], strict=True):
        low, high = _span(field.sel({AXIS: axis}), int(position[axis] or 0))
        start, stop = max(low, 0), min(high, extent)
        if start >= stop:
            raise InvalidInputError(
                f"Position {position[axis]} along {axis} sees nothing of {extent} input positions: expected a position "
                "of the layer, and the shape of the inputs that it was captured with."
            )
        found.append(slice(start, stop))
    return tuple(found)


def patch_span(field: xr.Dataset, y: int, x: int) -> tuple[tuple[int, int], ...]:
    """Return where the field of a position begins and ends along each axis, also beyond the border of the input."""
    return tuple(_span(field.sel({AXIS: axis}), {Y: y, X: x}[str(axis)]) for axis in field[AXIS].values)


def _span(one: xr.Dataset, position: int) -> tuple[int, int]:
    # A layer of one position may show no stride; that position has its field all the same.
    moved = float(one["stride"]) * position if position else 0.0
    low = float(one["offset"]) + moved - (float(one["size"]) - 1) / 2
    return (round(low), round(low + float(one["size"]))) if math.isfinite(low) else (0, 0)
