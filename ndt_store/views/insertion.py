"""Compiled kernels that keep the k largest values of each unit in sorted lists, without the interpreter lock.

Almost every value of a long stream is smaller than the k-th so far and is turned away by one comparison. Importing this
module imports numba; see `ndt_store.views.compiled`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array
from ndt_store.views.jit import jit

__all__ = ["insert", "resolve"]

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@jit()
def _put(e: int, u: int, new: Any, n: int, value: Array, source: I32, ids: I64, held: I64) -> None:
    """Put the value of row `e` where it belongs in the list of unit `u`, of which the first `n` ranks are filled.

    That is after NaN, larger values, and equal ones of smaller example id. Lists are not cut out as arrays of their
    own, since counting references to them would cost more than the insertion.
    """
    k = value.shape[1]
    at = n
    while at > 0:
        other, origin = value[u, at - 1], source[u, at - 1]
        if not (other < new or (np.isnan(new) and not np.isnan(other))):
            tied = other == new or (np.isnan(new) and np.isnan(other))
            if not tied or ids[e] > (ids[origin] if origin >= 0 else held[u, -1 - origin]):
                break
        if at < k:
            value[u, at], source[u, at] = other, origin
        at -= 1
    if at < k:
        value[u, at], source[u, at] = new, e


@jit()
def insert(best: Array, ids: I64, growing: bool, held: I64, n_held: int, value: Array, source: I32) -> None:
    """Insert the values (example, unit) of a block into sorted lists (unit, rank).

    Parameters
    ----------
    best : ndarray (example, unit)
        Largest value of each example.
    ids : ndarray of int64 (example,)
        Ids of the examples.
    growing : bool
        Whether each id is larger than those before it and those held: then a tie with the last of a list is lost.
    held : ndarray of int64 (unit, rank)
        Example ids of what the lists hold at the start.
    n_held : int
        Ranks that are filled at the start; with the examples of the block they have to fill the lists.
    value : ndarray (unit, rank)
        The lists.
    source : ndarray of int32 (unit, rank)
        Where each entry is from: the row of the block, or ``-1 - rank`` in `held`.
    """
    n_examples, n_units = best.shape
    k = value.shape[1]
    filling = k - n_held
    for e in range(filling):
        for u in range(n_units):
            _put(e, u, best[e, u], n_held + e, value, source, ids, held)
    infinity = value.dtype.type(np.inf)
    bound = np.empty(n_units, value.dtype)
    for u in range(n_units):
        bound[u] = np.nextafter(value[u, k - 1], infinity) if growing else value[u, k - 1]
    for e in range(filling, n_examples):
        for u in range(n_units):
            if best[e, u] < bound[u]:  # not so for NaN on either side, which is left to the exact order
                continue
            _put(e, u, best[e, u], k, value, source, ids, held)
            bound[u] = np.nextafter(value[u, k - 1], infinity) if growing else value[u, k - 1]


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
    block: Array, ids: I64, held: I64, held_position: I64, value: Array, source: I32, example: I64, position: I64
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
