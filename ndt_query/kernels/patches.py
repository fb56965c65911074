"""What a picture is like, as two numbers: how far it has one orientation, and how fine it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["orientation_coherence", "spatial_frequency"]

F64 = NDArray[np.float64]


def orientation_coherence(pictures: F64) -> F64:
    """Return how far gradients share one orientation, from 0 (all alike) to 1 (one alone).

    Parameters
    ----------
    pictures : ndarray (..., row, column)
        At least two pixels each way; NaN pixels are left out with the differences that they are in.

    Returns
    -------
    ndarray (...)
        ``sqrt((Jxx - Jyy)^2 + 4 Jxy^2) / (Jxx + Jyy)`` of the structure tensor, summed over the picture (Bigun and
        Granlund 1987); NaN where nothing changes, or only from pixel to pixel and back.
    """
    # Each over two by two pixels, so that noise in one pixel is not in both and looks like no orientation.
    down, right = np.diff(pictures, axis=-2), np.diff(pictures, axis=-1)
    down, right = (down[..., :-1] + down[..., 1:]) / 2, (right[..., :-1, :] + right[..., 1:, :]) / 2
    jyy, jxx, jxy = (np.nansum(one, axis=(-2, -1)) for one in (down * down, right * right, down * right))
    energy = jxx + jyy
    spread = np.sqrt((jxx - jyy) ** 2 + 4 * jxy**2)
    return np.asarray(np.divide(spread, energy, out=np.full(np.shape(energy), np.nan), where=energy > 0))


def spatial_frequency(pictures: F64) -> F64:
    """Return the mean frequency of pictures, weighted by power, in cycles a pixel.

    Parameters
    ----------
    pictures : ndarray (..., row, column)
        NaN pixels count as the mean of the others.

    Returns
    -------
    ndarray (...)
        Of the power spectrum of the picture without its mean, under a Hann window so that borders are no edges; NaN
        where nothing changes. White noise has 0.38, a picture of one period its inverse size.
    """
    rows, columns = pictures.shape[-2:]
    middle = np.nanmean(pictures, axis=(-2, -1), keepdims=True)
    window = np.outer(_hann(rows), _hann(columns))
    # The mean under the window is what has to go, or its side lobes would be counted.
    filled = np.where(np.isfinite(pictures), pictures - middle, 0.0)
    filled = filled - (filled * window).sum(axis=(-2, -1), keepdims=True) / window.sum()
    power = np.abs(np.fft.fft2(filled * window)) ** 2
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.fftfreq(columns))
    total = power.sum(axis=(-2, -1))
    weighted = (power * frequency).sum(axis=(-2, -1))
    there = total > 1e-20 * pictures.size
    return np.asarray(np.divide(weighted, total, out=np.full(np.shape(total), np.nan), where=there))


def _hann(n: int) -> F64:
    # Without the zeros at both ends, which would leave nothing of three pixels.
    return np.asarray(np.hanning(n + 2)[1:-1])
