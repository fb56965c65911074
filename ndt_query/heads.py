"""Kinds of heads: clusters of their mean patterns, whether there are any, and what becomes of them over training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ndt_query.attention import attention_distance, attention_entropy
from ndt_query.attention_data import attention_layers, deal, group_means, patterns_of
from ndt_query.inputs import require_count
from ndt_query.intervals import null_p_value
from ndt_query.kernels.clusters import aligned, clustered, kmeans, null_silhouettes, overlap, ward
from ndt_query.layers import OneLayer, Whole, software
from ndt_store.dims import CHECKPOINT, EXAMPLE, HEAD, KEY, QUERY
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["cluster_evolution", "cluster_heads"]

F64 = NDArray[np.float64]

K: Final = "k"
CLUSTER: Final = "cluster"
MEMBER: Final = "member"
MOST_CLUSTERS: Final = 6


def cluster_heads(
    data: OneLayer | Whole,
    k: int = 3,
    *,
    n_groups: int = 20,
    n_bootstrap: int = 20,
    n_null: int = 49,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Cluster heads by their mean attention patterns, at each checkpoint.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        Attention patterns; all layers have as many tokens. The heads of all layers are clustered together.
    k : int
        Clusters of ``label``.
    n_groups, n_bootstrap : int
        Groups of examples, dealt at random, and how many resamples of them stability is measured with.
    n_null : int
        Clouds that the silhouettes are compared with.
    seed : int
    memory : int or str, optional
        Budget of each layer, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over (checkpoint, member), one member for each head, labelled by ``layer_of`` and ``head_of``: ``label`` by
        k-means with `k` clusters, ``best_label`` with ``best_k`` (checkpoint) clusters, the number from 2 to 6, or `k`,
        whose ``silhouette`` (checkpoint, k) is largest; ``entropy`` and ``distance`` of the head. Over (checkpoint, k):
        ``p_value``, the share of clouds that reach the silhouette, and over checkpoint ``best_p_value``, the same for
        the largest of all. ``stability`` (checkpoint): mean adjusted Rand index between `label` and that of resampled
        examples, 1 where it never changes, 0 by chance. Over (checkpoint, cluster), of `label`: ``centre`` (..., query,
        key), ``size``, ``cluster_entropy`` and ``cluster_distance``, means over its heads. ``linkage`` (checkpoint,
        merge, 4): Ward's dendrogram as scipy has it.

    Raises
    ------
    DimensionError
        Layers differ in their tokens.
    InvalidInputError
        There are not more heads than clusters.
    NotFoundError
        There is no attention.

    Notes
    -----
    k-means finds k clusters in anything. Whether there are any is what ``p_value`` says: the null is one normal
    cloud of as many heads with the same covariance. With eight heads only clear groups can exceed it. Two passes over
    each layer; memory is ``4 group * head * query * key`` bytes, the heads of all layers.

    References
    ----------
    P. Rousseeuw, "Silhouettes", Journal of Computational and Applied Mathematics 20, 1987; L. Hubert and P. Arabie,
    "Comparing partitions", Journal of Classification 2, 1985.
    """
    for name, value, least in (
        ("k", k, 2),
        ("n_groups", n_groups, 2),
        ("n_bootstrap", n_bootstrap, 1),
        ("n_null", n_null, 1),
    ):
        require_count(name, value, least)
    layers = {"": data} if isinstance(data, xr.DataArray | xr.Dataset) else dict(attention_layers(data))
    patterns = {name: patterns_of(one) for name, one in layers.items()}
    steps, members = _members(patterns)
    n = len(members["layer_of"][1])
    if n <= k:
        raise InvalidInputError(f"There are {n} heads and k={k} clusters: expected more heads than clusters.")
    ks = sorted({*range(2, min(MOST_CLUSTERS, n - 1) + 1), k})  # of which the best is one of all
    rows = []
    for place in range(len(steps)):
        means, weights = _group_means(patterns, place, n_groups, seed, memory)
        rows.append(_clustered(means, weights, k, ks, n_bootstrap, n_null, seed))
    asked = [(attention_entropy(one)["entropy"], attention_distance(one)["distance"]) for one in layers.values()]
    entropy, distance = (_of_members(parts) for parts in zip(*compute(*asked), strict=True))
    found = _assembled(rows, {"entropy": entropy, "distance": distance}, k, ks)
    found = found.assign_coords({CHECKPOINT: steps, **members})
    parameters = {"k": k, "n_groups": n_groups, "n_bootstrap": n_bootstrap, "n_null": n_null, "seed": seed}
    first = next(iter(layers.values()))
    source = first if isinstance(first, xr.DataArray) else next(iter(first.data_vars.values()))
    found.attrs = {"what": "clusters of heads", **parameters, "software": software()}
    found.attrs |= {"store": source.attrs["store"]} if "store" in source.attrs else {}
    return found


