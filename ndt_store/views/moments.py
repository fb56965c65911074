"""Moments of each unit over examples and positions: one pass, mergeable, float64 throughout.

A block is walked in slabs that fit a core's cache, so that the memory is read once although six reductions are made.
Each slab gives partial counts, means and sums of squared deviations, and partials are joined by the pairwise update
of Chan, Golub and LeVeque (1983), which is also how states of different blocks merge. NaN is counted, never skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import SLAB_ELEMENTS, Array, Block, as_float, spans

__all__ = ["Moments", "finalise", "merge", "update", "zero"]

_CANCELLATION: Final = 1e-7
"""Share of the raw second moment under which subtracting the mean's has cost too many digits."""

_COLUMNS: Final = 2048
"""Unit and position columns that are reduced together: enough for vector code, few enough for long runs of examples."""

_COLUMNS_AT_LEAST: Final = 64

_COUNTER_LIMIT: Final = 255
"""What an uint8 counter holds."""

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Moments:
    """State of the reduction; every field is (checkpoint, unit).

    Parameters
    ----------
    count, nan_count : ndarray of int64
        Values seen, NaN among them.
    n_examples, active_examples : ndarray of int64
        Examples seen, and those at which the unit exceeds the threshold at one position or more.
    active : ndarray of int64
        Values with ``|a| > threshold``.
    mean, m2, abs_mean : ndarray of float64
        Mean, sum of squared deviations from it, mean of ``|a|``; NaN where any value is NaN.
    minimum, maximum : ndarray of float64
        Extremes; NaN where any value is NaN, infinite where nothing was seen.
    """

    count: I64
    nan_count: I64
    n_examples: I64
    active_examples: I64
    active: I64
    mean: F64
    m2: F64
    abs_mean: F64
    minimum: F64
    maximum: F64


def zero(n_checkpoints: int, n_units: int) -> Moments:
    """Return the state before any block, the neutral element of `merge`."""
    shape = (n_checkpoints, n_units)
    counts: list[I64] = [np.zeros(shape, np.int64) for _ in range(5)]
    means: list[F64] = [np.zeros(shape) for _ in range(3)]
    count, nan_count, n_examples, active_examples, active = counts
    mean, m2, abs_mean = means
    least, largest = np.full(shape, np.inf), np.full(shape, -np.inf)
    return Moments(count, nan_count, n_examples, active_examples, active, mean, m2, abs_mean, least, largest)


def merge(left: Moments, right: Moments) -> Moments:
    """Join the states of two disjoint sets of examples; associative up to rounding."""
    count = left.count + right.count
    share = right.count / np.maximum(count, 1)
    with np.errstate(invalid="ignore"):
        delta = right.mean - left.mean
        return Moments(
            count,
            left.nan_count + right.nan_count,
            left.n_examples + right.n_examples,
            left.active_examples + right.active_examples,
            left.active + right.active,
            left.mean + delta * share,
            left.m2 + right.m2 + delta * delta * share * left.count,
            left.abs_mean + (right.abs_mean - left.abs_mean) * share,
            np.minimum(left.minimum, right.minimum),
            np.maximum(left.maximum, right.maximum),
        )


def finalise(state: Moments) -> dict[str, Array]:
    """Turn a state into mean, std (population), extremes and firing fractions, each (checkpoint, unit).

    Where nothing was seen, and where a NaN was seen, every quantity but the counts is NaN. Equal values have a std of
    exactly 0, whatever rounding has left in their sums.
    """
    unknown = (state.count == 0) | (state.nan_count > 0)
    constant = (state.minimum == state.maximum) & np.isfinite(state.maximum)
    with np.errstate(invalid="ignore", divide="ignore"):
        results = {
            "mean": state.mean,
            "std": np.where(constant, 0.0, np.sqrt(state.m2 / state.count)),
            "min": state.minimum,
            "max": state.maximum,
            "max_abs": np.maximum(np.abs(state.minimum), np.abs(state.maximum)),
            "mean_abs": state.abs_mean,
            "active_fraction": state.active / state.count,
            "firing_rate": state.active_examples / state.n_examples,
        }
    counts = {field.name: getattr(state, field.name) for field in fields(Moments)[:5]}
    return counts | {name: np.where(unknown, np.nan, value) for name, value in results.items()}


