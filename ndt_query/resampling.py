"""Blocks of neighbours of a series: how long they should be, and resamples made of them."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_query.inputs import one_of, require_count
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = ["Scheme", "along", "block_length", "block_resamples"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Scheme = Literal["stationary", "circular", "moving"]
SCHEMES: Final = ("stationary", "circular", "moving")
QUIET: Final = 5
"""Lags that have to be without autocorrelation for those after them to be taken as such."""


def block_length(series: ArrayLike, *, axis: int = 0, scheme: Scheme = "stationary") -> F64:
    """Length of blocks that makes the bootstrap variance of a mean best, from the autocorrelation of the series.

    Parameters
    ----------
    series : array_like
        Two values or more along `axis`, at even spacing.
    axis : int
        The axis of time.
    scheme : {"stationary", "circular", "moving"}
        See `block_resamples`; moving blocks take the length of circular ones.

    Returns
    -------
    ndarray of float64
        Mean length of blocks, for each series: at least 1, at most ``min(3 sqrt(n), n / 3)``. 1 for a series that is
        constant or holds a NaN or Inf.

    Notes
    -----
    Politis and White (2004) as corrected by Patton, Politis and White (2009): ``(2 G^2 / D)^(1/3) n^(1/3)`` with
    ``G = sum lambda(k/M) |k| R(k)``, ``g = sum lambda(k/M) R(k)``, ``D = 2 g^2`` for stationary and ``4/3 g^2`` for
    circular blocks, R the autocovariance, lambda the flat-top window and M twice the first lag from which on five
    autocorrelations stay within ``2 sqrt(log10(n) / n)``.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> white = rng.standard_normal(400)
    >>> float(block_length(white)) < 5 < float(block_length(np.convolve(white, np.ones(20), "valid")))
    True
    """
    one_of("scheme", scheme, SCHEMES)
    values = np.moveaxis(along(series, axis), axis, -1)
    found = np.ones(values.shape[:-1])
    for place in np.ndindex(values.shape[:-1]):
        found[place] = _length(values[place], 2.0 if scheme == "stationary" else 4 / 3)
    return found


def _length(values: F64, spread: float) -> float:
    n = len(values)
    most = max(1.0, math.ceil(min(3 * math.sqrt(n), n / 3)))
    if not np.isfinite(values).all():
        return 1.0
    deviations = values - values.mean()
    power = float(deviations @ deviations)
    if not power > n * (1e-14 * float(np.abs(values).max())) ** 2:
        return 1.0
    n_lags = min(n - 1, math.ceil(math.sqrt(n)) + QUIET)
    covariance = np.array([deviations[: n - lag] @ deviations[lag:] for lag in range(n_lags + 1)]) / n
    loud = np.abs(covariance[1:] / covariance[0]) >= 2 * math.sqrt(math.log10(n) / n)
    still = [lag for lag in range(n_lags - QUIET + 1) if not loud[lag : lag + QUIET].any()]
    window = min(2 * (still[0] + 1), n_lags) if still else n_lags
    lags = np.arange(1, window + 1)
    weights = np.clip(2 * (1 - lags / window), 0.0, 1.0)
    weighted = 2 * weights * covariance[lags]
    bend, level = float(lags @ weighted), float(covariance[0] + weighted.sum())
    if level == 0:
        return most
    return float(np.clip((2 * bend**2 / (spread * level**2)) ** (1 / 3) * n ** (1 / 3), 1.0, most))


def block_resamples(
    n: int, length: float, *, n_resamples: int = 2000, scheme: Scheme = "stationary", seed: int = 0
) -> I64:
    """Positions of the values that each resample of a series takes, block after block.

    Parameters
    ----------
    n : int
        Values of the series.
    length : float
        Length of blocks, 1 to n; 1 resamples single values. Fixed lengths are rounded up to whole ones.
    n_resamples, seed : int
        Number of resamples and the seed that makes them repeatable.
    scheme : {"stationary", "circular", "moving"}
        Blocks of random, geometrically distributed length on the series closed to a circle, so that resamples are
        stationary (Politis and Romano 1994); of fixed length on the circle (Politis and Romano 1992); of fixed length
        within the series (Kuensch 1989), which takes its ends less often.

    Returns
    -------
    ndarray of int64 (resample, n)
        Index a series with it. Residuals resampled so and put back on a curve are a null, or a bootstrap of the curve.

    Examples
    --------
    >>> block_resamples(6, 3, n_resamples=1, scheme="circular").shape
    (1, 6)
    """
    one_of("scheme", scheme, SCHEMES)
    require_count("n", n, 1)
    require_count("n_resamples", n_resamples, 1)
    if not 1 <= length <= n:
        raise InvalidInputError(f"length={length!r} is not possible: expected 1 to {n}, the values of the series.")
    rng = np.random.default_rng(require_count("seed", seed, 0))
    places = np.arange(n)
    if scheme == "stationary":
        opens = rng.random((n_resamples, n)) < 1 / length
        opens[:, 0] = True
        starts = rng.integers(n, size=(n_resamples, n))
        opened = np.maximum.accumulate(np.where(opens, places, 0), axis=1)
        return np.asarray((np.take_along_axis(starts, opened, axis=1) + places - opened) % n)
    size = math.ceil(length)
    n_starts = n if scheme == "circular" else n - size + 1
    starts = rng.integers(n_starts, size=(n_resamples, math.ceil(n / size)))
    blocks = (starts[..., None] + np.arange(size)) % n
    return np.asarray(blocks.reshape(n_resamples, -1)[:, :n])


def along(data: Any, axis: int) -> F64:
    """Return numbers that have two values or more along an axis."""
    values = np.asarray(data, dtype=np.float64)
    if not -values.ndim <= axis < values.ndim or values.shape[axis] < 2:
        raise DimensionError(f"Blocks need two or more values along axis {axis}: got shape {values.shape}.")
    return values
