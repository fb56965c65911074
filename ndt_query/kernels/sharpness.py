"""How much of a change falls into one step between neighbouring measurements, and how much would if it were smooth.

Time is counted in measurements. Curves are logistic, the best of a grid of widths and middles; a width is the number of
measurements from 10 to 90% of the way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.kernels.growth import RISE, curve

__all__ = ["FASTEST", "SMOOTH", "fitted", "largest_share"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SMOOTH: Final = 5.0
"""Measurements from 10 to 90% of the way of the fastest curve that counts as smooth."""

FASTEST: Final = 0.5
"""The same of the fastest curve there is: nearly all of the way between two measurements."""

_WIDTHS: Final = 24
_ENDS: Final = 0.1
_LEAST_SPREAD: Final = 1e-3


def largest_share(values: F64) -> tuple[F64, I64, F64]:
    """Share of the total change of series (..., measurement) in its largest step, where that ends, and the total.

    The total is the mean of the last tenth less that of the first. Only steps in its direction count.
    """
    n = values.shape[-1]
    few = max(1, round(_ENDS * n))
    total = values[..., -few:].mean(axis=-1) - values[..., :few].mean(axis=-1)
    moves = np.diff(values, axis=-1) * np.where(total < 0, -1.0, 1.0)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = moves.max(axis=-1) / np.abs(total)
    return np.asarray(share), np.asarray(moves.argmax(axis=-1) + 1), np.asarray(total)


def fitted(values: F64, narrowest: float) -> F64:
    """Return the curve (measurement,) nearest to a series (measurement,), among those of this width or more."""
    curves = _grid(len(values), narrowest)
    mean = values.mean()
    alike = curves @ (values - mean)
    best = int(np.abs(alike).argmax())
    return np.asarray(mean + alike[best] * curves[best])


@lru_cache(maxsize=8)
def _grid(n: int, narrowest: float) -> F64:
    """Curves (shape, measurement) less their mean and of length 1; middles half a measurement apart."""
    widths = np.geomspace(narrowest, max(4.0 * n, 2 * narrowest), _WIDTHS)
    middles = np.arange(-n, 2 * n, 0.5)
    rates, places = (part.ravel() for part in np.meshgrid(RISE / widths, middles))
    theta = np.stack([rates, places, np.ones(len(rates)), np.zeros(len(rates))], axis=1)
    raw = curve(theta, np.arange(n, dtype=np.float64))
    raw -= raw.mean(axis=1, keepdims=True)
    lengths = np.sqrt((raw**2).sum(axis=1, keepdims=True))
    return np.asarray((raw / np.maximum(lengths, _LEAST_SPREAD))[lengths[:, 0] > _LEAST_SPREAD])
