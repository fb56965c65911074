"""Compiled kernels that keep the k largest values of each unit in sorted lists, without the interpreter lock.

Almost every value of a long stream is smaller than the k-th so far and is turned away by one comparison. Importing this
module imports numba; see `ndt_store.views.compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array
from ndt_store.views.compiled import jit

__all__ = ["insert", "resolve"]

I64 = NDArray[np.int64]


@jit()
def _precedes(value: Any, example: int, other: Any, other_example: int) -> bool:
    """Whether a value ranks before another: NaN first, then the larger, then the smaller example id."""
    if value == other or (np.isnan(value) and np.isnan(other)):
        return example < other_example
    return bool(value > other or np.isnan(value))


@jit()
def _insert(e: int, new: Any, n: int, value: Array, source: I64, ids: I64, held: I64) -> None:
    """Put one value into a list of which the first `n` ranks are filled, where it belongs."""
    k = len(value)
    at = n
    while at > 0:
        origin = source[at - 1]
        other = ids[origin] if origin >= 0 else held[-1 - origin]
        if not _precedes(new, ids[e], value[at - 1], other):
            break
        if at < k:
            value[at] = value[at - 1]
            source[at] = origin
        at -= 1
    if at < k:
        value[at] = new
        source[at] = e


@jit()
def insert(best: Array, ids: I64, held: I64, n_held: int, value: Array, source: I64) -> None:
    """Insert the values (example, unit) of a block into sorted lists (unit, rank).

    Parameters
    ----------
    best : ndarray (example, unit)
        Largest value of each example.
    ids : ndarray of int64 (example,)
        Ids of the examples.
    held : ndarray of int64 (unit, rank)
        Example ids of what the lists hold at the start.
    n_held : int
        Ranks that are filled at the start; with the examples of the block they have to fill the lists.
    value : ndarray (unit, rank)
        The lists.
    source : ndarray of int64 (unit, rank)
        Where each entry is from: the row of the block, or ``-1 - rank`` in `held`.
    """
    n_examples, n_units = best.shape
    k = value.shape[1]
    filling = k - n_held
    for e in range(filling):
        for u in range(n_units):
            _insert(e, best[e, u], n_held + e, value[u], source[u], ids, held[u])
    # A tie is lost at once where ids only grow, as they do when blocks come in order.
    growing = bool((np.diff(ids) > 0).all()) and (held.size == 0 or held.max() < ids[0])
    bound = value[:, -1].copy()
    for e in range(filling, n_examples):
        row = best[e]
        for u in range(n_units):
            # NaN on either side compares as false, and is left to the exact order.
            if row[u] < bound[u] or (growing and row[u] == bound[u]):
                continue
            _insert(e, row[u], k, value[u], source[u], ids, held[u])
            bound[u] = value[u, -1]


@jit()
def _first(values: Array, sought: Any) -> int:
    """Position of a value, NaN too, in one unit's (token, position)."""
    n_tokens, n_positions = values.shape
    for t in range(n_tokens):
        for p in range(n_positions):
            if values[t, p] == sought or (np.isnan(values[t, p]) and np.isnan(sought)):
                return int(t * n_positions + p)
    return 0


@jit()
def resolve(
    block: Array, ids: I64, held: I64, held_position: I64, value: Array, source: I64, example: I64, position: I64
) -> None:
    """Fill in example ids and first positions (unit, rank) of the lists.

    Only entries that are new are looked for in the block (example, token, unit, position), and none where it has one
    position.
    """
    n_units, k = value.shape
    _, n_tokens, _, n_positions = block.shape
    for u in range(n_units):
        for j in range(k):
            origin = source[u, j]
            if origin < 0:
                example[u, j], position[u, j] = held[u, -1 - origin], held_position[u, -1 - origin]
            else:
                alone = n_tokens == n_positions == 1
                example[u, j], position[u, j] = ids[origin], 0 if alone else _first(block[origin, :, u], value[u, j])
