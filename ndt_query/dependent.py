"""Intervals for series whose neighbours depend on each other: the bootstrap of blocks.

Resampling single values of such a series makes every interval too narrow, because it destroys the dependence. Blocks of
neighbours keep it, but for their seams (`ndt_query.resampling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, overload

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_query.inputs import one_of
from ndt_query.intervals import Interval, require_level
from ndt_query.layers import described
from ndt_query.resampling import Scheme, along, block_length, block_resamples
from ndt_query.series import STEP, labels_of, only_dim
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import DimensionError

__all__ = ["Resampled", "block_bootstrap", "neighbour_correlation", "resampled", "share_seen"]

F64 = NDArray[np.float64]
Method = Literal["t", "percentile"]
LEAST: Final = 4
MOST_DEPENDENT: Final = 0.99
_BATCH_NBYTES: Final = 32 << 20


# A DataArray is array-like too; the first match is the one that holds.
@overload
def block_bootstrap(
    data: xr.DataArray,
    statistic: Callable[..., Any] = ...,
    *,
    dim: str | None = ...,
    length: float | None = ...,
    scheme: Scheme = ...,
    confidence: float = ...,
    method: Method = ...,
    n_resamples: int = ...,
    seed: int = ...,
) -> xr.Dataset: ...
@overload
def block_bootstrap(
    data: ArrayLike,
    statistic: Callable[..., Any] = ...,
    *,
    axis: int = ...,
    length: float | None = ...,
    scheme: Scheme = ...,
    confidence: float = ...,
    method: Method = ...,
    n_resamples: int = ...,
    seed: int = ...,
) -> Interval: ...
def block_bootstrap(
    data: xr.DataArray | ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    axis: int = 0,
    dim: str | None = None,
    length: float | None = None,
    scheme: Scheme = "stationary",
    confidence: float = 0.95,
    method: Method = "t",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval | xr.Dataset:
    """Interval of a statistic of a series whose values depend on their neighbours, by resampling blocks.

    Parameters
    ----------
    data : array_like or DataArray
        The series, or several that are resampled together.
    statistic : callable
        Called as ``statistic(sample, axis=axis)``; reduces that axis. A mean, a variance or another function of the
        values that does not depend on their order.
    axis : int
        The axis of time of an array.
    dim : str, optional
        The dimension of time of a DataArray; ``step`` or ``checkpoint``, or its only one, without it.
    length : float, optional
        Length of blocks; from `block_length` without it, the longest where there are several series.
    scheme : {"stationary", "circular", "moving"}
        How blocks are drawn, see `block_resamples`.
    confidence : float
        Nominal level.
    method : {"t", "percentile"}
        ``estimate +- t se`` with n / length - 1 degrees of freedom, the blocks less one, and the bootstrap's standard
        error over the root of the share of variance that blocks of this length reproduce in a series that is
        autoregressive of first order with the same correlation of neighbours; or percentiles of the resamples as they
        are.
    n_resamples, seed : int
        Number of resamples and the seed that makes them repeatable.

    Returns
    -------
    Interval or Dataset
        For a DataArray a Dataset over its other dimensions with ``estimate``, ``low``, ``high`` and
        ``standard_error``; confidence, method and n are in its attributes. n counts values, not blocks. NaN propagates.

    Raises
    ------
    DimensionError
        There are fewer than 4 values, or no such axis or dimension.

    Notes
    -----
    Of 1,000 means of 400 values that are autoregressive of first order, with a correlation of 0, 0.5 and 0.9, the
    default holds 95, 96 and 97%, and percentiles hold 95, 92 and 84%. Dependence of another kind can hide from it:
    where slow noise of correlation 0.95 lies under white noise of the same size, it holds 89%.

    It is an interval for a series that goes on as it is, and none for a trend. Other seeds of training are not in it.
    Memory: batches of resamples of at most 32 MB, and 8 bytes a value and resample.

    Examples
    --------
    >>> noise = np.convolve(np.random.default_rng(0).standard_normal(419), np.ones(20) / 20, "valid")
    >>> found = block_bootstrap(noise)
    >>> bool(found.standard_error > 3 * noise.std() / np.sqrt(400))  # what independent values would have
    True
    """
    one_of("method", method, ("t", "percentile"))
    require_level(confidence)
    if isinstance(data, xr.DataArray):
        axis = data.dims.index(only_dim(data, (STEP, CHECKPOINT), dim))
    values = np.moveaxis(along(data, axis), axis, -1)
    n = values.shape[-1]
    if n < LEAST:
        raise DimensionError(f"Blocks need a series of {LEAST} values or more: got {n} along axis {axis}.")
    found = resampled(values, statistic, length=length, scheme=scheme, n_resamples=n_resamples, seed=seed)
    if method == "t":
        reach = scipy.stats.t.ppf((1 + confidence) / 2, found.degrees) * found.standard_error
        low, high = found.estimate - reach, found.estimate + reach
    else:
        low, high = np.quantile(found.drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=-1)
    how = f"bootstrap of {scheme} blocks of {found.length:.3g} values, {method}"
    interval = Interval(
        found.estimate, np.asarray(low), np.asarray(high), found.standard_error, confidence, how, n
    )  # fmt: skip
    return _labelled(data, axis, interval) if isinstance(data, xr.DataArray) else interval


@dataclass(frozen=True, slots=True)
class Resampled:
    """What resampling blocks says about a statistic.

    Parameters
    ----------
    estimate : ndarray of float64 (...)
        The statistic of the series.
    drawn : ndarray of float64 (..., resample)
        That of the resamples.
    standard_error : ndarray of float64 (...)
        Mended for what blocks do not reproduce.
    degrees : float
        Of freedom: blocks less one.
    length : float
        Of blocks, in values.
    """

    estimate: F64
    drawn: F64
    standard_error: F64
    degrees: float
    length: float


def resampled(
    values: F64,
    statistic: Callable[..., Any] = np.mean,
    *,
    length: float | None = None,
    scheme: Scheme = "stationary",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Resampled:
    """Resample blocks of the last axis, see `block_bootstrap`."""
    n = values.shape[-1]
    size = float(block_length(values, axis=-1, scheme=scheme).max(initial=1.0)) if length is None else float(length)
    chosen = block_resamples(n, size, n_resamples=n_resamples, scheme=scheme, seed=seed)
    batch = max(1, _BATCH_NBYTES // max(1, values.nbytes))
    parts = [statistic(values[..., rows], axis=-1) for rows in np.array_split(chosen, math.ceil(n_resamples / batch))]
    drawn = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts], axis=-1)
    estimate = np.asarray(statistic(values, axis=-1), dtype=np.float64)
    spread = np.asarray(
        drawn.std(axis=-1, ddof=1) / math.sqrt(share_seen(n, neighbour_correlation(values), size, scheme))
    )
    return Resampled(estimate, drawn, spread, max(1.0, n / size - 1), size)


def neighbour_correlation(values: F64, n_fitted: int = 1) -> float:
    """Largest correlation of neighbours among series (..., time), 0 where it is negative.

    What was fitted, a mean or a curve with its parameters, has taken some of it away (Kendall 1954, Tanaka 1984).
    """
    n = values.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        deviations = values - values.mean(axis=-1, keepdims=True)
        rho = (deviations[..., 1:] * deviations[..., :-1]).sum(axis=-1) / (deviations**2).sum(axis=-1)
    mended = np.nan_to_num(rho + (n_fitted + (n_fitted + 2) * rho) / n)
    return min(float(mended.max(initial=0.0)), MOST_DEPENDENT)


def share_seen(n: int, rho: float, length: float, scheme: Scheme = "stationary") -> float:
    """Share of the variance of a mean that blocks reproduce, if the series is autoregressive of first order.

    Blocks are cut off from what comes after them, and vary about the mean of the series they come from. Andrews and
    Monahan (1992) mend the same bias of long-run variances in the same way.
    """
    lags = np.arange(1, n)
    within = np.clip(1 - lags / math.ceil(length), 0.0, 1.0)
    if scheme == "stationary":
        along = (1 - 1 / length) ** lags
        within = (1 - lags / n) * along + lags / n * along[::-1]
    truly = 1 + 2 * ((1 - lags / n) @ rho**lags)
    seen = 1 + 2 * (within @ rho**lags) - (1 + 2 * within.sum()) / n * truly
    return float(np.clip(seen / truly, 1 / n, 1.0))


def _labelled(data: xr.DataArray, axis: int, interval: Interval) -> xr.Dataset:
    kept = [dim for place, dim in enumerate(data.dims) if place != axis]
    names = ("estimate", "low", "high", "standard_error")
    variables = {name: xr.Variable(kept, getattr(interval, name)) for name in names}
    parameters = {"confidence": interval.confidence, "method": interval.method, "n": interval.n}
    what = "estimate of a series, with its interval"
    return described(variables, data, what, parameters, squeeze=False, coords=labels_of(data, kept))
