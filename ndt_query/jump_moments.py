"""What jumps are like, and which checkpoints to keep to look at them and at moments like them that have none."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inputs import require_count
from ndt_query.intervals import require_level
from ndt_query.jumps import JUMP, MEASURED_LAYER, MEASUREMENT
from ndt_query.kernels.stepsearch import APART
from ndt_query.layers import described
from ndt_store.dims import LAYER
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = ["characterise_jumps", "jump_schedule", "nearest_miss"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

OFFSETS: Final = (-10, -2, 0, 2, 10)
"""Measurements from a moment to the checkpoints about it."""

AWAY: Final = 15
"""Measurements between a control and every jump, where the run has room."""

CHOICE: Final = 10
"""Among how many of the moments nearest in phase a control is drawn."""

_ROW: Final = [("step", "i8"), ("role", "U7"), ("offset", "i8"), ("centre", "i8"), ("jump", "i8")]


def characterise_jumps(jumps: xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Say how many jumps there are, how large, when in training, and from which level to which.

    Parameters
    ----------
    jumps : Dataset
        From `detect_jumps`.
    confidence : float
        Nominal level of the intervals.

    Returns
    -------
    Dataset
        ``count``, of each layer where there are several. Over ``jump``: ``step``, ``size``, ``size_low`` and
        ``size_high``; ``phase``, the step over the last step; ``before`` and ``after``, the level at the measurement
        before the jump and at the one after it, with ``before_low``, ``before_high``, ``after_low``, ``after_high``;
        ``share``, the size over all that the level changed, up and down, from the first measurement to the last.

    Notes
    -----
    Intervals are normal ones from the standard errors of the fit, given its smoothness and correlation, and given that
    there is a jump at that place: sizes of jumps that are only just found are too large on average.

    Examples
    --------
    >>> from ndt_query.jumps import detect_jumps
    >>> values = np.random.default_rng(0).standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    >>> found = characterise_jumps(detect_jumps(values, np.arange(100) * 5, n_null=99))
    >>> int(found["count"]), found["phase"].values.round(2).tolist()
    (1, [0.61])
    """
    reach = float(scipy.stats.norm.ppf((1 + require_level(confidence)) / 2))
    at, owner = _required(jumps), _owners(jumps)
    level, error = (_by_layer(jumps[name]) for name in ("level", "level_error"))
    size, size_error = jumps["size"].values, jumps["size_error"].values
    moved = np.abs(np.diff(level, axis=0)).sum(axis=0)
    values = {
        "step": jumps["step"].values,
        "size": size,
        "size_low": size - reach * size_error,
        "size_high": size + reach * size_error,
        "phase": jumps["step"].values / float(jumps[MEASUREMENT].values[-1]),
        "share": np.abs(size) / moved[owner],
    }
    for name, place in (("before", at - 1), ("after", at)):
        middle, half = level[place, owner], reach * error[place, owner]
        values |= {name: middle, f"{name}_low": middle - half, f"{name}_high": middle + half}
    variables = {name: xr.Variable(JUMP, one) for name, one in values.items()}
    counts = np.bincount(owner, minlength=level.shape[1])
    coords: dict[str, Any] = {}
    if LAYER in jumps:
        variables |= {LAYER: jumps[LAYER].variable, "count": xr.Variable(MEASURED_LAYER, counts)}
        coords[MEASURED_LAYER] = jumps[MEASURED_LAYER].values
    else:
        variables["count"] = xr.Variable((), counts[0])
    source = jumps["size"].assign_attrs(jumps.attrs)
    return described(variables, source, "what jumps are like", {"confidence": confidence}, squeeze=False, coords=coords)


def nearest_miss(jumps: xr.Dataset) -> str:
    """Say in words how near the strongest change that is no jump came to one; "" where the measure never changes.

    Parameters
    ----------
    jumps : Dataset
        From `detect_jumps`.
    """
    p_values = jumps["next_p_value"].values.reshape(-1)
    place = int(p_values.argmin())
    step = jumps["next_step"].values.reshape(-1)[place]
    if np.isnan(step):
        return ""
    where = f" of {jumps[MEASURED_LAYER].values[place]}" if MEASURED_LAYER in jumps.dims else ""
    return f"the least p value is {p_values[place]:.2g}, for the change{where} at step {int(step)}"


