"""Distances between samples, block by block: silhouettes of classes, and the dimension that neighbours imply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import spans

__all__ = ["class_dimension", "scatter_ratio", "silhouettes", "two_nearest", "two_nn"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

BLOCK_NBYTES: Final = 16 << 20
"""Of the distances that are held at a time."""

TRIMMED: Final = 0.1
"""Share of the largest ratios that `two_nn` leaves out: they are the least local."""


def _distances(points: F64) -> Iterator[tuple[slice, F64]]:
    """Yield Euclidean distances of runs of points to all points, (run, point)."""
    squares = np.einsum("pf,pf->p", points, points)
    for rows in spans(len(points), max(1, BLOCK_NBYTES // (8 * len(points)))):
        found = squares[rows, None] + squares - 2 * points[rows] @ points.T
        np.maximum(found, 0.0, out=found)
        # A point lies at distance 0 from itself, which the difference of large numbers need not give.
        found[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = 0.0
        yield rows, np.sqrt(found, out=found)


def silhouettes(points: F64, codes: I64) -> F64:
    """Silhouette of each point (point,) for classes 0 to C - 1; 0 for a point alone in its class (Rousseeuw 1987)."""
    centred = points - points.mean(axis=0)
    sizes = np.bincount(codes)
    of_class = np.eye(len(sizes))[codes]
    found = np.empty(len(points))
    for rows, distances in _distances(centred):
        sums = distances @ of_class
        own = codes[rows]
        here = np.arange(len(own))
        inside = sums[here, own] / np.maximum(sizes[own] - 1, 1)
        means = sums / sizes
        means[here, own] = np.inf
        outside = means.min(axis=1)
        larger = np.maximum(inside, outside)
        found[rows] = np.where(
            (sizes[own] > 1) & (larger > 0), (outside - inside) / np.where(larger > 0, larger, 1), 0.0
        )
    return found


def two_nearest(points: F64) -> F64:
    """Distances of each point to its two nearest others, (point, 2)."""
    centred = points - points.mean(axis=0)
    found = np.empty((len(points), 2))
    for rows, distances in _distances(centred):
        distances[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        found[rows] = np.sort(np.partition(distances, 1, axis=1)[:, :2], axis=1)
    return found


def two_nn(points: F64) -> tuple[float, int]:
    """Intrinsic dimension by the ratio of the two nearest distances, and of how many points; NaN of fewer than ten.

    Duplicates are dropped first. The dimension is the slope through 0 of ``-log(1 - F(mu))`` over ``log mu`` without
    the largest tenth of ratios (Facco et al. 2017).
    """
    distinct = np.unique(points, axis=0)
    if len(distinct) < 10 or not np.isfinite(distinct).all():
        return float("nan"), len(distinct)
    near = two_nearest(distinct)
    ratios = np.sort(near[:, 1] / np.where(near[:, 0] > 0, near[:, 0], np.nan))
    ratios = ratios[np.isfinite(ratios)]
    kept = ratios[: max(2, int(len(ratios) * (1 - TRIMMED)))]
    x = np.log(kept)
    y = -np.log1p(-np.arange(1, len(kept) + 1) / len(ratios))
    total = float(x @ x)
    return (float(x @ y) / total if total > 0 else float("nan")), len(distinct)


def scatter_ratio(points: F64, codes: I64) -> float:
    """Trace of the scatter between classes over that within them; NaN where points of a class do not differ."""
    sizes = np.bincount(codes)
    means = (
        np.stack([np.bincount(codes, points[:, f], len(sizes)) for f in range(points.shape[1])], axis=1)
        / sizes[:, None]
    )
    within = float(((points - means[codes]) ** 2).sum())
    between = float((sizes[:, None] * (means - points.mean(axis=0)) ** 2).sum())
    # Points that are the same differ from their mean by rounding.
    return between / within if within > 1e-26 * float((points**2).sum()) else float("nan")


def class_dimension(points: F64, share: float) -> int:
    """Fewest components that hold a share of the variance of some points; 0 where they do not vary."""
    centred = points - points.mean(axis=0)
    squares = np.linalg.svd(centred, compute_uv=False) ** 2
    total = squares.sum()
    return int(np.searchsorted(np.cumsum(squares) / total, share - 1e-12) + 1) if total > 0 else 0
