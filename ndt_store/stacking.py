"""Datasets of several runs along a dimension ``run``: lazily, at the labels that all have."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from ndt_store.dims import CHECKPOINT, RUN, STEP

__all__ = ["stacked"]


def stacked(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Put Datasets of the same layout along ``run``, at the labels they share.

    Variables that change with training get the dimension; what describes the probe set is that of the first.

    Parameters
    ----------
    parts : mapping of str to Dataset
        By the name of the run.

    Returns
    -------
    Dataset
        ``run`` first; attributes are those that all share.
    """
    names = xr.Variable((RUN,), list(parts))
    shared = set.intersection(*(set(one.data_vars) for one in parts.values()))
    some = [one[sorted(shared, key=list(one.data_vars).index)] for one in parts.values()]
    aligned = xr.align(*some, join="inner", copy=False)
    moving = [name for name, one in aligned[0].data_vars.items() if CHECKPOINT in one.dims or STEP in one.dims]
    grown = xr.concat(
        [one[moving] for one in aligned], dim=names, data_vars="all", coords="minimal", compat="override",
        join="override", combine_attrs="drop_conflicts",
    )  # fmt: skip
    fixed = aligned[0].drop_vars(moving)
    found = grown.assign({name: fixed[name] for name in fixed.data_vars})
    for name in found.data_vars:
        attrs = [one[name].attrs for one in aligned]
        found[name].attrs = {key: value for key, value in attrs[0].items() if all(a.get(key) == value for a in attrs)}
    return found
