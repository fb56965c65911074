"""All units of a layer side by side: how often each fires, how strongly, and how selectively, to rank and to filter."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.activity import unit_moments
from ndt_query.firing import dead_units
from ndt_query.inputs import require_count, require_number
from ndt_query.layers import described, per_unit
from ndt_query.selectivity import selectivity_index
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = ["MEASURES", "rank_units", "unit_table"]

MEASURES: Final = ("auroc", "selectivity_index", "d_prime", "mean", "std", "max", "active_fraction", "firing_rate")
"""What units can be ranked by."""

_SELECTIVE: Final = ("selectivity_index", "d_prime", "auroc", "preferred_class", "p_value", "q_value")


@per_unit
def unit_table(
    acts: xr.DataArray, *, n_permutations: int = 500, seed: int = 0, memory: int | str | None = None
) -> xr.Dataset:
    """Put side by side how often each unit fires, how strongly, and how selectively.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations, with labels.
    n_permutations, seed : int
        Of the labels, for the p values.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit): ``mean``, ``std``, ``min``, ``max``, ``active_fraction`` and ``nan_count`` of
        `unit_moments`; ``dead`` and ``firing_rate`` of `dead_units`; ``selectivity_index``, ``d_prime``, ``auroc``,
        ``preferred_class``, ``p_value`` and ``q_value`` of `selectivity_index`, whose NaN policies hold.

    Notes
    -----
    Moments come from views where there are some; selectivity is one pass.
    """
    moments = unit_moments(acts, memory=memory)
    firing = dead_units(acts, memory=memory)
    selective = selectivity_index(acts, n_permutations=n_permutations, seed=seed, memory=memory)
    parts: list[tuple[xr.Dataset, tuple[str, ...]]] = [
        (moments, ("mean", "std", "min", "max", "active_fraction", "nan_count")),
        (firing, ("dead", "firing_rate")),
        (selective, _SELECTIVE),
    ]
    found = xr.Dataset({name: part[name] for part, names in parts for name in names})
    parameters = {"n_permutations": n_permutations, "seed": seed}
    found.attrs = described({}, acts, "units side by side", parameters, squeeze=False).attrs
    return found


def rank_units(
    table: xr.Dataset,
    by: str = "auroc",
    *,
    n: int | None = None,
    ascending: bool = False,
    least_rate: float = 0.0,
    max_q: float | None = None,
    preferred: Any = None,
) -> xr.Dataset:
    """Choose units of one layer at one checkpoint, and put them in order.

    Parameters
    ----------
    table : Dataset (unit,)
        From `unit_table`, at one checkpoint.
    by : str
        One of `MEASURES`; units without it come last.
    n : int, optional
        At most so many.
    ascending : bool
        Smallest first.
    least_rate : float
        Only units that fire in this fraction of examples or more. A unit that fires in one example has a selectivity
        index of 1 whatever it responds to.
    max_q : float, optional
        Only units whose ``q_value`` is not larger.
    preferred : label, optional
        Only units that prefer this class.

    Returns
    -------
    Dataset (unit,)
        The chosen rows of the table; ties in order of unit.

    Raises
    ------
    NotFoundError
        The table lacks what is asked for.
    InvalidInputError
        An option is not possible, or the table holds several checkpoints.

    Examples
    --------
    >>> table = xr.Dataset({"auroc": ("unit", [0.6, 0.9, np.nan]), "firing_rate": ("unit", [0.5, 0.01, 0.0])})
    >>> rank_units(table.assign_coords(unit=[0, 1, 2]))["unit"].values.tolist()
    [1, 0, 2]
    >>> rank_units(table.assign_coords(unit=[0, 1, 2]), least_rate=0.1)["unit"].values.tolist()
    [0]
    """
    if CHECKPOINT in table.dims:
        raise InvalidInputError(f"The table holds {table.sizes[CHECKPOINT]} checkpoints: select one to rank units.")
    if by not in MEASURES:
        raise InvalidInputError(f"by={by!r} is no measure of units: expected one of {', '.join(MEASURES)}.")
    if require_number("least_rate", least_rate) > 1:
        raise InvalidInputError(f"least_rate={least_rate!r} is not possible: expected a fraction of examples, 0 to 1.")
    asked = {by, *(["firing_rate"] if least_rate else []), *(["q_value"] if max_q is not None else []),
             *(["preferred_class"] if preferred is not None else [])}  # fmt: skip
    missing = sorted(asked - set(table.data_vars))
    if missing:
        raise NotFoundError(f"The table has no {missing[0]}: pass that of unit_table.")
    kept = np.ones(table.sizes[UNIT], bool)
    if least_rate:
        kept &= table["firing_rate"].values >= least_rate
    if max_q is not None:
        kept &= table["q_value"].values <= require_number("max_q", max_q)
    if preferred is not None:
        kept &= table["preferred_class"].values == preferred
    places = np.flatnonzero(kept)
    values = table[by].values[places].astype(np.float64)
    # NaN sorts last whichever way the others go.
    order = np.argsort(values if ascending else -values, kind="stable")
    chosen = places[order]
    return table.isel({UNIT: chosen if n is None else chosen[: require_count("n", n, 1)]})
