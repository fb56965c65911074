"""The study of smooth learning: dimension, subspaces, similarity, disentanglement and gradients over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import xarray as xr

from ndt_query.anomalies import gradient_anomalies
from ndt_query.disentanglement import disentanglement
from ndt_query.geometry import dimensionality
from ndt_query.gradients import gradient_flow
from ndt_query.growth import fit_growth
from ndt_query.inputs import as_names, require_count, require_steps
from ndt_query.layers import described, each_layer, software
from ndt_query.moments import spread_places, training_checkpoints
from ndt_query.one_run import layer_of
from ndt_query.performance import performance
from ndt_query.similarity_matrix import cka_matrix
from ndt_query.subspaces import subspace_drift, subspace_overlap
from ndt_query.transitions import transition
from ndt_store.dims import CHECKPOINT, LAYER, PARAMETERS_GROUP, TRAINING_GROUP, UNIT
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["LEFT_OUT", "mlp_study"]

LEFT_OUT: Final = "left_out"
NEEDED: Final = ("performance", "dimensionality")
N_MOMENTS: Final = 8
MEASURES: Final = ("accuracy", "silhouette", "separation")


def mlp_study(
    store: Store,
    *,
    layers: str | Sequence[str] | None = None,
    checkpoints: Sequence[int] | None = None,
    k: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    memory: int | str | None = None,
) -> xr.DataTree:
    """Ask how a network's representations change while it learns, and whether they change smoothly.

    Meant for networks without heads and maps, and right for any: of the latter positions are averaged, but for the
    dimension and CKA, whose features they are.

    Parameters
    ----------
    store : Store
        With activations, labels and predictions.
    layers : str or sequence of str, optional
        In order of depth; by default all with activations.
    checkpoints : sequence of int, optional
        By default all. Let the first be that of the untrained network.
    k : int
        Components that span a subspace; layers without more units are left out of what is asked about subspaces.
    seed : int
        Of folds and nulls.
    progress : callable, optional
        Called as ``progress(done, total)`` after each part.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    DataTree
        ``performance``; ``dimensionality`` (checkpoint, layer) with intervals; ``overlap`` and ``drift`` of subspaces;
        ``cka`` and ``disentanglement`` of all layers at eight moments at most; ``last``, disentanglement of the last
        layer before the class scores at all checkpoints, and ``transition``, whether that changed gradually or
        suddenly; ``growth``, logistic fits of what was tracked while training; ``flow`` and ``anomalies`` of gradients,
        where they were captured and tracked. The attribute ``left_out`` says what is not there and why.

    Raises
    ------
    NotFoundError
        A layer or checkpoint is not there, or no labels and predictions are.
    InvalidInputError
        There is one checkpoint only.

    Notes
    -----
    One pass over each layer for dimension, subspaces and CKA, less where Gram views are there, and one for
    disentanglement, which takes longest: about half a second for each layer and moment of 2,000 examples.
    """
    if not isinstance(store, Store):
        raise InvalidInputError(f"A study is of a Store, which open_store gives: got {type(store).__name__}.")
    held = training_checkpoints(store)
    k, seed = require_count("k", k, 1), require_count("seed", seed, 0)
    able, wanted = dict(each_layer(store)), as_names(layers)
    missing = [name for name in wanted or [] if name not in able]
    if missing or wanted == []:
        named = ", ".join(missing) or "no layer"
        raise NotFoundError(f"{store.path} has no activations of {named}: it has {', '.join(able)}.")
    chosen = {name: able[name] for name in (able if wanted is None else wanted)}
    steps = held if checkpoints is None else sorted(set(checkpoints))
    require_steps(next(iter(chosen.values())), steps)
    if len(steps) < 2:
        raise InvalidInputError(f"checkpoints={list(checkpoints or [])} are fewer than two: a study compares moments.")
    acts = {name: one.sel({CHECKPOINT: steps}) for name, one in chosen.items()}
    spanned = {name: one for name, one in acts.items() if one.sizes[UNIT] > k}
    places = spread_places(len(steps), N_MOMENTS)
    at = {name: one.isel({CHECKPOINT: places}) for name, one in acts.items()}
    last = layer_of(store, None) if wanted is None else list(chosen)[-1]
    nodes: dict[str, xr.Dataset] = {}
    questions: dict[str, Callable[[], xr.Dataset]] = {
        "performance": lambda: performance(store).sel({CHECKPOINT: steps}),
        "dimensionality": lambda: dimensionality(acts, memory=memory),
        "overlap": lambda: subspace_overlap(_some(spanned, k), k, memory=memory),
        "drift": lambda: subspace_drift(_some(spanned, k), k, seed=seed, memory=memory),
        "cka": lambda: cka_matrix(at, memory=memory),
        "disentanglement": lambda: disentanglement(at, seed=seed, memory=memory),
        "last": lambda: disentanglement(acts[last], seed=seed, memory=memory).assign_attrs(layer=last),
        "transition": lambda: _transition(nodes, seed),
        "growth": lambda: _growth(store, seed),
        "flow": lambda: _flow(store, steps),
        "anomalies": lambda: _anomalies(store, seed),
    }
    left_out: dict[str, str] = {}
    for done, (name, ask) in enumerate(questions.items(), 1):
        try:
            nodes[name] = ask().compute()
        except (DimensionError, InvalidInputError, NotFoundError) as error:
            if name in NEEDED:
                raise
            # What was not captured or tracked, or is too short, is no fault of what else there is.
            left_out[name] = str(error)
        if progress is not None:
            progress(done, len(questions))
    tree = xr.DataTree.from_dict(nodes)
    parameters: dict[str, Any] = {"layers": list(chosen), "checkpoints": steps, "k": k, "seed": seed}
    tree.attrs = described({}, next(iter(acts.values())), "study of smooth learning", parameters, squeeze=False).attrs
    tree.attrs.pop("layer", None)
    tree.attrs |= {LEFT_OUT: "; ".join(f"{name}: {why}" for name, why in left_out.items()), "software": software()}
    return tree


def _some(spanned: dict[str, xr.DataArray], k: int) -> dict[str, xr.DataArray]:
    if not spanned:
        raise InvalidInputError(f"no layer has more than {k} units.")
    return spanned


def _transition(nodes: dict[str, xr.Dataset], seed: int) -> xr.Dataset:
    if "last" not in nodes:
        raise NotFoundError("there is no disentanglement of the last layer.")
    return transition(nodes["last"][list(MEASURES)], seed=seed)


def _growth(store: Store, seed: int) -> xr.Dataset:
    if TRAINING_GROUP not in store.catalogue.supplements:
        raise NotFoundError("nothing was tracked while training.")
    training = store.training
    if "participation_ratio" not in training:
        raise NotFoundError("the training tracked no participation_ratio.")
    return fit_growth(training["participation_ratio"].transpose(LAYER, "step"), seed=seed, n_resamples=100, n_null=199)


def _flow(store: Store, steps: Sequence[int]) -> xr.Dataset:
    if PARAMETERS_GROUP not in store.schema.group_paths():
        raise NotFoundError("the store holds no gradients of parameters.")
    return gradient_flow(store).sel({CHECKPOINT: list(steps)})


def _anomalies(store: Store, seed: int) -> xr.Dataset:
    if TRAINING_GROUP not in store.catalogue.supplements:
        raise NotFoundError("nothing was tracked while training.")
    return gradient_anomalies(store, seed=seed)
