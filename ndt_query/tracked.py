"""What was measured while training, as arrays, DataArrays or the Dataset that tracking writes: checks and order."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_store.dims import LAYER, STEP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["measured", "require_finite", "training_steps", "varies", "whole_layers"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FEWEST: Final = 30


def measured(series: Any, measure: str) -> xr.DataArray:
    """Return the series as (step,) or (step, layer)."""
    if isinstance(series, xr.Dataset):
        if measure not in series:
            held = ", ".join(str(name) for name in series.data_vars if STEP in series[name].dims) or "none"
            raise NotFoundError(f"The Dataset has no measure {measure!r} over step: it has {held}.")
        return measured(series[measure], measure)
    if not isinstance(series, xr.DataArray):
        array = np.asarray(series)
        if array.ndim != 1:
            raise DimensionError(
                f"The series has shape {array.shape}: expected one number for each measurement, or a DataArray "
                "with dims step and layer."
            )
        series = xr.DataArray(array, dims=(STEP,))
    if set(series.dims) not in ({STEP}, {STEP, LAYER}):
        raise DimensionError(f"The series has dims {series.dims}: expected step, and layer where there are several.")
    if series.dtype.kind not in "fiub":
        raise InvalidInputError(f"The series has dtype {series.dtype}: expected real numbers.")
    found: xr.DataArray = series.transpose(STEP, ...)
    return found


def whole_layers(series: xr.DataArray) -> xr.DataArray:
    """Return a series (step, layer) in the layers that are finite at every step; one without layers as it is.

    A layer that does not vary at some measurement has no dimension there.
    """
    if LAYER not in series.dims:
        return series
    return series.isel({LAYER: np.isfinite(series.transpose(STEP, LAYER).values).all(axis=0)})


def training_steps(series: xr.DataArray, steps: ArrayLike | None) -> I64:
    """Return the training step of each measurement of a series (step, ...), its own where none are given."""
    n = series.sizes[STEP]
    if n < FEWEST:
        raise DimensionError(
            f"The series has {n} measurements: a jump is told from noise by at least {FEWEST}; measure more often."
        )
    if steps is None:
        if STEP not in series.coords:
            raise NotFoundError("The series does not say at which training steps it was measured: pass steps=.")
        steps = series[STEP].values
    at = np.asarray(steps)
    if at.shape != (n,):
        raise DimensionError(f"steps has shape {at.shape} where the series has {n} measurements: give one step each.")
    if at.dtype.kind not in "iuf" or not (at == np.floor(at)).all() or not (np.diff(at) > 0).all():
        raise InvalidInputError("steps are not increasing whole numbers: give the training step of each measurement.")
    return at.astype(np.int64)


def require_finite(values: F64, at: I64, name: str) -> None:
    """Raise `InvalidInputError` at a NaN or an infinite value."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise InvalidInputError(
            f"{name} is NaN or infinite at {bad.size} of {len(values)} measurements, the first at step {at[bad[0]]}: "
            "drop those measurements first."
        )


def varies(values: F64) -> bool:
    """Return whether values differ by more than rounding."""
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())
