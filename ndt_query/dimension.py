"""Measures of dimension from statistics of second order, with intervals by leaving out groups of examples.

`ScatterReduction` and `RowsReduction` make these statistics in one pass over values; kept views hold the same
(`ndt_query.gramviewed`). Both end in `measured_groups` or `measured_samples`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ndt_query.intervals import jackknife
from ndt_query.reduce import Output
from ndt_store.views.blocks import Array, Block, as_float
from ndt_store.views.gram import SampleGram, sample_gram, sample_spectrum
from ndt_store.views.samples import Spectrum, on_samples, sample_rows
from ndt_store.views.scatter import Scatter, merge_scatter, scatter, scatter_spectrum
from ndt_store.views.spectrum import MEASURES, corrected_participation_ratio, measures

__all__ = [
    "Measuring",
    "Rows",
    "RowsReduction",
    "ScatterReduction",
    "collected",
    "measured_groups",
    "measured_samples",
    "outputs",
]

CORRECTED: Final = "participation_ratio_corrected"
ENERGY: Final = ("energy_dims_90", "energy_dims_95")
ALL: Final = (*MEASURES, CORRECTED)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What is measured.

    Parameters
    ----------
    mode : {"flatten", "mean", "samples"}
        What becomes of positions.
    centre : bool
        Whether eigenvalues are of the centred scatter.
    interval : {"jackknife", "none"}
        Whether groups are left out.
    n_groups : int
        How many there are.
    confidence : float
        Nominal level of the intervals.
    """

    mode: str
    centre: bool
    interval: str
    n_groups: int
    confidence: float


class GroupsOf(Protocol):
    """Sums by group, made ready one at a time."""

    def __getitem__(self, group: int) -> Scatter:
        """Return the sums of one group."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Samples (checkpoint, sample, feature) and the group of each, (sample,)."""

    values: Array
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ScatterReduction:
    """Keeps the scatter matrix of each group of examples; its state does not grow with the examples."""

    groups: NDArray[np.int64]
    n_features: int
    how: Measuring
    by_unit: bool = False
    working_factor: float = 2.0

    def update(self, block: Block, start: int) -> Scatter:
        """State of one block."""
        groups = self.groups[start : start + block.shape[1]]
        return scatter(sample_rows(block, self.how.mode), groups, self.how.n_groups)

    def merge(self, left: Scatter, right: Scatter) -> Scatter:
        """Join two states."""
        return merge_scatter(left, right)

    def finalise(self, state: Scatter) -> Mapping[str, Array]:
        """Return measures (checkpoint,)."""
        return collected([measured_groups(state[c], self.how.n_groups, self.how) for c in range(len(state.n))])

    def outputs(self) -> Mapping[str, Output]:
        """Return numbers a checkpoint."""
        return outputs()

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of one matrix a group."""
        return 8 * n_checkpoints * self.how.n_groups * self.n_features * (self.n_features + 2)


@dataclass(frozen=True, slots=True)
class RowsReduction:
    """Keeps the samples; for few samples of many features."""

    groups: NDArray[np.int64]
    n_features: int
    how: Measuring
    per_example: int
    itemsize: int
    by_unit: bool = False
    working_factor: float = 1.0

    def update(self, block: Block, start: int) -> Rows:
        """State of one block."""
        rows = sample_rows(as_float(block), self.how.mode)
        groups = np.repeat(self.groups[start : start + rows.shape[1]], rows.shape[2])
        return Rows(np.array(rows.reshape(rows.shape[0], -1, rows.shape[3])), groups)

    def merge(self, left: Rows, right: Rows) -> Rows:
        """Join two states."""
        values = np.concatenate([left.values, right.values], axis=1)
        return Rows(values, np.concatenate([left.groups, right.groups]))

    def finalise(self, state: Rows) -> Mapping[str, Array]:
        """Return measures (checkpoint,)."""
        return collected([self._measured(values, state.groups) for values in state.values])

    def _measured(self, values: Array, groups: NDArray[np.int64]) -> dict[str, float]:
        if on_samples(*values.shape):
            return measured_samples(sample_gram(values), groups, self.how)
        sums = scatter(values[None, :, None], groups, self.how.n_groups)[0]
        return measured_groups(sums, self.how.n_groups, self.how)

    def outputs(self) -> Mapping[str, Output]:
        """Return numbers a checkpoint."""
        return outputs()

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of the samples, and of one matrix of the smaller side."""
        n = n_examples * self.per_example
        return n_checkpoints * n * self.n_features * self.itemsize + 8 * min(n, self.n_features) ** 2


