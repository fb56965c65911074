"""Which units are alive, how strongly, and on which examples: questions answered in one pass over the activations."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.answers import Answer, answer
from ndt_query.inference import clopper_pearson
from ndt_query.inputs import canonical, require_number, require_steps
from ndt_query.layers import described, per_unit
from ndt_query.reductions import MomentsReduction
from ndt_query.viewed import FromMoments
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT

__all__ = ["dead_units", "neuron_importance", "newly_active_units", "unit_moments"]

CONFIDENCE: Final = 0.95


def _moments(
    given: xr.DataArray, acts: xr.DataArray, threshold: float, what: str, memory: int | str | None, views: bool
) -> Answer:
    reduction = MomentsReduction(require_number("threshold", threshold))
    return answer(given, acts, reduction, FromMoments(threshold), what=what, memory=memory, views=views)


@per_unit
def unit_moments(
    acts: xr.DataArray,
    *,
    threshold: float = 0.0,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Moments of each unit over examples and positions.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations; ``checkpoint`` may be missing. A store is answered layer by layer.
    threshold : float
        A value is active when its magnitude exceeds this.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

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
    given = acts
    acts, squeeze = canonical(given)
    answered = _moments(given, acts, threshold, "unit_moments", memory, views)
    found = answered.variables
    names = ("count", "nan_count", "mean", "std", "min", "max", "mean_abs", "active_fraction")
    what = "moments of each unit over examples and positions"
    return described(
        {name: found[name] for name in names},
        acts,
        what,
        {"threshold": threshold},
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )


@per_unit
def dead_units(
    acts: xr.DataArray,
    threshold: float = 0.0,
    *,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Find units that never fire on the probe set, and how rarely they may fire all the same.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    threshold : float
        A unit fires where its magnitude exceeds this.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

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
    given = acts
    acts, squeeze = canonical(given)
    answered = _moments(given, acts, threshold, "dead_units", memory, views)
    found = answered.variables
    variables = {
        "dead": (found["active"] == 0) & (found["nan_count"] == 0),
        "active_fraction": found["active_fraction"],
        "firing_rate": found["firing_rate"],
        "firing_rate_upper": _upper(found["firing_rate"], acts.sizes[EXAMPLE]),
        "nan_count": found["nan_count"],
    }
    parameters = {"threshold": threshold, "confidence": CONFIDENCE, "n": acts.sizes[EXAMPLE], "interval": "one-sided"}
    return described(
        variables,
        acts,
        "units that never fire on the probe set",
        parameters,
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )


def _upper(rate: xr.Variable, n: int) -> xr.Variable:
    bounded: xr.Variable = xr.apply_ufunc(
        _upper_bound, rate, kwargs={"n": n}, dask="parallelized", output_dtypes=[np.float64]
    )
    return bounded


def _upper_bound(rate: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    # Many units fire equally often, and a quantile of the beta distribution takes a microsecond.
    counts, where = np.unique(np.round(rate * n), return_inverse=True)
    return clopper_pearson(counts, n, confidence=CONFIDENCE, side="upper")[1][where]


@per_unit
def newly_active_units(
    acts: xr.DataArray,
    before: int,
    after: int,
    min_rate: float = 0.01,
    *,
    threshold: float = 0.0,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
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
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

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
    chosen = {CHECKPOINT: [before, after]}
    both = ordered.sel(chosen)
    answered = _moments(acts.sel(chosen), both, threshold, "newly_active_units", memory, views)
    found = answered.variables
    rates = found["firing_rate"]
    rate_before, rate_after = (rates.isel({CHECKPOINT: i}) for i in (0, 1))
    variables = {
        "newly_active": (rate_before == 0) & (rate_after > min_rate),
        "rate_before": rate_before,
        "rate_after": rate_after,
        "nan_count": found["nan_count"].sum(CHECKPOINT),
    }
    parameters = {"before": before, "after": after, "min_rate": min_rate, "threshold": threshold}
    return described(
        variables,
        both,
        "units dead before and active after",
        parameters,
        squeeze=False,
        explain=answered.source if explain else "",
    )


@per_unit
def neuron_importance(
    acts: xr.DataArray, *, memory: int | str | None = None, views: bool = True, explain: bool = False
) -> xr.Dataset:
    """Rank units by how much of the layer's activity they carry.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit): ``variance`` and ``mean_magnitude`` (mean of ``|a|``) over examples and positions;
        ``variance_share`` and ``magnitude_share`` of the layer's sum; ``rank`` by variance from 1, equal variances in
        the order of units, NaN last; ``nan_count``. One NaN in the layer makes its shares NaN, because the sum is not
        known, and so does a layer whose sum is 0.
    """
    given = acts
    acts, squeeze = canonical(given)
    answered = _moments(given, acts, 0.0, "neuron_importance", memory, views)
    found = answered.variables
    variance, magnitude = found["std"] ** 2, found["mean_abs"]

    whole = variance.chunk({UNIT: -1}) if variance.chunks is not None else variance
    ranks = xr.apply_ufunc(
        _falling_rank,
        whole,
        input_core_dims=[[UNIT]],
        output_core_dims=[[UNIT]],
        dask="parallelized",
        output_dtypes=[np.int64],
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
    return described(
        variables,
        acts,
        "share of each unit in its layer's activity",
        {},
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )


def _falling_rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1) + 1)
