"""The k examples that drive each unit most: exact, streaming, mergeable.

An example counts once for each unit, by its largest value over positions. Order is total: larger values first, equal
ones by example id, and equal positions of one example by the first. NaN is larger than every number, as it is for
`numpy.max`: it leads the ranking instead of vanishing from it. Where there is a NaN, values are compared
as integers of the same order, which makes it an ordinary value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, Block, as_float

__all__ = ["TopK", "merge", "update"]

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TopK:
    """State of the reduction, sorted by rank; every field is (checkpoint, unit, rank)."""

    value: Array
    example: I64
    position: I64


def sort_keys(values: Array) -> I64:
    """Integers in the order of the floats: -inf < ... < -0.0 = 0.0 < ... < inf < NaN."""
    wide = np.where(np.isnan(values), np.nan, values + 0.0).astype(np.float64, copy=False)
    bits = wide.view(np.int64)
    return np.asarray(bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF)))


def update(block: Block, example_ids: I64, k: int) -> TopK:
    """State of one block; `example_ids` (example,) name its examples, in any order."""
    order = np.argsort(example_ids, kind="stable")
    sorted_already = bool((order == np.arange(len(order))).all())
    block = as_float(block if sorted_already else block[:, order])
    # NaN propagates through max, which is the policy.
    alone = block.shape[2] == block.shape[4] == 1
    best = block[:, :, 0, :, 0] if alone else block.max(axis=(2, 4))
    best = np.ascontiguousarray(best.transpose(0, 2, 1))
    rows = _leading(sort_keys(best) if np.isnan(best).any() else best, min(k, best.shape[2]))
    value = np.take_along_axis(best, rows, axis=2)
    position = _positions(block, rows)
    return TopK(value, example_ids[order][rows], position)


def _leading(keys: Array, k: int) -> I64:
    """Return indices of the k largest keys along the last axis, descending, ties by index; keys hold no NaN."""
    n = keys.shape[-1]
    cut = np.partition(keys, n - k, axis=-1)[..., n - k, None]
    chosen = keys >= cut
    crowded = np.count_nonzero(chosen, axis=-1) > k
    if crowded.any():
        # Ties at the cut, as in every dead unit: keep the first of them.
        tied, bound = keys[crowded], cut[crowded]
        above, equal = tied > bound, tied == bound
        room = k - np.count_nonzero(above, axis=-1, keepdims=True)
        chosen[crowded] = above | (equal & (np.cumsum(equal, axis=-1) <= room))
    indices = np.nonzero(chosen)[-1].reshape(*keys.shape[:-1], k)
    order = np.argsort(-np.take_along_axis(keys, indices, axis=-1), axis=-1, kind="stable")
    return np.asarray(np.take_along_axis(indices, order, axis=-1))


def _positions(block: Block, rows: I64) -> I64:
    """First position of the maximum, token-major, for the chosen examples of each unit."""
    n_checkpoints, _, n_tokens, n_units, n_positions = block.shape
    position = np.zeros(rows.shape, np.int64)
    if n_tokens == n_positions == 1:
        return position
    for c in range(n_checkpoints):
        for unit in range(n_units):
            chosen = block[c, rows[c, unit], :, unit, :]
            position[c, unit] = chosen.reshape(len(chosen), -1).argmax(axis=-1)
    return position


def merge(left: TopK, right: TopK, k: int) -> TopK:
    """Best k of two states; associative and exact."""
    value = np.concatenate([left.value, right.value], axis=-1)
    example = np.concatenate([left.example, right.example], axis=-1)
    position = np.concatenate([left.position, right.position], axis=-1)
    order = np.lexsort((example, -sort_keys(value)), axis=-1)[..., :k]
    return TopK(
        np.take_along_axis(value, order, axis=-1),
        np.take_along_axis(example, order, axis=-1),
        np.take_along_axis(position, order, axis=-1),
    )
