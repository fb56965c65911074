"""Which examples drive a unit: the k that drive it most, exactly."""

from __future__ import annotations

import numpy as np
import xarray as xr

from ndt_query.answers import answer
from ndt_query.inputs import canonical, example_ids, require_count
from ndt_query.layers import described, per_unit
from ndt_query.reductions import RANK, TopReduction
from ndt_query.viewed import FromTop
from ndt_store.dims import EXAMPLE, POSITION_DIMS

__all__ = ["top_examples"]


@per_unit
def top_examples(
    acts: xr.DataArray, k: int = 20, *, memory: int | str | None = None, views: bool = True, explain: bool = False
) -> xr.Dataset:
    """Find the examples that drive each unit most.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    k : int
        Examples for each unit; all of them where there are fewer.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

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
    given = acts
    acts, squeeze = canonical(given)
    k = min(require_count("k", k, 1), acts.sizes[EXAMPLE])
    dtype = acts.dtype.name if acts.dtype in (np.float32, np.float64) else "float64"
    ids = example_ids(acts)
    reduction, viewed = TopReduction(ids, k, dtype), FromTop(ids, k)
    answered = answer(given, acts, reduction, viewed, what="top_examples", memory=memory, views=views)
    found = dict(answered.arrays)
    position = found.pop("position")
    dims = [dim for dim in POSITION_DIMS if dim in acts.dims]
    found.update(dict.fromkeys(dims, position))  # y before x, though the last is divided off first
    for dim in reversed(dims):
        place, position = position % acts.sizes[dim], position // acts.sizes[dim]
        labels = np.asarray(acts[dim].values)
        found[dim] = xr.apply_ufunc(labels.__getitem__, place, dask="parallelized", output_dtypes=[labels.dtype])
    result = described(
        found,
        acts,
        "examples that drive each unit most",
        {"k": k},
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )
    return result.assign_coords({RANK: np.arange(k)})
