"""One run in the numbers and curves that runs are compared by."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from ndt_query.tracked import whole_layers
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, LAYER, POSITION_DIMS, STEP, TRAINING_GROUP
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["FRACTIONS", "Align", "layer_of", "one_run"]

F64 = NDArray[np.float64]
Align: TypeAlias = Literal["step", "examples", "loss"]

FRACTIONS: Final = (0.5, 0.75, 0.9)
LEAST_TRACKED: Final = 30
N_FOLDS: Final = 5
SCORED: Final = ("loss", "accuracy", "accuracy_low", "accuracy_high")
VALIDATION: Final = "validation set"
PROBE: Final = "probe set"
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
    told = _scored(store, level)
    (steps, dimension, accuracy, loss), measured = _curves(store, layer, measure, told, memory)
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
        **measured,
        "data": _data(identity),
        **{f"final_{name}": float(told[name][-1]) for name in SCORED},
        "growth_r2": r2,
        "dimension_final": float(dimension[-1]),
        **_apart(store, layer, level, seed, memory),
        **_jumped(store, measure, seed),
        "examples_to": first_reached(examples, accuracy, FRACTIONS),
        "places": places[known],
        "dimension": dimension[known],
        "learned": accuracy[known],
        "steps": steps,
        "accuracy": accuracy,
    }


def _data(identity: Mapping[str, Any]) -> str:
    """Name the data set of a capture, "" where it does not say."""
    return str(dict(dict(identity.get("recipe", {})).get("data", {})).get("name", ""))


def _scored(store: Store, level: float) -> dict[str, F64]:
    """Loss and accuracy on the probe set at each checkpoint, NaN where the model has no class scores."""
    if not {"loss", "prediction"} <= set(store.root.variables):
        return {name: np.full(len(store.checkpoints), math.nan) for name in SCORED}
    found = performance(store, confidence=level).compute()
    return {name: np.asarray(found[name].values, np.float64) for name in SCORED}


def _apart(store: Store, layer: str, level: float, seed: int, memory: int | str | None) -> dict[str, float]:
    """Separability at the last checkpoint, NaN where classes are too few, or have fewer examples than folds."""
    counts = np.unique(store.labels, return_counts=True)[1]
    if len(counts) < 2 or counts.min() < N_FOLDS:
        return {f"separability_{name}": math.nan for name in SEPARABILITY}
    acts = store[layer][ACTIVATIONS].isel({CHECKPOINT: [-1]})
    found = disentanglement(acts, n_folds=N_FOLDS, confidence=level, seed=seed, memory=memory)
    return {f"separability_{name}": float(found[name][0]) for name in SEPARABILITY}


def _curves(
    store: Store, layer: str, measure: str, told: dict[str, F64], memory: int | str | None
) -> tuple[tuple[F64, F64, F64, F64], dict[str, str]]:
    """Return steps, dimension, accuracy and loss, and on which examples they were measured, and how."""
    with_positions = bool(set(POSITION_DIMS) & set(store[layer][ACTIVATIONS].dims))
    if TRAINING_GROUP in store.catalogue.supplements:
        training = store.training
        if {measure, *VALIDATED} <= set(training) and LAYER in training.coords and layer in training[LAYER].values:
            rows = [training[measure].sel({LAYER: layer}), *(training[name] for name in VALIDATED)]
            values = [np.asarray(one.values, np.float64) for one in rows]
            places = training[STEP].values.astype(np.float64)
            told_of = training.attrs
            n, centred = told_of.get("n_validation"), told_of.get("centre", True)
            examples = f"{VALIDATION}{f' of {n} examples' if n else ''}{'' if centred else ', uncentred'}"
            positions = str(told_of.get("positions", "")) if with_positions else ""
            return (places, values[0], values[1], values[2]), {"curves_from": examples, "positions": positions}
    found = dimensionality(store[layer][ACTIVATIONS], interval="none", memory=memory)[measure].values
    places = store.checkpoints.astype(np.float64)
    measured = {
        "curves_from": f"{PROBE} of {len(store.examples)} examples",
        "positions": "mean" if with_positions else "",
    }
    return (places, np.asarray(found, np.float64), told["accuracy"], told["loss"]), measured


def _jumped(store: Store, measure: str, seed: int) -> dict[str, float]:
    """Jumps of all layers that were tracked, NaN where none was, or fewer than `LEAST_TRACKED` times."""
    found = dict.fromkeys(("n_jumps", "n_tracked_layers", "largest_jump", "first_jump_phase"), math.nan)
    training = store.training if TRAINING_GROUP in store.catalogue.supplements else xr.Dataset()
    if measure not in training or LAYER not in training[measure].dims:
        return found
    whole = whole_layers(training[measure])
    found["n_tracked_layers"] = float(whole.sizes[LAYER])
    if training.sizes[STEP] >= LEAST_TRACKED and whole.size:
        found |= _jumps(detect_jumps(whole, measure=measure, seed=seed))
    return found


def _jumps(found: xr.Dataset) -> dict[str, float]:
    n = found.sizes["jump"]
    said = characterise_jumps(found)
    return {
        "n_jumps": float(n),
        "largest_jump": float(np.abs(found["size_in_noise"]).max()) if n else 0.0,
        "first_jump_phase": float(said["phase"].min()) if n else math.nan,
    }