def cluster_evolution(clusters: xr.Dataset, *, n_permutations: int = 199, seed: int = 0) -> xr.Dataset:
    """Follow clusters of heads from checkpoint to checkpoint.

    Parameters
    ----------
    clusters : Dataset
        From `cluster_heads`, of two checkpoints or more.
    n_permutations, seed : int
        Of the heads, for the p values.

    Returns
    -------
    Dataset
        ``aligned`` (checkpoint, member): `label`, with clusters renamed so that as many heads as can be keep their
        cluster from one checkpoint to the next (Hungarian method). Over ``transition``, labelled by ``before`` and
        ``after``: ``rand``, the adjusted Rand index of the two partitions, with ``p_value``, the share of shuffled
        partitions that reach it; ``moved``, heads that change their cluster; ``splits``, clusters whose heads go to
        more than one; ``merges``, clusters whose heads come from more than one.

    Raises
    ------
    InvalidInputError
        There is one checkpoint only.
    NotFoundError
        The Dataset has no clusters of heads.

    Notes
    -----
    Where heads form no clusters (`cluster_heads` says), their labels are arbitrary, and so is what becomes of them:
    the Rand index is then near 0 and splits and merges are many.
    """
    if "label" not in clusters or MEMBER not in clusters.dims:
        raise NotFoundError("The Dataset has no label over checkpoint and member: pass that of cluster_heads.")
    require_count("n_permutations", n_permutations, 1)
    labels = clusters["label"].transpose(CHECKPOINT, MEMBER).values.astype(np.int64)
    if len(labels) < 2:
        raise InvalidInputError("There is one checkpoint only: evolution needs two.")
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(seed)
    renamed, rows = [labels[0]], []
    for before, after in pairwise(labels):
        renamed.append(aligned(renamed[-1], after))
        rand = adjusted_rand_score(before, after)
        null = [adjusted_rand_score(before, rng.permutation(after)) for _ in range(n_permutations)]
        counts = overlap(before, after) > 0
        rows.append(
            {
                "rand": rand,
                "p_value": float(null_p_value(sum(one >= rand - 1e-12 for one in null), n_permutations)),
                "moved": int((renamed[-1] != renamed[-2]).sum()),
                "splits": int((counts.sum(axis=1) > 1).sum()),
                "merges": int((counts.sum(axis=0) > 1).sum()),
            }
        )
    steps = clusters[CHECKPOINT].values
    known = {name: clusters[name] for name in ("layer_of", "head_of") if name in clusters.coords}
    return xr.Dataset(
        {
            "aligned": ((CHECKPOINT, MEMBER), np.stack(renamed)),
            **{name: ("transition", np.array([row[name] for row in rows])) for name in rows[0]},
        },
        {CHECKPOINT: steps, "before": ("transition", steps[:-1]), "after": ("transition", steps[1:]), **known},
        {
            "what": "clusters of heads over training",
            "n_permutations": n_permutations,
            "seed": seed,
            "software": software(),
        },
    )


