"""The null distribution of a step's gain: series without it, simulated from the fit, each put through the same scan.

Noise is resampled in blocks of innovations, which are then coloured again (post-blackened block bootstrap, Davison and
Hinkley 1997, "Bootstrap methods and their application", 8.2.3), so that dependence beyond the model is kept. A sample
of 400 holds no innovation larger than its largest, which with AR(1) noise is what looks like a jump: so blocks hand on
the ranks of innovations, and the values are drawn anew from Student's t with the tails that fit. The curve is drawn
from its posterior distribution, about a fit with somewhat more freedom: the best fit is flatter than the curve where
that bends, and a null with less of a bend has less for a step to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.kernels.changepoints import Fit
from ndt_query.kernels.stepdesign import Design

__all__ = ["p_value", "simulated", "spacing"]

F64 = NDArray[np.float64]

_BATCH: Final = 64
_ON_GRID: Final = 1e-6
_LEAST_LEVELS: Final = 4
_REACHED: Final = 10
"""Sampling ends when as many series reached the gain: Besag and Clifford 1991, "Sequential Monte Carlo p-values"."""


def simulated(
    model: Design, fitted: Fit, mean: F64, tails: float, spacing: float, rng: np.random.Generator, n_series: int
) -> F64:
    """Return series (measurement, series) about `mean`, with a fit's noise and its doubts about curve and scale.

    Parameters
    ----------
    model, fitted : Design, Fit
        Of the series that is imitated.
    mean : ndarray (measurement,)
        What noise is added to.
    tails : float
        Degrees of freedom of the innovations' distribution, see `tail_weight`.
    spacing : float
        The least difference of two values, 0 for continuous ones. Series are rounded to it, and what rounding adds to
        the noise is not added twice.
    rng, n_series : Generator, int
        Source and number of the draws.
    """
    n = len(mean)
    length = max(2, round(1.5 * n ** (1 / 3)))
    starts = rng.integers(0, n, (-(-n // length), n_series))
    place = (starts[:, None, :] + np.arange(length)[:, None]).reshape(-1, n_series)[:n] % n
    # What is drawn twice needs two ranks, in random order.
    order = np.lexsort((rng.random((n, n_series)), fitted.innovations[place]), axis=0)
    if np.isinf(tails):
        values = rng.standard_normal((n, n_series))
    else:
        values = rng.standard_t(tails, (n, n_series)) * np.sqrt((tails - 2) / tails)
    innovations = np.empty((n, n_series))
    np.put_along_axis(innovations, order, np.sort(values, axis=0), axis=0)
    wiggle = fitted.wiggle @ rng.standard_normal((fitted.wiggle.shape[1], n_series))
    deviation = np.sqrt(max(0.0, fitted.variance - spacing**2 / 12))
    noise = fitted.root @ innovations * (deviation * model.scale)[:, None]
    if model.doubt.shape[1]:
        noise *= np.exp(model.doubt @ rng.standard_normal((model.doubt.shape[1], n_series)))
    series = np.asarray(mean[:, None] + wiggle + noise)
    return spacing * np.round(series / spacing) if spacing else series


def spacing(values: F64) -> float:
    """Return the spacing of a grid on which all values lie, 0 where a grid is not to be seen.

    Values that are mostly different need none, and of two or three levels nobody can say that they are a grid's.
    """
    distinct = np.unique(values)
    if not _LEAST_LEVELS <= len(distinct) <= len(values) / 2:
        return 0.0
    gap = float(np.diff(distinct).min())
    along = (distinct - distinct[0]) / gap
    return gap if np.abs(along - np.round(along)).max() < _ON_GRID else 0.0


def p_value(gain: float, best_gains: Callable[[int], F64], n_null: int) -> tuple[float, F64]:
    """Return the share of series without a step whose best step gains `gain`, and those gains.

    Parameters
    ----------
    gain : float
        What the step gains.
    best_gains : callable
        Simulates that many series and returns their best gains.
    n_null : int
        The most series to simulate. With b that reach the gain p is ``(b + 1) / (n_null + 1)``; where ten do before, it
        is ten over the number up to there.
    """
    gains = np.empty(0)
    while len(gains) < n_null:
        gains = np.concatenate([gains, best_gains(min(_BATCH, n_null - len(gains)))])
        reached = np.flatnonzero(gains >= gain)
        if len(reached) >= _REACHED:
            return _REACHED / float(reached[_REACHED - 1] + 1), gains
    return (np.count_nonzero(gains >= gain) + 1) / (n_null + 1), gains
