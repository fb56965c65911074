"""How units answer to each class, how strongly they prefer one, and whether more strongly than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.answers import answer
from ndt_query.grouped import INTERVALS, ClassGroups, answer_by_groups, as_groups
from ndt_query.inference import fdr
from ndt_query.inputs import LabelsLike, as_classes, canonical, one_of, require_count
from ndt_query.intervals import require_level
from ndt_query.kernels import selectivity as kernel
from ndt_query.layers import described, per_unit
from ndt_query.passes import reduce_values
from ndt_query.reduce import Output
from ndt_query.reductions import ClassReduction
from ndt_query.viewed import FromClassSums
from ndt_store.dims import CLASS, EXAMPLE, UNIT
from ndt_store.views.blocks import Array, Block, position_means

__all__ = ["class_means", "selectivity_index"]

REFINED_Q: Final = 0.04
"""What the q value of units that no permutation reached shall be able to fall to."""

MOST_REFINED: Final = 100


@dataclass(frozen=True, slots=True)
class MeansState:
    """Means over positions of the examples seen so far, in order."""

    means: NDArray[np.float64]
    lowest: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SelectivityReduction:
    """Gathers the mean over positions of every example, then asks `ndt_query.kernels.selectivity`."""

    codes: NDArray[np.int64]
    n_classes: int
    statistic: str
    n_permutations: int
    seed: int
    by_unit: bool = False
    working_factor: float = 2.0

    def update(self, block: Block, start: int) -> MeansState:  # noqa: ARG002
        """State of one block."""
        return MeansState(position_means(block), block.min(axis=(1, 2, 4)).astype(np.float64))

    def merge(self, left: MeansState, right: MeansState) -> MeansState:
        """Join two states."""
        means = np.concatenate([left.means, right.means], axis=1)
        return MeansState(means, np.minimum(left.lowest, right.lowest))

    def finalise(self, state: MeansState) -> Mapping[str, Array]:
        """Return arrays (checkpoint, unit)."""
        rows = [self._one(means, lowest < 0) for means, lowest in zip(state.means, state.lowest, strict=True)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _one(self, means: NDArray[np.float64], signed: NDArray[np.bool_]) -> dict[str, Array]:
        n_units = means.shape[1]
        finite = np.isfinite(means).all(axis=0)
        values, signed = means[:, finite], signed[finite]
        counts = np.bincount(self.codes, minlength=self.n_classes)
        found: dict[str, Array] = {"nan_count": np.isnan(means).sum(axis=0)}

        def spread(some: NDArray[np.float64]) -> NDArray[np.float64]:
            whole = np.full(n_units, np.nan)
            whole[finite] = some
            return whole

        names = ("selectivity_index", "d_prime", "auroc")
        measured = kernel.statistics(values, self.codes, counts, "all", signed)
        for name, key in zip(names, ("index", "dprime", "auroc"), strict=True):
            found[name] = spread(measured[key])
        found["auroc_held_out"] = spread(kernel.held_out_auroc(values, self.codes, self.n_classes))
        preferred = np.full(n_units, -1)
        preferred[finite] = measured["preferred"].astype(np.int64)
        found["preferred"] = preferred
        found["p_value"] = np.full(n_units, np.nan)
        if self.n_permutations:
            found["p_value"] = spread(self._p_values(values, signed))
        found["q_value"] = fdr(found["p_value"])
        return found

    def _p_values(self, values: NDArray[np.float64], signed: NDArray[np.bool_]) -> NDArray[np.float64]:
        rules = self.codes, self.n_classes
        reached, observed = kernel.permutation_counts(
            values, *rules, signed, self.statistic, self.n_permutations, self.seed
        )
        n = np.full(len(reached), self.n_permutations)
        total = self.n_permutations
        # A few units that no permutation reached cannot be told from chance among many by so few permutations: look
        # closer, and closer still at those that are left.
        while (floor := np.flatnonzero((reached == 0) & ~np.isnan(observed))).size:
            wanted = min(math.ceil(len(reached) / (REFINED_Q * len(floor))), MOST_REFINED * self.n_permutations)
            if total >= wanted:
                break
            some, seed = values[:, floor], self.seed + total
            reached[floor], _ = kernel.permutation_counts(
                some, *rules, signed[floor], self.statistic, wanted - total, seed
            )
            n[floor] = total = wanted
        return np.where(np.isnan(observed), np.nan, (reached + 1) / (n + 1))

    def outputs(self) -> Mapping[str, Output]:
        """Return numbers a unit."""
        floats = ("selectivity_index", "d_prime", "auroc", "auroc_held_out", "p_value", "q_value")
        kinds = dict.fromkeys(floats, "float64") | {"preferred": "int64", "nan_count": "int64"}
        return {name: Output((UNIT,), (0,), kind) for name, kind in kinds.items()}

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:
        """Return the size of a number for each example and unit."""
        return 8 * n_checkpoints * n_examples * n_units


@per_unit
def class_means(
    acts: xr.DataArray,
    labels: LabelsLike | None = None,
    *,
    interval: str = "none",
    confidence: float = 0.95,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Mean activation of each unit over the examples of each class.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    labels : array-like or DataArray (example,), optional
        Class of each example; the coordinate ``label`` without it.
    interval : {"none", "jackknife"}
        Means as they are, of the examples at hand; or with what they would be on others, by leaving out one of ten
        groups of examples at a time. That takes a pass over the values, because views hold no groups.
    confidence : float
        Nominal level of the intervals.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset or DataTree
        ``mean`` (checkpoint, class, unit) of the mean over positions, NaN where an example of the class has a NaN; with
        an interval also ``mean_low`` and ``mean_high``, NaN where one group holds all examples of the class;
        ``n_examples`` (class,); ``nan_count`` (checkpoint, unit), examples with a NaN. ``class`` holds the labels.

    Raises
    ------
    DimensionError, InvalidInputError, NotFoundError
        The labels are missing, too few or too many, NaN, or of other examples.
    """
    given = acts
    acts, squeeze = canonical(given)
    found_classes = as_classes(acts, labels)
    n_classes = len(found_classes.names)
    one_of("interval", interval, INTERVALS)
    require_level(confidence)
    if interval == "none":
        reduction = ClassReduction(found_classes.codes, n_classes)
        viewed = FromClassSums(found_classes.codes, found_classes.names)
        answered = answer(given, acts, reduction, viewed, what="class_means", memory=memory, views=views)
    else:
        groups = ClassGroups(found_classes.codes, n_classes, as_groups(acts.sizes[EXAMPLE]), confidence)
        answered = answer_by_groups(given, acts, groups, "class_means", memory)
    found = answered.variables
    counts = np.bincount(found_classes.codes, minlength=n_classes)
    found["n_examples"] = xr.Variable((CLASS,), counts)
    source = answered.source if explain else ""
    parameters = {"n_classes": n_classes, "interval": interval, "confidence": confidence}
    names = {CLASS: found_classes.names}
    what = "mean activation by class"
    return described(found, acts, what, parameters, squeeze=squeeze, explain=source, coords=names)


