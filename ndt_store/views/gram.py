"""Scatter matrices of samples by groups of examples: mergeable, float64, on whichever side is smaller.

Examples are dealt into groups, so that estimates with one group left out follow without another pass over the data. Two
states serve the same results:

`Scatter`
    For each group the count, mean, scatter matrix ``C = sum y y'`` of the deviations ``y``, and the two sums of fourth
    order ``sum |y|^2 y`` and ``sum |y|^4``. Its size does not depend on how many samples there are.
`Rows`
    The samples themselves. Smaller than the matrices where samples are few against features, and then the Gram matrix
    of samples, which has the same eigenvalues, is the smaller side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, Block, as_float, position_means, spans

__all__ = ["Rows", "Scatter", "Spectrum", "merge_rows", "merge_scatter", "rows_spectrum", "scatter", "scatter_spectrum"]

F64 = NDArray[np.float64]
_STRIPE_NBYTES = 4 << 20
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Scatter:
    """Sums over samples; a leading axis, if any, counts the groups.

    Parameters
    ----------
    n : ndarray of int64 (...)
        Samples.
    mean, cubic : ndarray of float64 (..., feature)
        Mean, and ``sum |y|^2 y`` with ``y`` the deviation from the mean.
    matrix : ndarray of float64 (..., feature, feature)
        ``sum y y'``.
    fourth : ndarray of float64 (...)
        ``sum |y|^4``.
    nan_count : ndarray of int64 (...)
        Values that are NaN.
    """

    n: NDArray[np.int64]
    mean: F64
    cubic: F64
    matrix: F64
    fourth: F64
    nan_count: NDArray[np.int64]

    def __getitem__(self, group: int) -> Scatter:
        return Scatter(*(getattr(self, field.name)[group] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples (checkpoint, sample, feature) and the group of each, (sample,)."""

    values: Array
    groups: NDArray[np.int64]


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


