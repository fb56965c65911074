"""A smooth curve, noise with a memory, and a step anywhere: restricted likelihoods of all of them at once.

The model of a series is ``y = F b + Z g + e``: a penalised spline (`trend`), columns that are given, such as steps
found before, and noise with covariance ``s^2 D R D`` (`noise`). Smoothness and correlation come from a grid. For one
point of it, with ``V = D R D + F inv(lambda K) F'`` and P the projection of ``inv(V)`` that removes what is not
penalised:

- the curve alone leaves ``y' P y``;
- a step at measurement t lowers that by ``(s_t' P y)^2 / s_t' P s_t``.

In the basis in which both ``F' inv(DRD) F`` and K are diagonal, P acts through a vector of shrinkage factors, and the
contrasts ``s_t' P y`` of all t and of many series are one matrix product. The gain of a step is twice the logarithm of
the likelihood ratio, each side at its own best point of the grid: a curve that was bent to follow a jump, or noise that
was made to remember it, competes with the step and a straighter curve. Cost for n measurements, k curves, B series and
G points: 2 n k B G operations, about 1 ms a series at n = 400.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ndt_query.kernels.stepdesign import FREEDOM, Design, from_each_on
from ndt_query.kernels.trend import N_FREE

__all__ = ["EDGE", "Fit", "Keep", "Scan", "fit", "gains_of", "scan", "steps"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Keep = frozenset[int]

EDGE: Final = 3
"""Measurements that are needed on each side of a step."""

_OWN: Final = 1e-6
"""Share of a column that curve and other columns cannot explain, below which it has nothing of its own but rounding."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Gains of a step at every measurement, for B series.

    Parameters
    ----------
    gain : ndarray (measurement, series)
        Twice the log likelihood ratio; 0 where no step is allowed.
    without, with_step : ndarray (series,) and (measurement, series)
        Best points of the grid; the second is empty unless asked for.
    near : ndarray (point, series)
        Twice the log likelihood that each point is short of the best one, with or without the best step.
    """

    gain: F64
    without: I64
    with_step: I64
    near: F64


@dataclass(frozen=True, slots=True)
class Fit:
    """One series at one point of the grid.

    Parameters
    ----------
    curve : ndarray (measurement,)
        The smooth part.
    coefficients, covariance : ndarray (column,) and (column, column)
        Of the given columns.
    variance : float
        s^2.
    innovations : ndarray (measurement,)
        Residuals over the scale, whitened.
    error : ndarray (measurement,)
        Standard error of curve and columns together.
    root : ndarray (measurement, measurement)
        Makes innovations into noise of scale 1.
    wiggle : ndarray (measurement, k)
        Makes independent normal numbers into deviations of the curve that are as likely as the fitted curve.
    """

    curve: F64
    coefficients: F64
    covariance: F64
    variance: float
    innovations: F64
    error: F64
    root: F64
    wiggle: F64


def steps(n: int, at: list[int]) -> F64:
    """Return columns (measurement, step) that are 0 before a measurement and 1 from it on."""
    return (np.arange(n)[:, None] >= np.asarray(at, dtype=np.int64)).astype(np.float64)


def scan(
    model: Design,
    series: F64,
    columns: F64,
    allowed: NDArray[np.bool_],
    rounding: float,
    *,
    keep: Keep | None = None,
    locate: bool = False,
) -> Scan:
    """Return what a step at every measurement would gain beside the curve and the given columns.

    Parameters
    ----------
    model : Design
        For this number of measurements.
    series : ndarray (measurement, series)
        Finite numbers.
    columns : ndarray (measurement, column)
        Fitted without penalty in both models.
    allowed : ndarray of bool (measurement,)
        Where a step may lie.
    rounding : float
        Variance of white noise that is added to the residual sums, below which nothing counts.
    keep : frozenset of int, optional
        The points of the grid to try; all by default.
    locate : bool
        Whether to return the best point for each step.
    """
    n, n_series = series.shape
    freedom = n - N_FREE - columns.shape[1]
    least, least_step = np.full(n_series, np.inf), np.full((n, n_series), np.inf)
    best = np.zeros(n_series, np.int64)
    best_step = np.zeros((n, n_series) if locate else (0, 0), np.int64)
    near: list[F64] = []
    contrast = np.empty((n, n_series))
    both = np.concatenate([series, columns], axis=1) / model.scale[:, None]
    for b, branch in enumerate(model.branches):
        points = [b * len(FREEDOM) + level for level in range(len(FREEDOM))]
        wanted = [point for point in points if keep is None or point in keep]
        if not wanted:
            continue
        weighed = branch.noise.precise(both) / model.scale[:, None]
        seen, given = weighed[:, :n_series], weighed[:, n_series:]
        power = (series * seen).sum(axis=0) + rounding * branch.trace
        loads, loads_given = branch.curves.T @ seen, branch.curves.T @ given
        sums = from_each_on(seen)
        for point in wanted:
            shrink = branch.shrink[point % len(FREEDOM)]
            left = power - shrink @ loads**2
            sides, inner = branch.sums * shrink, loads
            information = branch.information[point % len(FREEDOM)]
            if columns.shape[1]:
                projected = given - branch.dual @ (shrink[:, None] * loads_given)
                half = scipy.linalg.cholesky(columns.T @ projected, lower=True)
                loads_columns = scipy.linalg.solve_triangular(half, projected.T @ series, lower=True)
                side = scipy.linalg.solve_triangular(half, from_each_on(projected).T, lower=True).T
                left = left - (loads_columns**2).sum(axis=0)
                information = information - (side**2).sum(axis=1)
                sides, inner = np.concatenate([sides, side], axis=1), np.concatenate([loads, loads_columns])
            weight = np.exp((branch.cost[point % len(FREEDOM)] - model.cost) / freedom)
            np.subtract(sums, sides @ inner, out=contrast)
            contrast *= contrast
            usable = allowed & (information > _OWN * branch.information[point % len(FREEDOM)])
            contrast *= np.divide(weight, information, out=np.zeros(n), where=usable)[:, None]
            left = left * weight
            np.subtract(left, contrast, out=contrast)
            better = left < least
            best[better] = point
            np.minimum(left, least, out=least)
            if locate:
                better_step = contrast < least_step
                best_step[better_step] = point
                near.append(np.stack([left, contrast.min(axis=0)]))
            np.minimum(contrast, least_step, out=least_step)
    gain = freedom * (np.log(least) - np.log(least_step))
    gain[~allowed] = 0
    if not locate:
        return Scan(gain, best, best_step, np.empty((0, n_series)))
    levels = freedom * np.log(np.array(near))
    return Scan(gain, best, best_step, (levels - levels.min(axis=0)).min(axis=1))


def gains_of(model: Design, series: F64, columns: F64, shapes: F64, rounding: float, keep: Keep) -> F64:
    """Return what each shape (measurement, shape) would gain beside the curve and the given columns, as `scan` does."""
    n_given = columns.shape[1]
    freedom = model.n - N_FREE - n_given
    both = np.concatenate([columns, series[:, None], shapes], axis=1)
    least, least_shape = np.inf, np.full(shapes.shape[1], np.inf)
    for point in sorted(keep):
        branch, shrink = model.at(point)
        weighed = branch.noise.precise(both / model.scale[:, None]) / model.scale[:, None]
        products = both.T @ weighed
        loads = branch.curves.T @ weighed
        raw = np.diagonal(products)[n_given + 1 :].copy()
        products -= loads.T @ (shrink[:, None] * loads)
        given = products[:n_given, n_given:]
        beside = products[n_given:, n_given:] - given.T @ np.linalg.solve(products[:n_given, :n_given], given)
        left = beside[0, 0] + rounding * branch.trace
        weight = np.exp((branch.cost[point % len(FREEDOM)] - model.cost) / freedom)
        own = np.diagonal(beside)[1:]
        explained = np.divide(beside[0, 1:] ** 2, own, out=np.zeros(len(own)), where=own > _OWN * raw)
        least = min(least, left * weight)
        least_shape = np.minimum(least_shape, (left - explained) * weight)
    return np.asarray(freedom * (np.log(least) - np.log(least_shape)))


def fit(model: Design, series: F64, columns: F64, point: int, rounding: float) -> Fit:
    """Fit curve and columns to one series (measurement,) at one point of the grid."""
    branch, shrink = model.at(point)
    n = model.n
    both = np.concatenate([series[:, None], columns], axis=1)
    weighed = branch.noise.precise(both / model.scale[:, None]) / model.scale[:, None]
    loads = branch.curves.T @ weighed
    projected = weighed - branch.dual @ (shrink[:, None] * loads)
    covariance = np.linalg.inv(columns.T @ projected[:, 1:])
    coefficients = covariance @ (columns.T @ projected[:, 0])
    curve = branch.curves @ (shrink * (loads[:, 0] - loads[:, 1:] @ coefficients))
    fitted = curve + columns @ coefficients
    left = series @ (projected[:, 0] - projected[:, 1:] @ coefficients) + rounding * branch.trace
    variance = float(left) / (n - N_FREE - columns.shape[1])
    beside = columns - branch.curves @ (shrink[:, None] * loads[:, 1:])
    spread = (branch.curves**2) @ shrink + ((beside @ covariance) * beside).sum(axis=1)
    root = branch.noise.root(n)
    innovations = scipy.linalg.solve_triangular(root, (series - fitted) / model.scale, lower=True)
    return Fit(
        curve, coefficients, variance * covariance, variance, innovations, np.sqrt(variance * spread),
        root, branch.curves * np.sqrt(variance * shrink),
    )  # fmt: skip