def _members(patterns: dict[str, xr.DataArray]) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the checkpoints, and the layer and the head of each member."""
    sizes = {(one.sizes[QUERY], one.sizes[KEY]) for one in patterns.values()}
    if len(sizes) > 1:
        found = " and ".join(f"{q} x {k}" for q, k in sorted(sizes))
        raise DimensionError(f"Layers have patterns of {found}: select layers with as many tokens, or ask one by one.")
    first = next(iter(patterns.values()))
    for name, one in patterns.items():
        for dim in (CHECKPOINT, EXAMPLE):
            if not np.array_equal(_labels(one, dim), _labels(first, dim)):
                raise DimensionError(f"Layer {name!r} has another {dim} than the first layer: select the same of each.")
    layer_of = [name for name, one in patterns.items() for _ in range(one.sizes[HEAD])]
    head_of = [int(head) for one in patterns.values() for head in one[HEAD].values]
    return _labels(first, CHECKPOINT), {"layer_of": (MEMBER, layer_of), "head_of": (MEMBER, head_of)}


def _labels(one: xr.DataArray, dim: str) -> NDArray[Any]:
    """Return the labels of a dimension, which count from 0 where there are none."""
    return np.atleast_1d(one[dim].values) if dim in one.coords else np.arange(one.sizes.get(dim, 1))


def _group_means(
    patterns: dict[str, xr.DataArray], place: int, n_groups: int, seed: int, memory: int | str | None
) -> tuple[NDArray[np.float32], F64]:
    """Return the means (group, member, query, key) of one checkpoint, and the weights of the groups."""
    parts, weights = [], np.empty(0)
    for one in patterns.values():
        part = one.isel({CHECKPOINT: place}) if CHECKPOINT in one.dims else one
        groups = deal(part.sizes[EXAMPLE], n_groups, seed)
        means = group_means(part, groups, what="clusters of heads", memory=memory)
        weights = means["group_size"].values / len(groups)
        parts.append(means.astype(np.float32).compute().values)
    return np.concatenate(parts, axis=1), weights


def _clustered(
    means: NDArray[np.float32], weights: F64, k: int, ks: list[int], n_bootstrap: int, n_null: int, seed: int
) -> dict[str, Any]:
    """Cluster the heads of one checkpoint, from means (group, member, query, key)."""
    from sklearn.metrics import adjusted_rand_score

    whole: F64 = np.einsum("g,gmqk->mqk", weights, means)
    points = whole.reshape(len(whole), -1)
    if not np.isfinite(points).all():
        raise InvalidInputError("Attention patterns hold NaN: leave those heads or examples out.")
    # k-means goes by distances alone, which a rotation into as many dimensions as there are heads keeps.
    centred = points - points.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    narrow = left * scales
    found = clustered(narrow, ks, seed)
    null = null_silhouettes(narrow, ks, n_null, seed + 1)
    observed = np.array([found.silhouettes[one] for one in ks])
    rng = np.random.default_rng(seed + 2)
    agreement = []
    for _ in range(n_bootstrap):
        drawn = rng.multinomial(len(weights), weights) / len(weights)
        again = np.einsum("g,gmqk->mqk", drawn, means).reshape(len(whole), -1)
        agreement.append(adjusted_rand_score(found.labels[k], kmeans(again, k, seed)))
    labels = found.labels[k]
    best = found.best
    with np.errstate(invalid="ignore"):
        reached = (null >= observed).sum(axis=0)
        best_reached = (np.nanmax(null, axis=1) >= np.nanmax(observed)).sum() if np.isfinite(observed).any() else n_null
    return {
        "label": labels,
        "best_label": found.labels[best],
        "best_k": best,
        "silhouette": observed,
        "p_value": np.where(np.isfinite(observed), null_p_value(reached, n_null), np.nan),
        "best_p_value": float(null_p_value(best_reached, n_null)),
        "stability": float(np.mean(agreement)),
        "centre": np.stack(
            [
                whole[labels == one].mean(axis=0) if (labels == one).any() else np.full(whole.shape[1:], np.nan)
                for one in range(k)
            ]
        ),
        "size": np.bincount(labels, minlength=k),
        "linkage": ward(narrow),
    }


def _of_members(parts: Sequence[xr.DataArray]) -> F64:
    """Join one number a head of every layer, (checkpoint, member)."""
    return np.concatenate([part.values if CHECKPOINT in part.dims else part.values[None] for part in parts], axis=1)


def _assembled(rows: list[dict[str, Any]], of_heads: dict[str, F64], k: int, ks: list[int]) -> xr.Dataset:
    over = {
        "label": (MEMBER,), "best_label": (MEMBER,), "best_k": (), "silhouette": (K,), "p_value": (K,),
        "best_p_value": (), "stability": (), "centre": (CLUSTER, QUERY, KEY), "size": (CLUSTER,),
        "linkage": ("merge", "column"),
    }  # fmt: skip
    found = xr.Dataset(
        {name: ((CHECKPOINT, *dims), np.stack([row[name] for row in rows])) for name, dims in over.items()}
        | {name: ((CHECKPOINT, MEMBER), values) for name, values in of_heads.items()},
        {K: ks, CLUSTER: np.arange(k)},
    )
    member = found["label"] == found[CLUSTER]
    for name in of_heads:
        found[f"cluster_{name}"] = (found[name] * member).sum(MEMBER) / member.sum(MEMBER)
    return found
