"""Logistic curves in unit coordinates: values and slopes, a grid of shapes, and many small fits at once.

Training runs from 0 to 1, and so do the values of a series. The four parameters lie on the last axis: rate r, midpoint
m, ceiling c and floor f of ``f + (c - f) / (1 + exp(-r (u - m)))``; a negative rate falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PARAMETERS",
    "Shapes",
    "curve",
    "gain",
    "innovation_gain",
    "limits",
    "refit",
    "shapes",
    "slopes",
    "starts",
    "upright",
]

F64 = NDArray[np.float64]
PARAMETERS: Final = ("rate", "midpoint", "ceiling", "floor")
RISE: Final = 2 * math.log(9.0)
"""Rate times the time from 10 to 90% of the way."""

N_RATES: Final = 16
N_PLACES: Final = 33
_LEAST_SPREAD: Final = 1e-3
_TINY: Final = 1e-300


@dataclass(frozen=True, slots=True)
class Shapes:
    """Logistic curves of many rates and midpoints.

    Parameters
    ----------
    rates, midpoints : ndarray of float64 (shape,)
        What they are of.
    curves : ndarray of float64 (shape, step)
        Less their mean, and of length 1, so that their product with a series like that is a correlation.
    means, lengths : ndarray of float64 (shape,)
        What was taken off and divided by.
    """

    rates: F64
    midpoints: F64
    curves: F64
    means: F64
    lengths: F64


def _share(rates: F64, midpoints: F64, u: F64) -> F64:
    """Share of the way that is gone, as a tangent that cannot overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * rates * (u - midpoints)))


def curve(theta: F64, u: F64) -> F64:
    """Values (..., step) of the curves of parameters (..., 4)."""
    rate, midpoint, ceiling, floor = np.moveaxis(theta[..., None], -2, 0)
    return np.asarray(floor + (ceiling - floor) * _share(rate, midpoint, u))


def slopes(theta: F64, u: F64) -> F64:
    """Return derivatives (..., step, 4) of `curve` by the parameters."""
    rate, midpoint, ceiling, floor = np.moveaxis(theta[..., None], -2, 0)
    share = _share(rate, midpoint, u)
    turn = (ceiling - floor) * share * (1 - share)
    return np.stack([turn * (u - midpoint), -turn * rate, share, 1 - share], axis=-1)


def limits(u: F64) -> tuple[F64, F64]:
    """Lower and upper bounds (4,) of the parameters.

    From 10 to 90% within the shortest time between two measurements at the fastest; the midpoint at most as far before
    the first and behind the last as these are apart; levels at most the range of the values beyond them.
    """
    fastest = RISE / float(np.diff(u).min())
    return np.array([-fastest, -1.0, -1.0, -1.0]), np.array([fastest, 2.0, 2.0, 2.0])


def shapes(u: F64) -> Shapes:
    """Make a grid of shapes: rates up to the fastest, midpoints over training and where measurements are dense."""
    even = np.linspace(-0.5, 1.5, N_PLACES)
    places = np.unique(np.concatenate([even, np.quantile(u, np.linspace(0, 1, N_PLACES))]))
    rates, midpoints = (part.ravel() for part in np.meshgrid(np.geomspace(1.0, limits(u)[1][0], N_RATES), places))
    raw = _share(rates[:, None], midpoints[:, None], u)
    means = raw.mean(axis=1)
    centred = raw - means[:, None]
    lengths = np.sqrt((centred**2).sum(axis=1))
    kept = lengths > _LEAST_SPREAD
    return Shapes(
        rates[kept], midpoints[kept], centred[kept] / lengths[kept, None], means[kept], lengths[kept]
    )  # fmt: skip


def gain(values: F64, grid: Shapes) -> tuple[F64, F64]:
    """Tell what the best shape of the grid gains over a constant, for series (..., step).

    Returns
    -------
    gained : ndarray (...)
        `innovation_gain` of the best shape, by least squares, over the mean.
    r2 : ndarray (...)
        Squared correlation with that shape.
    """
    deviations = values - values.mean(axis=-1, keepdims=True)
    alike = deviations @ grid.curves.T
    best = np.argmax(np.abs(alike), axis=-1)
    height = np.take_along_axis(alike, best[..., None], axis=-1)
    power = (deviations**2).sum(axis=-1)
    gained = innovation_gain(deviations, deviations - height * grid.curves[best])
    return gained, np.asarray(height[..., 0] ** 2 / np.maximum(power, _TINY))


