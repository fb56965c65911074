"""Principal components of samples, and how the subspaces that they span lie to each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, as_float
from ndt_store.views.samples import is_rounding, on_samples, sample_mean

__all__ = ["Principal", "along", "angles", "leading", "overlap", "principal", "principal_of_scatter", "unknown"]

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Principal:
    """The first components of some samples.

    Parameters
    ----------
    components : ndarray (component, feature)
        Orthonormal, the largest first, each with its largest entry positive; NaN beyond the rank.
    variance : ndarray (component,)
        Of the samples along each, with divisor n - 1, or n where they are not centred; 0 beyond the rank.
    total : float
        Over all directions.
    mean : ndarray (feature,)
        Of the samples.
    n : int
        Samples.
    """

    components: F64
    variance: F64
    total: float
    mean: F64
    n: int


def principal(samples: Array, k: int, *, centre: bool) -> Principal:
    """Decompose samples (sample, feature) on whichever side is smaller."""
    values = as_float(samples).astype(np.float64)
    n, d = values.shape
    mean = sample_mean(values)
    rows = values - mean if centre else values
    if not on_samples(n, d):
        return principal_of_scatter(rows.T @ rows, n, mean, k, centre=centre)
    if not np.isfinite(rows).all():
        return unknown(k, d, mean, n)
    squares, left = leading(rows @ rows.T, k)
    return along(left.T @ rows, squares, float((rows**2).sum()), mean, n, centre=centre)


def principal_of_scatter(matrix: F64, n: int, mean: F64, k: int, *, centre: bool) -> Principal:
    """Decompose the sums of products of n samples (feature, feature), taken about their mean if `centre`."""
    if not np.isfinite(matrix).all():
        return unknown(k, len(matrix), mean, n)
    total = float(np.trace(matrix))
    squares, vectors = leading(matrix, k)
    return _kept(vectors.T, squares, total, mean, n, centre=centre)


def leading(matrix: F64, k: int) -> tuple[F64, F64]:
    """Largest k eigenvalues of a symmetric matrix, in descending order, and their vectors (row, k)."""
    n = len(matrix)
    values, vectors = scipy.linalg.eigh(matrix, subset_by_index=(n - k, n - 1), driver="evr", check_finite=False)
    return values[::-1], vectors[:, ::-1]


def along(rows: F64, squares: F64, total: float, mean: F64, n: int, *, centre: bool) -> Principal:
    """Components from samples that were added up by the eigenvectors of their products.

    Parameters
    ----------
    rows : ndarray (component, feature)
        Sums of the n samples, about their mean if `centre`, weighted by each vector.
    squares : ndarray (component,)
        The eigenvalues, in descending order.
    total : float
        The sum of all of them.
    mean : ndarray (feature,)
    n : int
    centre : bool
    """
    components = np.divide(rows, np.sqrt(np.maximum(squares, 0))[:, None], where=squares[:, None] > 0,
                           out=np.full(rows.shape, np.nan))  # fmt: skip
    return _kept(components, squares, total, mean, n, centre=centre)


def _kept(components: F64, squares: F64, total: float, mean: F64, n: int, *, centre: bool) -> Principal:
    """Fix signs, and drop what is rounding."""
    divisor = n - 1 if centre else n
    flat = is_rounding(total, n, float(mean @ mean) + total / n)
    real = (squares > len(squares) * 1e-13 * max(squares[0], 0.0)) & (not flat)
    found, variance = np.full(components.shape, np.nan), np.zeros(len(squares))
    largest = np.abs(np.nan_to_num(components)).argmax(axis=1)
    signs = np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)
    found[real] = (components * signs[:, None])[real]
    variance[real] = squares[real] / divisor
    return Principal(found, variance, 0.0 if flat else total / divisor, mean, n)


def unknown(k: int, d: int, mean: F64, n: int) -> Principal:
    """Components of samples that hold a NaN or Inf."""
    return Principal(np.full((k, d), np.nan), np.full(k, np.nan), np.nan, mean, n)


def overlap(one: F64, other: F64) -> float:
    """``|U1' U2|_F^2 / k`` of two bases (component, feature) of k components; NaN where one has fewer."""
    if np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    return min(1.0, float(((one @ other.T) ** 2).sum() / len(one)))


def angles(one: F64, other: F64) -> F64:
    """Principal angles between two subspaces in radians, the smallest first; NaN where one has fewer components."""
    if np.isnan(one).any() or np.isnan(other).any():
        return np.full(len(one), np.nan)
    cosines = np.linalg.svd(one @ other.T, compute_uv=False)
    # Near 0 the arc cosine loses half the digits; the sine of what is left over does not.
    rest = other - (other @ one.T) @ one
    sines = np.sort(np.linalg.svd(rest, compute_uv=False))[: len(one)]
    found: F64 = np.where(cosines**2 < 0.5, np.arccos(np.clip(cosines, -1, 1)), np.arcsin(np.clip(sines, -1, 1)))
    return found
