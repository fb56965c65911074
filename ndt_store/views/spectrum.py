"""Measures of dimension from the eigenvalues of a covariance or Gram matrix."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MEASURES", "corrected_participation_ratio", "energy_crossing", "measures"]

F64 = NDArray[np.float64]
_ROUNDING: Final = 16 * float(np.finfo(np.float64).eps)
"""Of the largest eigenvalue, for each of their number: what is left of an eigenvalue 0."""

MEASURES: Final = (
    "stable_rank",
    "participation_ratio",
    "energy_dims_90",
    "energy_dims_95",
    "nuclear_ratio",
    "effective_rank",
)


def energy_crossing(eigenvalues: F64, share: float) -> float:
    """Where the cumulative energy crosses `share`, interpolated within the component that takes it there.

    Its ceiling is the number of components needed.
    """
    energy = np.cumsum(eigenvalues) / eigenvalues.sum()
    # Rounding must not ask for one component more when k of them hold the share exactly.
    k = int(np.searchsorted(energy, share * (1 - 1e-12)))
    before = energy[k - 1] if k else 0.0
    fraction = (share - before) / (energy[k] - before)
    return k + min(1.0, max(float(fraction), 1e-9))


def measures(eigenvalues: F64) -> dict[str, float]:
    """Measures of dimension of a spectrum; all NaN when it is empty, zero or holds a NaN.

    Parameters
    ----------
    eigenvalues : ndarray of float64
        Eigenvalues of a positive semi-definite matrix in any order; those within rounding of 0 count as 0, because the
        roots of many of them would not be small.

    Returns
    -------
    dict
        With singular values ``s = sqrt(l)``: ``stable_rank`` = sum l / max l (Rudelson and Vershynin 2007),
        ``participation_ratio`` = (sum l)^2 / sum l^2, ``energy_dims_90`` and ``_95`` as interpolated crossings,
        ``nuclear_ratio`` = sum s / max s, ``effective_rank`` = exp of the entropy of s / sum s (Roy and Vetterli 2007).
    """
    if eigenvalues.size == 0 or not np.isfinite(eigenvalues).all() or eigenvalues.max() <= 0:
        return dict.fromkeys(MEASURES, math.nan)
    # Scaled, because squares of eigenvalues leave the range of float64 long before the eigenvalues do.
    spectrum = np.sort(eigenvalues / eigenvalues.max())[::-1]
    spectrum[spectrum < len(spectrum) * _ROUNDING] = 0.0
    singular = np.sqrt(spectrum)
    weights = singular[singular > 0] / singular.sum()
    return {
        "stable_rank": float(spectrum.sum()),
        "participation_ratio": float(spectrum.sum() ** 2 / (spectrum @ spectrum)),
        "energy_dims_90": energy_crossing(spectrum, 0.90),
        "energy_dims_95": energy_crossing(spectrum, 0.95),
        "nuclear_ratio": float(singular.sum()),
        "effective_rank": float(np.exp(-(weights * np.log(weights)).sum())),
    }


def corrected_participation_ratio(n: int, trace: float, trace_square: float, fourth: float) -> float:
    """Participation ratio from unbiased estimates of its numerator and denominator.

    The plug-in value from n samples cannot exceed n - 1 and is too small unless n is large against the dimension. Under
    independent samples of any distribution with finite fourth moments, tr(S)^2 and tr(S^2) of the population covariance
    have unbiased estimates (Himeno and Yamada 2014, J. Multivariate Anal. 130, 27-34); their ratio is returned.

    Parameters
    ----------
    n : int
        Independent samples; NaN is returned below 4, and where the estimate of tr(S^2) is not positive.
    trace, trace_square : float
        tr C and tr C^2 of the centred scatter matrix ``C = sum (x - m)(x - m)'``.
    fourth : float
        ``sum |x - m|^4``.
    """
    if n < 4:
        return math.nan
    s1, s2, q = trace / (n - 1), trace_square / (n - 1) ** 2, fourth / (n - 1)
    numerator = 2 * s2 + (n * n - 3 * n + 1) * s1 * s1 - n * q
    positive = (n - 1) * (n - 2) * s2 + s1 * s1
    denominator = positive - n * q
    # Few samples may leave nothing but rounding, or less than nothing, which estimates no sum of squares.
    return numerator / denominator if denominator > 1e-9 * positive else math.nan
