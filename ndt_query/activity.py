"""Which units are alive, how strongly, and on which examples: questions answered in one pass over the activations."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inference import clopper_pearson
from ndt_query.inputs import canonical, example_ids, require_count, require_number, require_steps
from ndt_query.layers import described, per_unit
from ndt_query.reduce import reduce_examples
from ndt_query.reductions import RANK, MomentsReduction, TopReduction
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT

__all__ = ["dead_units", "neuron_importance", "newly_active_units", "top_examples", "unit_moments"]

CONFIDENCE: Final = 0.95


def _moments(acts: xr.DataArray, threshold: float, what: str, memory: int | str | None) -> dict[str, xr.DataArray]:
    reduction = MomentsReduction(require_number("threshold", threshold))
    return reduce_examples(acts, reduction, what=what, memory=memory)


@per_unit
def unit_moments(acts: xr.DataArray, *, threshold: float = 0.0, memory: int | str | None = None) -> xr.Dataset:
    """Moments of each unit over examples and positions.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations; ``checkpoint`` may be missing. A store is answered layer by layer.
    threshold : float
        A value is active when its magnitude exceeds this.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        ``count``, ``nan_count``, ``mean``, ``std`` (population), ``min``, ``max``, ``mean_abs``, ``active_fraction``
        over (checkpoint, unit); lazy where `acts` is. A unit with a NaN has NaN moments, and ``nan_count`` says how
        many.

    Notes
    -----
    One pass, float64 accumulators, states merged by Chan, Golub and LeVeque (1983). Memory: one chunk a thread and 80
    bytes a unit for each state.

    Examples
    --------
    >>> acts = xr.DataArray(np.array([[[1.0, 0.0], [3.0, 0.0]]]), dims=("checkpoint", "example", "unit"))
    >>> found = unit_moments(acts)
    >>> found["mean"].values.tolist(), found["active_fraction"].values.tolist()
    ([[2.0, 0.0]], [[1.0, 0.0]])
    """
    acts, squeeze = canonical(acts)
    found = _moments(acts, threshold, "unit_moments", memory)
    names = ("count", "nan_count", "mean", "std", "min", "max", "mean_abs", "active_fraction")
    what = "moments of each unit over examples and positions"
    return described({name: found[name] for name in names}, acts, what, {"threshold": threshold}, squeeze=squeeze)


@per_unit
def dead_units(acts: xr.DataArray, threshold: float = 0.0, *, memory: int | str | None = None) -> xr.Dataset:
    """Find units that never fire on the probe set, and how rarely they may fire all the same.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    threshold : float
        A unit fires where its magnitude exceeds this.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit): ``dead``, true when ``|a| <= threshold`` at every example and position, and false where
        a NaN leaves it open; ``active_fraction`` of all examples and positions; ``firing_rate``, the fraction of
        examples in which the unit fires at one position or more; ``firing_rate_upper``, its one-sided 95%
        Clopper-Pearson bound, in which n is the number of examples, because positions of one example are not
        independent: 1 - 0.05^(1/n), about 3/n, for a dead unit; ``nan_count``. All rates are NaN where there is a NaN.

    Notes
    -----
    One pass. That a unit is dead on n examples does not say that it is dead: the bound is what the data say about new
    examples from the same distribution.

    Examples
    --------
    >>> acts = xr.DataArray(np.zeros((1, 100, 1)), dims=("checkpoint", "example", "unit"))
    >>> found = dead_units(acts)
    >>> bool(found["dead"].item()), round(found["firing_rate_upper"].item(), 4)
    (True, 0.0295)
    """
    acts, squeeze = canonical(acts)
    found = _moments(acts, threshold, "dead_units", memory)
    variables = {
        "dead": (found["active"] == 0) & (found["nan_count"] == 0),
        "active_fraction": found["active_fraction"],
        "firing_rate": found["firing_rate"],
        "firing_rate_upper": _upper(found["firing_rate"], acts.sizes[EXAMPLE]),
        "nan_count": found["nan_count"],
    }
    parameters = {"threshold": threshold, "confidence": CONFIDENCE, "n": acts.sizes[EXAMPLE], "interval": "one-sided"}
    return described(variables, acts, "units that never fire on the probe set", parameters, squeeze=squeeze)


def _upper(rate: xr.DataArray, n: int) -> xr.DataArray:
    def bound(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return clopper_pearson(np.round(values * n), n, confidence=CONFIDENCE, side="upper")[1]

    bounded: xr.DataArray = xr.apply_ufunc(bound, rate, dask="parallelized", output_dtypes=[np.float64])
    return bounded


@per_unit
def newly_active_units(
    acts: xr.DataArray,
    before: int,
    after: int,
    min_rate: float = 0.01,
    *,
    threshold: float = 0.0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Find units that were dead at one checkpoint and fire at another.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations with a ``checkpoint`` coordinate.
    before, after : int
        Training steps, labels of ``checkpoint``.
    min_rate : float
        The unit has to fire in more than this fraction of examples at `after`.
    threshold : float
        A unit fires where its magnitude exceeds this.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (unit,): ``newly_active``, ``rate_before`` and ``rate_after`` (fractions of examples in which the unit
        fires at one position or more, NaN where there is a NaN) and ``nan_count`` of both checkpoints together. A unit
        with a NaN at either checkpoint is not newly active.

    Raises
    ------
    NotFoundError
        A step is not a checkpoint; the nearest ones are named.
    """
    require_number("min_rate", min_rate, below=1.0)
    ordered, _ = canonical(acts)
    require_steps(acts, (before, after))
    both = ordered.sel({CHECKPOINT: [before, after]})
    found = _moments(both, threshold, "newly_active_units", memory)
    rates = found["firing_rate"]
    rate_before, rate_after = (rates.isel({CHECKPOINT: i}, drop=True) for i in (0, 1))
    variables = {
        "newly_active": (rate_before == 0) & (rate_after > min_rate),
        "rate_before": rate_before,
        "rate_after": rate_after,
        "nan_count": found["nan_count"].sum(CHECKPOINT),
    }
    parameters = {"before": before, "after": after, "min_rate": min_rate, "threshold": threshold}
    return described(variables, both, "units dead before and active after", parameters, squeeze=False)


