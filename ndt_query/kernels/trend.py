"""Smooth curves over training: a cubic spline basis and a penalty on an axis that runs fast early and slowly late.

Training curves change fast at first and slowly later, so roughness is measured along ``x = log(1 + i / 2) + 4 i / n``
for measurement i of n. One amount of smoothing then follows exponentials of any time constant, down to about two
measurements at the start. Constants, lines in i and lines in x are not penalised at all.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import scipy.interpolate
from numpy.typing import NDArray

__all__ = ["N_FREE", "spline", "training_axis"]

F64 = NDArray[np.float64]

N_FREE: Final = 3
"""Curves that are not penalised: constants, lines over measurements, lines along the axis."""

_EARLY: Final = 2.0
_FIRST_GAP: Final = 1.0
_GROWTH: Final = 0.25
_LAST_GAP: Final = 6.5
_MOST_GAPS: Final = 75.0


def training_axis(n: int) -> F64:
    """Return the axis (measurement,) along which roughness is measured."""
    place = np.arange(n, dtype=np.float64)
    return np.log1p(place / _EARLY) + 4 * place / n


def _knots(n: int) -> F64:
    """Places of knots among measurements: one apart at the start, 6.5 or more after the first 25."""
    last = max(_LAST_GAP, n / _MOST_GAPS)
    knots = [0.0]
    while knots[-1] < n - 1:
        knots.append(knots[-1] + min(last, max(_FIRST_GAP, _GROWTH * (knots[-1] + _EARLY))))
    return np.array(knots) * (n - 1) / knots[-1]


def spline(n: int) -> tuple[F64, F64]:
    """Return basis (measurement, curve) and roughness penalty (curve, curve) for `n` measurements.

    The penalty of coefficients b is ``b' K b``, the integral of the squared second derivative along `training_axis`,
    less what a line over measurements would cost. Wood 2017, "Generalized additive models", chapter 5.
    """
    axis = training_axis(n)
    knots = np.interp(_knots(n), np.arange(n), axis)
    knots[-1] = axis[-1]
    padded = np.concatenate([knots[:1].repeat(3), knots, knots[-1:].repeat(3)])
    basis = scipy.interpolate.BSpline.design_matrix(axis, padded, 3).toarray()
    # The second derivative is linear between knots, so that two Gauss points each integrate its square exactly.
    points, weights = np.polynomial.legendre.leggauss(2)
    middle, half = (knots[1:] + knots[:-1]) / 2, (knots[1:] - knots[:-1]) / 2
    at = (middle[:, None] + half[:, None] * points).ravel()
    bend = scipy.interpolate.BSpline(padded, np.eye(basis.shape[1]), 3).derivative(2)(at)
    penalty = (bend * (half[:, None] * weights).reshape(-1, 1)).T @ bend
    line = np.linalg.lstsq(basis, np.linspace(-1, 1, n), rcond=None)[0]
    cost = penalty @ line
    penalty = penalty - np.outer(cost, cost) / (line @ cost)
    return basis, (penalty + penalty.T) / 2
