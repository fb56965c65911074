"""Which units fire at all, on how many examples, and how rarely those that never did may fire all the same."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.activity import moments_of
from ndt_query.inputs import canonical, require_number, require_steps
from ndt_query.layers import described, per_unit
from ndt_query.proportions import Side, clopper_pearson
from ndt_store.dims import CHECKPOINT, EXAMPLE

__all__ = ["dead_units", "newly_active_units"]

CONFIDENCE: Final = 0.95


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
    answered = moments_of(given, acts, threshold, "dead_units", memory, views)
    found = answered.variables
    variables = {
        "dead": (found["active"] == 0) & (found["nan_count"] == 0),
        "active_fraction": found["active_fraction"],
        "firing_rate": found["firing_rate"],
        "firing_rate_upper": _limit(found["firing_rate"], acts.sizes[EXAMPLE], "upper", 1),
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


def _limit(rate: xr.Variable, n: int, side: Side, end: int) -> xr.Variable:
    """Lower (0) or upper (1) limit of rates."""
    options: dict[str, Any] = {"n": n, "side": side, "end": end}
    limit: xr.Variable = xr.apply_ufunc(_limits, rate, kwargs=options, dask="parallelized", output_dtypes=[np.float64])
    return limit


def _limits(rate: NDArray[np.float64], n: int, side: Side, end: int) -> NDArray[np.float64]:
    # Many units fire equally often, and a quantile of the beta distribution takes a microsecond.
    counts, where = np.unique(np.round(rate * n), return_inverse=True)
    return clopper_pearson(counts, n, confidence=CONFIDENCE, side=side)[end][where]


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
        fires at one position or more, NaN where there is a NaN), each with ``_low`` and ``_high``, 95% Clopper-Pearson
        limits with n the number of examples, and ``nan_count`` of both checkpoints together. A unit with a NaN at
        either checkpoint is not newly active.

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
    answered = moments_of(acts.sel(chosen), both, threshold, "newly_active_units", memory, views)
    found = answered.variables
    rates = found["firing_rate"]
    rate_before, rate_after = (rates.isel({CHECKPOINT: i}) for i in (0, 1))
    variables = {
        "newly_active": (rate_before == 0) & (rate_after > min_rate),
        **_with_limits("rate_before", rate_before, acts.sizes[EXAMPLE]),
        **_with_limits("rate_after", rate_after, acts.sizes[EXAMPLE]),
        "nan_count": found["nan_count"].sum(CHECKPOINT),
    }
    parameters = {
        "before": before, "after": after, "min_rate": min_rate, "threshold": threshold, "confidence": CONFIDENCE,
    }  # fmt: skip
    return described(
        variables,
        both,
        "units dead before and active after",
        parameters,
        squeeze=False,
        explain=answered.source if explain else "",
    )


def _with_limits(name: str, rate: xr.Variable, n: int) -> dict[str, xr.Variable]:
    low, high = (_limit(rate, n, "two-sided", end) for end in (0, 1))
    return {name: rate, f"{name}_low": low, f"{name}_high": high}
