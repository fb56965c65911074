"""Intervals of what a pass says about units, by leaving out one group of whole examples at a time.

Groups are dealt as those of `ndt_query.dimensionality` are. Each has a state of its own; all but one are merged from
what lies before it and behind it, so that a group of large values leaves nothing of itself in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.answers import Answer
from ndt_query.inference import jackknife
from ndt_query.passes import reduce_values
from ndt_query.reduce import Output, Reduction
from ndt_query.reductions import ClassReduction, MomentsReduction
from ndt_store.dims import CLASS, UNIT
from ndt_store.views import classes, moments
from ndt_store.views.blocks import Array, Block
from ndt_store.views.samples import DEFAULT_N_GROUPS, deal_groups

__all__ = ["ENDS", "INTERVALS", "ClassGroups", "Derive", "MomentGroups", "answer_by_groups", "as_groups", "shares"]

INTERVALS: Final = ("none", "jackknife")
ENDS: Final = ("_low", "_high")
S = TypeVar("S")
Derive = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def as_groups(n_examples: int) -> NDArray[np.int64]:
    """Deal examples into ten groups, or as many as there are examples."""
    return deal_groups(n_examples, min(DEFAULT_N_GROUPS, n_examples))


def shares(found: Mapping[str, Array]) -> dict[str, Array]:
    """Variance and mean magnitude of units (checkpoint, unit), and the shares of their layer's sums that these are."""
    variance, magnitude = found["std"] ** 2, found["mean_abs"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "variance": variance,
            "mean_magnitude": magnitude,
            "variance_share": variance / variance.sum(axis=1, keepdims=True),
            "magnitude_share": magnitude / magnitude.sum(axis=1, keepdims=True),
        }


def answer_by_groups(
    given: xr.DataArray, acts: xr.DataArray, reduction: Reduction[Any], what: str, memory: int | str | None
) -> Answer:
    """Answer by a pass, as `ndt_query.answers.answer` does where no view will do."""
    found = reduce_values(given, acts, reduction, what=what, memory=memory)
    where = "/".join(str(given.attrs[key]) for key in ("layer", "kind") if key in given.attrs) or "the array"
    return Answer(found, f"{where}: a pass over its values (views hold no groups of examples)")


def _left_out(parts: Sequence[S], merge: Callable[[S, S], S]) -> list[S]:
    """All parts but one, merged, for each of two or more."""
    behind: list[S] = [parts[-1]]
    for part in parts[-2:0:-1]:
        behind.append(merge(part, behind[-1]))
    others, before = [behind.pop()], parts[0]
    for part in parts[1:-1]:
        others.append(merge(before, behind.pop()))
        before = merge(before, part)
    return [*others, before]


def _limits(
    estimates: Mapping[str, Array], without: Sequence[Mapping[str, Array]], confidence: float
) -> dict[str, Array]:
    limits: dict[str, Array] = {}
    for name, estimate in estimates.items():
        if not without:
            limits |= {f"{name}{end}": np.full(estimate.shape, np.nan) for end in ENDS}
            continue
        interval = jackknife([one[name] for one in without], estimate, confidence=confidence)
        limits |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return limits