@per_unit
def selectivity_index(
    acts: xr.DataArray,
    labels: LabelsLike | None = None,
    *,
    statistic: str = "auto",
    n_permutations: int = 1000,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Measure how strongly each unit prefers one class over the others.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations; they are averaged over positions first.
    labels : array-like or DataArray (example,), optional
        Class of each example; the coordinate ``label`` without it.
    statistic : {"auto", "index", "dprime", "auroc"}
        What the p value tests. ``"auto"`` is the index for units without negative values and d-prime for the others.
    n_permutations : int
        Label permutations m; 0 leaves p and q out (NaN).
    seed : int
        Makes the permutations repeatable; checkpoints share them.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit), with the preferred class the one of the largest mean:

        ``selectivity_index``
            (m_max - m_rest) / (m_max + m_rest) with m_rest the mean of the other classes' means (Morcos et al. 2018);
            NaN for units with negative values, for which it means nothing, and for dead ones.
        ``d_prime``
            Mean of the preferred class less that of all other examples, over the root mean of their variances.
        ``auroc``
            Probability that an example of the preferred class exceeds one of the others, ties counting half.
        ``auroc_held_out``
            The same of the class that other examples chose, mean over both halves: 0.5 on average for a unit that
            tells nothing, whatever the number of classes. NaN where a class has one example.
        ``preferred_class``
            Its label; NaN, or an empty text, where unknown.
        ``p_value``
            (b + 1) / (m + 1), b of m permutations of the labels reaching the statistic. Each permutation chooses its
            own preferred class, so that the selection is in the null. Units that none of m reaches, where they are so
            few that m could not tell them from chance among all, are compared with up to 100 m more. NaN where the
            statistic is.
        ``q_value``
            Benjamini-Hochberg over the units of one checkpoint that have a p value.
        ``preferred``, ``nan_count``
            Position of the preferred class among the sorted labels, -1 where unknown; examples with a NaN.

        A unit with a NaN or Inf has NaN throughout.

    Raises
    ------
    DimensionError, InvalidInputError, NotFoundError
        The labels are missing, too few or too many, NaN, all the same, or of other examples.

    Notes
    -----
    One pass over the data, then m products of (class, example) with (example, unit) for each checkpoint. Memory: the
    averaged activations of the checkpoints in work, 8 bytes an example and unit.

    The index is no ranking by itself: a unit that fires in a single example, however weakly, has an index of 1, and
    ``idxmax`` finds such nearly dead units first. Their p value tells, because permutations reach 1 as well. Keep
    units with a small ``q_value``, or a ``firing_rate`` of 1% or more in `dead_units`, and rank those, best by AUROC.
    The first three statistics are in sample: they are biased upwards by the choice of the class, the more the fewer
    examples a class has. p accounts for that and they do not; ``auroc_held_out`` is free of it.

    Examples
    --------
    One example of the last class drives the first unit; the second responds to all of its examples.

    >>> values = np.zeros((30, 2))
    >>> values[29, 0], values[20:, 1] = 0.1, 3.0
    >>> acts = xr.DataArray(values, dims=("example", "unit"))
    >>> found = selectivity_index(acts, np.repeat([0, 1, 2], 10))
    >>> found["selectivity_index"].values.tolist(), (found["q_value"] < 0.05).values.tolist()
    ([1.0, 1.0], [False, True])
    """
    one_of("statistic", statistic, kernel.STATISTICS)
    require_count("n_permutations", n_permutations, 0)
    require_count("seed", seed, 0)
    given = acts
    acts, squeeze = canonical(given)
    classes = as_classes(acts, labels)
    reduction = SelectivityReduction(classes.codes, len(classes.names), statistic, n_permutations, seed)
    found = reduce_values(given, acts, reduction, what="selectivity_index", memory=memory)
    found["preferred_class"] = _named(found["preferred"], classes.names)
    parameters = {"statistic": statistic, "n_permutations": n_permutations, "seed": seed, "classes": len(classes.names)}
    result = described(found, acts, "class selectivity of each unit", parameters, squeeze=squeeze)
    result["preferred"].attrs["classes"] = [str(name) for name in classes.names]
    return result


def _named(preferred: xr.Variable, names: Array) -> xr.Variable:
    """Turn positions into labels; unknown is NaN for numbers and the empty string for text."""
    numeric = names.dtype.kind in "iufb"
    table = np.append(names.astype(np.float64), np.nan) if numeric else np.array([*map(str, names), ""])

    # Position -1 is the last entry: unknown.
    named: xr.Variable = xr.apply_ufunc(table.__getitem__, preferred, dask="parallelized", output_dtypes=[table.dtype])
    return named
