"""Debiased linear CKA from products of samples: U-centred Gram matrices, and the dependence between any two of them.

A Gram matrix without its diagonal loses row and column effects by U-centring (Szekely and Rizzo 2014); the sum of
products of two such matrices over ``n (n - 3)`` is the unbiased estimate of HSIC with linear kernels (Song et al.
2012). It does not matter about which point the products were taken. Estimates of several batches of samples are added
up before any ratio is taken (Nguyen, Raghu and Kornblith 2021), since each is unbiased and their ratio is not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Dependence",
    "deal_batches",
    "dependence",
    "permuted",
    "ratio",
    "u_centred",
    "u_centred_triangle",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Rows = NDArray[np.intp]


def deal_batches(n: int, batch_size: int, seed: int, max_batches: int | None = None) -> list[Rows]:
    """Deal samples at random into batches of about equal size.

    Parameters
    ----------
    n, batch_size : int
        Samples, and the most of one batch.
    seed : int
    max_batches : int, optional
        Most batches: of more samples than they hold, some drawn at random are in one, and the others in none.

    Returns
    -------
    list of ndarray
        Positions of each batch, increasing; no two share one.

    Notes
    -----
    Every two samples are as likely in one batch as any other two, without which an estimate from pairs has a bias: of
    samples that are stored class by class, runs of neighbours would hold more pairs of a class than there are.
    """
    wanted = -(-n // batch_size)
    if wanted == 1:
        return [np.arange(n)]
    order = np.random.default_rng(seed).permutation(n)
    if max_batches is not None and max_batches < wanted:
        order, wanted = order[: max_batches * batch_size], max_batches
    return [np.sort(part) for part in np.array_split(order, wanted)]


def u_centred(gram: F64) -> tuple[F64, float]:
    """U-centre a Gram matrix (sample, sample) of four samples or more, in place: rows sum to 0, as the diagonal is.

    It comes back over the root of its sum of squares, beside that root, so that sums of products of two lie between -1
    and 1; all 0 where samples do not vary, NaN where one holds a NaN.
    """
    n = len(gram)
    diagonal = np.diagonal(gram).copy()
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1)
    gram -= rows[:, None] / (n - 2)
    gram -= rows[None, :] / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    size = float(np.sqrt(np.vdot(gram, gram)))
    if _is_rounding(size, diagonal):
        gram[...] = size = 0.0
    else:
        gram /= size
    return gram, size


def u_centred_triangle(triangle: F64, n: int, out: F32) -> float:
    """U-centre a Gram matrix given as its upper triangle, row by row with the diagonal, as `u_centred` does.

    Parameters
    ----------
    triangle : ndarray of float64 (n (n + 1) / 2,)
    n : int
        Samples.
    out : ndarray of float32 (n (n - 1) / 2,)
        The triangle without its diagonal, over the root of the sum of squares of the whole matrix, is written here.

    Returns
    -------
    float
        That root.
    """
    starts = np.arange(n) * n - np.arange(n) * np.arange(-1, n - 1) // 2
    diagonal = triangle[starts]
    with np.errstate(invalid="ignore", over="ignore"):
        rows = np.add.reduceat(triangle, starts) - diagonal
        for row, start in enumerate(starts[:-1].tolist()):
            rows[row + 1 :] += triangle[start + 1 : start + n - row]
        shift = rows / (n - 2)
        overall = rows.sum() / ((n - 1) * (n - 2))
        centred = np.empty(n * (n - 1) // 2)
        at = 0
        for row, start in enumerate(starts[:-1].tolist()):
            stop = at + n - row - 1
            np.subtract(triangle[start + 1 : start + n - row], shift[row + 1 :], out=centred[at:stop])
            centred[at:stop] -= shift[row] - overall
            at = stop
        size = float(np.sqrt(2 * np.vdot(centred, centred)))
        if _is_rounding(size, diagonal):
            out[...] = size = 0.0
        else:
            np.divide(centred, size, out=out, casting="same_kind")
    return size


def _is_rounding(size: float, diagonal: F64) -> bool:
    """Whether what is left by U-centring is what is left of samples that are the same."""
    return size <= len(diagonal) * 1e-14 * float(np.sqrt(np.mean(np.square(diagonal))))


class Dependence:
    """Unbiased HSIC of two representations, added up over batches: of all samples, without each group, and permuted.

    Parameters
    ----------
    n_groups, n_permutations : int
        How many groups are left out in turn, and how often samples are permuted.
    """

    def __init__(self, n_groups: int, n_permutations: int) -> None:
        self._n_groups = n_groups
        self._terms = np.zeros((1 + n_groups, 3))
        self._null = np.zeros(n_permutations)
        self._units = [0.0, 0.0]

    def add(self, a: F64, b: F64, groups: NDArray[np.int64], orders: Rows) -> None:
        """Add a batch: Gram matrices (sample, sample), which are overwritten, groups of samples, and permutations."""
        for group in range(self._n_groups):
            rows = np.flatnonzero(groups != group)
            kept = np.ix_(rows, rows)
            self._add(1 + group, a[kept], b[kept])
        one, other, weight = self._add(0, a, b)
        self._null += weight * permuted(one, other, orders)

    def _add(self, place: int, a: F64, b: F64) -> tuple[F64, F64, float]:
        n = len(a)
        (one, size), (other, other_size) = u_centred(a), u_centred(b)
        # Sizes are told in units of the first, which no ratio depends on: their squares could overflow.
        self._units = [unit or new for unit, new in zip(self._units, (size, other_size), strict=True)]
        x, y = (s / unit if unit else 0.0 for s, unit in zip((size, other_size), self._units, strict=True))
        share = 1 / (n * (n - 3))
        sums = np.vdot(one, other) * x * y, np.vdot(one, one) * x * x, np.vdot(other, other) * y * y
        self._terms[place] += share * np.array(sums)
        return one, other, share * x * y

    def found(self) -> tuple[float, F64, F64]:
        """Return CKA, CKA without each group, and CKA of permuted samples; NaN where one does not vary."""
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = np.sqrt(self._terms[:, 1] * self._terms[:, 2])
            values = np.where(sizes > 0, self._terms[:, 0] / sizes, np.nan)
            return float(values[0]), values[1:], np.where(sizes[0] > 0, self._null / sizes[0], np.nan)


def dependence(matrices: F32 | F64) -> F64:
    """Add up products of U-centred matrices (item, entry) with each other, (item, item)."""
    return np.asarray(matrices @ matrices.T, dtype=np.float64)


def ratio(products: F64) -> F64:
    """Turn sums of products (item, item) into CKA: 1 of an item with itself, NaN of one that does not vary."""
    own = np.diagonal(products)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: F64 = products / np.sqrt(np.outer(own, own))
    return found


def permuted(one: F64, other: F64, orders: Rows) -> F64:
    """Add up products of U-centred matrices after the samples of one were put in other orders, (order,)."""
    return np.array([np.vdot(one[np.ix_(order, order)], other) for order in orders])
