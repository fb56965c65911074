"""The dimension of a representation: measures of the spectrum of activations, with intervals over examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.intervals import jackknife, require_level
from ndt_query.kernels.spectrum import MEASURES, corrected_participation_ratio, measures
from ndt_query.layers import described, per_layer
from ndt_query.reduce import ADVICE, Output, reduce_examples
from ndt_store.dims import EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.views import gram
from ndt_store.views.blocks import Array, Block, as_float

__all__ = ["dimensionality"]

POSITIONS: Final = ("flatten", "mean", "samples")
INTERVALS: Final = ("jackknife", "none")
CORRECTED: Final = "participation_ratio_corrected"
ENERGY: Final = ("energy_dims_90", "energy_dims_95")
ALL: Final = (*MEASURES, CORRECTED)


@dataclass(frozen=True, slots=True)
class ScatterReduction:
    """Keeps the scatter matrix of each group of examples; its state does not grow with the examples."""

    groups: NDArray[np.int64]
    n_groups: int
    n_features: int
    mode: str
    centre: bool
    interval: str
    confidence: float
    by_unit: bool = False
    working_factor: float = 2.0

    def update(self, block: Block, start: int) -> gram.Scatter:
        """State of one block."""
        groups = self.groups[start : start + block.shape[1]]
        return gram.scatter(gram.sample_rows(block, self.mode), groups, self.n_groups)

    def merge(self, left: gram.Scatter, right: gram.Scatter) -> gram.Scatter:
        """Join two states."""
        return gram.merge_scatter(left, right)

    def finalise(self, state: gram.Scatter) -> Mapping[str, Array]:
        """Return measures (checkpoint,)."""
        return _collect([self.estimate(state[c]) for c in range(len(state.n))])

    def estimate(self, state: gram.Scatter) -> dict[str, float]:
        """Measures of one checkpoint from the sums (group, ...)."""
        parts = [state[g] for g in range(self.n_groups)]
        before, after = _running(parts), _running(parts[::-1])[::-1]
        whole = before[-1]
        left_out = []
        if self.interval != "none":
            for g in range(self.n_groups):
                others = [*before[g - 1 : g], *after[g + 1 : g + 2]] if g else after[1:2]
                merged = others[0] if len(others) == 1 else gram.merge_scatter(*others)
                left_out.append(gram.scatter_spectrum(merged, self.centre))
        return _estimates(gram.scatter_spectrum(whole, self.centre), left_out, self.mode, self.confidence)

    def outputs(self) -> Mapping[str, Output]:
        """Return numbers a checkpoint."""
        return _outputs()

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of one matrix a group."""
        return 8 * n_checkpoints * self.n_groups * self.n_features * (self.n_features + 2)


