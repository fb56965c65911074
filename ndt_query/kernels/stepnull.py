"""The null distribution of a step's gain: series without it, simulated from the fit, each put through the same scan.

Noise is resampled in blocks of innovations, which are then coloured again (post-blackened block bootstrap, Davison and
Hinkley 1997, "Bootstrap methods and their application", 8.2.3), so that dependence beyond the model is kept. A sample
of 400 holds no innovation larger than its largest, which with AR(1) noise is what looks like a jump: so blocks hand on
the ranks of innovations, and the values are drawn anew from Student's t with the tails that fit. The curve is drawn
from its posterior distribution, about a fit with somewhat more freedom: the best fit is flatter than the curve where
that bends, and a null with less of a bend has less for a step to gain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.kernels.changepoints import Design, Fit, Keep, scan
from ndt_query.kernels.noise import tail_weight

__all__ = ["p_value", "simulated"]

F64 = NDArray[np.float64]

_BATCH: Final = 64
_REACHED: Final = 10
"""Sampling ends when as many series reached the gain: Besag and Clifford 1991, "Sequential Monte Carlo p-values"."""


def simulated(model: Design, fitted: Fit, mean: F64, tails: float, rng: np.random.Generator, n_series: int) -> F64:
    """Return series (measurement, series) about `mean`, with a fit's noise and its doubts about curve and scale.

    Parameters
    ----------
    model, fitted : Design, Fit
        Of the series that is imitated.
    mean : ndarray (measurement,)
        What noise is added to.
    tails : float
        Degrees of freedom of the innovations' distribution, see `tail_weight`.
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
    noise = fitted.root @ innovations * (np.sqrt(fitted.variance) * model.scale)[:, None]
    if model.doubt.shape[1]:
        noise *= np.exp(model.doubt @ rng.standard_normal((model.doubt.shape[1], n_series)))
    return np.asarray(mean[:, None] + wiggle + noise)


def p_value(
    model: Design,
    fitted: Fit,
    mean: F64,
    columns: F64,
    allowed: NDArray[np.bool_],
    gain: float,
    rounding: float,
    keep: Keep,
    n_null: int,
    rng: np.random.Generator,
) -> tuple[float, F64]:
    """Return the share of series without a step whose best step gains `gain`, and the best gains.

    Parameters
    ----------
    model, columns, allowed, rounding, keep
        As the gain was found with, see `scan`.
    fitted : Fit
        Its noise is simulated.
    mean : ndarray (measurement,)
        What noise is added to: the series without the step.
    gain : float
        What the step gains.
    n_null : int
        The most series to simulate. With b that reach the gain p is ``(b + 1) / (n_null + 1)``; where ten do before, it
        is ten over the number up to there.
    rng : Generator
        Of the simulation.
    """
    gains: list[F64] = []
    n_made = 0
    tails = tail_weight(fitted.innovations)
    for size in _batches(n_null):
        series = simulated(model, fitted, mean, tails, rng, size)
        gains.append(scan(model, series, columns, allowed, rounding, keep=keep).gain.max(axis=0))
        n_made += size
        reached = np.flatnonzero(np.concatenate(gains) >= gain)
        if len(reached) >= _REACHED:
            return _REACHED / float(reached[_REACHED - 1] + 1), np.concatenate(gains)
    return (len(reached) + 1) / (n_made + 1), np.concatenate(gains)


def _batches(n: int) -> Iterator[int]:
    yield from (min(_BATCH, n - done) for done in range(0, n, _BATCH))
