"""What attention patterns look like: how spread, how sparse, how far they reach, and what they are on average."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from scipy import stats

from ndt_query.attention_data import patterns_of, per_attention, summary_of
from ndt_query.inputs import require_count, require_number
from ndt_query.intervals import require_level
from ndt_query.kernels.patterns import STATISTICS, distances, grid_distances, row_statistics
from ndt_query.layers import OneLayer, software
from ndt_store.dims import CHECKPOINT, EXAMPLE, HEAD, KEY, MEAN_PATTERN, QUERY
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = [
    "attention_distance",
    "attention_entropy",
    "attention_sparsity",
    "described_attention",
    "mean_pattern",
    "with_interval",
]

KEPT_THRESHOLD: Final = 0.1
"""The threshold of the share that captures keep in place of patterns."""


@per_attention
def attention_entropy(data: OneLayer, *, confidence: float = 0.95) -> xr.Dataset:
    """Entropy of attention, from 0 where each query attends to one key to 1 where it attends to all alike.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        Attention patterns, or a layer with the summaries that a capture kept in their place.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset ([checkpoint,] head)
        ``entropy``, the mean over examples and queries of ``-sum_k p_k ln p_k / ln K`` with K keys, and
        ``entropy_low``, ``entropy_high``, Student's t over examples. With a ``layer`` dimension for several layers.

    Raises
    ------
    DimensionError
        The dimensions are others.
    NotFoundError
        There is no attention.

    Notes
    -----
    Queries that attend to nothing are left out; an example without any other makes the head NaN, as a NaN does. Masked
    keys count in K, so that under a causal mask early queries cannot reach 1. NaN where there is one key. One pass.

    Examples
    --------
    >>> dims = ("example", "head", "query", "key")
    >>> heads = xr.DataArray(np.stack([np.eye(4), np.full((4, 4), 0.25)])[None].repeat(3, 0), dims=dims)
    >>> attention_entropy(heads)["entropy"].values.tolist()
    [0.0, 1.0]
    """
    return _measured(data, ["entropy"], "entropy of attention", confidence)


@per_attention
def attention_sparsity(data: OneLayer, *, threshold: float = KEPT_THRESHOLD, confidence: float = 0.95) -> xr.Dataset:
    """Sparsity of attention by three measures.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        As for `attention_entropy`.
    threshold : float
        Of ``share``; summaries have it at 0.1.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset ([checkpoint,] head)
        Each the mean over examples and queries, with ``_low`` and ``_high``, Student's t over examples:
        ``hoyer``, ``(sqrt(K) - |p|_1 / |p|_2) / (sqrt(K) - 1)``, 0 for uniform rows and 1 for one key (Hoyer 2004);
        ``gini``, the Gini index of a row, 0 for uniform rows and ``1 - 1 / K`` for one key (Hurley and Rickard 2009);
        ``share`` of keys whose probability exceeds `threshold`.

    Raises
    ------
    DimensionError, NotFoundError
        As `attention_entropy` does.
    InvalidInputError
        The threshold is no number from 0 to below 1, or another than that of the summaries.

    Notes
    -----
    Queries that attend to nothing and NaN as in `attention_entropy`. One pass.
    """
    require_number("threshold", threshold, below=1.0)
    return _measured(data, ["hoyer", "gini", "share"], "sparsity of attention", confidence, threshold)


@per_attention
def attention_distance(
    data: OneLayer, *, grid: tuple[int, int] | None = None, n_prefix: int = 0, confidence: float = 0.95
) -> xr.Dataset:
    """How far a head looks on average.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        As for `attention_entropy`.
    grid : (rows, columns), optional
        Tokens are patches of an image in reading order: distances are Euclidean, in patches. Without it they are
        ``|query - key|``, in tokens.
    n_prefix : int
        Tokens before the patches, such as a class token; they are left out as queries and as keys, and what is left of
        a row is made to sum to 1. Queries that attend to these tokens alone are left out.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset ([checkpoint,] head)
        ``distance``, the mean over examples and queries of ``sum_k p_k d(q, k)``, with ``distance_low`` and
        ``distance_high``, Student's t over examples; ``uniform_distance`` (), that of attention to all alike.

    Raises
    ------
    DimensionError
        The dimensions are others, or the grid has not as many patches as there are tokens.
    NotFoundError
        There is no attention, or summaries alone, which know of no grid.

    Notes
    -----
    Queries that attend to nothing and NaN as in `attention_entropy`. One pass.
    """
    require_count("n_prefix", n_prefix, 0)
    what = "distance of attention"
    if grid is None and not n_prefix:
        found = _measured(data, ["distance"], what, confidence)
        return found.assign(uniform_distance=((), float(distances(data.sizes[QUERY], data.sizes[KEY]).mean())))
    patterns = patterns_of(data)
    fewest = min(patterns.sizes[QUERY], patterns.sizes[KEY])
    if n_prefix >= fewest:
        raise InvalidInputError(f"n_prefix={n_prefix} leaves no patch: there are {fewest} tokens in all.")
    patterns = patterns.isel({QUERY: slice(n_prefix, None), KEY: slice(n_prefix, None)})
    n = patterns.sizes[QUERY]
    if grid is None:
        apart = distances(n, patterns.sizes[KEY])
    else:
        pair = isinstance(grid, Sequence) and len(grid) == 2
        if not pair or grid[0] * grid[1] != n or n != patterns.sizes[KEY]:
            raise DimensionError(
                f"grid={grid!r} does not fit {n} queries and {patterns.sizes[KEY]} keys beside {n_prefix} tokens "
                "before them: expected rows times columns to be both."
            )
        apart = grid_distances(*grid)
    patterns = patterns.astype(np.result_type(patterns.dtype, np.float32))
    total = patterns.sum(KEY, skipna=False)
    # A query with nothing left to attend to is a row of zeros, which is left out; NaN stays.
    found = _from_patterns((patterns / total).where(total != 0, 0.0), ["distance"], what, confidence, apart=apart)
    return found.assign(uniform_distance=((), float(apart.mean())))


@per_attention
def mean_pattern(data: OneLayer) -> xr.Dataset:
    """Mean attention pattern of each head.

    Parameters
    ----------
    data : DataArray or Dataset ([checkpoint,] example, head, query, key), or Store, DataTree or mapping of layers
        As for `attention_entropy`.

    Returns
    -------
    Dataset ([checkpoint,] head, query, key)
        ``pattern``, float64; rows sum to 1 where every example's do.

    Raises
    ------
    DimensionError, NotFoundError
        As `attention_entropy` does.
    InvalidInputError
        Examples were selected from a layer that keeps the mean of all of them alone.

    Notes
    -----
    NaN stays NaN. One pass, none where a capture kept the mean in place of patterns.
    """
    held = summary_of(data, MEAN_PATTERN)
    if held is not None:
        _require_all_examples(held, data)
    mean = (
        held.astype(np.float64) if held is not None else patterns_of(data).mean(EXAMPLE, dtype=np.float64, skipna=False)
    )
    return described_attention({"pattern": mean}, data, "mean attention pattern", {})


def with_interval(name: str, values: xr.DataArray, level: float) -> dict[str, xr.DataArray]:
    """Return the mean over examples, lazy where the values are, and the limits of Student's t, by name."""
    n = values.sizes[EXAMPLE]
    mean = values.mean(EXAMPLE, skipna=False)
    reach = stats.t.ppf((1 + level) / 2, n - 1) / math.sqrt(n) if n > 1 else math.nan
    half = reach * values.std(EXAMPLE, ddof=1, skipna=False) if n > 1 else mean * math.nan
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def _require_all_examples(mean: xr.DataArray, data: OneLayer) -> None:
    n, of = data.sizes.get(EXAMPLE), mean.attrs.get("n_examples")
    if n is not None and of is not None and n != of:
        raise InvalidInputError(
            f"The layer holds the mean pattern of {of} examples and {n} were selected: the mean of some needs "
            "patterns, so capture the kind attentions, or ask about all examples."
        )


