"""Moments at which a training is interfered with: at a jump, or at a control that is away from any."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xarray as xr

from capture._describe import described
from ndt_store.errors import InvalidInputError, NotFoundError, StorageError

__all__ = ["ROLES", "Moment", "Moments", "checked_moments", "read_moments", "scheduled_moments"]

ROLES: Final = ("jump", "control")
_COLUMNS: Final = ("seed", "step", "role", "jump")


class Moment(NamedTuple):
    """Where a training is interfered with.

    Parameters
    ----------
    step : int
        The first update that is interfered with, from 1: the training is as after ``step - 1`` updates.
    role : {"jump", "control"}
        Whether something happens then, or the moment is there to be compared with.
    jump : int
        Which jump it is, or is a control of; -1 where nobody says.
    """

    step: int
    role: str
    jump: int = -1


MomentLike: TypeAlias = Moment | tuple[int, str] | tuple[int, str, int]
Moments: TypeAlias = Sequence[MomentLike] | Mapping[int, Sequence[MomentLike]]


def checked_moments(moments: Moments, seeds: Sequence[int], last: int) -> dict[int, tuple[Moment, ...]]:
    """Return the moments of each seed, by step.

    Parameters
    ----------
    moments : sequence of Moment or of tuples, or mapping of seed to such
        A sequence is for every seed; a mapping has an entry for each, which may be empty.
    seeds : sequence of int
    last : int
        The latest step that leaves room for an intervention and an update after it.

    Raises
    ------
    InvalidInputError
        There is no moment, a seed has no entry, or a moment is not possible; names it.
    """
    if isinstance(moments, Mapping):
        missing = [seed for seed in seeds if seed not in moments]
        if missing:
            raise InvalidInputError(f"moments has no entry for seed {missing[0]}: give one for each seed, if empty.")
        found = {seed: _of_seed(moments[seed], last) for seed in seeds}
    else:
        same = _of_seed(moments, last)
        found = dict.fromkeys(seeds, same)
    if not any(found.values()):
        raise InvalidInputError(
            "moments is empty, expected at least one (step, role): there is nothing to interfere at."
        )
    return found


def _of_seed(moments: Iterable[MomentLike], last: int) -> tuple[Moment, ...]:
    made = []
    for given in moments:
        if not isinstance(given, tuple) or len(given) not in (2, 3):
            raise InvalidInputError(f"A moment is {described(given)}, expected (step, role) or (step, role, jump).")
        step, role, jump = Moment(*given)
        whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in (step, jump))
        if not whole or jump < -1 or role not in ROLES:
            raise InvalidInputError(
                f"A moment is {described(given)}, expected whole numbers for step and jump, and a role of "
                f"{' or '.join(map(repr, ROLES))}."
            )
        moment = Moment(int(step), role, int(jump))
        if not 1 <= moment.step <= last:
            raise InvalidInputError(
                f"A moment is at step {moment.step}, expected 1 to {last}: the intervention and at least one update "
                "after it have to fit into the training."
            )
        made.append(moment)
    made.sort()
    twice = [a.step for a, b in pairwise(made) if a.step == b.step]
    if twice:
        raise InvalidInputError(f"Two moments are at step {twice[0]}, expected each step once for a seed.")
    return tuple(made)


def scheduled_moments(schedule: xr.Dataset, steps: npt.NDArray[np.int64]) -> tuple[Moment, ...]:
    """Return the jumps and controls of a schedule, each from the update after the measurement before it.

    A jump is known by the first measurement that shows it: what made it lies between that one and the one before.

    Parameters
    ----------
    schedule : Dataset
        Over ``moment``: ``centre``, ``role`` and ``jump``; see `capture.schedules`.
    steps : ndarray of int64 (step,)
        Where the training was measured, increasing.
    """
    columns = (schedule[name].values.tolist() for name in ("centre", "role", "jump"))
    found = sorted(set(zip(*columns, strict=True)))
    before = steps[np.searchsorted(steps, [centre for centre, _, _ in found]) - 1]
    return tuple(Moment(int(step) + 1, str(role), jump) for step, (_, role, jump) in zip(before, found, strict=True))


def read_moments(path: str | os.PathLike[str], seeds: Sequence[int]) -> dict[int, tuple[Moment, ...]]:
    """Read moments from a CSV file with the columns ``step`` and ``role``, and maybe ``seed`` and ``jump``.

    Parameters
    ----------
    path : path
    seeds : sequence of int
        Whose moments are wanted; rows of other seeds are left out. Without a column ``seed``, rows are for all of them.

    Raises
    ------
    NotFoundError
        No such file.
    InvalidInputError
        It is no such table; names the line.
    """
    source = Path(path)
    try:
        rows = list(csv.DictReader(source.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError as error:
        raise NotFoundError(f"No moments at {source}, expected a CSV file; check the path.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StorageError(f"Moments cannot be read from {source} ({error}); expected a CSV file in UTF-8.") from error
    found: dict[int, list[Moment]] = {seed: [] for seed in seeds}
    for line, row in enumerate(rows, 2):
        if not {"step", "role"} <= set(row) <= set(_COLUMNS):
            named = ", ".join(str(name) for name in row)
            raise InvalidInputError(
                f"{source} has the columns {named}: expected step and role, and maybe seed and jump."
            )
        try:
            moment = Moment(int(row["step"]), row["role"].strip(), int(row.get("jump") or -1))
            wanted = [int(row["seed"])] if "seed" in row else list(seeds)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{source}, line {line}: {error}; expected whole numbers for step, seed and jump."
            ) from error
        for seed in wanted:
            if seed in found:
                found[seed].append(moment)
    return {seed: tuple(moments) for seed, moments in found.items()}
