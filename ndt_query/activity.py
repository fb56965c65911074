"""How strongly units respond, and how much of their layer's activity each carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.answers import Answer, answer
from ndt_query.grouped import ENDS, INTERVALS, Derive, MomentGroups, answer_by_groups, as_groups, shares
from ndt_query.inputs import canonical, one_of, require_number
from ndt_query.intervals import require_level
from ndt_query.layers import described, per_unit
from ndt_query.reductions import MomentsReduction
from ndt_query.viewed import FromMoments
from ndt_store.dims import EXAMPLE, UNIT
from ndt_store.views.blocks import Array

__all__ = ["moments_of", "neuron_importance", "unit_moments"]

ESTIMATES: Final = ("mean", "std", "mean_abs", "active_fraction")
SHARES: Final = ("variance", "mean_magnitude", "variance_share", "magnitude_share")


def moments_of(
    given: xr.DataArray, acts: xr.DataArray, threshold: float, what: str, memory: int | str | None, views: bool
) -> Answer:
    """Moments of each unit, from views where these hold them; `what` names the question in messages."""
    reduction = MomentsReduction(require_number("threshold", threshold))
    return answer(given, acts, reduction, FromMoments(threshold), what=what, memory=memory, views=views)


@per_unit
def unit_moments(
    acts: xr.DataArray,
    *,
    threshold: float = 0.0,
    interval: str = "none",
    confidence: float = 0.95,
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
    interval : {"none", "jackknife"}
        Moments as they are, of the examples at hand; or with what they would be on others, by leaving out one of ten
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
        ``count``, ``nan_count``, ``mean``, ``std`` (population), ``min``, ``max``, ``mean_abs``, ``active_fraction``
        over (checkpoint, unit); lazy where `acts` is. With an interval, ``mean``, ``std``, ``mean_abs`` and
        ``active_fraction`` each with ``_low`` and ``_high``. A unit with a NaN has NaN moments, and ``nan_count`` says
        how many.

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
    one_of("interval", interval, INTERVALS)
    require_level(confidence)
    if interval == "none":
        answered = moments_of(given, acts, threshold, "unit_moments", memory, views)
    else:
        answered = _of_groups(given, acts, threshold, _as_they_are, ESTIMATES, "unit_moments", memory, confidence)
    found = answered.variables
    names = ("count", "nan_count", "mean", "std", "min", "max", "mean_abs", "active_fraction")
    limits = [name for name in found if name.endswith(ENDS)]
    what = "moments of each unit over examples and positions"
    return described(
        {name: found[name] for name in (*names, *limits)},
        acts,
        what,
        {"threshold": threshold, "interval": interval, "confidence": confidence},
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )


@per_unit
def neuron_importance(
    acts: xr.DataArray,
    *,
    interval: str = "none",
    confidence: float = 0.95,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Rank units by how much of the layer's activity they carry.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    interval : {"none", "jackknife"}
        Moments as they are, of the examples at hand; or with what they would be on others, by leaving out one of ten
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
        Over (checkpoint, unit): ``variance`` and ``mean_magnitude`` (mean of ``|a|``) over examples and positions;
        ``variance_share`` and ``magnitude_share`` of the layer's sum; ``rank`` by variance from 1, equal variances in
        the order of units, NaN last; ``nan_count``. One NaN in the layer makes its shares NaN, because the sum is not
        known, and so does a layer whose sum is 0. With an interval, all but the rank and the count have ``_low`` and
        ``_high``.
    """
    given = acts
    acts, squeeze = canonical(given)
    one_of("interval", interval, INTERVALS)
    require_level(confidence)
    if interval == "none":
        answered = moments_of(given, acts, 0.0, "neuron_importance", memory, views)
    else:
        answered = _of_groups(given, acts, 0.0, shares, SHARES, "neuron_importance", memory, confidence)
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
        **{name: found[name] for name in found if name.endswith(ENDS)},
    }
    return described(
        variables,
        acts,
        "share of each unit in its layer's activity",
        {"interval": interval, "confidence": confidence},
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )


def _falling_rank(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(np.argsort(np.argsort(-values, axis=-1, kind="stable"), axis=-1) + 1)


def _of_groups(
    given: xr.DataArray,
    acts: xr.DataArray,
    threshold: float,
    derive: Derive,
    names: tuple[str, ...],
    what: str,
    memory: int | str | None,
    confidence: float,
) -> Answer:
    """Moments with the limits of what `derive` makes of them."""
    inner = MomentsReduction(require_number("threshold", threshold))
    groups = as_groups(acts.sizes[EXAMPLE])
    reduction = MomentGroups(inner, groups, derive, names, confidence, by_unit=derive is _as_they_are)
    return answer_by_groups(given, acts, reduction, what, memory)


def _as_they_are(found: Mapping[str, Array]) -> dict[str, Array]:
    return {name: found[name] for name in ESTIMATES}