@dataclass(frozen=True, slots=True)
class MomentGroups:
    """`MomentsReduction` of each group, with intervals of what `derive` makes of the moments.

    Parameters
    ----------
    inner : MomentsReduction
        The reduction.
    groups : ndarray of int64 (example,)
        Group of each example.
    derive : callable
        From arrays (checkpoint, unit) to those that get an interval, by name.
    names : tuple of str
        What these are called.
    confidence : float
        Nominal level.
    by_unit : bool
        Whether `derive` takes units apart from each other.
    """

    inner: MomentsReduction
    groups: NDArray[np.int64]
    derive: Derive
    names: tuple[str, ...]
    confidence: float
    by_unit: bool
    working_factor: float = 1.25

    @property
    def _n_groups(self) -> int:
        return int(self.groups.max()) + 1

    def update(self, block: Block, start: int) -> tuple[moments.Moments, ...]:
        """State of each group in one block."""
        mine = self.groups[start : start + block.shape[1]]
        empty = moments.zero(block.shape[0], block.shape[3])
        rows = [np.flatnonzero(mine == group) for group in range(self._n_groups)]
        return tuple(self.inner.update(block[:, one], start) if one.size else empty for one in rows)

    def merge(
        self, left: tuple[moments.Moments, ...], right: tuple[moments.Moments, ...]
    ) -> tuple[moments.Moments, ...]:
        """Join the states of each group."""
        return tuple(self.inner.merge(one, other) for one, other in zip(left, right, strict=True))

    def finalise(self, state: tuple[moments.Moments, ...]) -> Mapping[str, Array]:
        """Arrays (checkpoint, unit)."""
        whole = self.inner.finalise(reduce(self.inner.merge, state))
        others = _left_out(state, self.inner.merge) if len(state) > 1 else []
        without = [self.derive(self.inner.finalise(one)) for one in others]
        return {**whole, **_limits(self.derive(whole), without, self.confidence)}

    def outputs(self) -> Mapping[str, Output]:
        """Return what the reduction gives, and two limits for each name."""
        limits = {f"{name}{end}": Output((UNIT,), (0,), "float64") for name in self.names for end in ENDS}
        return {**self.inner.outputs(), **limits}

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Return the size of a state for each group."""
        return self._n_groups * self.inner.state_nbytes(n_checkpoints, n_examples, n_units)


@dataclass(frozen=True, slots=True)
class ClassGroups:
    """`ClassReduction` of each group, with intervals of the class means; groups and classes are classes together.

    Parameters
    ----------
    codes : ndarray of int64 (example,)
        Class of each example.
    n_classes : int
        How many there are.
    groups : ndarray of int64 (example,)
        Group of each example.
    confidence : float
        Nominal level.
    """

    codes: NDArray[np.int64]
    n_classes: int
    groups: NDArray[np.int64]
    confidence: float
    by_unit: bool = True
    working_factor: float = 0.25

    @property
    def _inner(self) -> ClassReduction:
        n_groups = int(self.groups.max()) + 1
        return ClassReduction(self.groups * self.n_classes + self.codes, n_groups * self.n_classes)

    def update(self, block: Block, start: int) -> classes.ClassSums:
        """State of one block."""
        return self._inner.update(block, start)

    def merge(self, left: classes.ClassSums, right: classes.ClassSums) -> classes.ClassSums:
        """Join two states."""
        return classes.merge(left, right)

    def finalise(self, state: classes.ClassSums) -> Mapping[str, Array]:
        """Arrays (checkpoint, class, unit) and (checkpoint, unit)."""
        n_checkpoints, _, n_units = state.total.shape
        totals = state.total.reshape(n_checkpoints, -1, self.n_classes, n_units)
        counts = state.count.reshape(-1, self.n_classes)
        parts = [replace(state, total=totals[:, g], count=counts[g]) for g in range(len(counts))]
        whole = classes.finalise(replace(state, total=totals.sum(axis=1), count=counts.sum(axis=0)))
        others = _left_out(parts, classes.merge) if len(parts) > 1 else []
        without = [{"mean": classes.finalise(one)["mean"]} for one in others]
        return {**whole, **_limits({"mean": whole["mean"]}, without, self.confidence)}

    def outputs(self) -> Mapping[str, Output]:
        """Return means, their limits, and counts of NaN."""
        mean = Output((CLASS, UNIT), (self.n_classes, 0), "float64")
        return {"mean": mean, "mean_low": mean, "mean_high": mean, "nan_count": Output((UNIT,), (0,), "int64")}

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Return the size of a number for each group, class and unit."""
        return self._inner.state_nbytes(n_checkpoints, n_examples, n_units)
