"""When something has emerged: between which checkpoints half of a rise has happened."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["half_risen"]


def half_risen(
    steps: NDArray[Any], share: NDArray[Any], low: NDArray[Any], high: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first step at which each column has risen by half of what it rises at most, and the step before it.

    Parameters
    ----------
    steps : ndarray (step,)
    share, low, high : ndarray (step, column)
        What rises, with its interval.

    Returns
    -------
    half, before : ndarray (column,)
        NaN where the intervals of the first and of the largest value overlap, nothing having risen for sure, and where
        a value is NaN.
    """
    n = share.shape[1]
    half, before = np.full(n, np.nan), np.full(n, np.nan)
    for layer in range(n):
        top = int(share[:, layer].argmax())
        if not (np.isfinite(share[:, layer]).all() and low[top, layer] > high[0, layer]):
            continue
        middle = (share[0, layer] + share[top, layer]) / 2
        at = int((share[:, layer] >= middle).argmax())
        half[layer], before[layer] = steps[at], steps[at - 1]
    return half, before
