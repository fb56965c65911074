"""Inputs as images: told from other inputs by their shape, and brought to one order of axes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_images"]

CHANNELS: Final = (1, 3)


def as_images(values: NDArray[Any]) -> NDArray[Any] | None:
    """Return inputs as (example, channel, row, column), None where they are no images of one or three channels.

    Parameters
    ----------
    values : ndarray (example, row, column), (example, channel, row, column) or (example, row, column, channel)
        Where both the first and the last could be channels, the first are.
    """
    if values.ndim == 3:
        return values[:, None]
    if values.ndim == 4 and values.shape[1] in CHANNELS:
        return values
    return np.moveaxis(values, -1, 1) if values.ndim == 4 and values.shape[-1] in CHANNELS else None
