"""One run in the numbers and curves that runs are compared by."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.disentanglement import disentanglement
from ndt_query.geometry import dimensionality
from ndt_query.growth import LEAST, fit_growth
from ndt_query.jump_moments import characterise_jumps
from ndt_query.jumps import detect_jumps
from ndt_query.kernels.curves import first_reached
from ndt_query.layers import each_layer
from ndt_query.performance import performance
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, LAYER, STEP, TRAINING_GROUP
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["FRACTIONS", "Align", "layer_of", "one_run"]

F64 = NDArray[np.float64]
Align: TypeAlias = Literal["step", "examples", "loss"]

FRACTIONS: Final = (0.5, 0.75, 0.9)
LEAST_TRACKED: Final = 30
VALIDATED: Final = ("validation_accuracy", "validation_loss")
SEPARABILITY: Final = (
    "accuracy", "accuracy_low", "accuracy_high", "control", "silhouette", "silhouette_low", "silhouette_high",
    "separation", "intrinsic_dimension",
)  # fmt: skip


def layer_of(store: Store, wanted: str | None) -> str:
    """Return the layer to compare: by default the last before one as wide as there are classes."""
    able = dict(each_layer(store))
    if wanted is not None:
        if wanted not in able:
            raise NotFoundError(f"{store.path} has no activations of {wanted!r}: it has {', '.join(able)}.")
        return wanted
    names, n_classes = list(able), store.root.sizes.get("class", 0)
    if len(names) > 1 and able[names[-1]].sizes.get("unit") == n_classes:
        names.pop()
    return names[-1]


def one_run(
    store: Store, layer: str, by: Align, measure: str, level: float, seed: int, memory: int | str | None
) -> dict[str, Any]:
    """Say of one run what runs are compared by; ``places`` are where its curves were measured, increasing."""
    identity = store.provenance.get("identity", {})
    last = performance(store, confidence=level).isel({CHECKPOINT: -1}).compute()
    acts = store[layer][ACTIVATIONS].isel({CHECKPOINT: [-1]})
    apart = disentanglement(acts, confidence=level, seed=seed, memory=memory).isel({CHECKPOINT: 0})
    steps, dimension, accuracy, loss, jumped = _curves(store, layer, measure, seed, memory)
    batch = dict(dict(identity.get("recipe", {})).get("training", {})).get("batch_size")
    if batch is None and by == "examples":
        raise InvalidInputError(
            f"{store.path} does not say how many examples a step takes: it was not captured from a recipe; align by "
            "step or loss."
        )
    examples = steps * float(batch if batch is not None else math.nan)
    places = {"step": steps, "examples": examples, "loss": -np.fmin.accumulate(loss)}[by]
    known = np.isfinite(places)
    if known.sum() < min(2, len(places)):
        raise InvalidInputError(f"{store.path} has no finite {by} at two measurements or more: align by another.")
    r2 = math.nan
    if len(steps) >= LEAST and np.isfinite(dimension).all():
        growth = fit_growth(dimension, steps, seed=seed, n_resamples=20, n_null=99)
        r2 = float(growth["r2"]) if bool(growth["growth"]) else math.nan
    return {
        "group": str(dict(identity.get("recipe", {})).get("name") or identity.get("model", "")),
        "layer": layer,
        "last_checkpoint": int(store.checkpoints[-1]),
        "last_step": int(steps[-1]),
        "final_accuracy": float(last["accuracy"]),
        "final_accuracy_low": float(last["accuracy_low"]),
        "final_accuracy_high": float(last["accuracy_high"]),
        "final_loss": float(last["loss"]),
        "growth_r2": r2,
        "dimension_final": float(dimension[-1]),
        **{f"separability_{name}": float(apart[name]) for name in SEPARABILITY},
        **jumped,
        "examples_to": first_reached(examples, accuracy, FRACTIONS),
        "places": places[known],
        "dimension": dimension[known],
        "learned": accuracy[known],
        "steps": steps[known],
    }


def _curves(
    store: Store, layer: str, measure: str, seed: int, memory: int | str | None
) -> tuple[F64, F64, F64, F64, dict[str, float]]:
    """Return steps, dimension, accuracy and loss, as tracked or at the checkpoints, and what jumps there are."""
    if TRAINING_GROUP in store.catalogue.supplements:
        training = store.training
        if {measure, *VALIDATED} <= set(training) and layer in training[LAYER].values:
            rows = [training[measure].sel({LAYER: layer}), *(training[name] for name in VALIDATED)]
            jumped = {"n_jumps": math.nan}
            # A layer that does not vary at some measurement has no dimension there, and no series to look at.
            whole = training[measure].isel(
                {LAYER: np.isfinite(training[measure].transpose(STEP, LAYER).values).all(axis=0)}
            )
            jumped["n_tracked_layers"] = float(whole.sizes[LAYER])
            if training.sizes[STEP] >= LEAST_TRACKED and whole.sizes[LAYER]:
                jumped |= _jumps(detect_jumps(whole, measure=measure, seed=seed))
            values = [np.asarray(one.values, np.float64) for one in rows]
            return training[STEP].values.astype(np.float64), values[0], values[1], values[2], _filled(jumped)
    found = dimensionality(store[layer][ACTIVATIONS], interval="none", memory=memory)[measure].values
    told = performance(store).compute()
    return (
        store.checkpoints.astype(np.float64), np.asarray(found, np.float64), told["accuracy"].values,
        told["loss"].values, _filled({}),
    )  # fmt: skip


def _jumps(found: xr.Dataset) -> dict[str, float]:
    n = found.sizes["jump"]
    said = characterise_jumps(found)
    return {
        "n_jumps": float(n),
        "largest_jump": float(np.abs(found["size_in_noise"]).max()) if n else 0.0,
        "first_jump_phase": float(said["phase"].min()) if n else math.nan,
    }


def _filled(jumped: dict[str, float]) -> dict[str, float]:
    names = ("n_jumps", "n_tracked_layers", "largest_jump", "first_jump_phase")
    return {name: jumped.get(name, math.nan) for name in names}
