"""One pass over a block's memory: the raw sums that moments, class means and top examples are made from.

Sums are of differences from one value of the unit, so that ``sum d^2 - (sum d)^2 / n`` loses no more than about n units
in the last place: the value belongs to the sample, hence its squared distance from the mean is at most the whole sum of
squared deviations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import Array, Block, slabs

__all__ = ["Parts", "Sums", "reduce_block"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_LONG: Final = 12
"""Positions from which reducing along the run is the faster form."""

_SHIFT_LIMIT: Final = 1e150
"""A difference from a larger value might overflow where the sum of the values does not."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What one pass gives; arrays are (checkpoint, unit) where nothing else is said.

    Parameters
    ----------
    n_examples, n_values : int
        Examples, and values of each unit.
    shift, difference, square, magnitude : ndarray of float64
        A value of each unit, and the sums of ``v - shift``, ``(v - shift)^2`` and ``|v|``.
    minimum, maximum : ndarray of float64
        Extremes; NaN where any value is NaN, infinite where nothing was seen.
    nan_count, active, active_examples, nan_examples : ndarray of int64
        Values that are NaN, values with ``|v| > threshold``, examples with one of those, and examples with a NaN.
    class_total : ndarray of float64 (checkpoint, class, unit)
        Sums over examples of the means over positions.
    best : ndarray (checkpoint, example, unit)
        Largest value of each example, NaN if any is NaN; no examples if it was not asked for.
    """

    n_examples: int
    n_values: int
    shift: F64
    difference: F64
    square: F64
    magnitude: F64
    minimum: F64
    maximum: F64
    nan_count: I64
    active: I64
    active_examples: I64
    nan_examples: I64
    class_total: F64
    best: Array


class Parts(NamedTuple):
    """What the kernels of `compiled` add to, for one checkpoint.

    Parameters
    ----------
    sums : ndarray of float64 (3, unit)
        Of ``v - shift``, ``(v - shift)^2`` and ``|v|``.
    extremes : ndarray (2, unit)
        Least and largest value; meaningless where a value is NaN.
    counts : ndarray of int64 (4, unit)
        Values that are NaN, values with ``|v| > limit``, examples with one of those, examples with a NaN.
    class_total : ndarray of float64 (class, unit)
        Means over positions, added up over the examples of each class.
    best : ndarray (example, unit)
        Largest value of each example of the slab; not written if it has no examples.
    """

    sums: F64
    extremes: Array
    counts: I64
    class_total: F64
    best: Array


def _class_codes(codes: I64 | None, n_examples: int, n_classes: int) -> I64:
    """Check what the kernels use as an index without a look."""
    if codes is None:
        return np.empty(0, np.int64)
    codes = np.ascontiguousarray(codes, dtype=np.int64)
    if codes.shape != (n_examples,):
        raise InvalidInputError(
            f"class codes of a block have shape {codes.shape}, but it has {n_examples} examples: give one code each"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < n_classes:
        raise InvalidInputError(
            f"class codes of a block run from {codes.min()} to {codes.max()}, but must be from 0 to {n_classes - 1}:"
            " number the classes from 0, or raise n_classes"
        )
    return codes


def reduce_block(
    block: Block, threshold: float = 0.0, codes: I64 | None = None, n_classes: int = 0, *, best: bool = False
) -> Sums:
    """Reduce a block (checkpoint, example, token, unit, position) in one pass, without the interpreter lock.

    Parameters
    ----------
    block : ndarray
        Values of any real dtype and strides; `blocks.slabs` says which are copied, a slab at a time.
    threshold : float
        A value is active when its magnitude exceeds this, compared in the precision of the values.
    codes : ndarray of int64 (example,), optional
        Class of each example, ``0 <= code < n_classes``.
    n_classes : int
        Number of classes.
    best : bool
        Whether to keep the largest value of each example.

    Raises
    ------
    InvalidInputError
        If codes are out of bounds, or not one an example.
    """
    from ndt_store.views import compiled

    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    codes = _class_codes(codes, n_examples, n_classes)
    dtype = np.float32 if block.dtype == np.float32 else np.float64
    with np.errstate(over="ignore"):
        limit = dtype(threshold)
    shift = np.zeros((n_checkpoints, n_units))
    sums = np.zeros((n_checkpoints, 3, n_units))
    extremes = np.empty((n_checkpoints, 2, n_units), dtype)
    extremes[:, 0], extremes[:, 1] = np.inf, -np.inf
    counts = np.zeros((n_checkpoints, 4, n_units), np.int64)
    total = np.zeros((n_checkpoints, n_classes, n_units))
    alone = n_tokens == n_positions == 1
    largest = np.empty((n_checkpoints, n_examples if best and not alone else 0, n_units), dtype)
    for c, rows, slab in slabs(block):
        parts = Parts(sums[c], extremes[c], counts[c], total[c], largest[c, rows])
        if rows.start == 0:
            # Where this is not finite or too large, neither is the spread, whatever the shift.
            value = slab[0, 0, :, 0].astype(np.float64)
            shift[c] = np.where(np.abs(value) <= _SHIFT_LIMIT, value, 0.0)
        if alone:
            compiled.reduce_columns(slab, limit, shift[c], codes[rows], parts)
        elif n_positions < _LONG:
            compiled.reduce_short(slab, limit, shift[c], codes[rows], parts)
        else:
            keys = slab.view(f"i{slab.itemsize}")
            compiled.reduce_long(slab, keys, limit, shift[c], codes[rows], parts)
    minimum, maximum = (np.where(counts[:, 0] > 0, np.nan, extremes[:, i].astype(np.float64)) for i in (0, 1))
    largest = block[:, :, 0, :, 0] if best and alone else largest.astype(block.dtype, copy=False)
    return Sums(
        n_examples, n_examples * n_tokens * n_positions,
        shift, sums[:, 0], sums[:, 1], sums[:, 2], minimum, maximum,
        counts[:, 0], counts[:, 1], counts[:, 2], counts[:, 3], total, largest,
    )  # fmt: skip
