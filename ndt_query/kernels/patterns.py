"""What rows of attention say, and how far mean patterns lie apart: arithmetic on arrays whose last axis is the key."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["STATISTICS", "distances", "divergences", "grid_distances", "row_statistics"]

F64 = NDArray[np.float64]
Array = NDArray[Any]

STATISTICS: Final = ("entropy", "hoyer", "gini", "share", "distance")


def distances(n_queries: int, n_keys: int) -> F64:
    """Return |query - key|, (query, key)."""
    found: F64 = np.abs(np.arange(n_queries)[:, None] - np.arange(n_keys)).astype(np.float64)
    return found


def grid_distances(rows: int, columns: int) -> F64:
    """Return the Euclidean distances between patches of a grid in reading order, in patches, (query, key).

    Examples
    --------
    >>> float(grid_distances(2, 2)[0, 3])
    1.4142135623730951
    """
    y, x = np.divmod(np.arange(rows * columns), columns)
    found: F64 = np.hypot(y[:, None] - y, x[:, None] - x)
    return found


def row_statistics(patterns: Array, apart: F64, threshold: float) -> F64:
    """Reduce patterns to five numbers an example and head, `STATISTICS`, means over the queries that attend.

    Parameters
    ----------
    patterns : ndarray (..., head, query, key)
        float32 or float64. Rows that are 0 throughout attend to nothing and are left out.
    apart : ndarray (query, key)
        Distances.
    threshold : float
        Of the share of keys.

    Returns
    -------
    ndarray of float64 (..., head, statistic)
        NaN where no query attends or a value is NaN; entropy and Hoyer sparsity are NaN where there is one key.

    Notes
    -----
    Example by example, so that the temporaries of one stay in the cache; in the type of the patterns, which numpy has
    vector instructions for.
    """
    *before, n_heads, n_queries, n_keys = patterns.shape
    flat = patterns.reshape(-1, n_heads, n_queries, n_keys)
    found = np.empty((len(flat), n_heads, len(STATISTICS)))
    kind = patterns.dtype.type
    ranks, near = np.arange(1, n_keys + 1, dtype=kind), apart.astype(kind)
    root, many = math.sqrt(n_keys), n_keys > 1
    tiny = np.finfo(kind).tiny
    with np.errstate(invalid="ignore", divide="ignore"):
        for one, target in zip(flat, found, strict=True):
            total = one.sum(axis=-1, dtype=np.float64)
            # 0 log 0 is 0: the logarithm of the smallest number is finite.
            plogp = np.einsum("hqk,hqk->hq", one, np.log(np.maximum(one, tiny)))
            length = np.sqrt(np.einsum("hqk,hqk->hq", one, one))
            rows = (
                -plogp / math.log(n_keys) if many else np.nan,
                (root - total / length) / (root - 1) if many else np.nan,
                2 * (np.sort(one, axis=-1) @ ranks) / (n_keys * total) - (n_keys + 1) / n_keys,
                np.count_nonzero(one > threshold, axis=-1) / n_keys,
                np.einsum("hqk,qk->hq", one, near),
            )
            attends = total != 0
            for place, row in enumerate(rows):
                target[:, place] = np.where(attends, row, 0.0).sum(axis=-1) / attends.sum(axis=-1)
            target[np.isnan(total).any(axis=-1)] = np.nan
    return found.reshape(*before, n_heads, len(STATISTICS))


def divergences(patterns: F64) -> F64:
    """Jensen-Shannon divergence between heads' mean patterns, in bits, mean over queries.

    Parameters
    ----------
    patterns : ndarray (..., head, query, key)
        Rows sum to 1.

    Returns
    -------
    ndarray (..., head, head)
        0 on the diagonal, at most 1.
    """
    n_heads = patterns.shape[-3]
    own = _entropies(patterns)
    found = np.zeros((*patterns.shape[:-3], n_heads, n_heads))
    for a, b in combinations(range(n_heads), 2):
        middle = _entropies((patterns[..., a, :, :] + patterns[..., b, :, :]) / 2)
        apart = (middle - (own[..., a, :] + own[..., b, :]) / 2).mean(axis=-1)
        found[..., a, b] = found[..., b, a] = np.maximum(apart, 0.0)
    return found


def _entropies(rows: F64) -> F64:
    tiny = np.finfo(np.float64).tiny
    return np.asarray(-np.einsum("...k,...k->...", rows, np.log2(np.maximum(rows, tiny))))
