"""Attention through all layers: what each output token takes from each input token, and where it has to pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention import with_interval
from ndt_query.attention_data import attention_layers, patterns_of
from ndt_query.inputs import as_names, require_number
from ndt_query.intervals import require_level
from ndt_query.kernels.flow import maximal_flow, mixed, rollout, throughput
from ndt_query.layers import Whole, software
from ndt_store.dims import ATTENTIONS, CHECKPOINT, EXAMPLE, HEAD, KEY, LAYER, QUERY, TOKEN
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["attention_flow", "attention_rollout", "flow_metrics"]

F64 = NDArray[np.float64]

DEPTH: Final = "depth"
MEASURES: Final = ("flow_entropy", "input_diversity", "output_concentration")


def attention_rollout(
    store: Whole, *, layers: str | Sequence[str] | None = None, residual: bool = True
) -> xr.DataArray:
    """Say what each output token takes from each input token, by multiplying attention through the layers.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        Attention patterns, as many queries as keys and as many in each layer.
    layers : sequence of str, optional
        In order of depth; by default all that hold patterns, in the order of capture. Name those of one stack where
        there are several, such as an encoder and a decoder.
    residual : bool
        Add the residual stream: heads are averaged, the identity is added, and rows are made to sum to 1. Without it
        heads are averaged alone.

    Returns
    -------
    DataArray ([checkpoint,] example, query, key)
        Rows sum to 1; lazy where the patterns are. Without `residual`, rows that attend to nothing are 0.

    Raises
    ------
    NotFoundError
        A layer is not there or holds no patterns.
    DimensionError
        Layers differ in their tokens, or have other keys than queries.
    InvalidInputError
        Several layers of a DataTree, which keeps no order of depth, and `layers` is not given.

    Notes
    -----
    One pass over each layer. Rollout takes attention for the whole of what passes: values, feed-forward parts and signs
    are not in it.

    References
    ----------
    S. Abnar, W. Zuidema, "Quantifying attention flow in transformers", ACL 2020.
    """
    chosen = _chosen(store, layers)
    parts = [_mixed(one, residual) for one in chosen.values()]
    found = parts[0]
    for one in parts[1:]:
        found = _times(one, found)
    found.name = "rollout"
    found.attrs = _attrs(chosen, "attention rollout", {"residual": residual})
    return found


def attention_flow(
    store: Whole, examples: Sequence[int], *, layers: str | Sequence[str] | None = None, residual: bool = True
) -> xr.DataArray:
    """Say how much attention can flow from each input token to each output token at most, for some examples.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        As for `attention_rollout`.
    examples : sequence of int
        Labels of the examples.
    layers, residual
        As for `attention_rollout`.

    Returns
    -------
    DataArray ([checkpoint,] example, query, key)
        The value of the maximal flow in the graph whose edges are attention, in memory; at most 1.

    Raises
    ------
    NotFoundError
        As `attention_rollout`; an example is not there.
    DimensionError
        As `attention_rollout`.

    Notes
    -----
    About 0.1 ms for each pair of tokens, layer, example and checkpoint; exact to 1e-7. See `ndt_query.kernels.flow`.
    """
    chosen = _chosen(store, layers)
    wanted = [examples] if isinstance(examples, int | np.integer) else list(examples)
    parts = []
    for name, one in chosen.items():
        missing = [label for label in wanted if label not in one[EXAMPLE].values]
        if missing or not wanted:
            raise NotFoundError(f"Layer {name!r} has no example {missing[0] if missing else 'at all to ask about'}.")
        parts.append(_mixed(one.sel({EXAMPLE: wanted}), residual).compute())
    first = parts[0]
    arrays = [part.values.reshape(-1, *part.shape[-2:]) for part in parts]
    flows = np.stack([maximal_flow([array[place] for array in arrays]) for place in range(len(arrays[0]))])
    found = first.copy(data=flows.reshape(first.shape))
    found.name = "flow"
    found.attrs = _attrs(chosen, "attention flow", {"residual": residual})
    return found


def flow_metrics(
    store: Whole,
    *,
    layers: str | Sequence[str] | None = None,
    residual: bool = True,
    factor: float = 2.0,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Measure how attention flows through the layers, with intervals over examples.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        As for `attention_rollout`.
    layers, residual
        As for `attention_rollout`.
    factor : float
        A token is a bottleneck when more than `factor` times its even share passes it.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset
        Over [checkpoint], each with ``_low`` and ``_high``, Student's t over examples, of the rollout with T tokens:
        ``flow_entropy``, mean over output tokens of the entropy of their row over ``ln T``, 0 where each takes from one
        token; ``input_diversity``, ``exp`` of the entropy of the mean row over T, the share of input tokens that are
        used; ``output_concentration``, ``1 - (H(mean row) - mean H(row)) / ln T``, 1 where all outputs take from the
        same and 0 where each takes from its own. ``throughput`` ([checkpoint,] depth, token) with ``_low`` and
        ``_high``: the share of what all outputs take that passes the token before that layer, depth 0 the inputs; each
        depth sums to 1. ``bottleneck`` ([checkpoint,] depth, token): ``throughput_low`` exceeds ``factor / T``.

    Raises
    ------
    NotFoundError, DimensionError
        As `attention_rollout` does.

    Notes
    -----
    One pass over each layer; memory is that of one chunk of each layer for each thread. NaN is not skipped.
    """
    require_number("factor", factor)
    level = require_level(confidence)
    chosen = _chosen(store, layers)
    aligned = _rechunked(chosen)
    measures, passed = xr.apply_ufunc(
        _measured, *aligned, kwargs={"residual": residual}, input_core_dims=[[HEAD, QUERY, KEY]] * len(aligned),
        output_core_dims=[["measure"], [DEPTH, TOKEN]], dask="parallelized", output_dtypes=[np.float64, np.float64],
        exclude_dims={HEAD},
        dask_gufunc_kwargs={
            "output_sizes": {"measure": len(MEASURES), DEPTH: len(aligned), TOKEN: aligned[0].sizes[KEY]}
        },
    )  # fmt: skip
    values = {name: measures.isel(measure=place) for place, name in enumerate(MEASURES)} | {"throughput": passed}
    found: dict[str, xr.DataArray] = {}
    for name, one in values.items():
        found |= with_interval(name, one, level)
    result = xr.Dataset(found).compute()
    result["bottleneck"] = result["throughput_low"] > factor / result.sizes[TOKEN]
    result = result.drop_vars([name for name in result.coords if name not in (CHECKPOINT, TOKEN)])
    result = result.assign_coords({LAYER: (DEPTH, list(chosen))})
    parameters = {"residual": residual, "factor": factor, "confidence": confidence}
    result.attrs = _attrs(chosen, "flow of attention", parameters)
    return result


