"""The Gram matrix of samples, for samples that do not outnumber their features: products of samples about their mean.

Products are summed over stripes of features, in float64, of samples about a vector near their mean (`add_products`);
`finished` moves them to the mean itself. What is lost to cancellation is bounded by how far that vector lies from the
mean against the spread of the samples, which for the mean of a part of the samples is at most their number over the
number in the part. Products of samples as they are, and of any subset about its own mean, follow without the samples.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, spans
from ndt_store.views.samples import STRIPE_NBYTES, Spectrum, eigenvalues, is_rounding, sample_mean, unpacked

__all__ = ["SampleGram", "add_products", "finished", "sample_gram", "sample_spectrum"]

F64 = NDArray[np.float64]
_PANEL: Final = 256
"""Rows of one matrix product: half a panel's square below the diagonal is what the triangle costs too much."""


@dataclass(frozen=True, slots=True)
class SampleGram:
    """Products of samples.

    Parameters
    ----------
    n : int
        Samples.
    products : ndarray of float64 (n (n + 1) / 2,)
        Upper triangle of ``y_i . y_j`` with ``y`` the deviation from the mean of all samples.
    with_mean : ndarray of float64 (sample,)
        ``y_i . m`` with ``m`` the mean.
    mean_square : float
        ``m . m``.
    nan_count : int
        Values of the samples that are NaN.
    """

    n: int
    products: F64
    with_mean: F64
    mean_square: float
    nan_count: int


def add_products(
    out: F64, left: Array, right: Array | None, about: F64, with_about: F64 | None = None, pool: Executor | None = None
) -> int:
    """Add products of samples about a vector to a matrix, and count the NaN among the left ones.

    Parameters
    ----------
    out : ndarray of float64 (left sample, right sample)
        Added to; without `right` only its upper triangle means anything.
    left, right : ndarray (sample, feature)
        The samples; without `right` they are multiplied with each other.
    about : ndarray of float64 (feature,)
        Subtracted from each sample.
    with_about : ndarray of float64 (left sample,), optional
        ``y_i . about`` is added to it.
    pool : Executor, optional
        Multiplies panels of rows at the same time.

    Returns
    -------
    int
        NaN among `left`, counted only with `with_about`.
    """
    n, d = left.shape
    nan_count = 0
    panels = list(spans(n, _PANEL))
    for columns in spans(d, STRIPE_NBYTES // (8 * (n + (0 if right is None else len(right))))):
        with np.errstate(invalid="ignore", over="ignore"):
            y = left[:, columns] - about[columns]
            z = y if right is None else right[:, columns] - about[columns]
            if with_about is not None:
                part = y @ about[columns]
                with_about += part
                nan_count += 0 if np.isfinite(part).all() else int(np.isnan(left[:, columns]).sum())

        def multiply(rows: slice, y: F64 = y, z: F64 = z) -> None:
            first = rows.start if right is None else 0
            with np.errstate(invalid="ignore", over="ignore"):
                out[rows, first:] += y[rows] @ z[first:].T

        for _ in (map if pool is None else pool.map)(multiply, panels):
            pass
    return nan_count


def finished(products: F64, with_about: F64, about: F64, nan_count: int) -> SampleGram:
    """Move products about a vector (upper triangle of a matrix) to the mean of the samples."""
    n = len(products)
    total = np.zeros(n)
    with np.errstate(invalid="ignore", over="ignore"):
        for row in range(n):
            total[row] += products[row, row:].sum()
            total[row + 1 :] += products[row, row + 1 :]
        by_row = total / n
        overall = by_row.mean()
        moved = np.empty(n * (n + 1) // 2)
        at = 0
        for row in range(n):
            moved[at : at + n - row] = products[row, row:] - (by_row[row:] + (by_row[row] - overall))
            at += n - row
        shift = with_about.mean()
        with_mean = with_about - shift + by_row - overall
        return SampleGram(n, moved, with_mean, float(about @ about + 2 * shift + overall), nan_count)


def sample_gram(values: Array, pool: Executor | None = None) -> SampleGram:
    """Products of samples (sample, feature) that lie in memory; panels of rows at the same time with a `pool`."""
    n = len(values)
    about, products, with_about = sample_mean(values), np.zeros((n, n)), np.zeros(n)
    nan_count = add_products(products, values, None, about, with_about, pool)
    return finished(products, with_about, about, nan_count)


def sample_spectrum(gram: SampleGram, centre: bool, kept: NDArray[np.intp] | None = None) -> Spectrum:
    """Spectrum of the samples, or of those `kept` (increasing); ``eigvalsh`` of a (sample, sample) matrix."""
    n = gram.n if kept is None else len(kept)
    part = slice(None) if kept is None else kept
    with_mean = gram.with_mean[part]
    matrix = unpacked(gram.products, gram.n, kept)
    with np.errstate(invalid="ignore", over="ignore"):
        square = matrix[0, 0] + 2 * with_mean[0] + gram.mean_square
        by_row = matrix.mean(axis=1)
        matrix -= by_row[:, None]
        matrix -= by_row - by_row.mean()
        diagonal = np.diagonal(matrix)
        if is_rounding(float(diagonal.sum()), n, float(square)):
            matrix[...] = 0.0
        trace, trace_square, fourth = float(diagonal.sum()), float(np.vdot(matrix, matrix)), float(diagonal @ diagonal)
        if not centre:
            del diagonal, matrix
            matrix = unpacked(gram.products, gram.n, kept)
            matrix += with_mean[:, None]
            matrix += with_mean + gram.mean_square
    return Spectrum(n, eigenvalues(matrix), trace, trace_square, fourth, gram.nan_count)
