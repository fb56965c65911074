"""Results of interventions as arrays: checked, aligned at their moments, and averaged within each seed."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_store.dims import LAYER, STEP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["DIFFERENCE", "EXPERIMENT", "NORMAL", "ROLES", "aligned", "area", "as_study", "averages", "importance",
           "jump_ids", "pairs"]  # fmt: skip

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

EXPERIMENT: Final = "interventions"
NORMAL: Final = "normal"
ROLES: Final = ("jump", "control")
DIFFERENCE: Final = "difference"
_DIMS: Final = {
    "final_accuracy": ("seed", "moment", "arm"),
    "validation_accuracy": ("seed", "moment", "arm", STEP),
    "participation_ratio": ("seed", "moment", "arm", STEP, LAYER),
    "stable_rank": ("seed", "moment", "arm", STEP, LAYER),
    "role": ("seed", "moment"),
    "moment_step": ("seed", "moment"),
}


def as_study(data: Store | xr.Dataset) -> xr.Dataset:
    """Return the results of a store or as they are, in memory, in order of steps and dims.

    Raises
    ------
    NotFoundError
        The store has none.
    DimensionError
        They are others than `capture.run_interventions` gives.
    InvalidInputError
        The data are neither.
    """
    if not isinstance(data, Store | xr.Dataset):
        raise InvalidInputError(
            f"Interventions are asked of a Store or of what capture.run_interventions gave: got {type(data).__name__}."
        )
    if isinstance(data, Store):
        if EXPERIMENT not in data.experiments:
            raise NotFoundError(
                f"{data.path} has no experiment {EXPERIMENT!r}: make it with `ndt intervene` or "
                "capture.run_interventions first."
            )
        data = data.experiment(EXPERIMENT)
    for name, dims in _DIMS.items():
        found = data[name].dims if name in data.variables else "no such variable"
        if set(found) != set(dims):
            raise DimensionError(
                f"{name} of interventions has {found}: expected dims {dims}, as capture.run_interventions gives them."
            )
    if NORMAL not in data["arm"].values or "every" not in data.attrs:
        raise DimensionError(
            f"The Dataset has no arm {NORMAL!r} or no attribute 'every': pass what capture.run_interventions gave."
        )
    every = data.attrs["every"]
    if isinstance(every, bool) or not isinstance(every, int | np.integer) or every < 1 or data.sizes["arm"] < 2:
        raise DimensionError(
            f"The Dataset has every = {every!r} and {data.sizes['arm']} arms: expected a whole number of at least 1, "
            f"and {NORMAL!r} with one arm or more beside it."
        )
    return data.compute().sortby(STEP).transpose("seed", "moment", "arm", STEP, LAYER, ...)


def aligned(study: xr.Dataset, name: str, there: Bools) -> F64:
    """Return the measurements (seed, moment, arm, since[, layer]) from each moment on that all moments have.

    The last one counts only where it is as far from the one before as the others are from theirs.
    """
    even = study[STEP].values % int(study.attrs["every"]) == 0
    values = study[name].values.astype(np.float64)[:, :, :, even]
    firsts = np.searchsorted(study[STEP].values[even], study["moment_step"].values - 1)
    n = values.shape[3] - int(firsts[there].max())
    found = np.full((*values.shape[:3], n, *values.shape[4:]), np.nan)
    for s, m in zip(*np.nonzero(there), strict=True):
        found[s, m] = values[s, m, :, firsts[s, m] : firsts[s, m] + n]
    return found


def area(values: F64, every: int) -> F64:
    """Integrate (..., since) over steps; NaN where there is nothing between measurements."""
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(np.trapezoid(values, dx=every))


def importance(study: xr.Dataset, values: F64) -> F64:
    """Return normal - arm, (seed, moment, arm, ...) without the normal one."""
    normal = study["arm"].values == NORMAL
    return values[:, :, normal] - values[:, :, ~normal]


def jump_ids(study: xr.Dataset, there: Bools) -> I64 | None:
    """Return which jump each moment is, or is a control of (seed, moment); None unless every moment says so."""
    if "jump" not in study.coords:
        return None
    ids = np.asarray(study["jump"].values, dtype=np.int64)
    return ids if (ids[there] >= 0).all() else None


def pairs(roles: Bools, ids: I64 | None, seed: int) -> list[tuple[Bools, Bools]]:
    """Return the moments (moment,) of one seed that are compared: each jump and its controls, else all with all."""
    jumps, controls = roles
    if ids is None:
        return [(jumps, controls)] if jumps.any() and controls.any() else []
    both = np.intersect1d(ids[seed, jumps], ids[seed, controls])
    return [(jumps & (ids[seed] == one), controls & (ids[seed] == one)) for one in both]


def averages(values_of: F64, roles: Bools, ids: I64 | None) -> F64:
    """Average over the moments of each role, and over pairs: (role, seed, arm, ...), NaN where a seed has none."""
    means = np.full((len(ROLES) + 1, len(values_of), *values_of.shape[2:]), np.nan)
    for seed, values in enumerate(values_of):
        for role, here in enumerate(roles[:, seed]):
            if here.any():
                means[role, seed] = values[here].mean(axis=0)
        found = [values[a].mean(axis=0) - values[b].mean(axis=0) for a, b in pairs(roles[:, seed], ids, seed)]
        if found:
            means[-1, seed] = np.mean(found, axis=0)
    return means
