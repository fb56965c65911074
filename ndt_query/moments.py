"""Moments of training that a store holds: pairs of checkpoints about jumps and controls, or such as span training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.jump_moments import jump_schedule
from ndt_query.jumps import detect_jumps
from ndt_store.dims import TRAINING_GROUP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = [
    "ROLES",
    "Pair",
    "Pairs",
    "as_pair",
    "default_pairs",
    "schedule_pairs",
    "spread_pairs",
    "spread_places",
    "training_checkpoints",
]

Pair: TypeAlias = tuple[int, int]
Pairs: TypeAlias = Sequence[Pair] | Mapping[str, Sequence[Pair]]

N_PAIRS: Final = 5
ROLES: Final = ("jump", "control", "")


def as_pair(given: Any) -> tuple[int, int]:
    """Return two different training steps.

    Raises
    ------
    InvalidInputError
        They are not two, or not whole numbers, or the same.
    """
    pair = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    whole = all(isinstance(step, int | np.integer) and not isinstance(step, bool) for step in pair)
    if len(pair) != 2 or not whole or pair[0] == pair[1]:
        raise InvalidInputError(
            f"{given!r} is no pair of checkpoints: expected two different training steps, (before, after), and pairs "
            "as a list of such."
        )
    return int(pair[0]), int(pair[1])


def training_checkpoints(store: Store) -> list[int]:
    """Return the committed steps of a store.

    Raises
    ------
    InvalidInputError
        There are fewer than two.
    """
    steps = [int(step) for step in store.checkpoints]
    if len(steps) < 2:
        raise InvalidInputError(f"{store.path} has {len(steps)} committed checkpoints: changes in training need two.")
    return steps


def spread_places(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` places of `n` in order, the first and the last among them, about evenly far apart.

    Examples
    --------
    >>> spread_places(6, 4).tolist()
    [0, 2, 3, 5]
    """
    return np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))


def spread_pairs(checkpoints: Sequence[int], n: int = N_PAIRS) -> tuple[Pair, ...]:
    """Return at most `n` pairs of checkpoints, each beginning where the last one ends, that span all of training.

    Examples
    --------
    >>> spread_pairs([0, 10, 30, 80, 160, 300], 3)
    ((0, 30), (30, 80), (80, 300))
    """
    places = spread_places(len(checkpoints), n + 1)
    return tuple((int(checkpoints[a]), int(checkpoints[b])) for a, b in pairwise(places))


def schedule_pairs(schedule: xr.Dataset, checkpoints: Sequence[int], offset: int = 2) -> dict[str, tuple[Pair, ...]]:
    """Return the checkpoints before and after each jump and control of a schedule, as far as they were kept.

    Parameters
    ----------
    schedule : Dataset
        From `ndt_query.jump_schedule`.
    checkpoints : sequence of int
        Steps that the store holds.
    offset : int
        Measurements from the moment to either checkpoint: 2 or 10.

    Returns
    -------
    dict of str to tuple of (before, after)
        By role, ``"jump"`` and ``"control"``, in order of training.

    Examples
    --------
    >>> values = np.random.default_rng(0).standard_normal(100) + 8.0 * (np.arange(100) >= 60)
    >>> schedule = jump_schedule(detect_jumps(values, np.arange(100) * 5, n_null=99))
    >>> schedule_pairs(schedule, schedule["keep"].values)["jump"]
    ((290, 310),)
    """
    table = schedule[["step", "role", "offset", "centre"]].to_dataframe()
    held = {int(step) for step in checkpoints}
    found: dict[str, tuple[Pair, ...]] = {}
    for role in ROLES[:2]:
        pairs = []
        for _, rows in table[table["role"] == role].groupby("centre"):
            steps = dict(zip(rows["offset"], rows["step"], strict=True))
            pair = (int(steps.get(-offset, -1)), int(steps.get(offset, -1)))
            if pair[0] < pair[1] and set(pair) <= held:
                pairs.append(pair)
        found[role] = tuple(sorted(pairs))
    return found


def default_pairs(store: Store) -> tuple[Pairs, str]:
    """Return the pairs of checkpoints to ask about where nobody names any, and why these.

    Parameters
    ----------
    store : Store

    Returns
    -------
    pairs : mapping of role to pairs, or sequence of pairs
        About the jumps and controls of the tracked training, as far as the store holds them (`schedule_pairs`); else at
        most five that span training.
    said : str
        One sentence on where they come from.

    Raises
    ------
    InvalidInputError
        There are fewer than two checkpoints.
    """
    steps = training_checkpoints(store)
    said = "Nothing was tracked while training: pairs span training."
    if TRAINING_GROUP in store.catalogue.supplements:
        try:
            found = schedule_pairs(jump_schedule(detect_jumps(store.training)), steps)
        except (DimensionError, InvalidInputError, NotFoundError) as error:
            said = f"Jumps were not looked for, and pairs span training. {error}"
        else:
            if any(found.values()):
                return found, "Pairs are about the jumps and controls of the tracked training."
            said = "The tracked training has no jump whose surroundings were kept: pairs span training."
    return spread_pairs(steps), said
