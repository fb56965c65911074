"""What the study that this software replaces computed, as it computed it: wrong, and kept to show how. Not for use."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from sklearn.linear_model import Ridge

__all__ = [
    "PENALTY",
    "biased_cka",
    "difference_of_scaled",
    "global_z",
    "phase_of_index",
    "stable_rank_of_frobenius",
    "trailing_z",
    "training_r2",
    "uncentred_stable_rank",
]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

PENALTY: Final = 10.0
"""Of its ridge regression: the one of 0.1, 1 and 10 that gives the R2 noted."""


def stable_rank_of_frobenius(values: F64) -> float:
    """Squared Frobenius norm over squared "spectral" norm of (example, unit), the latter of the values in one line.

    The 2-norm of a vector is what `torch.norm(x, p=2)` returns of a matrix too, and it is the Frobenius norm.
    """
    return float((np.linalg.norm(values, "fro") / np.linalg.norm(values.ravel(), 2)) ** 2)


def uncentred_stable_rank(values: F64) -> float:
    """Stable rank of (example, unit) with the mean of each unit left in."""
    squares = np.linalg.svd(values, compute_uv=False) ** 2
    return float(squares.sum() / squares[0])


def global_z(values: F64, threshold: float = 2.0) -> I64:
    """Positions where the gradient of the smoothed series is far from its own mean: a steep curve is all jumps."""
    gradient = np.gradient(uniform_filter1d(np.asarray(values, float), 5))
    return np.flatnonzero((gradient - gradient.mean()) / gradient.std() > threshold)


def trailing_z(values: F64, threshold: float = 3.0, window: int = 50, fewest: int = 50) -> I64:
    """Positions far from the mean of the 50 before: 350 tests at 0.3% each, and a mean that a jump itself shifts.

    With `fewest` below `window` tests begin earlier, on the few measurements that there are.
    """
    values = np.asarray(values, float)
    before = [values[max(0, place - window) : place] for place in range(fewest, len(values))]
    mean, spread = (np.array([measure(some) for some in before]) for measure in (np.mean, np.std))
    return np.flatnonzero(np.abs(values[fewest:] - mean) > threshold * spread) + fewest


def phase_of_index(index: NDArray[np.integer], steps: NDArray[np.integer]) -> F64:
    """Position of a jump in the list of measurements, over the last training step."""
    return np.asarray(index, dtype=np.float64) / float(steps[-1])


def training_r2(x: F64, y: F64) -> F64:
    """R2 of each column of `y` (example, unit) from `x`, on the examples that the ridge regression was fitted to."""
    return np.array([float(Ridge(PENALTY).fit(x, column).score(x, column)) for column in y.T])


def difference_of_scaled(before: F64, after: F64) -> F64:
    """Subtract maps (..., y, x), each of which was divided by its own largest value."""
    first, second = (maps / maps.max(axis=(-2, -1), keepdims=True) for maps in (before, after))
    return np.asarray(second - first)


def biased_cka(x: F64, y: F64) -> float:
    """Linear CKA of (example, unit) from centred products, which takes chance for likeness."""
    one, other = (values - values.mean(axis=0) for values in (x, y))
    shared = float(np.linalg.norm(one.T @ other) ** 2)
    return shared / float(np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other))
