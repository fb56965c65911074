"""Runs compared: dimension over training, jumps, separability at the end, and how many examples learning took."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inputs import one_of, require_count
from ndt_query.intervals import mean_ci, require_level
from ndt_query.kernels.curves import area, resampled
from ndt_query.layers import software
from ndt_query.one_run import FRACTIONS, Align, layer_of, one_run
from ndt_store.dims import LAYER, RUN
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store
from ndt_store.runs import Runs, named_stores
from ndt_store.views.spectrum import MEASURES

__all__ = ["COORDS", "FRACTIONS", "SCALARS", "compare_groups", "compare_runs", "differing", "each_run", "stores_of"]

F64 = NDArray[np.float64]
AT: Final = "at"
N_POINTS: Final = 100
COORDS: Final = ("last_checkpoint", "curves_from", "positions", "data")
"""What is said of a run beside its numbers, and may make it hard to compare."""

SCALARS: Final[Mapping[str, str]] = {
    "final_accuracy": "accuracy on the probe set at the last checkpoint",
    "final_loss": "loss on the probe set at the last checkpoint, nats",
    "area": "mean accuracy over the steps that all runs measured",
    "n_jumps": "jumps of dimension, all tracked layers together",
    "largest_jump": "largest jump, in standard deviations of the noise",
    "growth_r2": "share of the variance of the dimension that a logistic curve explains",
    "dimension_final": "dimension at the last measurement",
    "separability_accuracy": "linear accuracy on held-out examples at the last checkpoint",
    "separability_silhouette": "silhouette of classes at the last checkpoint",
    "separability_separation": "scatter between classes over that within, at the last checkpoint",
    "separability_intrinsic_dimension": "TwoNN dimension at the last checkpoint",
}
"""Numbers of a run that groups are compared by."""

DIFFERING: Final[Mapping[str, str]] = {
    "last_checkpoint": "the runs end at different checkpoints, so their ends may not compare",
    "curves_from": "the runs were measured on other examples or in another way, so their curves may not compare",
    "data": "the runs saw other data, so their numbers differ for that reason too",
    "positions": "positions became features in some runs and means in others, so their dimensions may not compare",
}
"""What it means where runs differ in a coordinate."""


def compare_runs(
    stores: Runs | Mapping[str, Store] | Sequence[Store | str | os.PathLike[str]],
    *,
    groups: Sequence[str] | None = None,
    layer: str | Mapping[str, str] | None = None,
    by: Align = "step",
    measure: str = "participation_ratio",
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Compare any number of runs, of one architecture or of several.

    Parameters
    ----------
    stores : Runs, mapping of str to Store, or sequence of Store or path
        The runs; of a sequence the names are those of the files.
    groups : sequence of str, optional
        To which group each run belongs; by default the recipe, or else the model, that its store
        names, so that seeds of it are a group.
    layer : str or mapping of run to str, optional
        Whose dimension and separability are compared; by default the last layer before the class scores.
    by : {"step", "examples", "loss"}
        What trajectories are aligned by: training steps, examples seen (steps times batch), or the least loss so far,
        so that runs are compared where they had learned as much.
    measure : str
        Of dimension.
    confidence : float
        Level of all intervals.
    seed : int
        Of folds, nulls and resamples.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.
    progress : callable, optional
        Called as ``progress(done, total)`` after each run.

    Returns
    -------
    Dataset
        Over ``run``, with the coordinates ``group``, ``layer``; ``last_checkpoint``, the step that what is said of the
        end is about: look at it before a run that was stopped is compared with one that was not; ``curves_from``, on
        which examples the curves were measured, and ``positions``, which became features there (``"flatten"``) or means
        (``"mean"``), "" of a layer without any; and ``data``, the data set that its recipe names, or "". Runs differ
        for such reasons alone.

        `SCALARS`
            ``final_accuracy`` with ``_low`` and ``_high``, ``final_loss``; ``area``, mean accuracy over the steps that
            all runs measured; ``n_jumps`` in ``n_tracked_layers`` layers, those without NaN, ``largest_jump``, 0 where
            there is none, and ``first_jump_phase``; ``growth_r2`` of the dimension, NaN where it does not grow beyond
            noise; ``separability_...`` as of `disentanglement` at the last checkpoint. Jumps are NaN where `measure`
            was not tracked 30 times, accuracy and loss where a model has no class scores, and separability where the
            probe set has no two classes, or fewer than five examples of one.
        ``examples_to`` (run, fraction)
            Examples seen when accuracy first reached this fraction of its final value, the median of the last 5% of
            measurements; a running median of five is compared. NaN with fewer than 20 measurements. Of few classes half
            of the final accuracy is near chance, and reached at once.
        ``dimension``, ``learned`` (run, at)
            `measure` of the layer, and accuracy, interpolated at no more than 100 places that all runs reached.
            Both, and the loss, are those on the validation set where training tracked them with `measure`, else those
            on the probe set at the checkpoints. A measurement that is NaN is passed over.

        ``at`` is in the units of `by`, logarithmic for steps and examples; for losses it is minus the loss.

    Raises
    ------
    NotFoundError
        A store, a layer, or what a run was captured with is not there.
    InvalidInputError
        There are fewer than two runs, groups are not as many, batches are not known where `by` asks for examples, or
        the runs share no place.

    Notes
    -----
    Nothing is tested here: with seeds as the independent things, `compare_groups` gives means with intervals. Costs a
    separability of one layer and a search for jumps of each run, some seconds.
    """
    one_of("by", by, ("step", "examples", "loss"))
    one_of("measure", measure, MEASURES)
    level, seed = require_level(confidence), require_count("seed", seed, 0)
    named = stores_of(stores)
    strange = [name for name in layer if name not in named] if isinstance(layer, Mapping) else []
    if strange:
        raise NotFoundError(f"layer names the run {strange[0]!r}: the runs are {', '.join(named)}.")
    if groups is not None and (isinstance(groups, str) or len(groups) != len(named)):
        raise InvalidInputError(f"groups are {groups!r} for {len(named)} runs: give a list with one for each.")
    found: dict[str, dict[str, Any]] = {}
    for done, (name, store) in enumerate(named.items(), 1):
        chosen = layer_of(store, layer.get(name) if isinstance(layer, Mapping) else layer)
        try:
            found[name] = one_run(store, chosen, by, measure, level, seed, memory)
        except (DimensionError, InvalidInputError) as error:
            said = str(error)
            raise type(error)(said if store.path in said else f"Run {name!r}: {said}") from error
        if progress is not None:
            progress(done, len(named))
    for one, mean in zip(
        found.values(), _areas([(one["steps"], one["accuracy"]) for one in found.values()]), strict=True
    ):
        one["area"] = mean
    called = [one["group"] for one in found.values()] if groups is None else [str(one) for one in groups]
    grid = _grid({name: one["places"] for name, one in found.items()}, by)
    result = xr.Dataset(
        {
            **{key: (RUN, np.array([one[key] for one in found.values()], np.float64)) for key in _numbers(found)},
            "examples_to": ((RUN, "fraction"), np.array([one["examples_to"] for one in found.values()])),
            **{
                key: ((RUN, AT), np.array([resampled(one["places"], one[key], grid) for one in found.values()]))
                for key in ("dimension", "learned")
            },
        },
        {
            **{key: (RUN, [one[key] for one in found.values()]) for key in COORDS},
            RUN: list(found), "group": (RUN, called), LAYER: (RUN, [one["layer"] for one in found.values()]),
            "fraction": list(FRACTIONS), AT: grid,
        },
    )  # fmt: skip
    for key, text in SCALARS.items():
        result[key].attrs["long_name"] = text
    parameters = {"by": by, "measure": measure, "confidence": confidence, "seed": seed}
    result.attrs = {"what": "runs compared", "parameters": json.dumps(parameters), "software": software()}
    return result


