"""Ridge regression of many targets on the same features, nested cross-validation included, from sums over folds.

Rows are dealt into folds. For fold k the penalty is chosen among the other folds, each predicted from those that are
left, and fold k is then predicted from all others. So every training part lacks one fold or two, and a part that lacks
two serves both. The steps:

1. Of each fold: its mean and its scatter about that mean. Parts are merged from these by addition, never by taking a
   fold away, so that large values of one fold leave nothing of themselves in the others.
2. Of each training part: the eigenvectors of its scatter, features standardised within the part. They give the
   coefficients of every penalty and every target by one product.
3. Of each held-out fold in that basis: a triangular factor R of its second moments about the part's mean, so that the
   squared error of coefficients z is ``s - 2 z'c + |R z|^2``, whatever the number of rows.

Targets enter by their products with the features of each fold alone. Permuted targets, for a null, cost no more than
these and the products of step 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.kernels.selectivity import normalised
from ndt_store.views.blocks import spans

__all__ = ["Design", "HeldOut", "Refit", "column_nbytes", "design_nbytes"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

ROUNDING: Final = 8 * float(np.finfo(np.float64).eps)
"""By how much equal values of magnitude 1 differ when they were computed in different ways."""

BATCH_NBYTES: Final = 16 << 20
"""Memory of the columns of shuffled targets that are predicted at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """A training part: all folds but `left_out`.

    Parameters
    ----------
    left_out, kept : tuple of int
        Folds.
    n : int
        Rows of the part.
    mean : ndarray (feature,)
        Of its rows.
    scale : ndarray (feature,)
        Standard deviations, about the mean and with divisor n; 1 for features that are constant in the part.
    vectors : ndarray (feature, component)
        Eigenvectors of the scatter of standardised features, 0 for constant ones.
    values : ndarray (component,)
        Their eigenvalues, all above rounding.
    factors : tuple of ndarray
        For each fold left out: R of its rows, less the part's mean, in the basis of components.
    shifts : tuple of ndarray (component,)
        For each fold left out: its mean less the part's, in the same basis.
    """

    left_out: tuple[int, ...]
    kept: tuple[int, ...]
    n: int
    mean: F64
    scale: F64
    vectors: F64
    values: F64
    factors: tuple[F64, ...]
    shifts: tuple[F64, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Squared errors of held-out folds, and what they are to be compared with.

    Parameters
    ----------
    errors : ndarray (fold, column)
        Of predictions with the penalty that the other folds chose.
    totals : ndarray (fold, column)
        Of the training part's mean as the prediction; exactly 0 for columns that never vary.
    chosen : ndarray of int64 (fold, column)
        Position of the penalty that was chosen for each fold.
    overall : ndarray of int64 (column,)
        Position of the penalty with the least error over all folds: the one for a fit to all rows.
    """

    errors: F64
    totals: F64
    chosen: I64
    overall: I64

    @property
    def r2(self) -> F64:
        """1 - errors / totals over all folds, (column,); NaN for columns that never vary."""
        return _ratio(self.errors.sum(axis=0), self.totals.sum(axis=0))

    @property
    def r2_by_fold(self) -> F64:
        """1 - errors / totals of each fold, (fold, column); NaN where a fold holds nothing but the mean."""
        return _ratio(self.errors, self.totals)


@dataclass(frozen=True, slots=True)
class Refit:
    """Coefficients fitted to all rows, features and targets standardised, each (feature, column).

    Parameters
    ----------
    coefficients : ndarray
        0 for features that never vary.
    losses : ndarray
        By how much the penalised loss rises when the feature is left out, over the target's sum of squares.
    r2 : ndarray (column,)
        In sample.
    """

    coefficients: F64
    losses: F64
    r2: F64


@dataclass(frozen=True, slots=True)
class _Targets:
    """Columns by fold: products with features (fold, feature, column), means and sums of squares (fold, column)."""

    cross: F64
    means: F64
    squares: F64


class Design:
    """Features with their folds and penalties, ready to be asked about any targets.

    Parameters
    ----------
    features : ndarray (row, feature)
        Finite.
    folds : ndarray of int64 (row,)
        Fold of each row, 0 to K - 1 with K of 3 or more, each with a row or more.
    alphas : sequence of float
        Penalties, above 0, on the sum of squared coefficients of standardised features.
    """

    def __init__(self, features: F64, folds: I64, alphas: Sequence[float]) -> None:
        values = normalised(features)
        self.alphas = np.asarray(alphas, dtype=np.float64)
        self.rows = [np.flatnonzero(folds == fold) for fold in range(int(folds.max()) + 1)]
        self.counts = np.array([len(rows) for rows in self.rows])
        self.means = np.stack([values[rows].mean(axis=0) for rows in self.rows])
        self._centred = [values[rows] - mean for rows, mean in zip(self.rows, self.means, strict=True)]
        self._scatters = np.stack([centred.T @ centred for centred in self._centred])
        k = len(self.rows)
        self._whole = self._part(())
        self._parts = [self._part((fold,)) for fold in range(k)]
        self._parts += [self._part((fold, other)) for fold in range(k) for other in range(fold)]

    def _part(self, left_out: tuple[int, ...]) -> Part:
        kept = tuple(fold for fold in range(len(self.rows)) if fold not in left_out)
        counts = self.counts[list(kept)]
        n = int(counts.sum())
        mean = counts @ self.means[list(kept)] / n
        between = np.sqrt(counts)[:, None] * (self.means[list(kept)] - mean)
        scatter = self._scatters[list(kept)].sum(axis=0) + between.T @ between
        squares = scatter.diagonal()
        varies = squares > n * ROUNDING**2
        scale = np.sqrt(np.where(varies, squares, n) / n)
        values, vectors = np.linalg.eigh(scatter / np.outer(scale, scale) * np.outer(varies, varies))
        real = values > len(values) * ROUNDING * max(values[-1], 0.0)
        values, vectors = values[real], vectors[:, real] * varies[:, None]
        factors, shifts = [], []
        for fold in left_out:
            shift = self.means[fold] - mean
            moved = ((self._centred[fold] + shift) / scale) @ vectors
            factors.append(np.asarray(np.linalg.qr(moved, mode="r")))
            shifts.append((shift / scale) @ vectors)
        return Part(left_out, kept, n, mean, scale, vectors, values, tuple(factors), tuple(shifts))

    def _targets(self, columns: F64) -> _Targets:
        means = np.stack([columns[rows].mean(axis=0) for rows in self.rows])
        centred = [columns[rows] - mean for rows, mean in zip(self.rows, means, strict=True)]
        cross = np.stack([own.T @ other for own, other in zip(self._centred, centred, strict=True)])
        return _Targets(cross, means, np.stack([(one**2).sum(axis=0) for one in centred]))

    def _projected(self, part: Part, targets: _Targets) -> tuple[F64, F64]:
        """Mean of a part's targets (column,), and their products with its components (component, column)."""
        kept, counts = list(part.kept), self.counts[list(part.kept)]
        mean = counts @ targets.means[kept] / part.n
        weighted = counts[:, None] * (targets.means[kept] - mean)
        cross = targets.cross[kept].sum(axis=0) + (self.means[kept] - part.mean).T @ weighted
        return mean, part.vectors.T @ (cross / part.scale[:, None])

    def held_out(self, columns: F64) -> HeldOut:
        """Predict every fold of targets (row, column), finite and from `normalised`, from the other folds."""
        targets = self._targets(columns)
        k, n_alphas, n_columns = len(self.rows), len(self.alphas), columns.shape[1]
        # errors[k, j]: of fold j where fold k lacks too; errors[k, k]: of fold k where it alone lacks.
        errors = np.empty((k, k, n_alphas, n_columns))
        totals = np.empty((k, n_columns))
        for part in self._parts:
            mean, projected = self._projected(part, targets)
            for place, fold in enumerate(part.left_out):
                other = part.left_out[place - 1]
                shift = targets.means[fold] - mean
                cross = part.vectors.T @ (targets.cross[fold] / part.scale[:, None])
                cross += np.outer(self.counts[fold] * part.shifts[place], shift)
                square = targets.squares[fold] + self.counts[fold] * shift**2
                if other == fold:
                    totals[fold] = square
                for a, alpha in enumerate(self.alphas):
                    z = projected / (part.values + alpha)[:, None]
                    fitted = part.factors[place] @ z
                    errors[other, fold, a] = square - 2 * _dots(z, cross) + _dots(fitted, fitted)
        totals[:, totals.sum(axis=0) <= len(columns) * ROUNDING**2] = 0.0
        means = errors / self.counts[:, None, None]
        own = means[np.arange(k), np.arange(k)]
        chosen = (means.sum(axis=1) - own).argmin(axis=1)
        best = np.take_along_axis(errors[np.arange(k), np.arange(k)], chosen[:, None], axis=1)[:, 0]
        return HeldOut(np.maximum(best, 0.0), totals, chosen, own.sum(axis=0).argmin(axis=0))

    def null_r2(self, columns: F64, n_permutations: int, seed: int) -> F64:
        """Held-out R2 of rows of targets shuffled against the features, (permutation, column)."""
        n, n_columns = columns.shape
        rng = np.random.default_rng(seed)
        orders = np.stack([rng.permutation(n) for _ in range(n_permutations)])
        found = np.empty(n_permutations * n_columns)
        k, p = self.means.shape
        step = BATCH_NBYTES // column_nbytes(n, p, k, len(self.alphas))
        for batch in spans(len(found), step):
            permutation, column = np.divmod(np.arange(batch.start, batch.stop), n_columns)
            found[batch] = self.held_out(columns[orders[permutation].T, column]).r2
        return found.reshape(n_permutations, n_columns)

    def refit(self, columns: F64, chosen: I64) -> Refit:
        """Fit all rows of targets (row, column) with the penalties at positions `chosen` (column,)."""
        part = self._whole
        _, projected = self._projected(part, self._targets(columns))
        penalty = self.alphas[chosen]
        z = projected / (part.values[:, None] + penalty)
        coefficients = part.vectors @ z
        # Leaving feature j out of min |y - X b|^2 + a |b|^2 costs b_j^2 / [(X'X + a)^-1]_jj.
        inside = part.vectors**2
        inverse = inside @ (1 / (part.values[:, None] + self.alphas))
        inverse += np.maximum(1 - inside.sum(axis=1), 0.0)[:, None] / self.alphas
        square = ((columns - columns.mean(axis=0)) ** 2).sum(axis=0)
        square[square <= len(columns) * ROUNDING**2] = np.nan
        errors = square - 2 * (z * projected).sum(axis=0) + (part.values[:, None] * z**2).sum(axis=0)
        losses = coefficients**2 / inverse[:, chosen] / square
        return Refit(coefficients / np.sqrt(square / len(columns)), losses, 1 - errors / square)


def _dots(a: F64, b: F64) -> F64:
    """Products of columns, without a temporary."""
    return np.asarray(np.einsum("rc,rc->c", a, b))


def _ratio(errors: F64, totals: F64) -> F64:
    varies = totals > 0
    return np.where(varies, 1 - errors / np.where(varies, totals, 1.0), np.nan)


def column_nbytes(n: int, p: int, k: int, n_alphas: int) -> int:
    """Memory of `Design.held_out` for each column, from rows, features, folds and penalties."""
    return 8 * (3 * n + (k + 1) * p + 5 * min(n, p) + 2 * k * k * n_alphas)


def design_nbytes(n: int, p: int, k: int) -> int:
    """Memory of a `Design`, from rows, features and folds."""
    rank = min(n, p)
    n_parts = 1 + k + k * (k - 1) // 2
    return 8 * (3 * n * p + (k + 4) * p * p + n_parts * p * (rank + 2) + k * k * rank * min(rank, n // k + 1))