def update(block: Block, threshold: float = 0.0) -> Moments:
    """State of one block.

    Parameters
    ----------
    block : ndarray (checkpoint, example, token, unit, position)
        Activations of any real dtype.
    threshold : float
        A value is active when its magnitude exceeds this.
    """
    n_checkpoints, n_examples, n_tokens, n_units, n_positions = block.shape
    state = zero(n_checkpoints, n_units)
    if n_examples == 0:
        return state
    state.count[...] = n_examples * n_tokens * n_positions
    state.n_examples[...] = n_examples
    columns = max(_COLUMNS_AT_LEAST, min(_COLUMNS, SLAB_ELEMENTS // n_tokens))
    # Fresh memory for each slab would cost as much in page faults as the arithmetic.
    largest = max(SLAB_ELEMENTS, n_tokens * n_positions * max(1, columns // n_positions))
    scratch = _Scratch(np.empty(largest), np.empty(largest, np.float32), np.empty(largest, np.bool_))
    with np.errstate(invalid="ignore", over="ignore"):
        for c in range(n_checkpoints):
            for units in spans(n_units, columns // n_positions):
                _update_stripe(block[c, :, :, units], threshold, state, (c, units), scratch)
    return state


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Memory for one slab at a time, used over and over."""

    exact: F64
    counts: NDArray[np.float32]
    mask: NDArray[np.bool_]


def _update_stripe(values: Array, threshold: float, state: Moments, at: tuple[int, slice], scratch: _Scratch) -> None:
    """Put the moments of (example, token, unit, position) into the state at some units of one checkpoint."""
    n_examples, n_tokens, n_units, n_positions = values.shape
    n_columns = n_units * n_positions
    runs = list(spans(n_examples, min(_COUNTER_LIMIT, SLAB_ELEMENTS // (n_tokens * n_columns))))
    total, absolute, m2 = (np.empty((len(runs), n_columns)) for _ in range(3))
    low, high = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)
    for r, rows in enumerate(runs):
        slab = as_float(values[rows])
        flat = slab.reshape(-1, n_columns)
        lowest = flat.min(axis=0)
        np.minimum(low, lowest, out=low)
        np.maximum(high, flat.max(axis=0), out=high)
        floor = float(lowest.min())
        if np.isnan(floor):
            state.nan_count[at] += np.isnan(slab).sum(axis=(0, 1, 3))
        _count_active(slab, floor, threshold, state, at, scratch)
        n = len(flat)
        ones = np.ones(n)
        exact = scratch.exact[: flat.size].reshape(flat.shape)
        np.copyto(exact, flat)
        total[r] = ones @ exact
        absolute[r] = total[r] if floor >= 0 else ones @ np.abs(exact)
        np.multiply(exact, exact, out=exact)
        m2[r] = _deviations(total[r], ones @ exact, flat)
    weight = np.array([float((rows.stop - rows.start) * n_tokens) for rows in runs])
    state.mean[at], state.m2[at], state.abs_mean[at] = _combine(weight, total, absolute, m2, n_positions)
    state.minimum[at] = low.reshape(n_units, n_positions).min(axis=1)
    state.maximum[at] = high.reshape(n_units, n_positions).max(axis=1)


def _deviations(total: F64, squares: F64, values: Array) -> F64:
    """Sum of squared deviations of each column, from the raw moments where these carry the digits."""
    n = len(values)
    if n == 1:
        return np.where(np.isfinite(total), 0.0, np.nan)
    m2 = np.maximum(squares - total * total / n, 0.0)
    poor = (m2 < _CANCELLATION * squares) & (squares > 0)
    if poor.any():
        chosen = values[:, poor].astype(np.float64)
        m2[poor] = ((chosen - chosen.mean(axis=0)) ** 2).sum(axis=0)
    return m2


def _combine(weight: F64, total: F64, absolute: F64, m2: F64, n_positions: int) -> tuple[F64, F64, F64]:
    """Join the partials (run, unit and position), of `weight` values each, into unit means and deviations from them."""
    shape = (len(weight), -1, n_positions)
    total, absolute, m2 = (part.reshape(shape) for part in (total, absolute, m2))
    n = weight.sum() * n_positions
    mean = total.sum(axis=(0, 2)) / n
    between = (total / weight[:, None, None] - mean[:, None]) ** 2
    return mean, m2.sum(axis=(0, 2)) + weight @ between.sum(axis=2), absolute.sum(axis=(0, 2)) / n


def _count_active(
    slab: Array, floor: float, threshold: float, state: Moments, at: tuple[int, slice], scratch: _Scratch
) -> None:
    """Count active values, and examples with one, of (example, token, unit, position)."""
    mask = np.greater(slab, threshold, out=scratch.mask[: slab.size].reshape(slab.shape))
    if not floor >= -threshold:  # also when floor is NaN
        mask |= slab < -threshold
    n_tokens, n_positions = slab.shape[1], slab.shape[3]
    if n_tokens == n_positions == 1:
        count = _count_true(mask[:, 0, :, 0])
        state.active[at] += count
        state.active_examples[at] += count
        return
    # A product with ones counts faster than a reduction along short runs; float32 counts exactly up to 2^24.
    counts = scratch.counts[: mask.size].reshape(mask.shape)
    np.copyto(counts, mask)
    by_token = counts[..., 0] if n_positions == 1 else counts @ np.ones(n_positions, np.float32)
    by_example = by_token[:, 0] if n_tokens == 1 else by_token.sum(axis=1)
    state.active[at] += by_example.sum(axis=0, dtype=np.float64).astype(np.int64)
    state.active_examples[at] += _count_true(by_example > 0)


def _count_true(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Count along the first axis, of at most 255 entries: bytes are added many at a time."""
    return np.asarray(np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8))