def compare_groups(comparison: xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Average what is said of runs over the runs of each group.

    Parameters
    ----------
    comparison : Dataset (run)
        From `compare_runs`.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset (group)
        Each of `SCALARS`, and ``examples_to`` (group, fraction): the mean over runs, with ``_low`` and ``_high``,
        Student's t over runs; NaN for a group of one. A number that a run of the group lacks is NaN. ``n_runs``
        (group).

    Raises
    ------
    NotFoundError
        The Dataset is another one.
    InvalidInputError
        It has no run left.
    """
    if not {"group", *COORDS} <= set(comparison.coords) or "examples_to" not in comparison:
        raise NotFoundError("The Dataset is no comparison of runs: pass that of compare_runs, as it is.")
    if not comparison.sizes[RUN]:
        raise InvalidInputError("The comparison has no run left: select at least one.")
    names = list(dict.fromkeys(str(one) for one in comparison["group"].values))
    variables: dict[str, Any] = {}
    for key in (*SCALARS, "examples_to"):
        rest = comparison[key].dims[1:]
        made = [
            mean_ci(comparison[key].values[comparison["group"].values == name], confidence=confidence) for name in names
        ]
        for end, part in (("", "estimate"), ("_low", "low"), ("_high", "high")):
            variables[f"{key}{end}"] = (("group", *rest), np.stack([getattr(one, part) for one in made]))
    counts = [int((comparison["group"].values == name).sum()) for name in names]
    found = xr.Dataset(variables | {"n_runs": ("group", counts)}, {"group": names, "fraction": comparison["fraction"]})
    parameters = {**json.loads(comparison.attrs.get("parameters", "{}")), "confidence": confidence}
    return found.assign_attrs(
        {**comparison.attrs, "what": "groups of runs compared", "parameters": json.dumps(parameters)}
    )


def differing(comparison: xr.Dataset) -> list[str]:
    """Sentences about what makes runs hard to compare, besides what they are."""
    return [f"{why}: {each_run(comparison, name)}" for name, why in DIFFERING.items() if _differs(comparison[name])]


def _differs(values: xr.DataArray) -> bool:
    return len({str(value) for value in values.values} - {""}) > 1


def each_run(comparison: xr.Dataset, name: str) -> str:
    """Say a coordinate of runs in words: once where it is the same in all that have it."""
    runs: dict[str, list[str]] = {}
    for run, value in zip(comparison[RUN].values, comparison[name].values, strict=True):
        if str(value):
            runs.setdefault(str(value), []).append(str(run))
    if len(runs) == 1:
        return next(iter(runs))
    return "; ".join(f"{value} of {', '.join(names)}" for value, names in runs.items())


def stores_of(stores: Any) -> dict[str, Store]:
    """Return stores by the names of their runs: those of `Runs`, of a mapping, or of files.

    Raises
    ------
    InvalidInputError
        They are fewer than two, or one of them is there twice.
    NotFoundError
        There is no store.
    """
    if isinstance(stores, Runs):
        stores = stores.stores
    found = named_stores(list(stores.values()), list(stores)) if isinstance(stores, Mapping) else named_stores(stores)
    if len(found) < 2:
        raise InvalidInputError(f"There is {len(found)} run: a comparison needs two or more.")
    return found


def _numbers(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [key for key, value in next(iter(found.values())).items() if isinstance(value, float)]


def _areas(curves: Sequence[tuple[F64, F64]]) -> list[float]:
    """Mean accuracy of each run over the steps between which all runs, but those without any, measured it."""
    reach = [steps[~np.isnan(accuracy)] for steps, accuracy in curves]
    ends = [(one[0], one[-1]) for one in reach if one.size]
    low, high = (max(one for one, _ in ends), min(one for _, one in ends)) if ends else (math.nan, math.nan)
    return [area(steps, accuracy, low, high) for steps, accuracy in curves]


def _grid(places: Mapping[str, F64], by: Align) -> F64:
    """Places that every run reached, in order."""
    short = next((name for name, one in places.items() if len(one) < 2), None)
    if short is not None:
        raise InvalidInputError(
            f"Run {short!r} has one checkpoint and no tracked training: there is no curve to compare."
        )
    low, high = max(one.min() for one in places.values()), min(one.max() for one in places.values())
    if not low < high:
        raise InvalidInputError(f"The runs share no {by}: align them by another of step, examples and loss.")
    if by == "loss":
        return np.linspace(low, high, N_POINTS)
    # Logarithmic from the first measurement on: below it a scale of single examples would be drawn and hold nothing.
    unit = min(float(one[one > 0].min()) for one in places.values())
    grid = unit * np.expm1(np.linspace(np.log1p(low / unit), np.log1p(high / unit), N_POINTS))
    return np.unique(np.round(grid).clip(low, high))
