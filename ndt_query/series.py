"""What a series over training may be given as, numbers with their steps or named dimensions, checked and in order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_store.dims import CHECKPOINT
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = ["MEASURE", "STEP", "SeriesLike", "Trajectories", "as_trajectories", "labels_of", "only_dim"]

STEP: Final = "step"
MEASURE: Final = "measure"
SeriesLike: TypeAlias = xr.Dataset | xr.DataArray | ArrayLike
ENDS: Final = ("_low", "_high")


@dataclass(frozen=True, slots=True)
class Trajectories:
    """One or more series measured at the same steps.

    Parameters
    ----------
    values : ndarray of float64 (..., step)
        The series; the last axis is training.
    steps : ndarray of float64 (step,)
        Where they were measured, increasing.
    dim : str
        Name of the last axis.
    others : tuple of str
        Names of the axes before it.
    coords : mapping of str to ndarray
        Labels of all of them that have any; the steps always.
    name : str
        What was measured; "" where it is not known.
    source : DataArray
        What was given, for its attributes.
    """

    values: NDArray[np.float64]
    steps: NDArray[np.float64]
    dim: str
    others: tuple[str, ...]
    coords: Mapping[str, NDArray[Any]]
    name: str
    source: xr.DataArray


def only_dim(data: xr.DataArray, wanted: Iterable[str], dim: str | None = None) -> str:
    """Return the dimension that is meant: `dim`, or the one of `wanted` that `data` has, or its only one.

    Raises
    ------
    DimensionError
        There is no such dimension, or more than one.
    """
    known = tuple(wanted)
    dims = tuple(str(one) for one in data.dims)
    if dim is not None:
        found = [one for one in dims if one == dim]
        known = (dim,)
    else:
        found = [one for one in dims if one in known] or ([dims[0]] if len(dims) == 1 else [])
    if len(found) != 1:
        raise DimensionError(
            f"The array has dims {dims}: expected one of them to be {' or '.join(known)}; rename it or name it."
        )
    return found[0]


def as_trajectories(series: SeriesLike, steps: ArrayLike | None = None) -> Trajectories:
    """Put a series in order.

    Parameters
    ----------
    series : array_like (step,), DataArray (..., step) or Dataset
        The training dimension of named ones is ``step`` or ``checkpoint``, wherever it stands. Of a Dataset the
        floating variables over all of its dimensions, without ends of intervals, along ``measure``.
    steps : array_like (step,), optional
        Where it was measured. A DataArray brings its own; 0, 1, 2, ... without either.

    Raises
    ------
    DimensionError
        A plain array is not of one dimension, the training dimension is missing, there is another number of steps, or
        no value.
    InvalidInputError
        The values are not real numbers, or the steps do not increase.
    """
    if isinstance(series, xr.Dataset):
        series = _measures(series)
    if isinstance(series, xr.DataArray):
        source = series
        dim = only_dim(series, (STEP, CHECKPOINT))
        ordered = series.transpose(..., dim)
        if steps is None and dim in ordered.coords:
            steps = ordered[dim].values
        others = tuple(str(one) for one in ordered.dims[:-1])
        coords = labels_of(ordered, others)
        values, name = np.asarray(ordered.values), "" if ordered.name is None else str(ordered.name)
    else:
        source = xr.DataArray()
        values, dim, others, coords, name = np.asarray(series), STEP, (), {}, ""
        if values.ndim != 1:
            raise DimensionError(
                f"The series has shape {values.shape}: give one series, or a DataArray with a dimension step."
            )
    if values.dtype.kind not in "fiub":
        raise InvalidInputError(f"The series has dtype {values.dtype}: expected real numbers; convert it first.")
    if values.size == 0:
        raise DimensionError(f"The series has shape {values.shape}, which holds no value: select at least one series.")
    n = values.shape[-1]
    places = np.arange(n, dtype=np.float64) if steps is None else _checked(steps, n)
    coords = {**coords, dim: _whole(places)}
    return Trajectories(values.astype(np.float64), places, dim, others, coords, name, source)


def _measures(data: xr.Dataset) -> xr.DataArray:
    dims = [frozenset(one.dims) for one in data.data_vars.values()]
    # Of as many dimensions, those of most variables: a training has six measures by layer, and norms by parameter.
    whole = max(dims, key=lambda one: (len(one), dims.count(one)), default=frozenset())
    wanted = [
        name for name, one in data.data_vars.items()
        if set(one.dims) == whole and one.dtype.kind == "f" and not str(name).endswith(ENDS)
    ]  # fmt: skip
    if not wanted:
        raise DimensionError("The Dataset has no floating variables over its dimensions: pass the one that you mean.")
    return data[wanted].to_array(MEASURE, name="measure").assign_attrs(data.attrs)


def _checked(steps: Any, n: int) -> NDArray[np.float64]:
    places = np.asarray(steps)
    if places.shape != (n,):
        raise DimensionError(f"steps has shape {places.shape} where the series has {n} values: give one step each.")
    if places.dtype.kind not in "fiu":
        raise InvalidInputError(f"steps has dtype {places.dtype}: expected numbers, the steps of measurement.")
    places = places.astype(np.float64)
    if not (np.diff(places) > 0).all():
        raise InvalidInputError("steps do not increase: sort the series by its steps, and keep one value for each.")
    return places


def _whole(places: NDArray[np.float64]) -> NDArray[Any]:
    """Make whole numbers of steps that are."""
    return places.astype(np.int64) if (places == np.round(places)).all() else places


def labels_of(data: xr.DataArray, dims: Iterable[Hashable]) -> dict[str, NDArray[Any]]:
    """Labels of the dimensions that have any."""
    return {str(dim): np.asarray(data[dim].values) for dim in dims if dim in data.coords}