@per_unit
def neuron_importance(acts: xr.DataArray, *, memory: int | str | None = None) -> xr.Dataset:
    """Rank units by how much of the layer's activity they carry.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit): ``variance`` and ``mean_magnitude`` (mean of ``|a|``) over examples and positions;
        ``variance_share`` and ``magnitude_share`` of the layer's sum; ``rank`` by variance from 1, equal variances in
        the order of units, NaN last; ``nan_count``. One NaN in the layer makes its shares NaN, because the sum is not
        known, and so does a layer whose sum is 0.
    """
    acts, squeeze = canonical(acts)
    found = _moments(acts, 0.0, "neuron_importance", memory)
    variance, magnitude = found["std"] ** 2, found["mean_abs"]

    def rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.asarray(np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1) + 1)

    whole = variance.chunk({UNIT: -1}) if variance.chunks is not None else variance
    ranks = xr.apply_ufunc(
        rank, whole, input_core_dims=[[UNIT]], output_core_dims=[[UNIT]], dask="parallelized", output_dtypes=[np.int64]
    )
    ranks = ranks.chunk(variance.chunksizes) if variance.chunks is not None else ranks
    variables = {
        "variance": variance,
        "mean_magnitude": magnitude,
        "variance_share": variance / variance.sum(UNIT, skipna=False),
        "magnitude_share": magnitude / magnitude.sum(UNIT, skipna=False),
        "rank": ranks,
        "nan_count": found["nan_count"],
    }
    return described(variables, acts, "share of each unit in its layer's activity", {}, squeeze=squeeze)


@per_unit
def top_examples(acts: xr.DataArray, k: int = 20, *, memory: int | str | None = None) -> xr.Dataset:
    """Find the examples that drive each unit most.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    k : int
        Examples for each unit; all of them where there are fewer.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit, rank): ``value``, the example's largest over positions; ``example``, its identifier; and
        where it is largest, ``y`` and ``x`` or ``token``, by coordinate label, at the first such place. Exact: larger
        values first, equal ones by identifier. NaN counts as the largest value, as in `numpy.max`, so that it shows at
        rank 0.

    Notes
    -----
    One pass; states of k entries a unit, merged exactly, so that any chunking gives the same answer.

    Examples
    --------
    >>> acts = xr.DataArray([[0.5], [2.0], [1.0]], dims=("example", "unit"), coords={"example": [7, 8, 9]})
    >>> top_examples(acts, k=2)["example"].values.tolist()
    [[8, 9]]
    """
    acts, squeeze = canonical(acts)
    k = min(require_count("k", k, 1), acts.sizes[EXAMPLE])
    dtype = acts.dtype.name if acts.dtype in (np.float32, np.float64) else "float64"
    found = reduce_examples(acts, TopReduction(example_ids(acts), k, dtype), what="top_examples", memory=memory)
    position = found.pop("position")
    dims = [dim for dim in POSITION_DIMS if dim in acts.dims]
    found.update(dict.fromkeys(dims, position))  # y before x, though the last is divided off first
    for dim in reversed(dims):
        place, position = position % acts.sizes[dim], position // acts.sizes[dim]
        labels = np.asarray(acts[dim].values)
        found[dim] = xr.apply_ufunc(labels.__getitem__, place, dask="parallelized", output_dtypes=[labels.dtype])
    result = described(found, acts, "examples that drive each unit most", {"k": k}, squeeze=squeeze)
    return result.assign_coords({RANK: np.arange(k)})
