"""The k examples that drive each unit most: exact, streaming, mergeable.

An example counts once for each unit, by its largest value over positions. Order is total: larger values first, equal
ones by example id, and equal positions of one example by the first; -0.0 equals 0.0. NaN is larger than every number,
as it is for `numpy.max`: it leads the ranking instead of vanishing from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import SLAB_ELEMENTS, Array, Block, as_float, in_kernel_form, spans
from ndt_store.views.sums import reduce_block

__all__ = ["TopK", "merge", "update"]

_SORTED_ABOVE: Final = 256
"""Ranks above which a block is sorted in rather than inserted value by value."""

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


def update(block: Block, example_ids: I64, k: int, *, best: Array | None = None, start: TopK | None = None) -> TopK:
    """State of one block, or of it and all before it.

    Parameters
    ----------
    block : ndarray (checkpoint, example, token, unit, position)
        Activations of any real dtype; what is not float32 is ranked as float64.
    example_ids : ndarray of int64 (example,)
        Ids of the block's examples, all different, in any order.
    k : int
        Ranks to keep; the state has ``min(k, examples seen)`` of them.
    best : ndarray (checkpoint, example, unit), optional
        `ndt_store.views.fused.Summary.best` of the block, which saves a pass over its memory.
    start : TopK, optional
        State of other examples of the same units with the same `k`. The result is ``merge(start, update(block), k)``,
        at a fraction of the cost, because most values are smaller than the k-th so far.

    Raises
    ------
    InvalidInputError
        If `example_ids`, `best` or `start` do not fit the block.
    """
    from ndt_store.views import insertion

    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    ids = np.ascontiguousarray(example_ids, dtype=np.int64)
    if best is None:
        best = reduce_block(block, best=True).best
    start = start or TopK(*(np.empty((n_checkpoints, n_units, 0), kind) for kind in (best.dtype, np.int64, np.int64)))
    for name, found, expected in (
        ("example_ids", ids.shape, (n_examples,)),
        ("best", best.shape, (n_checkpoints, n_examples, n_units)),
        ("start", start.value.shape[:2], (n_checkpoints, n_units)),
    ):
        if found != expected:
            raise InvalidInputError(
                f"{name} has shape {found} beside a block of shape {block.shape}, which needs {expected}:"
                " give what belongs to the same examples and units"
            )
    held = TopK(*(np.ascontiguousarray(part[..., :k]) for part in (start.value, start.example, start.position)))
    n_held = held.value.shape[2]
    shape = (n_checkpoints, n_units, min(k, n_held + n_examples))
    dtype = np.float32 if best.dtype == held.value.dtype == np.float32 else np.float64
    value, source = np.empty(shape, dtype), np.empty(shape, np.int32)
    example, position = np.empty(shape, np.int64), np.empty(shape, np.int64)
    value[..., :n_held], source[..., :n_held] = held.value, -1 - np.arange(n_held)
    growing = bool((np.diff(ids, prepend=held.example.max(initial=-1)) > 0).all())
    searched = block if n_tokens * n_positions > 1 else block[:, :0]
    as_they_are = best.dtype == dtype and in_kernel_form(best) and in_kernel_form(searched)
    step = n_units if as_they_are else SLAB_ELEMENTS // max(1, n_examples * n_tokens * n_positions)
    for c in range(n_checkpoints if value.size else 0):
        for u in spans(n_units, step):
            if n_examples:
                largest = np.ascontiguousarray(best[c, :, u], dtype=dtype)
                put = _sort_in if k > _SORTED_ABOVE else insertion.insert
                put(largest, ids, growing, held.example[c, u], n_held, value[c, u], source[c, u])
            insertion.resolve(
                np.ascontiguousarray(as_float(searched[c, :, :, u])), ids, held.example[c, u], held.position[c, u],
                value[c, u], source[c, u], example[c, u], position[c, u],
            )  # fmt: skip
    return TopK(value, example, position)


def _sort_in(
    largest: Array, ids: I64, growing: bool, held: I64, n_held: int, value: Array, source: NDArray[np.int32]
) -> None:
    """Do what `insertion.insert` does by sorting all, for lists so long that moving their tails costs more."""
    every = np.concatenate([value[:, :n_held], largest.T], axis=1)
    keys = -sort_keys(every)
    if growing:  # equal values stand in the order of their ids already
        order = np.argsort(keys, axis=-1, kind="stable")
    else:
        order = np.lexsort((np.concatenate([held, np.broadcast_to(ids, largest.T.shape)], axis=1), keys), axis=-1)
    order = order[:, : value.shape[1]]
    value[...] = np.take_along_axis(every, order, axis=-1)
    source[...] = np.where(order < n_held, -1 - order, order - n_held)


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
