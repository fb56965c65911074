"""One line for each checkpoint and layer: how many units, how many dead, how active, of which dimension."""

from __future__ import annotations

from typing import Final

import xarray as xr

from ndt_query.firing import dead_units
from ndt_query.geometry import dimensionality
from ndt_query.layers import described, per_layer
from ndt_store.dims import EXAMPLE, UNIT

__all__ = ["DIMENSIONS", "summary"]

DIMENSIONS: Final = ("stable_rank", "participation_ratio")


@per_layer
def summary(
    acts: xr.DataArray,
    *,
    positions: str = "mean",
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Summarise each layer at each checkpoint.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    positions : {"mean", "samples", "flatten"}
        What becomes of positions in the measures of dimension, as for `dimensionality`; the mean by default, because it
        is cheap whatever the size of the maps.
    memory : int or str, optional
        Budget of each of the two queries, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset
        Over (checkpoint,), or (checkpoint, layer) for a store: ``units``; ``dead``, units that never fire;
        ``active_fraction``, mean over units of the fraction of values that are not zero; ``stable_rank`` and
        ``participation_ratio`` of the centred activations, each with ``_low`` and ``_high``, 95% jackknife intervals
        over examples; ``nan_count``; ``n_examples``, which all of it is from. All but ``dead`` are NaN where the data
        hold a NaN; a unit with a NaN does not count as dead.

    Notes
    -----
    ``dead`` and ``active_fraction`` are counts on the probe set, and therefore without interval: `dead_units` bounds
    the rates behind them. From views where they are there; else the two questions read each block once each.
    """
    alive = dead_units(acts, memory=memory, views=views, explain=True)
    dimension = dimensionality(acts, positions=positions, memory=memory, views=views, explain=True)
    by_unit, by_layer = alive.variables, dimension.variables
    variables = {
        "units": xr.full_like(by_unit["dead"].isel({UNIT: 0}), acts.sizes[UNIT], dtype="int64"),
        "dead": by_unit["dead"].sum(UNIT),
        "active_fraction": by_unit["active_fraction"].mean(UNIT, skipna=False),
        **{f"{name}{end}": by_layer[f"{name}{end}"] for name in DIMENSIONS for end in ("", "_low", "_high")},
        "nan_count": by_unit["nan_count"].sum(UNIT),
    }
    variables["n_examples"] = xr.full_like(variables["units"], acts.sizes[EXAMPLE])
    source = "\n".join(part.attrs["explain"] for part in (alive, dimension)) if explain else ""
    parameters = {"positions": positions}
    return described(variables, acts, "summary by checkpoint and layer", parameters, squeeze=False, explain=source)