def jump_schedule(jumps: xr.Dataset, *, seed: int = 0) -> xr.Dataset:
    """List the checkpoints to keep: about each jump, and about as many moments without one.

    Parameters
    ----------
    jumps : Dataset
        From `detect_jumps`.
    seed : int
        Of the choice of controls.

    Returns
    -------
    Dataset
        Over ``moment``: ``step``, the training step to keep; ``role``, ``"jump"`` or ``"control"``; ``offset`` in
        measurements from the jump or control, one of -10, -2, 0, 2 and 10; ``centre``, the step of that jump or
        control; ``jump``, the position of the jump that it belongs to or is matched with.

        ``keep`` is every step once, in order: ``tuple(schedule["keep"].values)`` are the checkpoints of a training.

    Notes
    -----
    Jumps of several layers at one measurement are one moment, which belongs to the first of them. Offsets that reach
    beyond the run end at its first or last measurement; of those that fall together the smallest is listed.

    A control is matched with each jump: drawn by `seed` among the 10 measurements that are nearest in phase, by the
    logarithm of the measurement's number, of those at least 15 measurements away from every jump. Where the run has
    no room for that, controls lie as far from jumps as they can, but more than 3 measurements, and from each other;
    a jump for which none is left has no control. The attribute ``n_unmatched`` counts these, ``control_gap`` is the
    least distance of a control from a jump, in measurements, -1 without controls.

    Without jumps the schedule is empty: what to keep then is the caller's choice.

    Examples
    --------
    >>> from ndt_query.jumps import detect_jumps
    >>> values = np.random.default_rng(0).standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    >>> schedule = jump_schedule(detect_jumps(values, np.arange(100) * 5, n_null=99))
    >>> schedule["step"].values[schedule["role"].values == "jump"].tolist()
    [250, 290, 300, 310, 350]
    """
    require_count("seed", seed, 0)
    at, steps = _required(jumps), jumps[MEASUREMENT].values
    centres, first = np.unique(at, return_index=True)
    controls = _controls(centres, len(steps), np.random.default_rng(seed))
    moments = [("jump", centre, jump) for centre, jump in zip(centres.tolist(), first.tolist(), strict=True)]
    moments += [("control", control, int(first[place])) for place, control in sorted(controls.items())]
    rows = [row for role, centre, jump in moments for row in _about(centre, steps, role, jump)]
    gaps = [int(np.abs(centres - control).min()) for control in controls.values()]
    table = np.array(rows, dtype=_ROW)
    variables = {name: xr.Variable("moment", table[name]) for name in table.dtype.names or ()}
    variables["keep"] = xr.Variable("kept", np.unique(table["step"]))
    source = jumps["size"].assign_attrs(jumps.attrs)
    what = "checkpoints to keep about jumps and controls"
    result = described(variables, source, what, {"seed": seed}, squeeze=False)
    return result.assign_attrs(n_unmatched=len(centres) - len(controls), control_gap=min(gaps, default=-1))


def _about(centre: int, steps: I64, role: str, jump: int) -> list[tuple[int, str, int, int, int]]:
    """Return the rows of one moment, the smallest offset of those that the ends of the run make the same."""
    places = {
        int(np.clip(centre + offset, 0, len(steps) - 1)): offset for offset in sorted(OFFSETS, key=abs, reverse=True)
    }
    return [(int(steps[place]), role, offset, int(steps[centre]), jump) for place, offset in sorted(places.items())]


def _controls(centres: I64, n: int, rng: np.random.Generator) -> dict[int, int]:
    """Draw a control for each jump, by the jump's position in `centres`, as long as there is room."""
    places = np.arange(1, n)
    away = np.abs(places[:, None] - centres).min(axis=1) if len(centres) else np.zeros(n - 1, np.int64)
    free = set(places[away > APART].tolist())
    found: dict[int, int] = {}
    for jump in rng.permutation(len(centres)).tolist():
        if not free:
            break
        left = np.array(sorted(free))
        gap = away[left - 1]
        far = left[gap >= min(AWAY, int(gap.max()))]
        nearest = far[np.argsort(np.abs(np.log(far / max(1, centres[jump]))), kind="stable")[:CHOICE]]
        found[jump] = int(rng.choice(nearest))
        free -= set(range(found[jump] - APART, found[jump] + APART + 1))
    return found


def _required(jumps: xr.Dataset) -> I64:
    if not isinstance(jumps, xr.Dataset):
        raise InvalidInputError(f"Jumps are a Dataset from detect_jumps: got {type(jumps).__name__}.")
    missing = [name for name in ("index", "size", "level", MEASUREMENT) if name not in jumps]
    if missing:
        raise NotFoundError(f"The Dataset has no {missing[0]!r}: pass a result of detect_jumps.")
    return np.asarray(jumps["index"].values, dtype=np.int64)


def _owners(jumps: xr.Dataset) -> I64:
    """Return the position of each jump's layer."""
    if LAYER not in jumps:
        return np.zeros(jumps.sizes[JUMP], np.int64)
    order = {str(name): place for place, name in enumerate(jumps[MEASURED_LAYER].values)}
    return np.array([order[str(name)] for name in jumps[LAYER].values], dtype=np.int64)


def _by_layer(curve: xr.DataArray) -> F64:
    return np.asarray(curve.values, dtype=np.float64).reshape(curve.sizes[MEASUREMENT], -1)