def _chosen(store: Whole, layers: str | Sequence[str] | None) -> dict[str, xr.DataArray]:
    held = dict(attention_layers(store))
    able = [name for name, one in held.items() if ATTENTIONS in one]
    if layers is None and isinstance(store, xr.DataTree) and len(able) > 1:
        raise InvalidInputError(
            f"A DataTree keeps its layers by name and not by depth: give layers= in order, of {', '.join(able)}, or "
            "pass the store."
        )
    wanted = as_names(layers)
    missing = [name for name in wanted or [] if name not in held]
    if missing:
        raise NotFoundError(f"There is no attention of layer {missing[0]!r}: there is of {', '.join(held)}.")
    found = {name: patterns_of(held[name]) for name in (wanted if wanted is not None else able or held)}
    sizes = {(one.sizes[QUERY], one.sizes[KEY]) for one in found.values()}
    if len(sizes) > 1 or any(q != k for q, k in sizes):
        said = ", ".join(f"{name} {one.sizes[QUERY]} x {one.sizes[KEY]}" for name, one in found.items())
        raise DimensionError(
            f"Attention flows through layers of as many queries as keys, the same in all: these have {said}; name "
            "layers that follow each other."
        )
    return found


def _rechunked(chosen: dict[str, xr.DataArray]) -> list[xr.DataArray]:
    """Return the patterns without coordinates of their own, cut alike."""
    first = next(iter(chosen.values()))
    found = []
    for one in chosen.values():
        bare = one.drop_vars([name for name in one.coords if name in (HEAD, QUERY, KEY)])
        if one.chunks is not None:
            cut = {dim: first.chunksizes[dim] for dim in (CHECKPOINT, EXAMPLE) if dim in first.chunksizes}
            bare = bare.chunk({**cut, HEAD: -1, QUERY: -1, KEY: -1})
        found.append(bare)
    return found


def _mixed(patterns: xr.DataArray, residual: bool) -> xr.DataArray:
    if patterns.chunks is not None:
        patterns = patterns.chunk({HEAD: -1, QUERY: -1, KEY: -1})
    found: xr.DataArray = xr.apply_ufunc(
        mixed, patterns, kwargs={"residual": residual}, input_core_dims=[[HEAD, QUERY, KEY]],
        output_core_dims=[[QUERY, KEY]], dask="parallelized", output_dtypes=[np.float64],
    )  # fmt: skip
    return found


def _times(above: xr.DataArray, below: xr.DataArray) -> xr.DataArray:
    """Multiply (..., query, via) by (..., via, key)."""
    left, right = above.rename({KEY: "via"}).drop_vars("via", errors="ignore"), below.rename({QUERY: "via"})
    found: xr.DataArray = xr.apply_ufunc(
        np.matmul, left, right.drop_vars("via", errors="ignore"), input_core_dims=[[QUERY, "via"], ["via", KEY]],
        output_core_dims=[[QUERY, KEY]], dask="parallelized", output_dtypes=[np.float64],
    )  # fmt: skip
    return found


def _measured(*patterns: NDArray[Any], residual: bool) -> tuple[F64, F64]:
    """Measures (..., measure) and throughput (..., depth, token) of blocks of every layer."""
    layers = [mixed(one, residual) for one in patterns]
    rolled = rollout(layers)
    n = rolled.shape[-1]
    whole = math.log(n) if n > 1 else math.nan
    rows, mean = _entropy(rolled).mean(axis=-1), _entropy(rolled.mean(axis=-2))
    measures = np.stack([rows / whole, np.exp(mean) / n, 1 - (mean - rows) / whole], axis=-1)
    return measures, throughput(layers)


def _entropy(rows: F64) -> F64:
    found: F64 = -np.einsum("...k,...k->...", rows, np.log(np.maximum(rows, np.finfo(np.float64).tiny)))
    return found


def _attrs(chosen: dict[str, xr.DataArray], what: str, parameters: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(chosen.values()))
    known = {"store": first.attrs["store"]} if "store" in first.attrs else {}
    said = json.dumps({"layers": list(chosen), **parameters}, sort_keys=True)
    return {"what": what, **known, "n_examples": first.sizes[EXAMPLE], "parameters": said, "software": software()}
