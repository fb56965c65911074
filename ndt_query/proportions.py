"""Limits of shares: of k of n, and of the difference of two shares of the same things."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from ndt_query.inputs import one_of
from ndt_query.intervals import Interval, require_level
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = ["Side", "clopper_pearson", "paired_shares"]

F64 = NDArray[np.float64]
Side: TypeAlias = Literal["two-sided", "upper", "lower"]


def paired_shares(changes: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Difference of two shares of the same things, with the limits of Bonett and Price.

    Parameters
    ----------
    changes : array_like (..., thing)
        1 for what counts in the first share alone, -1 for what counts in the second alone, 0 for the others.
    confidence : float
        Nominal level.

    Returns
    -------
    Interval
        First share less second, without a standard error: the limits are not symmetric about it, and not 0 apart where
        nothing changed. NaN where `changes` holds one.

    References
    ----------
    D. Bonett and R. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 37, 2012.

    Examples
    --------
    >>> found = paired_shares([1, 1, 1, 0, 0, 0, 0, 0, 0, -1])
    >>> float(found.estimate), round(float(found.low), 3), round(float(found.high), 3)
    (0.2, -0.222, 0.555)
    """
    level = require_level(confidence)
    given = np.asarray(changes, dtype=np.float64)
    n = given.shape[-1] + 2
    first, second = ((given == sign).sum(axis=-1) + 1 for sign in (1, -1))
    middle = np.where(np.isnan(given).any(axis=-1), np.nan, (first - second) / n)
    reach = scipy.stats.norm.ppf((1 + level) / 2) * np.sqrt(((first + second) / n - middle**2) / n)
    low, high = np.maximum(middle - reach, -1), np.minimum(middle + reach, 1)
    middle, spread = np.asarray(given.mean(axis=-1)), np.full(low.shape, np.nan)
    return Interval(middle, low, high, spread, level, "Bonett and Price", given.shape[-1])


def clopper_pearson(
    k: ArrayLike, n: ArrayLike, *, confidence: float = 0.95, side: Side = "two-sided"
) -> tuple[F64, F64]:
    """Exact limits of a probability from k successes in n independent trials.

    Parameters
    ----------
    k, n : array_like
        Successes and trials; NaN in k gives NaN.
    confidence : float
        Nominal level; the true one is at least that.
    side : {"two-sided", "upper", "lower"}
        A one-sided limit spends all of the error on its side; the other limit is 0 or 1.

    Returns
    -------
    low, high : ndarray of float64

    Notes
    -----
    Quantiles of beta distributions (Clopper and Pearson 1934). With k = 0 the upper limit is ``1 - (1 - c)^(1/n)``,
    about 3 / n at 95%.

    Examples
    --------
    >>> low, high = clopper_pearson(0, 100, side="upper")
    >>> round(float(high), 4)
    0.0295
    """
    one_of("side", side, ("two-sided", "upper", "lower"))
    try:
        successes, trials = np.broadcast_arrays(np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64))
    except ValueError as failure:
        raise DimensionError(f"k has shape {np.shape(k)} and n {np.shape(n)}: give shapes that broadcast.") from failure
    if (successes < 0).any() or (successes > trials).any() or (trials < 1).any():
        raise InvalidInputError("clopper_pearson needs 0 <= k <= n and n >= 1: got counts outside of that.")
    error = (1 - require_level(confidence)) / (2 if side == "two-sided" else 1)
    low, high = np.zeros(trials.shape), np.ones(trials.shape)
    some, not_all = successes > 0, successes < trials
    if side != "upper":
        low[some] = scipy.stats.beta.ppf(error, successes[some], (trials - successes + 1)[some])
    if side != "lower":
        high[not_all] = scipy.stats.beta.ppf(1 - error, (successes + 1)[not_all], (trials - successes)[not_all])
    unknown = np.isnan(successes)
    low[unknown] = high[unknown] = np.nan
    return low, high
