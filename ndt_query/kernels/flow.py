"""Attention through several layers: rollout, maximal flow, and what passes through each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

__all__ = ["maximal_flow", "mixed", "rollout", "throughput"]

F64 = NDArray[np.float64]

WHOLE: Final = 1 << 30
"""Of a unit of flow: scipy's algorithm counts in whole numbers of 32 bits."""


def mixed(patterns: NDArray[Any], residual: bool) -> F64:
    """Average patterns (..., head, query, key) over heads, add the residual stream, and make rows sum to 1.

    A row that attends to nothing keeps the residual stream alone, and stays 0 without it.
    """
    found: F64 = patterns.mean(axis=-3, dtype=np.float64)
    if residual:
        found = found + np.eye(found.shape[-1])
    total = found.sum(axis=-1, keepdims=True)
    rows: F64 = np.divide(found, total, out=np.zeros_like(found), where=total != 0)
    return rows


def rollout(layers: Sequence[F64]) -> F64:
    """Multiply mixed patterns (..., query, key), first layer first: what outputs (query) take from inputs (key)."""
    found = layers[0]
    for one in layers[1:]:
        found = one @ found
    return found


def throughput(layers: Sequence[F64]) -> F64:
    """Share of what all outputs take that passes each token before each layer, (..., depth, token).

    Depth 0 are the input tokens. Each depth sums to 1 where every row of every layer does.
    """
    above = np.full((*layers[0].shape[:-2], layers[0].shape[-1]), 1 / layers[0].shape[-1])
    found = []
    for one in reversed(layers):
        above = np.einsum("...q,...qk->...k", above, one)
        found.append(above)
    return np.stack(found[::-1], axis=-2)


def maximal_flow(layers: Sequence[F64]) -> F64:
    """Maximal flow from each output token to each input token, (query, key), through mixed patterns (query, key).

    Nodes are the tokens at each depth, edges go from a token to those that it attends to in the layer below, with its
    attention as their capacity (Abnar and Zuidema 2020).

    Notes
    -----
    scipy's algorithm of Dinic, on capacities in units of 2^-30 of a row: exact to about ``token`` of these. One flow
    for each pair of tokens. NaN anywhere makes all of it NaN.
    """
    n, depth = layers[0].shape[0], len(layers)
    if not all(np.isfinite(one).all() for one in layers):
        return np.full((n, n), np.nan)
    capacity = [np.rint(np.clip(one, 0, None) * WHOLE).astype(np.int32) for one in layers]
    rows, columns, values = [], [], []
    for level, one in enumerate(capacity):  # level 0 lies between the inputs, nodes 0 to n - 1, and the next tokens
        q, k = np.nonzero(one)
        rows.append((level + 1) * n + q)
        columns.append(level * n + k)
        values.append(one[q, k])
    size = (depth + 1) * n
    edges = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    graph: Any = csr_array(edges, shape=(size, size))
    found = np.zeros((n, n))
    for query in range(n):
        for key in range(n):
            found[query, key] = maximum_flow(graph, depth * n + query, key, method="dinic").flow_value / WHOLE
    return found
