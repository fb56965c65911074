"""What every scan of one length shares: each model of noise and each amount of smoothing, turned into a fast basis.

For one point of the grid, in the basis in which both ``F' inv(DRD) F`` and K are diagonal, P acts through a vector of
shrinkage factors; see `ndt_query.kernels.changepoints` for what these are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ndt_query.kernels.noise import NOISES, Noise
from ndt_query.kernels.trend import N_FREE, spline

__all__ = ["FREEDOM", "Branch", "Design", "design", "from_each_on", "scaled_design"]

F64 = NDArray[np.float64]

FREEDOM: Final = (5.0, 7.0, 10.0, 14.0, 19.0, 26.0, 36.0, 48.0)
"""Effective degrees of freedom of the curve beside the free ones. With fewer, steps would be cheaper than bends."""


@dataclass(frozen=True, slots=True)
class Branch:
    """What one model of noise makes of the basis: L amounts of smoothing, k curves."""

    noise: Noise
    curves: F64  # (measurement, k): F E
    dual: F64  # (measurement, k): inv(DRD) F E
    sums: F64  # (measurement, k): of dual from each measurement on
    shrink: F64  # (L, k)
    cost: F64  # (L,): log determinants
    information: F64  # (L, measurement): s_t' P s_t
    trace: float  # of inv(DRD)


@dataclass(frozen=True, slots=True)
class Design:
    """All points of the grid for one number of measurements and one scale of the noise.

    Parameters
    ----------
    n : int
        Measurements.
    scale : ndarray (measurement,)
        Standard deviation of the noise, relative.
    doubt : ndarray (measurement, term)
        Makes independent normal numbers into errors of the logarithm of the scale; no terms where it is one for all.
    branches : tuple
        One for each model of noise.
    cost : float
        The least cost of all points.
    """

    n: int
    scale: F64
    doubt: F64
    branches: tuple[Branch, ...]
    cost: float

    def at(self, point: int) -> tuple[Branch, F64]:
        """Return the noise's branch and the shrinkage of a point of the grid."""
        branch, level = divmod(point, len(FREEDOM))
        return self.branches[branch], self.branches[branch].shrink[level]

    @staticmethod
    def rougher(point: int) -> int:
        """Return the point with the same noise and the next more freedom of the curve."""
        branch, level = divmod(point, len(FREEDOM))
        return branch * len(FREEDOM) + min(level + 1, len(FREEDOM) - 1)


@functools.lru_cache(maxsize=8)
def design(n: int) -> Design:
    """Return the design for noise of one scale, kept for the next series of this length."""
    return scaled_design(np.ones(n), np.empty((n, 0)))


def scaled_design(scale: F64, doubt: F64) -> Design:
    """Return the design for noise whose standard deviation is proportional to `scale` (measurement,)."""
    n = len(scale)
    basis, penalty = spline(n)
    branches = tuple(_branch(noise, basis, penalty, scale) for noise in NOISES)
    return Design(n, scale, doubt, branches, min(float(branch.cost.min()) for branch in branches))


def _branch(noise: Noise, basis: F64, penalty: F64, scale: F64) -> Branch:
    n, k = basis.shape
    precision = noise.precise(np.diag(1 / scale)) / scale[:, None]
    dual = precision @ basis
    gram = basis.T @ dual
    roughness, turn = scipy.linalg.eigh(penalty, (gram + gram.T) / 2)
    roughness[:N_FREE] = 0
    smoothing = np.array([_smoothing(roughness[N_FREE:], freedom) for freedom in FREEDOM])
    shrink = 1 / (1 + smoothing[:, None] * roughness)
    cost = (
        noise.log_determinant(n)
        + 2 * np.log(scale).sum()
        + np.linalg.slogdet(gram)[1]
        - np.log(shrink).sum(axis=1)
        - (k - N_FREE) * np.log(smoothing)
    )
    dual = dual @ turn
    sums = from_each_on(dual)
    information = np.diagonal(from_each_on(from_each_on(precision).T)) - shrink @ (sums**2).T
    return Branch(noise, basis @ turn, dual, sums, shrink, cost, information, float(np.trace(precision)))


def _smoothing(roughness: F64, freedom: float) -> float:
    """Return the lambda at which shrinkage factors 1 / (1 + lambda roughness) sum up to `freedom`."""
    wanted = min(freedom, 0.9 * len(roughness))
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 / (1 + np.exp(middle) * roughness)).sum() > wanted:
            low = middle
        else:
            high = middle
    return float(np.exp(middle))


def from_each_on(values: F64) -> F64:
    """Return sums over measurements from each one to the last, along the first axis."""
    return np.ascontiguousarray(np.cumsum(values[::-1], axis=0)[::-1])
