"""Moments of each unit over examples and positions: one pass, mergeable, float64 throughout.

A block is read once by a compiled kernel, `ndt_store.views.sums`, and states of different blocks are joined by the
pairwise update of Chan, Golub and LeVeque (1983). NaN is counted, never skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, Block
from ndt_store.views.sums import Sums, reduce_block

__all__ = ["Moments", "finalise", "from_sums", "merge", "update", "zero"]

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
            _joined_mean(left.mean, right.mean, share),
            left.m2 + right.m2 + delta * delta * share * left.count,
            _joined_mean(left.abs_mean, right.abs_mean, share),
            np.minimum(left.minimum, right.minimum),
            np.maximum(left.maximum, right.maximum),
        )


def _joined_mean(left: F64, right: F64, share: F64) -> F64:
    """Join means, of which the right has `share`: by their difference, and where one is infinite by weights."""
    delta = right - left
    return np.where(np.isfinite(delta), left + delta * share, left * (1 - share) + right * share)


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


def from_sums(sums: Sums) -> Moments:
    """Turn the sums of one block into its state."""
    if sums.n_values == 0:
        return replace(zero(*sums.shift.shape), n_examples=np.full(sums.shift.shape, sums.n_examples))
    n = sums.n_values
    with np.errstate(invalid="ignore", over="ignore"):
        m2 = np.maximum(sums.square - sums.difference * (sums.difference / n), 0.0)
        # Finite values with squares too large for float64 have an infinite spread, as in numpy, not an unknown one.
        m2[np.isinf(sums.square) & np.isfinite(sums.minimum) & np.isfinite(sums.maximum)] = np.inf
        mean = sums.shift + sums.difference / n
    return Moments(
        np.full(mean.shape, n),
        sums.nan_count,
        np.full(mean.shape, sums.n_examples),
        sums.active_examples,
        sums.active,
        mean,
        m2,
        sums.magnitude / n,
        sums.minimum,
        sums.maximum,
    )


def update(block: Block, threshold: float = 0.0) -> Moments:
    """State of one block.

    Parameters
    ----------
    block : ndarray (checkpoint, example, token, unit, position)
        Activations of any real dtype.
    threshold : float
        A value is active when its magnitude exceeds this, compared in the precision of the values.
    """
    return from_sums(reduce_block(block, threshold))
