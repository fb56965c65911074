"""The kernels as reductions that `ndt_query.reduce` can run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.reduce import Output
from ndt_store.dims import CLASS, EXAMPLE, UNIT
from ndt_store.views import classes, moments, topk
from ndt_store.views.blocks import Array, Block, position_means

__all__ = ["RANK", "ClassReduction", "MomentsReduction", "RowsOfExamples", "TopReduction"]

RANK: Final = "rank"
_FIELD_NBYTES: Final = 8 * 10


@dataclass(frozen=True, slots=True)
class MomentsReduction:
    """`ndt_store.views.moments` over examples."""

    threshold: float
    by_unit: bool = True
    working_factor: float = 0.25

    def update(self, block: Block, start: int) -> moments.Moments:  # noqa: ARG002
        """State of one block."""
        return moments.update(block, self.threshold)

    def merge(self, left: moments.Moments, right: moments.Moments) -> moments.Moments:
        """Join two states."""
        return moments.merge(left, right)

    def finalise(self, state: moments.Moments) -> Mapping[str, Array]:
        """Arrays (checkpoint, unit)."""
        return moments.finalise(state)

    def outputs(self) -> Mapping[str, Output]:
        """Return counts as int64, the rest as float64."""
        return _moment_outputs()

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Ten numbers a unit."""
        return _FIELD_NBYTES * n_checkpoints * n_units


@functools.cache
def _moment_outputs() -> Mapping[str, Output]:
    kinds = {name: value.dtype.name for name, value in moments.finalise(moments.zero(1, 1)).items()}
    return {name: Output((UNIT,), (0,), kind) for name, kind in kinds.items()}


@dataclass(frozen=True, slots=True)
class TopReduction:
    """`ndt_store.views.topk` over examples."""

    ids: NDArray[np.int64]
    k: int
    dtype: str
    by_unit: bool = True
    working_factor: float = 1.0

    def update(self, block: Block, start: int) -> topk.TopK:
        """State of one block."""
        return topk.update(block, self.ids[start : start + block.shape[1]], self.k)

    def merge(self, left: topk.TopK, right: topk.TopK) -> topk.TopK:
        """Join two states."""
        return topk.merge(left, right, self.k)

    def finalise(self, state: topk.TopK) -> Mapping[str, Array]:
        """Arrays (checkpoint, unit, rank)."""
        return {"value": state.value, "example": state.example, "position": state.position}

    def outputs(self) -> Mapping[str, Output]:
        """Values in the dtype of the data, and two whole numbers."""
        shape = ((UNIT, RANK), (0, self.k))
        kinds = {"value": self.dtype, "example": "int64", "position": "int64"}
        return {name: Output(*shape, kind) for name, kind in kinds.items()}

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Three numbers a rank."""
        return 24 * n_checkpoints * n_units * min(self.k, n_examples)


@dataclass(frozen=True, slots=True)
class ClassReduction:
    """`ndt_store.views.classes` over examples."""

    codes: NDArray[np.int64]
    n_classes: int
    by_unit: bool = True
    working_factor: float = 0.25

    def update(self, block: Block, start: int) -> classes.ClassSums:
        """State of one block."""
        return classes.update(block, self.codes[start : start + block.shape[1]], self.n_classes)

    def merge(self, left: classes.ClassSums, right: classes.ClassSums) -> classes.ClassSums:
        """Join two states."""
        return classes.merge(left, right)

    def finalise(self, state: classes.ClassSums) -> Mapping[str, Array]:
        """Arrays (checkpoint, class, unit) and (checkpoint, unit)."""
        return classes.finalise(state)

    def outputs(self) -> Mapping[str, Output]:
        """Means and counts of NaN."""
        return {
            "mean": Output((CLASS, UNIT), (self.n_classes, 0), "float64"),
            "nan_count": Output((UNIT,), (0,), "int64"),
        }

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """One number a class and unit."""
        return 8 * n_checkpoints * n_units * (self.n_classes + 1)


@dataclass(frozen=True, slots=True)
class RowsOfExamples:
    """One row an example: the mean over positions, or their maximum, of each unit; NaN where a position is NaN."""

    n_examples: int
    positions: str
    by_unit: bool = True
    working_factor: float = 1.0

    def update(self, block: Block, start: int) -> NDArray[np.float64]:  # noqa: ARG002
        """Rows of one block, (checkpoint, example, unit)."""
        if self.positions == "mean":
            return position_means(block)
        return np.asarray(block.max(axis=(2, 4)), dtype=np.float64)

    def merge(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Join the rows of neighbouring runs of examples."""
        return np.concatenate([left, right], axis=1)

    def finalise(self, state: NDArray[np.float64]) -> Mapping[str, Array]:
        """Return the rows."""
        return {"rows": state}

    def outputs(self) -> Mapping[str, Output]:
        """Return one number for each example and unit."""
        return {"rows": Output((EXAMPLE, UNIT), (self.n_examples, 0), "float64")}

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Return the size of the rows."""
        return 8 * n_checkpoints * n_examples * n_units