def innovation_gain(before: F64, after: F64) -> F64:
    """``n log(s_0^2 / s_1^2)`` of the innovations of two sets of errors (..., step).

    Innovations are what is left of an error after the best prediction from the one before it: twice the difference of
    log likelihoods, were the errors normal and autoregressive of first order.
    """
    ratio = np.log(_innovation(before) + _TINY) - np.log(_innovation(after) + _TINY)
    return np.asarray(before.shape[-1] * ratio)


def _innovation(errors: F64) -> F64:
    past, present = errors[..., :-1], errors[..., 1:]
    cross, power = (past * present).sum(axis=-1), (past**2).sum(axis=-1)
    return np.asarray(np.maximum((present**2).sum(axis=-1) - cross**2 / np.maximum(power, _TINY), 0.0))


def starts(values: F64, grid: Shapes, n_starts: int) -> F64:
    """Parameters (start, 4) of the shapes most like a series (step,), one of each rate."""
    centre = float(values.mean())
    alike = grid.curves @ (values - centre)
    rates = np.unique(grid.rates)
    best = [np.flatnonzero(grid.rates == rate)[np.abs(alike[grid.rates == rate]).argmax()] for rate in rates]
    best.sort(key=lambda shape: -abs(alike[shape]))
    chosen = np.array(best[:n_starts])
    heights = alike[chosen] / grid.lengths[chosen]
    floors = centre - heights * grid.means[chosen]
    return upright(np.stack([grid.rates[chosen], grid.midpoints[chosen], floors + heights, floors], axis=1))


def upright(theta: F64) -> F64:
    """Parameters (..., 4) of the same curves with the ceiling above the floor."""
    turned = np.stack([-theta[..., 0], theta[..., 1], theta[..., 3], theta[..., 2]], axis=-1)
    return np.where((theta[..., 2] < theta[..., 3])[..., None], turned, theta)


def refit(start: F64, u: F64, values: F64, n_steps: int) -> F64:
    """Fit many series at once, by damped Gauss-Newton steps inside the bounds.

    Parameters
    ----------
    start : ndarray (4,) or (series, 4)
        Parameters to start from: near all of the solutions, or one for each series.
    u : ndarray (step,)
        Times.
    values : ndarray (series, step)
        The series.
    n_steps : int
        Steps; one that does not lower the sum of squares is not taken but tried shorter.

    Returns
    -------
    ndarray (series, 4)
    """
    lower, upper = limits(u)
    theta = np.broadcast_to(start, (len(values), 4)).copy()
    damping = np.full(len(values), 1e-3)
    errors = values - curve(theta, u)
    loss = (errors**2).sum(axis=1)
    for _ in range(n_steps):
        jacobian = slopes(theta, u)
        gram, pull = jacobian.swapaxes(1, 2) @ jacobian, (errors[:, None] @ jacobian)[:, 0]
        # A parameter on its bound that is pulled outwards stays there, and the others move without it.
        free = ~(((theta <= lower) & (pull < 0)) | ((theta >= upper) & (pull > 0)))
        gram *= free[:, :, None] & free[:, None, :]
        scale = np.einsum("bii->bi", gram)
        damped = gram + np.eye(4) * np.where(free, damping[:, None] * scale + 1e-12, 1.0)[:, None]
        step = np.linalg.solve(damped, (pull * free)[..., None])[..., 0]
        trial = np.clip(theta + step, lower, upper)
        trial_errors = values - curve(trial, u)
        trial_loss = (trial_errors**2).sum(axis=1)
        better = trial_loss < loss
        theta[better], errors[better], loss[better] = trial[better], trial_errors[better], trial_loss[better]
        damping *= np.where(better, 0.1, 10.0)
    return upright(theta)
