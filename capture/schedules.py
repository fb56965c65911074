"""Schedules: what turns a tracked training into the moments that are worth keeping, found in other packages by name.

A package offers one through the entry-point group ``ndt.schedules``: a function
``(training: xarray.Dataset, *, seed: int) -> xarray.Dataset``. It is given what `ndt_store.open_training` reads, and a
seed for what it draws by chance. So this package need not know who finds jumps, or how.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final, Protocol, cast

import xarray as xr

from capture._suggest import expected_one_of
from ndt_store.errors import NotFoundError

__all__ = ["GROUP", "Schedule", "load_schedule"]

GROUP: Final = "ndt.schedules"


class Schedule(Protocol):
    """From a tracked training to moments."""

    def __call__(self, training: xr.Dataset, *, seed: int) -> xr.Dataset:
        """Return the moments of a training; variable ``step`` says whose weights are wanted, -1 is none.

        Interventions go by three more of the same dimension: ``role``, ``"jump"`` or ``"control"``; ``centre``, the
        step of the measurement that shows the jump, or that stands for it as a control; ``jump``, which jump it is or
        is a control of.
        """
        ...


def load_schedule(name: str) -> Schedule:
    """Return the schedule of a name; its package is imported now.

    Raises
    ------
    NotFoundError
        No installed package offers it; names those that are offered.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        known = expected_one_of(name, sorted(found)) if found else "and there is none at all"
        raise NotFoundError(
            f"No installed package offers a schedule {name!r} (entry points {GROUP}), {known}; install the package, or "
            "name the steps yourself."
        )
    return cast("Schedule", found[name].load())
