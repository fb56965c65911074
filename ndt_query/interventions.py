"""What interfering with a training costs at its jumps and at controls, with intervals over seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inference import bootstrap_ci, paired_permutation_test
from ndt_query.inputs import one_of
from ndt_query.intervals import mean_ci, require_level
from ndt_query.intervention_study import (
    DIFFERENCE,
    NORMAL,
    ROLES,
    aligned,
    area,
    as_study,
    averages,
    importance,
    jump_ids,
    pairs,
)
from ndt_store.dims import LAYER
from ndt_store.errors import InvalidInputError
from ndt_store.reader import Store

__all__ = ["MEASURES", "effect_rows", "intervention_effects"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

MEASURES: Final = ("participation_ratio", "stable_rank")
CURVES: Final = ("validation_accuracy", "participation_ratio")
_NAMES: Final = {
    "final_accuracy": ("final accuracy on the test split, normal - arm", "1"),
    "accuracy_area": ("area under validation accuracy from the moment on, normal - arm", "step"),
    "participation_ratio": ("mean participation ratio from the moment on, normal - arm", "1"),
    "stable_rank": ("mean stable rank from the moment on, normal - arm", "1"),
    "running_validation_accuracy": ("validation accuracy since the moment, normal - arm", "1"),
    "running_participation_ratio": ("participation ratio since the moment, normal - arm", "1"),
}


def intervention_effects(
    data: Store | xr.Dataset,
    *,
    confidence: float = 0.95,
    interval: Literal["t", "bootstrap"] = "t",
    seed: int = 0,
) -> xr.Dataset:
    """Say what an intervention costs at jumps, at controls, and how much more at jumps than at controls.

    The importance of a moment is what the undisturbed training has and the arm that was interfered with has not:
    ``normal - arm``, of two trainings that shared everything up to the moment. Importances are averaged over the
    moments of a seed first; what varies by chance is the seed.

    Parameters
    ----------
    data : Store or Dataset
        A store with the experiment ``interventions``, or what ``capture.run_interventions`` returned.
    confidence : float
        Nominal level of all intervals.
    interval : {"t", "bootstrap"}
        Student's t, or BCa resampling of seeds, which needs ten of them or more to be worth anything.
    seed : int
        Makes the bootstrap repeatable.

    Returns
    -------
    Dataset
        Over ``role`` ("jump", "control", and "difference" = jump - control within each seed) and ``arm`` ("frozen",
        "perturbed"). Where every moment says by ``jump`` which one it is or is matched with, the difference is that of
        jumps and their own controls, averaged over those that have both; else of all jumps and all controls:

        ``final_accuracy``
            Accuracy lost at the end, on the whole test split.
        ``accuracy_area``
            Area lost under validation accuracy from the moment on, by the trapezoidal rule over steps: 3.0 is what
            three steps at full accuracy are worth.
        ``participation_ratio``, ``stable_rank``
            Also over ``layer``: mean difference from the moment on.

        These three are over the same number of steps after each moment, as far as every moment reaches (the attribute
        ``window``): an early moment has more of the training after it, and would lose more area for that alone.

        Each has ``_low`` and ``_high``, the paired interval of the mean over seeds; ``_p_value``, two-sided, from
        swapping signs within seeds, exact up to 13 of them; and ``_by_seed`` (seed, role, arm[, layer]).

        ``running_validation_accuracy`` (role, arm, since) and ``running_participation_ratio`` (role, arm, since, layer)
        follow importance over that window, with pointwise ``_low`` and ``_high``. ``since`` is in steps from the first
        measurement on that is not before the state from which the arms begin; where it is of that state, importance
        begins at 0.

        ``n_seeds`` (role): seeds that have such moments, the difference those that have both; the others are left out.
        ``least_p_value`` (role), ``2 ** (1 - n_seeds)``: the smallest p that so many seeds can give. ``n_jumps``,
        ``n_controls`` and ``n_matched`` (seed), the jumps that are compared with controls, or 1 where all are with
        all. NaN where there is one seed or none, or where a measurement is NaN.

    Raises
    ------
    NotFoundError
        The store has no such experiment.
    DimensionError
        The Dataset is no result of interventions.
    InvalidInputError
        An option is not possible, or there is no moment.

    Notes
    -----
    Three seeds make a t interval on two degrees of freedom, 2.5 standard deviations between seeds to either side, and a
    p value of at least 0.25: they can show an effect that is large and alike in all of them, by its interval, and
    nothing by its p. Six seeds are the fewest whose p can fall below 0.05. No p value is corrected for the number of
    quantities, arms and layers.

    An effect at jumps alone says that training minds being stopped; whether the jump matters is in the difference.

    Examples
    --------
    >>> import numpy as np
    >>> shape, runs = (3, 2, 3), np.random.default_rng(0)
    >>> lost = np.array([[0, 0.05, 0.03], [0, 0.01, 0.01]]) + runs.normal(0, 0.002, shape)
    >>> steps = np.array([0, 5, 10])
    >>> study = xr.Dataset(
    ...     {
    ...         "final_accuracy": (("seed", "moment", "arm"), 0.9 - lost),
    ...         "validation_accuracy": (("seed", "moment", "arm", "step"), 0.9 - lost[..., None] * (steps > 0)),
    ...         "participation_ratio": (("seed", "moment", "arm", "step", "layer"), np.ones((*shape, 3, 1))),
    ...         "stable_rank": (("seed", "moment", "arm", "step", "layer"), np.ones((*shape, 3, 1))),
    ...     },
    ...     {
    ...         "seed": [0, 1, 2], "arm": ["normal", "frozen", "perturbed"], "step": steps, "layer": ["relu1"],
    ...         "moment_step": (("seed", "moment"), np.ones((3, 2), int)),
    ...         "role": (("seed", "moment"), [["jump", "control"]] * 3),
    ...     },
    ...     {"every": 5},
    ... )
    >>> found = intervention_effects(study)
    >>> more = found.sel(role="difference", arm="frozen")
    >>> round(float(more["final_accuracy"]), 2), bool(more["final_accuracy_low"] > 0)
    (0.04, True)
    >>> float(more["final_accuracy_p_value"]), float(more["least_p_value"])
    (0.25, 0.25)
    """
    require_level(confidence)
    one_of("interval", interval, ("t", "bootstrap"))
    study = as_study(data)
    how = _How(confidence, interval, seed)
    roles = np.stack([study["role"].values == role for role in ROLES])  # (role, seed, moment)
    if not roles.any():
        raise InvalidInputError("The interventions have no moment with role jump or control: expected one.")
    n_moments = roles.sum(axis=2)
    there = np.asarray(roles.any(axis=0))
    ids = jump_ids(study, there)
    n_matched = np.array([len(pairs(roles[:, seed], ids, seed)) for seed in range(there.shape[0])])
    has = np.concatenate([n_moments > 0, (n_matched > 0)[None]])  # (role, seed)
    arms = [str(arm) for arm in study["arm"].values if arm != NORMAL]
    curves = {
        name: averages(importance(study, aligned(study, name, there)), roles, ids)
        for name in ("validation_accuracy", *MEASURES)
    }
    every, n_since = int(study.attrs["every"]), curves["validation_accuracy"].shape[3]
    window = every * max(0, n_since - 1)
    final = importance(study, study["final_accuracy"].values.astype(np.float64))
    quantities = {
        "final_accuracy": averages(final, roles, ids),
        "accuracy_area": area(curves["validation_accuracy"], every),
        **{name: area(np.moveaxis(curves[name], 3, -1), every) / max(window, 1) for name in MEASURES},
    }
    variables: dict[str, tuple[tuple[str, ...], F64 | I64]] = {}
    for name, each in quantities.items():
        dims = ("role", "arm", LAYER)[: each.ndim - 1]
        variables |= {f"{name}{end}": (dims, found) for end, found in _over_seeds(each, has, how).items()}
        variables[f"{name}_p_value"] = (dims, _p_values(each, has))
        variables[f"{name}_by_seed"] = (("seed", *dims), np.moveaxis(each, 1, 0))
    for name in CURVES:
        dims = ("role", "arm", "since", LAYER)[: curves[name].ndim - 1]
        found = _over_seeds(curves[name], has, how)
        variables |= {f"running_{name}{end}": (dims, values) for end, values in found.items()}
    n_seeds = has.sum(axis=1)
    variables["n_seeds"] = (("role",), n_seeds)
    variables["least_p_value"] = (("role",), np.where(n_seeds > 1, 2.0 ** (1 - n_seeds), np.nan))
    counts = {"n_jumps": n_moments[0], "n_controls": n_moments[1], "n_matched": n_matched}
    variables |= {name: (("seed",), count) for name, count in counts.items()}
    result = xr.Dataset(
        variables,
        {
            "role": [*ROLES, DIFFERENCE],
            "arm": arms,
            "seed": study["seed"].values,
            LAYER: study[LAYER].values,
            "since": np.arange(n_since) * every,
        },
    )
    for name, (text, unit) in _NAMES.items():
        result[name].attrs = {"long_name": text, "units": unit}
    result.attrs = {
        "what": "importance of moments: what interfering with a training costs, normal - arm",
        "parameters": json.dumps({"confidence": confidence, "interval": interval, "seed": seed}, sort_keys=True),
        "window": window,
        "seeds": _plainly(dict(zip((*ROLES, DIFFERENCE), n_seeds.tolist(), strict=True)), how),
        **{key: value for key, value in study.attrs.items() if key != "what"},
    }
    return result


def effect_rows(effects: xr.Dataset) -> list[dict[str, Any]]:
    """Return a row for each quantity, layer, arm and role of `intervention_effects`: effect, interval, p and n."""
    found = []
    for name in ("final_accuracy", "accuracy_area", *MEASURES):
        of_layers = LAYER in effects[name].dims
        layers = effects[LAYER].values.tolist() if of_layers else [""]
        for layer, arm, role in product(layers, effects["arm"].values.tolist(), effects["role"].values.tolist()):
            one = effects.sel(arm=arm, role=role, **({LAYER: layer} if of_layers else {}))
            found.append(
                {
                    "quantity": name,
                    "layer": layer,
                    "arm": arm,
                    "role": role,
                    "effect": one[name].item(),
                    "low": one[f"{name}_low"].item(),
                    "high": one[f"{name}_high"].item(),
                    "p_value": one[f"{name}_p_value"].item(),
                    "n_seeds": one["n_seeds"].item(),
                }
            )
    return found


@dataclass(frozen=True, slots=True)
class _How:
    confidence: float
    interval: str
    seed: int


def _over_seeds(each: F64, has: Bools, how: _How) -> dict[str, F64]:
    """Return the mean over the seeds that have such moments, and its interval, each (role, ...)."""
    shape = (each.shape[0], *each.shape[2:])
    found = {end: np.full(shape, np.nan) for end in ("", "_low", "_high")}
    for role, there in enumerate(has):
        values = each[role, there]
        if len(values):
            bootstrap = how.interval == "bootstrap" and len(values) > 1
            made = (
                bootstrap_ci(values, confidence=how.confidence, seed=how.seed)
                if bootstrap
                else mean_ci(values, confidence=how.confidence)
            )
            for end, bound in zip(found, (made.estimate, made.low, made.high), strict=True):
                found[end][role] = bound
    return found


def _p_values(each: F64, has: Bools) -> F64:
    found = np.full((each.shape[0], *each.shape[2:]), np.nan)
    for role, there in enumerate(has):
        values = each[role, there]
        if len(values) > 1:
            found[role] = paired_permutation_test(values, np.zeros_like(values))[1]
    return found


def _plainly(n_seeds: dict[str, int], how: _How) -> str:
    """Say what so many seeds can show, of the difference where there is one."""
    n = n_seeds[DIFFERENCE] or max(n_seeds.values())
    whose = "" if len(set(n_seeds.values())) == 1 else f" (jumps {n_seeds['jump']}, controls {n_seeds['control']})"
    if n < 2:
        return f"one seed{whose}: no interval and no p value"
    freedom = f"Student's t on {n - 1} degree{'s' * (n > 2)} of freedom"
    made = freedom if how.interval == "t" else "BCa resampling of seeds"
    least = f"the smallest possible two-sided p is {2.0 ** (1 - n):.2g}"
    return f"{n} seeds{whose}: {how.confidence:.0%} intervals by {made}; {least}"
