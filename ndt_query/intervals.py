"""Intervals about estimates, with whole examples (or seeds) as what varies by chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from ndt_query.inputs import one_of, require_count
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = [
    "Interval",
    "bootstrap_ci",
    "jackknife",
    "mean_ci",
    "null_p_value",
    "require_level",
]

F64 = NDArray[np.float64]
_BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval about it; all of one shape.

    Parameters
    ----------
    estimate, low, high, standard_error : ndarray of float64
        NaN where the data hold a NaN or do not determine them.
    confidence : float
        Nominal level.
    method : str
        How the interval was made.
    n : int
        How many things vary by chance: examples, seeds, groups of examples, or entries of a series.
    """

    estimate: F64
    low: F64
    high: F64
    standard_error: F64
    confidence: float
    method: str
    n: int


def require_level(value: float, name: str = "confidence") -> float:
    """Return a level, of confidence or of a test, when it lies between 0 and 1."""
    if not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise InvalidInputError(f"{name}={value!r} is not a level: expected a number between 0 and 1.")
    return float(value)


def null_p_value(reached: ArrayLike, n_null: int) -> F64:
    """Return (b + 1) / (m + 1) for b of m draws of a null that reach what was observed.

    The observed one counts among them: never 0, and valid whatever m is (Phipson and Smyth 2010).
    """
    return np.asarray((np.asarray(reached) + 1) / (n_null + 1))


def bootstrap_ci(
    data: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    axis: int = 0,
    confidence: float = 0.95,
    method: Literal["BCa", "percentile"] = "BCa",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a statistic, resampling whole entries of one axis.

    Parameters
    ----------
    data : array_like
        Entries of `axis` are the independent things: examples, or seeds. All else is resampled along with them.
    statistic : callable
        Called as ``statistic(sample, axis=axis)``; reduces that axis.
    axis : int
        The axis that is resampled.
    confidence : float
        Nominal level.
    method : {"BCa", "percentile"}
        Bias-corrected and accelerated (Efron 1987), or plain percentiles.
    n_resamples, seed : int
        Number of resamples and the seed that makes them repeatable.

    Returns
    -------
    Interval
        Where every resample gives the same value, as for constant data, the interval is that value. NaN propagates.

    Notes
    -----
    `scipy.stats.bootstrap` in batches of 100 resamples: memory is about 100 times the data.

    Of 4,000 nominal 95% intervals of the mean of exponential data, BCa holds 95% at n = 150 and 91% at n = 20, and
    percentiles 94% and 90%; of their standard deviation, which is more skewed, BCa holds 92% at n = 500. Of the mean
    of 5 normal values BCa holds 84%: for few seeds use `mean_ci`.

    Examples
    --------
    >>> found = bootstrap_ci([1.0, 2.0, 3.0, 4.0], n_resamples=500)
    >>> bool(found.low < found.estimate < found.high)
    True
    """
    one_of("method", method, ("BCa", "percentile"))
    require_count("n_resamples", n_resamples, 1)
    values = np.asarray(data, dtype=np.float64)
    if not -values.ndim <= axis < values.ndim or values.shape[axis] < 2:
        raise DimensionError(f"A bootstrap needs two or more entries along axis {axis}: got shape {values.shape}.")
    estimate = np.asarray(statistic(values, axis=axis), dtype=np.float64)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")  # of degenerate data, answered below
        found = scipy.stats.bootstrap(
            (values,), statistic, axis=axis, confidence_level=require_level(confidence), method=method,
            n_resamples=n_resamples, batch=_BATCH, vectorized=True, rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = (np.asarray(bound, dtype=np.float64) for bound in found.confidence_interval)
    spread = np.asarray(found.standard_error, dtype=np.float64)
    constant = spread <= 1e-12 * np.abs(estimate)
    low, high = np.where(constant, estimate, low), np.where(constant, estimate, high)
    return Interval(estimate, low, high, spread, confidence, f"bootstrap, {method}", values.shape[axis])


def mean_ci(data: ArrayLike, *, axis: int = 0, confidence: float = 0.95) -> Interval:
    """Interval of a mean, after Student.

    Parameters
    ----------
    data : array_like
        Entries of `axis` are the independent things: examples, or seeds.
    axis : int
        The axis that is averaged over.
    confidence : float
        Nominal level.

    Returns
    -------
    Interval
        ``mean +- t_{n-1} s / sqrt(n)``. One entry has a mean and no interval (NaN). NaN propagates.

    Notes
    -----
    Exact for normal data whatever n is, which makes it the interval for a few seeds. Of 4,000 nominal 95% intervals of
    exponential data it holds 95% at n = 500, and 92% at n = 20.

    Examples
    --------
    >>> found = mean_ci([1.0, 2.0, 3.0])
    >>> round(float(found.low), 2), round(float(found.high), 2)
    (-0.48, 4.48)
    """
    values = np.asarray(data, dtype=np.float64)
    if not -values.ndim <= axis < values.ndim or values.shape[axis] == 0:
        raise DimensionError(f"mean_ci needs an entry along axis {axis}: got shape {values.shape}.")
    n, quantile = values.shape[axis], (1 + require_level(confidence)) / 2
    with np.errstate(invalid="ignore"):  # of infinities, whose spread is NaN
        middle = np.asarray(values.mean(axis=axis))
        spread = np.asarray(values.std(axis=axis, ddof=1) / np.sqrt(n)) if n > 1 else np.full(middle.shape, np.nan)
        reach = scipy.stats.t.ppf(quantile, max(1, n - 1)) * spread
    return Interval(middle, middle - reach, middle + reach, spread, confidence, "Student's t", n)


def jackknife(
    left_out: ArrayLike, estimate: ArrayLike, *, confidence: float = 0.95, correct_bias: bool = False
) -> Interval:
    """Interval from estimates with one group of examples left out at a time.

    Parameters
    ----------
    left_out : array_like (group, ...)
        Estimates without each of g groups of about equal size.
    estimate : array_like (...)
        Estimate from all of the data.
    confidence : float
        Nominal level.
    correct_bias : bool
        Subtract the jackknife estimate of bias, ``(g - 1) (mean of left_out - estimate)``.

    Returns
    -------
    Interval
        ``estimate +- t_{g-1} se`` with ``se^2 = (g - 1) / g sum (left_out - mean)^2``; fits statistics that are smooth
        in the data. NaN propagates. Efron and Stein 1981; Shao and Wu 1989 for groups.

    Notes
    -----
    It tells scatter, not bias. Of 1,000 nominal 95% intervals of a participation ratio of 5.5 from 10 groups of 500
    examples it holds 95%, and of 100 examples, where the estimate is biased, 91%; corrected for bias, 94% and 95%.
    """
    parts = np.asarray(left_out, dtype=np.float64)
    g = len(parts) if parts.ndim else 0
    if g < 2:
        raise DimensionError(f"A jackknife needs two or more groups along the first axis: got shape {parts.shape}.")
    centre = parts.mean(axis=0)
    spread = np.sqrt((g - 1) / g * ((parts - centre) ** 2).sum(axis=0))
    middle = np.asarray(estimate, dtype=np.float64)
    if middle.shape != centre.shape:
        raise DimensionError(
            f"estimate has shape {middle.shape} where one left_out has {centre.shape}: give one shape."
        )
    if correct_bias:
        middle = middle - (g - 1) * (centre - middle)
    reach = scipy.stats.t.ppf((1 + require_level(confidence)) / 2, g - 1) * spread
    return Interval(middle, middle - reach, middle + reach, spread, confidence, f"jackknife over {g} groups", g)
