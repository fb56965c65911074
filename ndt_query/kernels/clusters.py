"""Clusters of a few points: k-means, silhouettes, how they compare with points of one cloud, and how alike two are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.optimize import linear_sum_assignment

__all__ = ["Clustering", "aligned", "clustered", "kmeans", "null_silhouettes", "overlap", "silhouette", "ward"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

N_STARTS: Final = 10


@dataclass(frozen=True, slots=True)
class Clustering:
    """Labels (point,) for each number of clusters, and the mean silhouette of each; NaN where there is none."""

    labels: dict[int, I64]
    silhouettes: dict[int, float]

    @property
    def best(self) -> int:
        """The number of clusters with the largest silhouette; the least where none has one."""
        known = {k: value for k, value in self.silhouettes.items() if np.isfinite(value)}
        return max(known, key=lambda k: (known[k], -k)) if known else min(self.labels)


def clustered(points: F64, ks: Sequence[int], seed: int) -> Clustering:
    """Cluster points (point, feature) for several numbers of clusters."""
    labels = {k: kmeans(points, k, seed) for k in ks}
    return Clustering(labels, {k: silhouette(points, one) for k, one in labels.items()})


def kmeans(points: F64, k: int, seed: int) -> I64:
    """Label points by k-means, the best of several starts, clusters numbered by their first point."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters
        found = KMeans(k, n_init=N_STARTS, random_state=seed).fit(points).labels_
    order = {label: place for place, label in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([order[label] for label in found.tolist()], dtype=np.int64)


def silhouette(points: F64, labels: I64) -> float:
    """Mean silhouette of the points, NaN unless there are 2 to n - 1 clusters.

    A point alone in its cluster has 0 (Rousseeuw 1987).
    """
    n_clusters = len(np.unique(labels))
    if not 2 <= n_clusters < len(points):
        return float("nan")
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(points, labels))


def null_silhouettes(points: F64, ks: Sequence[int], n_null: int, seed: int) -> F64:
    """Silhouettes of as many points of one normal cloud with the same covariance, (draw, k)."""
    centred = points - points.mean(axis=0)
    _, scales, _ = np.linalg.svd(centred, full_matrices=False)
    scales = scales / np.sqrt(max(1, len(points) - 1))
    rng = np.random.default_rng(seed)
    found = np.empty((n_null, len(ks)))
    for draw in range(n_null):
        cloud = rng.standard_normal((len(points), len(scales))) * scales
        one = clustered(cloud, ks, seed)
        found[draw] = [one.silhouettes[k] for k in ks]
    return found


def ward(points: F64) -> F64:
    """Ward's dendrogram of points: scipy's linkage, (point - 1, 4)."""
    found: F64 = np.asarray(linkage(points, "ward"))
    return found


def overlap(before: I64, after: I64) -> I64:
    """Count the points of each pair of clusters, (cluster before, cluster after)."""
    found = np.zeros((before.max() + 1, after.max() + 1), dtype=np.int64)
    np.add.at(found, (before, after), 1)
    return found


def aligned(before: I64, after: I64) -> I64:
    """Rename the clusters of `after` so that as many points as can be keep their label (Hungarian method).

    Clusters without a counterpart get new labels.
    """
    counts = overlap(before, after)
    rows, columns = linear_sum_assignment(-counts)
    new = {int(column): int(row) for row, column in zip(rows, columns, strict=True)}
    fresh = max(before.max(), len(counts) - 1)
    for column in range(counts.shape[1]):
        if column not in new:
            fresh += 1
            new[column] = int(fresh)
    return np.array([new[int(label)] for label in after], dtype=np.int64)
