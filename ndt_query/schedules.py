"""Moments that are worth keeping, as `capture` asks for them by name through the entry points ``ndt.schedules``."""

from __future__ import annotations

import xarray as xr

from ndt_query.jump_moments import jump_schedule
from ndt_query.jumps import detect_jumps

__all__ = ["jumps"]


def jumps(training: xr.Dataset, *, seed: int) -> xr.Dataset:
    """Return the moments about the jumps of a tracked training, in the participation ratio of any layer.

    Parameters
    ----------
    training : Dataset
        From `ndt_store.open_training`.
    seed : int
        Of the null and of the choice of controls.

    Returns
    -------
    Dataset
        From `ndt_query.jump_schedule`, empty where no jump survives its null.
    """
    return jump_schedule(detect_jumps(training, seed=seed), seed=seed)
