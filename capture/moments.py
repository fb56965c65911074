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
    if not isinstance(moments, Iterable):
        raise InvalidInputError(f"moments is {described(moments)}, expected (step, role) for each moment.")
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
    found: dict[int, list[Moment]] = {seed: [] for seed in seeds}
    n_rows = 0
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            names = [name.strip() for name in next((row for row in reader if any(row)), [])]
            if not {"step", "role"} <= set(names) <= set(_COLUMNS) or len(set(names)) != len(names):
                raise InvalidInputError(
                    f"{source} begins with {', '.join(names) or 'nothing'}: expected the columns step and role, each "
                    "once, and maybe seed and jump."
                )
            for cells in reader:
                if any(cells):
                    n_rows += 1
                    for seed, moment in _row(cells, names, f"{source}, line {reader.line_num}", seeds):
                        if seed in found:
                            found[seed].append(moment)
    except FileNotFoundError as error:
        raise NotFoundError(f"No moments at {source}, expected a CSV file; check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{source} is no CSV file in UTF-8 ({error}).") from error
    except OSError as error:
        raise StorageError(f"Moments cannot be read from {source} ({error}).") from error
    if not any(found.values()):
        wanted = ", ".join(map(str, seeds))
        raise InvalidInputError(f"{source} has {n_rows} rows, and none is of seed {wanted}: expected at least one.")
    return {seed: tuple(moments) for seed, moments in found.items()}


def _row(cells: Sequence[str], names: Sequence[str], where: str, seeds: Sequence[int]) -> list[tuple[int, Moment]]:
    if len(cells) != len(names):
        raise InvalidInputError(f"{where} has {len(cells)} cells, expected {len(names)}: {', '.join(names)}.")
    row = {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    numbers = {name: row[name] for name in ("step", "seed", "jump") if row.get(name)}
    wrong = next((name for name, text in numbers.items() if not text.isdecimal()), None)
    wrong = wrong or next((name for name in ("step", "seed") if name in row and not row[name]), None)
    if wrong is not None or row["role"] not in ROLES:
        name = wrong or "role"
        expected = "a whole number of at least 0" if wrong else " or ".join(ROLES)
        raise InvalidInputError(f"{where}: {name} is {row[name]!r}, expected {expected}.")
    moment = Moment(int(row["step"]), row["role"], int(row.get("jump") or -1))
    return [(seed, moment) for seed in ([int(row["seed"])] if "seed" in row else seeds)]
