"""Single values of a series that stand out of a band: a local trend and scale, tails from resampled blocks.

1. The trend at a value is the median of the means of its neighbours, each pair as far before as behind: a line has no
   residual, and one spike among the neighbours does not move it.
2. The scale at a value is that of the residuals about it, of a window so wide that the noise may change its loudness
   slowly, without those next to the value itself: what is tested is not in what it is tested against.
3. How heavy the tails are is read off all standardised residuals: degrees of freedom of Student's t whose ratio of an
   outer to an inner quantile is theirs.
4. The p value of a value is its tail under t, averaged over block bootstraps of the residuals that gave the scale:
   neighbours depend on each other, which makes a scale less certain than their number says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.stats
from numpy.typing import NDArray

__all__ = ["Band", "band", "between"]

F64 = NDArray[np.float64]

LEAST_WINDOW: Final = 40
MOST_WINDOW: Final = 400
SHARE: Final = 0.25
MEDIAN_TO_SCALE: Final = 1.4826
INNER, OUTER = 0.5, 0.95
FREEDOM: Final = np.array([2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 30.0, 1000.0])


@dataclass(frozen=True, slots=True)
class Band:
    """What is expected of each value from the others.

    Parameters
    ----------
    trend, scale : ndarray (value,)
    p_value : ndarray (value,)
        Two-sided.
    freedom : float
        Degrees of freedom of the tails, median over resamples.
    """

    trend: F64
    scale: F64
    p_value: F64
    freedom: float

    def limits(self, alpha: float) -> tuple[F64, F64]:
        """Return the ends of the band that holds all values of a series without anomalies with 1 - alpha."""
        reach = scipy.stats.t.ppf(1 - alpha / (2 * len(self.trend)), self.freedom) * self.scale
        return self.trend - reach, self.trend + reach


def band(values: F64, *, width: int, block: int, n_resamples: int, seed: int) -> Band:
    """Say how far each value of a series lies from what its neighbours let expect.

    Parameters
    ----------
    values : ndarray (value,)
        Finite.
    width : int
        Of the running median, odd.
    block : int
        Length of the blocks that are resampled; as many values to either side of a tested one are not in its scale.
    n_resamples, seed : int
        Of the block bootstrap.
    """
    trend = between(values, width)
    residuals = values - trend
    n = len(values)
    reach = min(max(LEAST_WINDOW, math.ceil(SHARE * n)), MOST_WINDOW) // 2
    rng = np.random.default_rng(seed)
    scales = np.empty((n, n_resamples))
    gap = max(block, width // 2)
    for place in range(n):
        near = np.arange(max(0, place - reach), min(n, place + reach + 1))
        others = residuals[near[np.abs(near - place) > gap]]
        scales[place] = _scales(others, block, n_resamples, rng)
    scale = np.median(scales, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.abs(residuals)[:, None]
        ratio = np.where(scales > 0, size / scales, np.where(size > 0, np.inf, 0.0))
    standardised = np.where(scale > 0, np.abs(residuals) / scale, 0.0)
    freedom = _freedom(_resampled(standardised, block, n_resamples, rng))
    by = scipy.stats.norm.ppf(0.75) / scipy.stats.t.ppf(0.75, freedom)
    p_value = 2 * np.asarray(scipy.stats.t.sf(ratio / by, freedom)).mean(axis=1)
    return Band(trend, scale, np.asarray(p_value), float(np.median(freedom)))


def between(values: F64, width: int) -> F64:
    """Median of the means of the neighbours that lie as far before each value as behind it.

    The value itself is not among them, so that it does not draw its trend to itself, and a straight line has no
    residual. Beyond the ends the series goes on turned about its last value, which is therefore never tested. A last
    value that stands out would draw the trend of its neighbours along: of these two trends, and of that with the median
    of the neighbours in its place, the one that is nearer counts.
    """
    half = width // 2
    tamed = values.copy()
    tamed[0], tamed[-1] = np.median(values[1 : half + 1]), np.median(values[-half - 1 : -1])
    trend, other = _mirrored(values, half), _mirrored(tamed, half)
    return np.where(np.abs(values - trend) <= np.abs(values - other), trend, other)


def _mirrored(values: F64, half: int) -> F64:
    padded = np.pad(values, half, mode="reflect", reflect_type="odd")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    found: F64 = np.median((windows[:, :half] + windows[:, : -half - 1 : -1]) / 2, axis=1)
    return found


def _resampled(values: F64, block: int, n_resamples: int, rng: np.random.Generator) -> F64:
    """Block bootstraps of a series, (resample, value)."""
    n = len(values)
    length = min(block, n)
    starts = rng.integers(0, n - length + 1, (n_resamples, math.ceil(n / length)))
    drawn = (starts[..., None] + np.arange(length)).reshape(n_resamples, -1)[:, :n]
    found: F64 = values[drawn]
    return found


def _scales(residuals: F64, block: int, n_resamples: int, rng: np.random.Generator) -> F64:
    """Median absolute residuals of block bootstraps, as standard deviations of normal noise."""
    return MEDIAN_TO_SCALE * np.median(_resampled(np.abs(residuals), block, n_resamples, rng), axis=1)


def _freedom(standardised: F64) -> F64:
    """Degrees of freedom, of each resample, whose quantiles of |t| stand to each other as those of the values do."""
    inner, outer = np.quantile(standardised, [INNER, OUTER], axis=1)
    expected = scipy.stats.t.ppf((1 + OUTER) / 2, FREEDOM) / scipy.stats.t.ppf((1 + INNER) / 2, FREEDOM)
    ratio = np.where(inner > 0, outer / np.where(inner > 0, inner, 1), np.inf)
    # Heavier tails have larger ratios, so that the ratio falls with the degrees of freedom.
    return np.asarray(1 / np.interp(-ratio, -expected, 1 / FREEDOM))
