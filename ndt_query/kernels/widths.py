"""Widths of masses over pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["central_width"]

F64 = NDArray[np.float64]


def central_width(mass: F64, centre: float, share: float) -> F64:
    """Return the shortest lengths about a centre that hold a share of a mass.

    Parameters
    ----------
    mass : ndarray (group, ..., pixel)
        Of each pixel, over which it lies evenly; no mass is negative. The first group holds what is in the others and
        more: what rounding leaves of it there, one part in 10^9, is no mass.
    centre : float
        In pixels; 0 is the middle of the first.
    share : float
        Between 0 and 1.

    Returns
    -------
    ndarray (group, ...)
        In pixels; NaN where there is no mass.
    """
    edges = np.arange(mass.shape[-1] + 1) - 0.5
    lengths = np.unique(np.concatenate([[0.0], 2 * np.abs(edges - centre)]))
    # Share of each pixel within each length; between these lengths what is held grows evenly.
    low, high = centre - lengths / 2, centre + lengths / 2
    overlap = np.clip(np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low), 0, 1)
    total = mass.sum(-1, keepdims=True)
    there = total[..., 0] > 1e-9 * total[0, ..., 0]
    held = np.divide(
        mass @ overlap, total, out=np.full((*mass.shape[:-1], len(lengths)), np.nan), where=there[..., None]
    )
    after = np.argmax(held >= share, axis=-1)
    before = np.maximum(after - 1, 0)
    at = [np.take_along_axis(held, place[..., None], -1)[..., 0] for place in (before, after)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = lengths[before] + (share - at[0]) / (at[1] - at[0]) * (lengths[after] - lengths[before])
    return np.asarray(np.where(there, found, np.nan))