@dataclass(frozen=True, slots=True)
class RowsReduction:
    """Keeps the samples; for few samples of many features."""

    groups: NDArray[np.int64]
    n_groups: int
    n_features: int
    mode: str
    centre: bool
    interval: str
    confidence: float
    per_example: int
    itemsize: int
    by_unit: bool = False
    working_factor: float = 1.0

    def update(self, block: Block, start: int) -> gram.Rows:
        """State of one block."""
        rows = gram.sample_rows(as_float(block), self.mode)
        groups = np.repeat(self.groups[start : start + rows.shape[1]], rows.shape[2])
        return gram.Rows(rows.reshape(rows.shape[0], -1, rows.shape[3]), groups)

    def merge(self, left: gram.Rows, right: gram.Rows) -> gram.Rows:
        """Join two states."""
        return gram.merge_rows(left, right)

    def finalise(self, state: gram.Rows) -> Mapping[str, Array]:
        """Return measures (checkpoint,)."""
        return _collect([self.estimate(values, state.groups) for values in state.values])

    def estimate(self, values: Array, groups: NDArray[np.int64]) -> dict[str, float]:
        """Measures of one checkpoint from samples (sample, feature) and the group of each."""
        n, d = values.shape
        if d < n:
            parts = gram.scatter(values[None, :, None], groups, self.n_groups)
            as_scatter = ScatterReduction(
                groups, self.n_groups, d, self.mode, self.centre, self.interval, self.confidence
            )
            return as_scatter.estimate(parts[0])
        products = gram.sample_gram(values)
        left_out = []
        if self.interval != "none":
            for g in range(self.n_groups):
                kept = np.flatnonzero(groups != g)
                left_out.append(gram.rows_spectrum(values[kept], self.centre, products[np.ix_(kept, kept)]))
        return _estimates(gram.rows_spectrum(values, self.centre, products), left_out, self.mode, self.confidence)

    def outputs(self) -> Mapping[str, Output]:
        """Return numbers a checkpoint."""
        return _outputs()

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of the samples, and of one matrix of the smaller side."""
        n = n_examples * self.per_example
        return n_checkpoints * n * self.n_features * self.itemsize + 8 * min(n, self.n_features) ** 2


def _running(parts: Sequence[gram.Scatter]) -> list[gram.Scatter]:
    sums = [parts[0]]
    for part in parts[1:]:
        sums.append(gram.merge_scatter(sums[-1], part))
    return sums


def _outputs() -> Mapping[str, Output]:
    names = [f"{name}{end}" for name in ALL for end in ("", "_low", "_high")]
    return {name: Output((), (), "float64") for name in names} | {
        name: Output((), (), "int64") for name in ("n_samples", "nan_count")
    }


def _collect(rows: Sequence[Mapping[str, float]]) -> Mapping[str, Array]:
    return {name: np.array([row[name] for row in rows], output.dtype) for name, output in _outputs().items()}


def _measured(spectrum: gram.Spectrum, mode: str) -> dict[str, float]:
    found = measures(spectrum.eigenvalues)
    # Positions of one example are not independent samples, which the correction assumes.
    independent = mode != "samples"
    found[CORRECTED] = (
        corrected_participation_ratio(spectrum.n, spectrum.trace, spectrum.trace_square, spectrum.fourth)
        if independent
        else math.nan
    )
    return found


def _estimates(
    whole: gram.Spectrum, left_out: Sequence[gram.Spectrum], mode: str, confidence: float
) -> dict[str, float]:
    middle = _measured(whole, mode)
    parts = [_measured(part, mode) for part in left_out]
    found: dict[str, float] = {"n_samples": whole.n, "nan_count": whole.nan_count}
    for name in ALL:
        low = high = math.nan
        if parts:
            interval = jackknife([part[name] for part in parts], middle[name], confidence=confidence)
            low, high = float(np.maximum(0.0, interval.low)), float(interval.high)
        values = np.array([middle[name], low, high])
        if name in ENERGY:
            # Whole components; the ceiling keeps order, so that the interval covers no less.
            values = np.ceil(values)
        found[name], found[f"{name}_low"], found[f"{name}_high"] = values.tolist()
    return found


@per_layer
def dimensionality(
    acts: xr.DataArray,
    *,
    centre: bool = True,
    positions: str = "flatten",
    interval: str = "jackknife",
    n_groups: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Measure the dimension of a layer's representation, six ways, with intervals over examples.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    centre : bool
        Measure the spectrum of the covariance, or of the raw second moment. The mean of ReLU activations is one large
        direction, so that uncentred measures are near 1 whatever the representation.
    positions : {"flatten", "mean", "samples"}
        What becomes of conv positions or tokens: features of one sample an example; their mean; samples of their own.
    interval : {"jackknife", "none"}
        Leave out one group of examples at a time, or give no interval.
    n_groups : int
        Groups of about equal size that examples are dealt into at random; at most the number of examples.
    confidence : float
        Nominal level of the intervals.
    seed : int
        Makes the groups repeatable.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over (checkpoint,), or (checkpoint, layer) for a store, with ``l`` the eigenvalues in descending order and ``s``
        their roots; each with ``<name>_low`` and ``<name>_high``:

        ``stable_rank``
            sum l / max l (Rudelson and Vershynin 2007).
        ``participation_ratio``
            (sum l)^2 / sum l^2, from the sample covariance as it is.
        ``participation_ratio_corrected``
            The same from unbiased estimates of both sums (Himeno and Yamada 2014), always centred. The plain value is
            too small unless samples are many against dimensions; where the two differ, believe this one. NaN for
            ``"samples"``, which are not independent, and below 4 samples.
        ``energy_dims_90``, ``energy_dims_95``
            Fewest components that hold that share of sum l.
        ``nuclear_ratio``
            sum s / max s.
        ``effective_rank``
            exp of the entropy of s / sum s (Roy and Vetterli 2007).

        ``n_samples``, ``n_features`` and ``nan_count`` (values with a NaN among the samples). A NaN or Inf anywhere, or
        a layer that varies by no more than rounding, makes all measures NaN.

    Notes
    -----
    All measures but the corrected one are estimates from n samples of what an infinite sample would give, and are
    biased downwards when n is not large against the dimension; the intervals show their scatter over examples, not that
    bias. They are jackknife intervals with whole examples left out, also for ``"samples"``.

    One pass. Whichever side is smaller is decomposed: (feature, feature), from scatter matrices of each group, 8
    n_groups d^2 bytes, or (sample, sample), which needs the samples of a checkpoint in memory and costs n^2 d. With d
    features, ``"mean"`` and ``"samples"`` have as many as units, ``"flatten"`` as units times positions.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> acts = xr.DataArray(rng.standard_normal((4000, 5)), dims=("example", "unit"))
    >>> found = dimensionality(acts)
    >>> round(found["participation_ratio"].item(), 1), int(found["energy_dims_90"].item())
    (5.0, 5)
    """
    one_of("positions", positions, POSITIONS)
    one_of("interval", interval, INTERVALS)
    require_level(confidence)
    require_count("seed", seed, 0)
    acts, squeeze = canonical(acts)
    n = acts.sizes[EXAMPLE]
    n_groups = min(require_count("n_groups", n_groups, 2), n)
    if n_groups < 2 or interval == "none":
        interval, n_groups = "none", 1
    n_places = math.prod(acts.sizes[dim] for dim in POSITION_DIMS if dim in acts.dims)
    n_features = acts.sizes[UNIT] * (n_places if positions == "flatten" else 1)
    per_example = n_places if positions == "samples" else 1
    options: dict[str, Any] = {
        "groups": np.random.default_rng(seed).permutation(np.arange(n) % n_groups),
        "n_groups": n_groups,
        "n_features": n_features,
        "mode": positions,
        "centre": centre,
        "interval": interval,
        "confidence": confidence,
    }
    itemsize = 4 if acts.dtype == np.float32 and positions != "mean" else 8
    reduction: ScatterReduction | RowsReduction = ScatterReduction(**options)
    if n * per_example * itemsize <= 8 * n_groups * n_features:
        reduction = RowsReduction(**options, per_example=per_example, itemsize=itemsize)
    what = f"dimensionality with positions={positions!r}"
    advice = f"use positions='mean', {ADVICE}" if positions == "flatten" and n_places > 1 else ADVICE
    found = reduce_examples(acts, reduction, what=what, memory=memory, advice=advice)
    found["n_features"] = xr.DataArray(n_features)
    parameters = {
        "centre": centre, "positions": positions, "interval": interval, "n_groups": n_groups,
        "confidence": confidence, "seed": seed,
    }  # fmt: skip
    return described(found, acts, "dimension of the representation", parameters, squeeze=squeeze)
