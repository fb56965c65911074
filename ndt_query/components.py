"""Principal components of representations at each checkpoint, decomposed on whichever side is smaller."""

from __future__ import annotations

import math
from typing import Final

import xarray as xr

from ndt_query.answers import answer
from ndt_query.budget import allowed_nbytes
from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.layers import described, per_unit
from ndt_query.principal import ComponentsReduction, viewed_components
from ndt_query.reduce import result_nbytes
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.views.gram_view import sample_shape
from ndt_store.views.samples import on_samples

__all__ = ["pca"]

POSITIONS: Final = ("mean", "flatten", "samples")


@per_unit
def pca(
    acts: xr.DataArray,
    n_components: int = 50,
    *,
    centre: bool = True,
    positions: str = "mean",
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Principal components of a layer's representation at each checkpoint.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    n_components : int
        At most as many as there are features or samples.
    centre : bool
        Take the mean away first. Without it the first component of non-negative activations is their mean.
    positions : {"mean", "flatten", "samples"}
        What becomes of conv positions or tokens: their mean; features of one sample an example; samples of their own.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset
        ``component`` (checkpoint, rank, feature), orthonormal, the largest entry of each positive; beyond the rank of
        the samples NaN. ``explained_variance`` (checkpoint, rank) with divisor n - 1, ``explained_variance_ratio``, its
        share of ``total_variance`` (checkpoint); ``mean`` (checkpoint, feature); ``n_samples``. ``feature`` is the
        unit, with ``"flatten"`` unit and positions in the order of the array.

    Raises
    ------
    InvalidInputError
        There are more components than features or samples.
    MemoryBudgetError
        Neither side fits the budget.

    Notes
    -----
    Whichever side is smaller is decomposed. With n samples of d features and more samples than features that is ``8
    d^2`` bytes of sums, in one pass, or none where Gram views hold them (`ndt index --gram`). With fewer it is ``20
    n^2`` bytes of products, kept as a view where that is small enough (`dimensionality` says when) and made tile by
    tile where the samples do not fit; then one more pass, since products do not tell of which features a component is
    made. The result takes ``8 n_components d`` bytes for each checkpoint; nothing else depends on their number. Samples
    of other arrays than a store's are held, ``8 n d`` bytes, those of one checkpoint at a time. A NaN makes its
    checkpoint NaN. Large variances are biased upwards where n is not large against d.
    """
    one_of("positions", positions, POSITIONS)
    n_components = require_count("n_components", n_components, 1)
    given = acts
    acts, squeeze = canonical(given)
    n_places = math.prod(acts.sizes[dim] for dim in POSITION_DIMS if dim in acts.dims)
    n, d = sample_shape(positions, acts.sizes[EXAMPLE], acts.sizes[UNIT], n_places)
    if n_components > min(n, d):
        raise InvalidInputError(f"n_components={n_components}: {n} samples of {d} features have at most {min(n, d)}.")
    reduction = ComponentsReduction(positions, centre, n_components, d, on_samples(n, d))
    spare = allowed_nbytes(memory) - 2 * result_nbytes(reduction, acts.sizes[CHECKPOINT], acts.sizes[UNIT])
    viewed = viewed_components(
        acts.sizes[EXAMPLE], positions, n_components, centre=centre, views=views, allowed_nbytes=max(0, spare)
    )
    what = f"pca with positions={positions!r}"
    answered = answer(given, acts, reduction, viewed, what=what, memory=memory, views=True)
    found = answered.variables
    parameters = {"n_components": n_components, "centre": centre, "positions": positions}
    source = answered.source if explain else ""
    result = described(found, acts, "principal components", parameters, squeeze=squeeze, explain=source)
    if positions != "flatten" and UNIT in acts.coords:
        result = result.assign_coords(feature=acts[UNIT].values)
    return result
