"""The dimension of a representation: measures of the spectrum of activations, with intervals over examples."""

from __future__ import annotations

import math
from typing import Final

import xarray as xr

from ndt_query.answers import answer
from ndt_query.budget import allowed_nbytes
from ndt_query.dimension import Measuring, RowsReduction, ScatterReduction
from ndt_query.gramviewed import FromGram
from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.intervals import require_level
from ndt_query.layers import described, per_layer
from ndt_query.reduce import ADVICE
from ndt_store.dims import EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.views.gram_view import sample_shape
from ndt_store.views.samples import DEFAULT_N_GROUPS, deal_groups

__all__ = ["dimensionality"]

POSITIONS: Final = ("flatten", "mean", "samples")
INTERVALS: Final = ("jackknife", "none")


@per_layer
def dimensionality(
    acts: xr.DataArray,
    *,
    centre: bool = True,
    positions: str = "flatten",
    interval: str = "jackknife",
    n_groups: int = DEFAULT_N_GROUPS,
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Measure the dimension of a layer's representation, six ways, with intervals over examples.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    centre : bool
        Measure the spectrum of the covariance, or of the raw second moment. The mean of ReLU activations is one large
        direction, so that uncentred measures are near 1 whatever the representation.
    positions : {"flatten", "mean", "samples"}
        What becomes of conv positions or tokens: features of one sample an example; their mean; samples of their own.
    interval : {"jackknife", "none"}
        Leave out one group of examples at a time, or give no interval.
    n_groups : int
        Groups of about equal size that examples are dealt into at random; at most the number of examples.
    confidence : float
        Nominal level of the intervals.
    seed : int
        Makes the groups repeatable.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset
        Over (checkpoint,), or (checkpoint, layer) for a store, with ``l`` the eigenvalues in descending order and ``s``
        their roots; each with ``<name>_low`` and ``<name>_high``:

        ``stable_rank``
            sum l / max l (Rudelson and Vershynin 2007).
        ``participation_ratio``
            (sum l)^2 / sum l^2, from the sample covariance as it is.
        ``participation_ratio_corrected``
            The same from unbiased estimates of both sums (Himeno and Yamada 2014), always centred. The plain value is
            too small unless samples are many against dimensions; where the two differ, believe this one. NaN for
            ``"samples"``, which are not independent, and below 4 samples.
        ``energy_dims_90``, ``energy_dims_95``
            Fewest components that hold that share of sum l.
        ``nuclear_ratio``
            sum s / max s.
        ``effective_rank``
            exp of the entropy of s / sum s (Roy and Vetterli 2007).

        ``n_samples``, ``n_features`` and ``nan_count`` (values with a NaN among the samples). A NaN or Inf anywhere, or
        a layer that varies by no more than rounding, makes all measures NaN.

    Notes
    -----
    All measures but the corrected one are estimates from n samples of what an infinite sample would give, and are
    biased downwards when n is not large against the dimension; the intervals show their scatter over examples, not that
    bias. They are jackknife intervals with whole examples left out, also for ``"samples"``.

    Whichever side is smaller is decomposed. With more samples than features that is (feature, feature), from the
    scatter matrix of each group, 8 n_groups d^2 bytes, in one pass; else (sample, sample), which costs n^2 d / 2
    products and 20 n^2 bytes. With d features, ``"mean"`` and ``"samples"`` have as many as units, ``"flatten"`` as
    units times positions. Samples of a store's array need not fit in memory: they are multiplied tile by tile, and with
    p tiles of up to 128 MiB, less where the budget is small, the blocks are read (p + 1) / 2 times. Samples of other
    arrays are held, those of one checkpoint at a time.

    The matrices are kept as a view where they take at most a quarter of the array's own bytes, or 4 MiB. A view of
    samples answers every grouping, one of features that of ``n_groups=10, seed=0`` and questions without intervals.
    Answers from views equal those from values to 1e-9. Eigenvalues within rounding of 0 count as 0.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> acts = xr.DataArray(rng.standard_normal((4000, 5)), dims=("example", "unit"))
    >>> found = dimensionality(acts)
    >>> round(found["participation_ratio"].item(), 1), int(found["energy_dims_90"].item())
    (5.0, 5)
    """
    one_of("positions", positions, POSITIONS)
    one_of("interval", interval, INTERVALS)
    require_level(confidence)
    require_count("seed", seed, 0)
    given = acts
    acts, squeeze = canonical(given)
    n = acts.sizes[EXAMPLE]
    n_groups = min(require_count("n_groups", n_groups, 2), n)
    if n_groups < 2 or interval == "none":
        interval, n_groups = "none", 1
    n_places = math.prod(acts.sizes[dim] for dim in POSITION_DIMS if dim in acts.dims)
    n_samples, n_features = sample_shape(positions, n, acts.sizes[UNIT], n_places)
    groups = deal_groups(n, n_groups, seed)
    how = Measuring(positions, centre, interval, n_groups, confidence)
    itemsize = 4 if acts.dtype == "float32" and positions != "mean" else 8
    reduction: ScatterReduction | RowsReduction = ScatterReduction(groups, n_features, how)
    if n_samples * itemsize <= 8 * n_groups * n_features:
        reduction = RowsReduction(groups, n_features, how, n_samples // n, itemsize)
    what = f"dimensionality with positions={positions!r}"
    advice = f"use positions='mean', {ADVICE}" if positions == "flatten" and n_places > 1 else ADVICE
    viewed = FromGram(groups, how, views, allowed_nbytes(memory))
    answered = answer(given, acts, reduction, viewed, what=what, memory=memory, views=True, advice=advice)
    found = answered.variables
    found["n_features"] = xr.Variable((), n_features)
    parameters = {
        "centre": centre, "positions": positions, "interval": interval, "n_groups": n_groups,
        "confidence": confidence, "seed": seed,
    }  # fmt: skip
    return described(
        found,
        acts,
        "dimension of the representation",
        parameters,
        squeeze=squeeze,
        explain=answered.source if explain else "",
    )