def described_attention(
    variables: Mapping[str, Any], data: OneLayer, what: str, parameters: Mapping[str, Any]
) -> xr.Dataset:
    """Make the Dataset of a result about attention: variables, and attributes that say what they are."""
    source = data if isinstance(data, xr.DataArray) else next(iter(data.data_vars.values()))
    found = xr.Dataset(dict(variables))
    found = found.drop_vars([name for name in found.coords if name not in found.dims and name != CHECKPOINT])
    known = {name: source.attrs[name] for name in ("store", "layer") if name in source.attrs}
    n = data.sizes.get(EXAMPLE)
    found.attrs = {"what": what, **known, "parameters": json.dumps(dict(parameters), sort_keys=True)}
    found.attrs |= {"software": software()} | ({} if n is None else {"n_examples": n})
    for one in found.data_vars.values():
        one.attrs = {}
    return found


def _measured(
    data: OneLayer, names: list[str], what: str, confidence: float, threshold: float = KEPT_THRESHOLD
) -> xr.Dataset:
    """Take measures from summaries where there are no patterns."""
    held = {name: summary_of(data, f"attention_{name}") for name in names}
    if any(one is None for one in held.values()):
        return _from_patterns(patterns_of(data), names, what, confidence, threshold=threshold)
    if "share" in names and threshold != KEPT_THRESHOLD:
        raise InvalidInputError(
            f"threshold={threshold} is asked for, and the capture kept summaries with {KEPT_THRESHOLD} in place of "
            "patterns: take that, or capture the kind attentions."
        )
    values = {name: one.astype(np.float64) for name, one in held.items() if one is not None}
    return _with_intervals(values, data, what, confidence, threshold)


