"""Samples made of activations, and what statistics of second order on either side of them share.

Examples become samples in one of three ways (`sample_rows`). Their second-order statistics are kept on whichever side
is smaller, as a matrix of features (`ndt_store.views.scatter`) or of samples (`ndt_store.views.gram`); both have the
same eigenvalues, and both end in a `Spectrum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, Block, position_means, spans

__all__ = [
    "DEFAULT_N_GROUPS",
    "Spectrum",
    "deal_groups",
    "eigenvalues",
    "is_rounding",
    "on_samples",
    "packed",
    "sample_mean",
    "sample_rows",
    "unpacked",
]

F64 = NDArray[np.float64]
DEFAULT_N_GROUPS: Final = 10
STRIPE_NBYTES: Final = 8 << 20
"""Size of float64 temporaries: products of stripes are as fast as of the whole."""

_ROUNDING: Final = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues of a scatter matrix beside the sums that correct for the number of samples.

    Parameters
    ----------
    n : int
        Samples.
    eigenvalues : ndarray of float64
        Nonzero eigenvalues of the scatter matrix, centred or not; NaN when the samples hold one.
    trace, trace_square, fourth : float
        tr C, tr C^2 and ``sum |y|^4`` of the centred scatter, whatever `eigenvalues` are of; 0 where the samples differ
        by no more than rounding.
    nan_count : int
        Values of the samples that are NaN.
    """

    n: int
    eigenvalues: F64
    trace: float
    trace_square: float
    fourth: float
    nan_count: int


def on_samples(n_samples: int, n_features: int) -> bool:
    """Whether the matrix of samples is the one that is kept: where they are not more than features."""
    return n_samples <= n_features


def deal_groups(n_examples: int, n_groups: int = DEFAULT_N_GROUPS, seed: int = 0) -> NDArray[np.int64]:
    """Deal examples at random into groups, (example,), whose sizes differ by at most one."""
    dealt: NDArray[np.int64] = np.random.default_rng(seed).permutation(np.arange(n_examples) % n_groups)
    return dealt


def sample_rows(block: Block, mode: str) -> Array:
    """Arrange a block's values as samples (checkpoint, example, sample of the example, feature).

    ``"flatten"`` makes each example one sample of all units and positions, ``"mean"`` one sample of the units' means
    over positions, and ``"samples"`` makes each position one sample of all units.
    """
    if mode == "mean":
        return position_means(block)[:, :, None]
    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    if mode == "flatten":
        return block.reshape(n_checkpoints, n_examples, 1, -1)
    rows = block.transpose(0, 1, 2, 4, 3)
    return rows.reshape(n_checkpoints, n_examples, n_tokens * n_positions, n_units)


def sample_mean(samples: Array) -> F64:
    """Mean over samples, by way of the differences from the first, so that equal samples have exactly their mean."""
    first = samples[0].astype(np.float64)
    total = np.zeros_like(first)
    with np.errstate(invalid="ignore", over="ignore"):
        for rows in spans(len(samples), STRIPE_NBYTES // (8 * len(first))):
            total += (samples[rows] - first).sum(axis=0)
        return np.asarray(first + total / len(samples))


def is_rounding(trace: float, n: int, square: float) -> bool:
    """Whether n samples of squared length about `square` vary by nothing but the rounding of equal values."""
    return bool(trace <= n * _ROUNDING**2 * square)


def eigenvalues(matrix: F64) -> F64:
    """Eigenvalues of a symmetric matrix, all NaN where it holds a value that is not finite."""
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


def packed(matrix: F64) -> F64:
    """Upper triangle of a matrix, row by row."""
    n = len(matrix)
    triangle = np.empty(n * (n + 1) // 2)
    at = 0
    for row in range(n):
        triangle[at : at + n - row] = matrix[row, row:]
        at += n - row
    return triangle


def unpacked(triangle: F64, n: int, kept: Sequence[int] | NDArray[np.intp] | None = None) -> F64:
    """Symmetric matrix of an upper triangle, or only its rows and columns `kept`, which increase."""
    rows = np.arange(n) if kept is None else np.asarray(kept)
    matrix = np.empty((len(rows), len(rows)))
    for place, row in enumerate(rows):
        start = row * n - row * (row - 1) // 2
        part = triangle[start : start + n - row]
        matrix[place, place:] = part if kept is None else part[rows[place:] - row]
        matrix[place:, place] = matrix[place, place:]
    return matrix
