"""The study of a CNN as one call: how it does, what its units answer to, what wakes up, and what is made of what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.emerging import half_risen
from ndt_query.graphs import compose_pairs
from ndt_query.inputs import as_names, require_number, require_steps
from ndt_query.layers import described, node_name
from ndt_query.moments import Pairs, default_pairs, spread_pairs, training_checkpoints
from ndt_query.performance import performance
from ndt_query.profile import images_of
from ndt_query.proportions import clopper_pearson
from ndt_query.selectivity import selectivity_index
from ndt_query.unit_types import type_shares, unit_types
from ndt_query.waking import WOKEN, pictured, waking_units
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, EXAMPLE, LAYER, UNIT, X, Y
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store
from ndt_store.selection import unit_layers

__all__ = ["LEFT_OUT", "cnn_study", "emergence"]

N_MOMENTS: Final = 5
SKIP: Final = 2
"""Layers from an early one to the late one that is asked to be made of it: (0, 2), (1, 3), (2, 4)."""

LEFT_OUT: Final = "left_out"

Progress = Callable[[int, int], None]


def cnn_study(
    store: Store,
    *,
    layers: str | Sequence[str] | None = None,
    checkpoints: Sequence[int] | None = None,
    pairs: Pairs | None = None,
    selective: Mapping[str, xr.Dataset] | None = None,
    n_permutations: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
    memory: int | str | None = None,
) -> xr.DataTree:
    """Ask everything that the study asks of a CNN, at some moments of its training.

    Parameters
    ----------
    store : Store
        With activations of conv layers, labels and predictions; types are left out where the inputs are no images.
    layers : sequence of str, optional
        In order of depth; all that have activations without it. Types are asked of those with positions y and x.
    checkpoints : sequence of int, optional
        Moments; by default the first checkpoint and five more that span training. The first is what the others are
        compared with: let it be that of the untrained network.
    pairs : sequence of (before, after) or mapping of role to such, optional
        Of `waking_units`; by default from moment to moment, and where no `checkpoints` are given also about the jumps
        and controls of the tracked training, as far as the store holds them.
    selective : mapping of layer to Dataset, optional
        From `selectivity_index`, at the moments or more, where it was asked for already.
    n_permutations, seed : int
        Of the labels, for the p values of selectivity.
    progress : callable, optional
        Called as ``progress(done, total)`` after each part.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    DataTree
        ``performance`` as of `ndt_query.performance`; ``selectivity/LAYER`` as of `selectivity_index`; ``types/LAYER``
        as of `type_shares`, for conv layers; ``waking`` as of `waking_units`; ``stimuli``, what drives the woken units
        that fire most: ``input`` and ``label`` over ``example``, where inputs are images; ``composition/EARLY--LATE``
        as of `compose` without intervals, for each layer and the second after it, or its neighbour where there are two;
        ``emergence`` as of `emergence`. In names of nodes "/" is "%2F". The attribute ``left_out`` says which
        compositions are not there and why.

    Raises
    ------
    NotFoundError
        A layer or checkpoint is not there.
    InvalidInputError
        There is one checkpoint only.

    Notes
    -----
    One pass over each layer at the moments, and one more for each composition it is in and for the units that woke up;
    rates, ranks and sums by class come from views. Memory is that of the largest query.
    """
    held = training_checkpoints(store)
    chosen = _layers(store, layers)
    if checkpoints is not None:
        require_steps(store[chosen[0]][ACTIVATIONS], checkpoints)
    ends = spread_pairs(held, N_MOMENTS)
    steps = sorted(set(checkpoints)) if checkpoints is not None else [ends[0][0], *(after for _, after in ends)]
    if len(steps) < 2:
        raise InvalidInputError(f"checkpoints={list(checkpoints or [])} are fewer than two: a study compares moments.")
    moments = pairs
    if moments is None:
        moments = spanning = list(pairwise(steps))
        about = default_pairs(store)[0] if checkpoints is None else spanning
        if isinstance(about, Mapping):
            moments = {**about, "": spanning}
    acts = {layer: store[layer][ACTIVATIONS].sel({CHECKPOINT: steps}) for layer in chosen}
    has_images = images_of(store, store.examples[:1]) is not None
    conv = [layer for layer in chosen if has_images and {Y, X} <= set(acts[layer].dims)]
    linked = _linked(chosen)
    total, done = len(chosen) + len(conv) + len(linked) + 2, 0

    def told() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    permuted: dict[str, Any] = {"n_permutations": n_permutations, "seed": seed, "memory": memory}
    nodes: dict[str, xr.Dataset] = {"performance": performance(store).sel({CHECKPOINT: steps})}
    told()
    # Before what takes long: it looks at the pairs.
    nodes["waking"] = waking_units({layer: store[layer][ACTIVATIONS] for layer in chosen}, moments, **permuted)
    told()
    if has_images:
        nodes |= _stimuli(store, nodes["waking"])
    known: dict[str, xr.Dataset] = {}
    left_out: dict[str, str] = {}
    for layer in chosen:
        given = None if selective is None else selective.get(layer)
        found = (
            selectivity_index(acts[layer], **permuted).compute() if given is None else given.sel({CHECKPOINT: steps})
        )
        known[layer] = nodes[f"selectivity/{node_name(layer)}"] = found
        told()
    for layer in conv:
        found = unit_types(store, layer, checkpoints=steps, selective=known[layer], memory=memory)
        nodes[f"types/{node_name(layer)}"] = type_shares(found)
        told()
    for pair in linked:
        try:
            made = compose_pairs({name: acts[name] for name in pair}, [pair], interval="none", memory=memory)
        except InvalidInputError as error:
            left_out[f"composition of {' and '.join(pair)}"] = str(error)
        else:
            nodes[f"composition/{node_name('--'.join(pair))}"] = made[pair]
        told()
    nodes["emergence"] = emergence(known)
    tree = xr.DataTree.from_dict(nodes)
    parameters = {"layers": chosen, "checkpoints": steps, "n_permutations": n_permutations, "seed": seed}
    tree.attrs = described({}, next(iter(acts.values())), "study of a CNN", parameters, squeeze=False).attrs
    tree.attrs.pop("layer", None)
    tree.attrs[LEFT_OUT] = "; ".join(f"{name}: {why}" for name, why in left_out.items())
    return tree


def _stimuli(store: Store, waking: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the inputs that drive the woken units to be pictured, nothing where none woke up."""
    if not waking.sizes[WOKEN]:
        return {}
    examples = np.unique(waking[EXAMPLE].isel({WOKEN: pictured(waking)}).values)
    return {"stimuli": store.root[["input", "label"]].sel({EXAMPLE: examples}).load()}