def outputs() -> Mapping[str, Output]:
    """Describe what is measured, by name; numbers a checkpoint."""
    names = [f"{name}{end}" for name in ALL for end in ("", "_low", "_high")]
    return {name: Output((), (), "float64") for name in names} | {
        name: Output((), (), "int64") for name in ("n_samples", "nan_count")
    }


def collected(rows: Sequence[Mapping[str, float]]) -> Mapping[str, Array]:
    """Arrays (checkpoint,) of the measures of each checkpoint."""
    return {name: np.array([row[name] for row in rows], output.dtype) for name, output in outputs().items()}


def measured_groups(groups: GroupsOf, n_groups: int, how: Measuring) -> dict[str, float]:
    """Measures of one checkpoint from the sums of its groups of examples.

    All but one group are merged from what lies before it and behind it, never by taking it away, so that a group of
    large values leaves nothing of itself in the others.
    """
    left_out: list[Spectrum] = []
    behind: list[Scatter] = []
    if how.interval != "none":
        for group in range(n_groups - 1, 0, -1):
            behind.append(merge_scatter(groups[group], behind[-1]) if behind else groups[group])
    whole: Scatter | None = None
    for group in range(n_groups):
        if how.interval != "none":
            others = [part for part in (whole, behind.pop() if behind else None) if part is not None]
            left_out.append(scatter_spectrum(others[0] if len(others) == 1 else merge_scatter(*others), how.centre))
        whole = groups[group] if whole is None else merge_scatter(whole, groups[group])
    assert whole is not None
    return _estimates(scatter_spectrum(whole, how.centre), left_out, how)


def measured_samples(gram: SampleGram, groups: NDArray[np.int64], how: Measuring) -> dict[str, float]:
    """Measures of one checkpoint from products of samples and the group of each sample."""
    left_out = []
    if how.interval != "none":
        left_out = [sample_spectrum(gram, how.centre, np.flatnonzero(groups != g)) for g in range(how.n_groups)]
    return _estimates(sample_spectrum(gram, how.centre), left_out, how)


def _measured(spectrum: Spectrum, mode: str) -> dict[str, float]:
    found = measures(spectrum.eigenvalues)
    # Positions of one example are not independent samples, which the correction assumes.
    independent = mode != "samples"
    found[CORRECTED] = (
        corrected_participation_ratio(spectrum.n, spectrum.trace, spectrum.trace_square, spectrum.fourth)
        if independent
        else math.nan
    )
    return found


def _estimates(whole: Spectrum, left_out: Sequence[Spectrum], how: Measuring) -> dict[str, float]:
    middle = _measured(whole, how.mode)
    parts = [_measured(part, how.mode) for part in left_out]
    found: dict[str, float] = {"n_samples": whole.n, "nan_count": whole.nan_count}
    for name in ALL:
        low = high = math.nan
        if parts:
            interval = jackknife([part[name] for part in parts], middle[name], confidence=how.confidence)
            # No measure can be less than one direction, but the corrected one, an estimate of two parts.
            low, high = float(np.maximum(float(name != CORRECTED), interval.low)), float(interval.high)
        values = np.array([middle[name], low, high])
        if name in ENERGY:
            # Whole components; the ceiling keeps order, so that the interval covers no less.
            values = np.ceil(values)
        found[name], found[f"{name}_low"], found[f"{name}_high"] = values.tolist()
    return found
