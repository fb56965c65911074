"""The one form in which kernels see activations, and how they walk through it without large temporaries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SLAB_ELEMENTS",
    "Array",
    "Block",
    "as_block",
    "as_float",
    "in_kernel_form",
    "position_means",
    "slabs",
    "spans",
]

Array: TypeAlias = NDArray[Any]
Block: TypeAlias = NDArray[Any]
"""(checkpoint, example, token, unit, position)"""

SLAB_ELEMENTS: Final = 1 << 17
"""Elements handled at a time: 512 KiB as float32 and 1 MiB as float64, about a core's own cache."""

_ROWS: Final = 1 << 30


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


def in_kernel_form(values: Array) -> bool:
    """Whether compiled kernels read these values without a copy: C-contiguous float32 or float64."""
    return values.dtype in (np.float32, np.float64) and values.flags.c_contiguous


def slabs(block: Block) -> Iterator[tuple[int, slice, Array]]:
    """Walk through a block in the form that compiled kernels read: C-contiguous float32 or float64.

    Yields
    ------
    tuple of int, slice, ndarray (example, token, unit, position)
        Checkpoint, run of examples, and their values: of a block in that form all examples of a checkpoint without a
        copy, of any other a copy of about 1 MiB. A block without values yields nothing.
    """
    if not block.size:
        return
    n_examples, row = block.shape[1], math.prod(block.shape[2:])
    # Kernels count rows of one call in 32 bits.
    step = _ROWS // block.shape[2] if in_kernel_form(block) else SLAB_ELEMENTS // row
    for c, values in enumerate(block):
        for rows in spans(n_examples, step):
            yield c, rows, np.ascontiguousarray(as_float(values[rows]))


def position_means(block: Block) -> NDArray[np.float64]:
    """Mean over the positions of each example, (checkpoint, example, unit), accumulated in float64.

    NaN anywhere in an example makes that unit's mean NaN. One pass; temporaries stay within a slab.
    """
    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    if n_tokens == n_positions == 1:
        return block[:, :, 0, :, 0].astype(np.float64)
    from ndt_store.views import compiled

    means = np.zeros((n_checkpoints, n_examples, n_units))
    for c, rows, slab in slabs(block):
        compiled.add_positions(slab, means[c, rows])
    means /= n_tokens * n_positions
    return means