def emergence(selective: Mapping[str, xr.Dataset], *, least_auroc: float = 0.9, max_q: float = 0.05) -> xr.Dataset:
    """Say when the units of each layer came to tell one class from the others.

    Parameters
    ----------
    selective : mapping of layer to Dataset (checkpoint, unit)
        From `selectivity_index`.
    least_auroc, max_q : float
        A unit tells its preferred class from the others when its AUROC, held out, is at least this, at this false
        discovery rate.
        That it is not chance alone says little: nearly all units of an untrained network answer to classes a little,
        because random features of images do.

    Returns
    -------
    Dataset
        ``share`` (checkpoint, layer) of such units, with ``share_low`` and ``share_high``, 95% Clopper-Pearson
        limits with n the units; over ``layer``: ``half``, the first checkpoint at which the share has risen by half of
        what it rises from the first to its largest, and ``half_after``, the checkpoint before that: it happened between
        these two. Both are NaN where the limits of the first and the largest share overlap, and where a share is NaN
        because the layer has units with NaN.

    Notes
    -----
    The limits take units for independent draws, which units of one network are at best roughly: units that change
    together widen what chance does, and limits that do not overlap are no test. Other seeds are not in them.
    """
    require_number("max_q", max_q, below=1.0)
    if not selective:
        raise NotFoundError("There is no layer: give selectivity_index of one or more.")
    require_number("least_auroc", least_auroc)
    tell = [(one["q_value"] <= max_q) & (one["auroc_held_out"] >= least_auroc) for one in selective.values()]
    counts = np.stack([one.sum(UNIT).values for one in tell], axis=1).astype(np.float64)
    n = np.array([one.sizes[UNIT] for one in selective.values()])
    # A layer with units that are not known has no share of them.
    counts[np.stack([(one["nan_count"] > 0).any(UNIT).values for one in selective.values()], axis=1)] = np.nan
    steps = next(iter(selective.values()))[CHECKPOINT].values
    share, (low, high) = counts / n, clopper_pearson(counts, np.broadcast_to(n, counts.shape))
    half, before = half_risen(steps, share, low, high)
    over = (CHECKPOINT, LAYER)
    return xr.Dataset(
        {
            "share": (over, share),
            "share_low": (over, low),
            "share_high": (over, high),
            "half": (LAYER, half),
            "half_after": (LAYER, before),
            "n_units": (LAYER, n),
        },
        {CHECKPOINT: steps, LAYER: list(selective)},
        {"what": "when units came to tell a class", "least_auroc": least_auroc, "max_q": max_q},
    )


def _layers(store: Store, layers: str | Sequence[str] | None) -> list[str]:
    able, wanted = unit_layers(store), as_names(layers)
    missing = [name for name in wanted or [] if name not in able]
    if missing or not able:
        held = ", ".join(able) or "none"
        raise NotFoundError(f"{store.path} has no activations of {', '.join(missing) or 'any layer'}: it has {held}.")
    return able if wanted is None else wanted


def _linked(layers: Sequence[str]) -> list[tuple[str, str]]:
    """Return each layer with the second after it, or its neighbour where there are but two."""
    apart = min(SKIP, len(layers) - 1)
    return list(zip(layers[:-apart], layers[apart:], strict=True)) if apart else []
