"""From pairs of layers to a graph of units: edges from composed late units to the early ones they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr

from ndt_query.composing import EARLY
from ndt_query.composition import compose
from ndt_query.inputs import require_number, require_steps
from ndt_query.layers import Whole, described, each_layer
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = ["EDGE", "NAMES", "NUMBERS", "Compositions", "Pair", "compose_pairs", "composition_graph"]

Pair: TypeAlias = tuple[str, str]
Compositions: TypeAlias = Mapping[Pair, xr.Dataset]

ADJACENT: Final = "adjacent"
EDGE: Final = "edge"

# What a graph says of each edge, and what that is called in the results of `compose`.
NAMES: Final = ("early_layer", "early_unit", "late_layer", "late_unit")
NUMBERS: Final = {"weight": "coefficient", "share": "share", "leave_out": "leave_out", "r2": "r2"}


def compose_pairs(
    data: Whole, pairs: str | Iterable[Pair] = ADJACENT, *, checkpoint: int | None = None, **options: Any
) -> dict[Pair, xr.Dataset]:
    """Ask `compose` about pairs of layers, one pair after the other.

    Parameters
    ----------
    data : Store, DataTree, or mapping of layers to arrays or Datasets
        Activations.
    pairs : "adjacent" or iterable of (str, str)
        Early and late layer of each pair, or every two neighbours in the order of `data`, which for a store is the
        order in which the layers were captured.
    checkpoint : int, optional
        Only this training step, whose dimension the results then lack.
    **options
        Passed on to `compose`.

    Returns
    -------
    dict of (str, str) to Dataset
        The result of each pair, in memory.

    Raises
    ------
    InvalidInputError
        `pairs` are none, or pair a layer with itself.
    NotFoundError
        A layer or the checkpoint is not there.

    Notes
    -----
    Pairs are computed in turn, so that memory is that of the largest; a layer that is in two pairs is read twice.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = xr.DataArray(rng.standard_normal((60, 4)), dims=("example", "unit"))
    >>> results = compose_pairs({"a": rows, "b": 2 * rows, "c": rows**2})
    >>> {pair: int(result["composed"].sum()) for pair, result in results.items()}
    {('a', 'b'): 4, ('b', 'c'): 0}
    """
    layers = dict(each_layer(data))
    found = {}
    for early, late in _pairs(tuple(layers), pairs):
        one, other = layers[early], layers[late]
        if checkpoint is not None:
            require_steps(one, [checkpoint])
            require_steps(other, [checkpoint])
            one, other = one.sel({CHECKPOINT: checkpoint}), other.sel({CHECKPOINT: checkpoint})
        result = compose(one, other, **options).compute()
        result.attrs |= {"early_layer": early, "layer": late}
        found[early, late] = result
    return found


def composition_graph(
    data: Whole | Compositions,
    pairs: str | Iterable[Pair] = ADJACENT,
    *,
    checkpoint: int | None = None,
    least_share: float = 0.05,
    **options: Any,
) -> xr.Dataset:
    """Draw up the graph of which late units are composed of which early ones, at one checkpoint.

    Parameters
    ----------
    data : Store, DataTree, mapping of layers, or the results of `compose_pairs`
        Activations, or what was found of them.
    pairs : "adjacent" or iterable of (str, str)
        As for `compose_pairs`; of its results, those that are meant.
    checkpoint : int, optional
        Training step; the last one without it.
    least_share : float
        The first contributor of a composed unit always makes an edge, others with at least this share of the
        coefficients do. Ridge spreads coefficients: of many early units, each has a small share.
    **options
        Passed on to `compose`.

    Returns
    -------
    Dataset
        Over ``edge``, by late layer and unit and there the largest weight first: ``early_layer``, ``early_unit``,
        ``late_layer``, ``late_unit``; ``weight``, the standardised coefficient; ``share`` and ``leave_out`` as from
        `compose`; ``r2`` of the late unit. Only composed units have edges, at most ``k`` each. The attribute ``layers``
        holds the number of units of each layer as JSON, ``checkpoint`` the step.

    Raises
    ------
    InvalidInputError, NotFoundError, DimensionError
        As for `compose_pairs`; or results that span checkpoints lack this one.

    Notes
    -----
    Cost: that of `compose` for each pair. An edge says that activity goes together on these examples, not that one unit
    makes the other; coefficients of early units that resemble each other may be split among them in any way.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> rows = xr.DataArray(rng.standard_normal((90, 8)), dims=("example", "unit"))
    >>> late = (rows.isel(unit=2) - rows.isel(unit=5)).expand_dims("unit", axis=1)
    >>> graph = composition_graph({"conv1": rows, "conv2": late})
    >>> sorted(zip(graph["early_unit"].values.tolist(), np.sign(graph["weight"].values).tolist()))
    [(2, 1.0), (5, -1.0)]
    """
    require_number("least_share", least_share, 1)
    if isinstance(data, Mapping) and data and all(isinstance(key, tuple) for key in data):
        if options:
            raise InvalidInputError(f"Results are there already: leave out {', '.join(options)}.")
        given: Any = data
        results = {pair: _at(given[pair], checkpoint) for pair in _known(data, pairs)}
    else:
        layers = {name: _last(acts) if checkpoint is None else acts for name, acts in each_layer(data)}
        results = compose_pairs(layers, pairs, checkpoint=checkpoint, **options)
    return _graph(results, least_share)


def _pairs(layers: tuple[str, ...], pairs: str | Iterable[Pair]) -> list[Pair]:
    if isinstance(pairs, str):
        if pairs != ADJACENT:
            raise InvalidInputError(f"pairs={pairs!r} is not an option: expected 'adjacent' or pairs of layers.")
        chosen = list(pairwise(layers))
        if not chosen:
            raise InvalidInputError(f"A pair needs two layers: there is {', '.join(layers)} alone.")
        return chosen
    chosen = [_pair(one) for one in pairs]
    if not chosen:
        raise InvalidInputError("pairs is empty: give pairs of layers, or 'adjacent'.")
    for name in (name for pair in chosen for name in pair):
        if name not in layers:
            raise NotFoundError(f"There is no layer {name!r} with activations: there are {', '.join(layers)}.")
    return chosen


def _pair(given: Any) -> Pair:
    if isinstance(given, str) or len(given) != 2 or given[0] == given[1]:
        raise InvalidInputError(f"{given!r} is no pair: expected the names of an early layer and of another, late one.")
    return str(given[0]), str(given[1])


def _known(results: Any, pairs: str | Iterable[Pair]) -> list[Pair]:
    if isinstance(pairs, str):
        return list(results)
    chosen = [_pair(one) for one in pairs]
    for pair in chosen:
        if pair not in results:
            raise NotFoundError(f"There is no result of {pair}: there are those of {', '.join(map(str, results))}.")
    return chosen


def _last(acts: xr.DataArray) -> xr.DataArray:
    return acts.isel({CHECKPOINT: -1}) if CHECKPOINT in acts.dims else acts


def _at(result: xr.Dataset, checkpoint: int | None) -> xr.Dataset:
    if CHECKPOINT not in result.dims:
        return result
    if checkpoint is None:
        return result.isel({CHECKPOINT: -1})
    require_steps(result["r2"], [checkpoint])
    return result.sel({CHECKPOINT: checkpoint})


def _graph(results: Compositions, least_share: float) -> xr.Dataset:
    columns: dict[str, list[Any]] = {name: [] for name in (*NAMES, *NUMBERS)}
    layers: dict[str, int] = {}
    for (early, late), result in results.items():
        parameters = json.loads(result.attrs["parameters"])
        layers |= {early: parameters["early_units"], late: result.sizes[UNIT]}
        enough = (result["share"] >= least_share).transpose(UNIT, "rank").values
        enough[:, 0] = True
        shown = enough & result["composed"].values[:, None]
        unit, rank = np.nonzero(shown)
        columns["early_layer"] += [early] * len(unit)
        columns["late_layer"] += [late] * len(unit)
        columns["early_unit"] += result[EARLY].values[unit, rank].tolist()
        columns["late_unit"] += result[UNIT].values[unit].tolist()
        for name, source in NUMBERS.items():
            values = result[source].values
            columns[name] += (values[unit, rank] if values.ndim == 2 else values[unit]).tolist()
    kinds = {name: str if name.endswith("layer") else np.int64 for name in NAMES}
    variables = {
        name: xr.Variable((EDGE,), np.asarray(values, dtype=kinds.get(name, np.float64)))
        for name, values in columns.items()
    }
    first = next(iter(results.values()))
    graph = described(variables, first["r2"].assign_attrs(first.attrs), "graph of composed units",
                      {"least_share": least_share, **json.loads(first.attrs["parameters"])}, squeeze=False)  # fmt: skip
    graph.attrs = {name: graph.attrs[name] for name in graph.attrs if name not in ("layer", "commits")}
    graph.attrs |= {"layers": json.dumps(layers), "n_examples": first.attrs["n_examples"]}
    if CHECKPOINT in first.coords:
        graph.attrs[CHECKPOINT] = int(first[CHECKPOINT])
    return graph
