"""Whether heads do different things: between classes, and from each other, each beside what chance gives."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention import described_attention
from ndt_query.attention_data import deal, group_means, patterns_of, per_attention
from ndt_query.inference import fdr
from ndt_query.inputs import as_classes, require_count
from ndt_query.intervals import jackknife, null_p_value, require_level
from ndt_query.kernels.patterns import divergences
from ndt_query.layers import OneLayer
from ndt_store.dims import CHECKPOINT, EXAMPLE, HEAD, KEY, QUERY
from ndt_store.errors import InvalidInputError

__all__ = ["attention_selectivity", "head_specialisation"]

F64 = NDArray[np.float64]

OTHER: Final = "other_head"
BATCH_NBYTES: Final = 32 << 20


@per_attention
def attention_selectivity(
    data: OneLayer, labels: Any = None, *, n_permutations: int = 500, seed: int = 0
) -> xr.Dataset:
    """Say how much of where a head looks depends on the class of the example.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        Attention patterns.
    labels : array_like (example,), optional
        Classes; the coordinate ``label`` without it.
    n_permutations, seed : int
        Of the labels over examples.

    Returns
    -------
    Dataset ([checkpoint,] head)
        ``eta_squared``: with ``x`` the attention that each key receives, mean over queries, the share of its variance
        over examples that lies between classes, ``sum_c n_c |mean_c - mean|^2 / sum_i |x_i - mean|^2``, keys summed;
        ``null_mean`` of permuted labels, which is about ``(C - 1) / (n - 1)``, and ``excess``, the difference;
        ``p_value`` and ``q_value``, Benjamini-Hochberg's over the heads of a checkpoint and layer;
        ``preferred_class``, the one whose mean lies farthest from the others', weighted by its size.

    Raises
    ------
    DimensionError, NotFoundError
        As `ndt_query.attention_entropy` does; there are no labels.
    InvalidInputError
        There is one class only.

    Notes
    -----
    NaN where a head never varies or holds a NaN. One pass; memory is ``8 example * head * key`` bytes for one
    checkpoint. The statistic is that of a permutational analysis of variance (Anderson 2001).
    """
    require_count("n_permutations", n_permutations, 1)
    patterns = patterns_of(data)
    classes = as_classes(patterns, labels)
    received = patterns.mean(QUERY, dtype=np.float64, skipna=False)
    lead = CHECKPOINT in received.dims
    n_checkpoints = received.sizes[CHECKPOINT] if lead else 1
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(classes.codes) for _ in range(n_permutations)])
    rows = []
    for place in range(n_checkpoints):
        one = received.isel({CHECKPOINT: place}) if lead else received
        rows.append(
            _between(one.transpose(EXAMPLE, HEAD, KEY).compute().values, classes.codes, orders, len(classes.names))
        )
    over = (CHECKPOINT, HEAD) if lead else (HEAD,)
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    found = {name: xr.DataArray(one if lead else one[0], dims=over) for name, one in arrays.items()}
    found["q_value"] = xr.DataArray(fdr(found["p_value"].values), dims=over)
    found["preferred_class"] = _named(found["preferred_class"], classes.names).where(found["eta_squared"].notnull())
    result = described_attention(
        found, data, "class selectivity of attention", {"n_permutations": n_permutations, "seed": seed}
    )
    return result.assign_coords({dim: received[dim] for dim in over if dim in received.coords})


def _named(places: xr.DataArray, names: NDArray[Any]) -> xr.DataArray:
    """Turn positions among classes into the classes."""
    return places.copy(data=(names.astype(np.float64) if names.dtype.kind in "iufb" else names.astype(object))[places])


def _between(values: F64, codes: NDArray[Any], orders: NDArray[Any], n_classes: int) -> dict[str, F64]:
    """Share of variance between classes of (example, head, key), for the classes and for permutations of them."""
    n, n_heads, n_keys = values.shape
    centred = values - values.mean(axis=0)
    # What never varies is 0 exactly, and not what rounding of its mean leaves.
    centred[:, np.ptp(values, axis=0) == 0] = 0.0
    flat = centred.reshape(n, -1)
    total = np.einsum("ehk,ehk->h", centred, centred)
    sizes = np.bincount(codes, minlength=n_classes)

    def parts(some: NDArray[Any]) -> F64:
        chosen = (some[:, None, :] == np.arange(n_classes)[:, None]).astype(np.float64)
        sums = (chosen.reshape(-1, n) @ flat).reshape(len(some), n_classes, n_heads, n_keys)
        found: F64 = np.einsum("pchk,pchk->pch", sums, sums) / sizes[:, None]
        return found

    with np.errstate(invalid="ignore", divide="ignore"):
        observed = parts(codes[None])[0]
        eta = observed.sum(axis=0) / total
        step = max(1, BATCH_NBYTES // (8 * n_classes * (n + flat.shape[1])))
        null = np.concatenate(
            [parts(orders[start : start + step]).sum(axis=1) / total for start in range(0, len(orders), step)]
        )
    # Rounding aside, the same split of examples gives the same share.
    p_value = np.where(np.isnan(eta), np.nan, null_p_value((null >= eta * (1 - 1e-12)).sum(axis=0), len(orders)))
    mean = null.mean(axis=0)
    return {
        "eta_squared": eta,
        "null_mean": mean,
        "excess": eta - mean,
        "p_value": p_value,
        "preferred_class": np.nan_to_num(observed).argmax(axis=0),
    }


@per_attention
def head_specialisation(
    data: OneLayer,
    *,
    n_groups: int = 20,
    n_permutations: int = 199,
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Say how different the heads of a layer are from each other, and whether more so than chance would have it.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        Attention patterns of two heads or more.
    n_groups : int
        Groups of examples, dealt at random, that intervals and null are made of.
    n_permutations : int
        Of the heads, within each group.
    confidence : float
        Level of the interval.
    seed : int
    memory : int or str, optional
        Budget, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        ``divergence`` ([checkpoint,] head, other_head): the Jensen-Shannon divergence between the mean patterns of two
        heads, mean over queries, in bits: 0 where they are the same, at most 1. Over [checkpoint]: ``specialisation``,
        its mean over pairs of heads, with ``specialisation_low`` and ``specialisation_high``, corrected for the bias of
        finite examples by a jackknife over groups, and so slightly below 0 at times where heads are the same;
        ``null_mean`` and ``null_95`` of permutations; ``p_value``. ``of_head`` ([checkpoint,] head): the mean
        divergence of a head from the others. ``divergence`` and ``of_head`` are not corrected.

    Raises
    ------
    DimensionError, NotFoundError
        As `ndt_query.attention_entropy` does.
    InvalidInputError
        There is one head only, or there are fewer than two examples.
    MemoryBudgetError
        The means of the groups exceed the budget.

    Notes
    -----
    The null says that heads are exchangeable: in each group the mean patterns are dealt to the heads at random. It
    serves the p value alone: where heads differ, dealing them mixes what differs, and the null rises with it. Of
    nominal 95% intervals 98 to 100% hold the divergence of 4 heads from 100 and 500 examples; without the correction,
    which finite examples raise by about one over their number, none does. One pass, and
    ``8 group * head * query * key`` bytes for a checkpoint.

    References
    ----------
    J. Lin, "Divergence measures based on the Shannon entropy", IEEE Transactions on Information Theory 37, 1991.
    """
    for name, value, least in (("n_groups", n_groups, 2), ("n_permutations", n_permutations, 1)):
        require_count(name, value, least)
    level = require_level(confidence)
    patterns = patterns_of(data)
    n, n_heads = patterns.sizes[EXAMPLE], patterns.sizes[HEAD]
    if n_heads < 2 or n < 2:
        raise InvalidInputError(
            f"There are {n_heads} heads and {n} examples: a comparison needs two of each, at least."
        )
    groups = deal(n, n_groups, seed)
    means = group_means(patterns, groups, what="specialisation of heads", memory=memory)
    weights = means["group_size"].values / n
    lead = CHECKPOINT in means.dims
    rng = np.random.default_rng(seed + 1)
    shuffles = rng.permuted(np.tile(np.arange(n_heads), (n_permutations, len(weights), 1)), axis=2)
    rows = []
    for place in range(means.sizes[CHECKPOINT] if lead else 1):
        one = (means.isel({CHECKPOINT: place}) if lead else means).compute().values
        rows.append(_specialised(one, weights, shuffles, level))
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    dims = {"divergence": (HEAD, OTHER), "of_head": (HEAD,)}
    found = {
        name: xr.DataArray(one if lead else one[0], dims=(*([CHECKPOINT] if lead else []), *dims.get(name, ())))
        for name, one in arrays.items()
    }
    parameters = {"n_groups": n_groups, "n_permutations": n_permutations, "confidence": confidence, "seed": seed}
    result = described_attention(found, data, "specialisation of heads", parameters)
    known = {dim: patterns[dim] for dim in (CHECKPOINT, HEAD) if dim in patterns.coords and dim in result.dims}
    return result.assign_coords(known)


