"""Sums of each unit over the examples of each class: one pass, mergeable, float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array, Block
from ndt_store.views.sums import Sums, reduce_block

__all__ = ["ClassSums", "finalise", "from_sums", "merge", "one_hot", "update"]


@dataclass(frozen=True, slots=True)
class ClassSums:
    """State of the reduction.

    Parameters
    ----------
    total : ndarray of float64 (checkpoint, class, unit)
        Sum over examples of the mean over positions.
    count : ndarray of int64 (class,)
        Examples of each class.
    nan_count : ndarray of int64 (checkpoint, unit)
        Examples with a NaN at some position.
    """

    total: NDArray[np.float64]
    count: NDArray[np.int64]
    nan_count: NDArray[np.int64]


def one_hot(codes: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return indicator matrices (..., class, example) of class codes (..., example)."""
    return np.asarray(codes[..., None, :] == np.arange(n_classes)[:, None], dtype=np.float64)


def from_sums(sums: Sums, codes: NDArray[np.int64]) -> ClassSums:
    """Turn the sums of one block, whose examples have the class codes `codes` (example,), into its state."""
    n_classes = sums.class_total.shape[1]
    return ClassSums(sums.class_total, np.bincount(codes, minlength=n_classes), sums.nan_examples)


def update(block: Block, codes: NDArray[np.int64], n_classes: int) -> ClassSums:
    """State of one block whose examples have the class codes `codes` (example,), ``0 <= code < n_classes``."""
    return from_sums(reduce_block(block, codes=codes, n_classes=n_classes), codes)


def merge(left: ClassSums, right: ClassSums) -> ClassSums:
    """Join the states of two disjoint sets of examples."""
    with np.errstate(invalid="ignore"):  # infinities of both signs in one class
        total = left.total + right.total
    return ClassSums(total, left.count + right.count, left.nan_count + right.nan_count)


def finalise(state: ClassSums) -> dict[str, Array]:
    """Mean (checkpoint, class, unit), NaN for a class without examples, and the count of NaN examples."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = state.total / state.count[:, None]
    return {"mean": mean, "nan_count": state.nan_count}
