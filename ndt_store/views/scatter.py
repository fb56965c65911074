"""Scatter matrices of samples by groups of examples: mergeable sums, for samples that outnumber their features.

Examples are dealt into groups, so that estimates with one group left out follow without another pass over the data. For
each group a `Scatter` holds the count, the mean, the scatter matrix ``C = sum y y'`` of the deviations ``y``, and the
two sums of fourth order ``sum |y|^2 y`` and ``sum |y|^4``. Its size does not depend on how many samples there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, as_float, spans
from ndt_store.views.samples import STRIPE_NBYTES, Spectrum, eigenvalues, is_rounding, sample_mean

__all__ = ["Scatter", "merge_scatter", "scatter", "scatter_of", "scatter_spectrum", "stacked"]

F64 = NDArray[np.float64]


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


def scatter_of(samples: Array) -> Scatter:
    """Two-pass sums over samples (sample, feature), in stripes of rows."""
    n, d = samples.shape
    mean = sample_mean(samples) if n else np.zeros(d)
    cubic, matrix, fourth = np.zeros(d), np.zeros((d, d)), 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for rows in spans(n, STRIPE_NBYTES // (8 * d)):
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
        Values as `ndt_store.views.samples.sample_rows` arranges them.
    groups : ndarray of int64 (example,)
        Group of each example, from 0.
    n_groups : int
        Number of groups.
    """
    d = samples.shape[-1]
    parts = [[scatter_of(as_float(one[groups == g]).reshape(-1, d)) for g in range(n_groups)] for one in samples]
    return stacked([stacked(groups_of) for groups_of in parts])


def stacked(parts: Sequence[Scatter]) -> Scatter:
    """Give sums a leading axis."""
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


def scatter_spectrum(state: Scatter, centre: bool) -> Spectrum:
    """Spectrum of one group's or all samples' sums; ``eigvalsh`` of a (feature, feature) matrix."""
    matrix, n = state.matrix, int(state.n)
    with np.errstate(invalid="ignore", over="ignore"):
        if is_rounding(float(np.trace(matrix)), n, float(state.mean @ state.mean)):
            state = replace(state, matrix=np.zeros_like(matrix), fourth=np.array(0.0))
            matrix = state.matrix
        raw = matrix if centre else matrix + state.n * np.outer(state.mean, state.mean)
        trace, square, fourth = float(np.trace(matrix)), float(np.vdot(matrix, matrix)), float(state.fourth)
    return Spectrum(n, eigenvalues(raw), trace, square, fourth, int(state.nan_count))