def _mean(samples: Array) -> F64:
    """Mean over samples, by way of the differences from the first, so that equal samples have exactly their mean."""
    first = samples[0].astype(np.float64)
    total = np.zeros_like(first)
    for rows in spans(len(samples), _STRIPE_NBYTES // (8 * len(first))):
        total += (samples[rows] - first).sum(axis=0)
    return np.asarray(first + total / len(samples))


def _scatter_of(samples: Array) -> Scatter:
    """Two-pass sums over samples (sample, feature), in stripes of rows."""
    n, d = samples.shape
    mean = _mean(samples) if n else np.zeros(d)
    cubic, matrix, fourth = np.zeros(d), np.zeros((d, d)), 0.0
    for rows in spans(n, _STRIPE_NBYTES // (8 * d)):
        y = samples[rows] - mean
        squared = np.vecdot(y, y)
        matrix += y.T @ y
        cubic += squared @ y
        fourth += float(squared @ squared)
    nan_count = np.isnan(samples).sum() if np.isnan(mean).any() else 0
    return Scatter(np.array(n), mean, cubic, matrix, np.array(fourth), np.array(nan_count, np.int64))


def scatter(samples: Array, groups: NDArray[np.int64], n_groups: int) -> Scatter:
    """Make the sums (checkpoint, group, ...) of samples (checkpoint, example, sample, feature).

    Parameters
    ----------
    samples : ndarray (checkpoint, example, sample, feature)
        Values as `sample_rows` arranges them.
    groups : ndarray of int64 (example,)
        Group of each example, from 0.
    n_groups : int
        Number of groups.
    """
    d = samples.shape[-1]
    with np.errstate(invalid="ignore", over="ignore"):
        parts = [[_scatter_of(as_float(one[groups == g]).reshape(-1, d)) for g in range(n_groups)] for one in samples]
    return _stack([_stack(groups_of) for groups_of in parts])


def _stack(parts: Sequence[Scatter]) -> Scatter:
    return Scatter(*(np.stack([getattr(part, field.name) for part in parts]) for field in fields(Scatter)))


def _about(state: Scatter, mean: F64) -> Scatter:
    """Return the same sums about another mean than the samples' own."""
    n = state.n[..., None]
    delta = state.mean - mean
    pushed = (state.matrix @ delta[..., None])[..., 0]
    square = np.vecdot(delta, delta)
    trace = np.trace(state.matrix, axis1=-2, axis2=-1)
    return Scatter(
        state.n,
        mean,
        state.cubic + trace[..., None] * delta + 2 * pushed + n * square[..., None] * delta,
        state.matrix + n[..., None] * delta[..., :, None] * delta[..., None, :],
        state.fourth
        + 4 * np.vecdot(delta, pushed)
        + 4 * np.vecdot(delta, state.cubic)
        + 2 * square * trace
        + state.n * square * square,
        state.nan_count,
    )


def merge_scatter(left: Scatter, right: Scatter) -> Scatter:
    """Join sums over disjoint samples; leading axes have to agree."""
    n = left.n + right.n
    with np.errstate(invalid="ignore", over="ignore"):
        mean = left.mean + (right.mean - left.mean) * (right.n / np.maximum(n, 1))[..., None]
        a, b = _about(left, mean), _about(right, mean)
        nan_count = left.nan_count + right.nan_count
        return Scatter(n, mean, a.cubic + b.cubic, a.matrix + b.matrix, a.fourth + b.fourth, nan_count)


def merge_rows(left: Rows, right: Rows) -> Rows:
    """Join samples, in order."""
    return Rows(np.concatenate([left.values, right.values], axis=1), np.concatenate([left.groups, right.groups]))


def _is_rounding(trace: float, n: int, sample: Array) -> bool:
    """Whether n samples around one like `sample` vary by nothing but the rounding of equal values."""
    one = sample.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        return bool(trace <= n * _ROUNDING**2 * (one @ one))


def _eigenvalues(matrix: F64) -> F64:
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return np.asarray(np.linalg.eigvalsh(matrix), dtype=np.float64)


def scatter_spectrum(state: Scatter, centre: bool) -> Spectrum:
    """Spectrum of one group's or all samples' sums; ``eigvalsh`` of a (feature, feature) matrix."""
    matrix, n = state.matrix, int(state.n)
    if _is_rounding(float(np.trace(matrix)), n, state.mean):
        state = replace(state, matrix=np.zeros_like(matrix), fourth=np.array(0.0))
        matrix = state.matrix
    uncentred = matrix if centre else matrix + state.n * np.outer(state.mean, state.mean)
    trace, square, fourth = float(np.trace(matrix)), float(np.vdot(matrix, matrix)), float(state.fourth)
    return Spectrum(n, _eigenvalues(uncentred), trace, square, fourth, int(state.nan_count))


def sample_gram(values: Array) -> F64:
    """Gram matrix (sample, sample) of samples about their mean, in stripes of features, float64.

    Subtracting the mean of all samples first keeps later centring of subsets free of cancellation.
    """
    n, d = values.shape
    gram = np.zeros((n, n))
    for columns in spans(d, _STRIPE_NBYTES // (8 * n)):
        stripe = values[:, columns].astype(np.float64)
        stripe -= _mean(stripe)
        gram += stripe @ stripe.T
    return gram


def rows_spectrum(values: Array, centre: bool, gram: F64 | None = None) -> Spectrum:
    """Spectrum of samples (sample, feature) through the smaller of the two matrices.

    Parameters
    ----------
    values : ndarray (sample, feature)
        The samples; not read when `gram` is given and `centre` is true.
    centre : bool
        Whether eigenvalues are of the centred scatter.
    gram : ndarray (sample, sample), optional
        Rows and columns of `sample_gram` that belong to the samples.
    """
    n, d = values.shape
    if d < n:
        return scatter_spectrum(_scatter_of(values), centre)
    with np.errstate(invalid="ignore"):
        gram = sample_gram(values) if gram is None else gram
        by_row = gram.mean(axis=1)
        centred = gram - by_row[:, None] - by_row + by_row.mean()
        diagonal = np.diagonal(centred)
        if _is_rounding(float(diagonal.sum()), n, values[0]):
            centred = np.zeros_like(gram)
            diagonal = np.diagonal(centred)
        trace, square, fourth = float(diagonal.sum()), float(np.vdot(centred, centred)), float(diagonal @ diagonal)
    nan_count = int(np.isnan(values).sum()) if np.isnan(trace) else 0
    if centre:
        return Spectrum(n, _eigenvalues(centred), trace, square, fourth, nan_count)
    raw = np.zeros((n, n))
    for columns in spans(d, _STRIPE_NBYTES // (8 * n)):
        stripe = values[:, columns].astype(np.float64)
        raw += stripe @ stripe.T
    return Spectrum(n, _eigenvalues(raw), trace, square, fourth, nan_count)
