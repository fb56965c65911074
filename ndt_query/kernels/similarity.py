"""Debiased linear CKA from products of samples: U-centred Gram matrices, and the dependence between any two of them.

A Gram matrix without its diagonal loses row and column effects by U-centring (Szekely and Rizzo 2014); the sum of
products of two such matrices over ``n (n - 3)`` is the unbiased estimate of HSIC with linear kernels (Song et al.
2012). It does not matter about which point the products were taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["dependence", "permuted", "ratio", "u_centred"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def u_centred(gram: F64) -> F64:
    """U-centre a Gram matrix (sample, sample) of four samples or more, in place: rows sum to 0, as the diagonal is.

    Divided by the root of its sum of squares, so that sums of products of two lie between -1 and 1; all 0 where samples
    do not vary, NaN where one holds a NaN.
    """
    n = len(gram)
    scale = float(np.sqrt(np.mean(np.square(np.diagonal(gram)))))
    np.fill_diagonal(gram, 0.0)
    rows = gram.sum(axis=1)
    gram -= rows[:, None] / (n - 2)
    gram -= rows[None, :] / (n - 2) - rows.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    size = float(np.sqrt(np.vdot(gram, gram)))
    # What is left of samples that are the same is rounding.
    if size <= n * 1e-14 * scale:
        gram[...] = 0.0
    else:
        gram /= size
    return gram


def dependence(matrices: F32 | F64) -> F64:
    """Add up products of U-centred matrices (item, entry) with each other, (item, item)."""
    return np.asarray(matrices @ matrices.T, dtype=np.float64)


def ratio(products: F64) -> F64:
    """Turn sums of products (item, item) into CKA: 1 of an item with itself, NaN of one that does not vary."""
    own = np.diagonal(products)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: F64 = products / np.sqrt(np.outer(own, own))
    return found


def permuted(one: F64, other: F64, orders: NDArray[np.intp]) -> F64:
    """CKA of U-centred matrices after the samples of one were put in other orders, (order,)."""
    size = np.sqrt(np.vdot(one, one) * np.vdot(other, other))
    if size == 0 or not np.isfinite(size):
        return np.full(len(orders), np.nan)
    return np.array([np.vdot(one[np.ix_(order, order)], other) / size for order in orders])
