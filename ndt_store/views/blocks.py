"""The one form in which kernels see activations, and how they walk through it without large temporaries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["SLAB_ELEMENTS", "Array", "Block", "as_block", "as_float", "position_means", "spans"]

Array: TypeAlias = NDArray[Any]
Block: TypeAlias = NDArray[Any]
"""(checkpoint, example, token, unit, position)"""

SLAB_ELEMENTS: Final = 1 << 17
"""Elements handled at a time: 512 KiB as float32 and 1 MiB as float64, about a core's own cache."""


def as_block(values: Array, n_before: int) -> Block:
    """Give activations the form (checkpoint, example, token, unit, position).

    Parameters
    ----------
    values : ndarray (checkpoint, example, *before, unit, *after)
        Activations with their position dimensions before or after ``unit``.
    n_before : int
        Number of position dimensions before ``unit``.

    Returns
    -------
    ndarray
        A view when the memory is contiguous, else a copy.
    """
    unit = 2 + n_before
    shape = (
        *values.shape[:2],
        math.prod(values.shape[2:unit]),
        values.shape[unit],
        math.prod(values.shape[unit + 1 :]),
    )
    return values.reshape(shape)


def as_float(values: Array) -> Array:
    """Return float32 and float64 as they are, and anything else as float64."""
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)


def spans(length: int, step: int) -> Iterator[slice]:
    """Cut ``range(length)`` into runs of at most `step`, at least one entry each."""
    step = max(1, step)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def position_means(block: Block) -> NDArray[np.float64]:
    """Mean over the positions of each example, (checkpoint, example, unit), accumulated in float64.

    NaN anywhere in an example makes that unit's mean NaN. One pass; temporaries stay within a slab.
    """
    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    means = np.empty((n_checkpoints, n_examples, n_units))
    if n_tokens == n_positions == 1:
        means[...] = block[:, :, 0, :, 0]
        return means
    step = SLAB_ELEMENTS // max(1, n_tokens * n_units * n_positions)
    ones = np.ones(n_positions)
    for c in range(n_checkpoints):
        for rows in spans(n_examples, step):
            slab = block[c, rows].astype(np.float64)
            means[c, rows] = (slab @ ones).sum(axis=1) if n_tokens > 1 else slab[:, 0] @ ones
    means /= n_tokens * n_positions
    return means