def _specialised(means: F64, weights: F64, shuffles: NDArray[Any], level: float) -> dict[str, Any]:
    """Compare the heads of one checkpoint, from means (group, head, query, key)."""
    n_groups, n_heads = means.shape[:2]
    whole = np.tensordot(weights, means, 1)
    apart = divergences(whole)
    upper = np.triu_indices(n_heads, 1)
    estimate = apart[upper].mean()
    left_out = np.array(
        [divergences((whole - w * one) / (1 - w))[upper].mean() for w, one in zip(weights, means, strict=True)]
    )
    interval = jackknife(left_out, estimate, confidence=level, correct_bias=True)
    null = np.empty(len(shuffles))
    for place, order in enumerate(shuffles):
        dealt = np.zeros_like(whole)
        for group in range(n_groups):
            dealt += weights[group] * means[group, order[group]]
        null[place] = divergences(dealt)[upper].mean()
    reached = (null >= estimate * (1 - 1e-12)).sum()
    return {
        "divergence": apart,
        "of_head": apart.sum(axis=1) / (n_heads - 1),
        "specialisation": interval.estimate,
        "specialisation_low": interval.low,
        "specialisation_high": interval.high,
        "null_mean": null.mean(),
        "null_95": np.quantile(null, 0.95),
        "p_value": null_p_value(reached, len(null)) if np.isfinite(estimate) else np.nan,
    }
