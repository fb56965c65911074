"""Noise that has a memory: AR(1), alone or beside white noise, and a scale that may change over training.

A model is a correlation matrix ``R = (1 - w) C + w I`` with ``C[i, j] = rho^|i - j|``. Inverses of C are tridiagonal,
so that ``inv(R) = inv(w inv(C) + (1 - w) I) inv(C)`` costs a banded solve. With rho near 1 and a large w it is white
noise upon a random walk; with w = 0 it is AR(1). Romano et al. 2022, "Detecting abrupt changes in the presence of local
fluctuations and autocorrelated noise", need both to tell a change from noise.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.linalg
import scipy.stats
from numpy.typing import NDArray

__all__ = ["NOISES", "Noise", "scale_over_training", "tail_weight"]

F64 = NDArray[np.float64]

_RHO: Final = (-0.4, -0.2, 0.0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 0.985)
_SLOW_RHO: Final = (0.9, 0.97, 0.995)
_DRIFT: Final = (0.01, 0.04, 0.15, 0.5)
"""Variance of the slow part's innovations over that of the white noise beside it."""

_CAP: Final = 9.0
_LOUD: Final = 20
_TAILS: Final = (3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, np.inf)


@dataclass(frozen=True, slots=True)
class Noise:
    """One model of correlation.

    Parameters
    ----------
    rho : float
        Correlation of the slow part from one measurement to the next, between -1 and 1.
    white : float
        Share w of white noise in the variance.
    """

    rho: float
    white: float

    def _bands(self, n: int) -> tuple[F64, float, F64]:
        """Return inv(C) as its diagonal and the value beside it, and the bands of w inv(C) + (1 - w) I."""
        spread = 1 - self.rho**2
        diagonal = np.full(n, (1 + self.rho**2) / spread)
        diagonal[[0, -1]] = 1 / spread
        beside = -self.rho / spread
        bands = np.zeros((2, n))
        bands[0, 1:] = self.white * beside
        bands[1] = self.white * diagonal + (1 - self.white)
        return diagonal, beside, bands

    def precise(self, series: F64) -> F64:
        """Return ``inv(R) @ series`` for series (measurement, ...)."""
        diagonal, beside, bands = self._bands(len(series))
        out = diagonal[:, None] * series
        out[1:] += beside * series[:-1]
        out[:-1] += beside * series[1:]
        if self.white == 0:
            return out
        return np.asarray(scipy.linalg.solveh_banded(bands, out, check_finite=False, overwrite_b=True))

    def log_determinant(self, n: int) -> float:
        """Return ``log det R`` for `n` measurements."""
        bands = self._bands(n)[2]
        middle = 2 * np.log(scipy.linalg.cholesky_banded(bands)[1]).sum()
        return float(middle + (n - 1) * np.log(1 - self.rho**2))

    @functools.lru_cache(maxsize=4)  # noqa: B019 - the models are constants of this module
    def root(self, n: int) -> F64:
        """Return the lower triangular L with ``L L' = R``, which colours independent innovations."""
        powers = (1 - self.white) * self.rho ** np.arange(n)
        powers[0] = 1
        return np.asarray(np.linalg.cholesky(scipy.linalg.toeplitz(powers)), dtype=np.float64)


NOISES: Final = tuple(Noise(rho, 0.0) for rho in _RHO) + tuple(
    Noise(rho, 1 / (1 + drift / (1 - rho**2))) for rho in _SLOW_RHO for drift in _DRIFT
)
"""The models that fits choose from."""


def scale_over_training(innovations: F64) -> tuple[F64, F64]:
    """Return how the standard deviation of innovations changes over training, and how far that is known.

    The logarithm of the variance is a polynomial of degree 0 to 3 in ``log(1 + 20 i / n)`` for measurement i of n, of
    the degree with the least BIC, fitted by the gamma model with squares beyond three standard deviations cut off, so
    that jumps count little.

    Parameters
    ----------
    innovations : ndarray (measurement,)
        Independent, of mean about 0.

    Returns
    -------
    scale : ndarray (measurement,)
        Of root mean square 1.
    doubt : ndarray (measurement, term)
        Turns independent normal numbers into errors of the logarithm of the scale, given its degree; no terms for
        degree 0. That the degree is chosen adds to the errors: these are about two thirds of all.
    """
    n = len(innovations)
    squares = innovations**2
    axis = np.log1p(_LOUD * np.arange(n) / n)
    along = np.polynomial.legendre.legvander(2 * axis / axis[-1] - 1, 3)
    best, chosen, doubt = np.inf, np.ones(n), np.empty((n, 0))
    for degree in range(4):
        x = along[:, : degree + 1]
        pull = np.linalg.pinv(x)
        coefficients = np.zeros(degree + 1)
        coefficients[0] = np.log(squares.mean())
        for _ in range(50):
            ratio = np.minimum(squares / np.exp(x @ coefficients), _CAP)
            step = pull @ (ratio - 1)
            coefficients += step
            if np.abs(step).max() < 1e-6:
                break
        variance = np.exp(x @ coefficients)
        bic = (np.log(variance) + np.minimum(squares / variance, _CAP)).sum() + (degree + 1) * np.log(n)
        if bic < best:
            best, chosen = bic, variance
            # The covariance of the coefficients is 2 inv(x'x); the scale's logarithm is half of the variance's.
            doubt = pull.T / np.sqrt(2) @ np.linalg.cholesky(x.T @ x) if degree else doubt
    return np.sqrt(chosen / chosen.mean()), doubt


def tail_weight(innovations: F64) -> float:
    """Return the degrees of freedom of Student's t that fit innovations best, infinite for a normal distribution."""
    found: list[tuple[float, float]] = []
    for freedom in _TAILS:
        variance = float(np.median(innovations**2) / 0.455)
        for _ in range(30):
            weight = 1.0 if np.isinf(freedom) else (freedom + 1) / (freedom + innovations**2 / variance)
            variance = float((weight * innovations**2).mean())
        model = scipy.stats.norm if np.isinf(freedom) else scipy.stats.t(freedom)
        likelihood = model.logpdf(innovations / np.sqrt(variance)).sum() - len(innovations) * np.log(variance) / 2
        found.append((float(likelihood), freedom))
    return max(found)[1]