def _from_patterns(
    patterns: xr.DataArray,
    names: list[str],
    what: str,
    confidence: float,
    *,
    threshold: float = KEPT_THRESHOLD,
    apart: Any = None,
) -> xr.Dataset:
    if patterns.dtype not in (np.float32, np.float64):
        patterns = patterns.astype(np.float32 if patterns.dtype == np.float16 else np.float64)
    if patterns.chunks is not None:
        patterns = patterns.chunk({HEAD: -1, QUERY: -1, KEY: -1})
    if apart is None:
        apart = distances(patterns.sizes[QUERY], patterns.sizes[KEY])
    dims = (*(dim for dim in patterns.dims if dim not in (QUERY, KEY)), "statistic")
    options: dict[str, Any] = {"apart": apart, "threshold": threshold}
    if patterns.chunks is None:
        data = row_statistics(np.asarray(patterns.data), **options)
    else:
        # Named by what it is, so that questions which are computed together share it.
        axis = patterns.ndim - 2
        cut = (*patterns.chunks[:axis], (len(STATISTICS),))
        data = da.map_blocks(
            row_statistics, patterns.data, **options, drop_axis=[axis, axis + 1], new_axis=axis, chunks=cut,
            dtype=np.float64, meta=np.empty((0,) * len(dims)),
        )  # fmt: skip
    kept = {name: one for name, one in patterns.coords.items() if not {QUERY, KEY} & set(one.dims)}
    values = xr.DataArray(data, kept, dims, attrs=patterns.attrs)
    chosen = {name: values.isel(statistic=STATISTICS.index(name)) for name in names}
    return _with_intervals(chosen, patterns, what, confidence, threshold)


def _with_intervals(
    values: Mapping[str, xr.DataArray], data: OneLayer, what: str, confidence: float, threshold: float
) -> xr.Dataset:
    level = require_level(confidence)
    found: dict[str, xr.DataArray] = {}
    for name, one in values.items():
        found |= with_interval(name, one, level)
    return described_attention(found, data, what, {"confidence": confidence, "threshold": threshold})
