"""What a question may be asked of: checks of activations, labels, steps and options, and the order of dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, TOKEN, UNIT
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import nearest_steps

__all__ = [
    "Classes",
    "LabelsLike",
    "as_classes",
    "as_names",
    "canonical",
    "class_name",
    "example_ids",
    "one_of",
    "require_count",
    "require_number",
    "require_steps",
]

LABEL: Final = "label"
LabelsLike: TypeAlias = xr.DataArray | ArrayLike


@dataclass(frozen=True, slots=True)
class Classes:
    """Labels of examples as numbers.

    Parameters
    ----------
    codes : ndarray of int64 (example,)
        Position of each example's class in `names`.
    names : ndarray (class,)
        The labels that occur, sorted.
    """

    codes: NDArray[np.int64]
    names: NDArray[Any]


def canonical(acts: xr.DataArray) -> tuple[xr.DataArray, bool]:
    """Put activations in the order (checkpoint, example, [token,] unit[, y, x]).

    Returns
    -------
    DataArray
        The same values, transposed lazily; a missing ``checkpoint`` becomes a dimension of size 1.
    bool
        Whether it was missing, so that results lose it again.

    Raises
    ------
    DimensionError
        ``example`` or ``unit`` is missing or empty, or there is a dimension of another name.
    InvalidInputError
        The values are not real numbers, or dask does not know how many there are.
    """
    what = f"Array {acts.name!r}" if acts.name is not None else "The array"
    dims = [str(dim) for dim in acts.dims]
    unknown = [dim for dim in dims if dim not in (CHECKPOINT, EXAMPLE, UNIT, *POSITION_DIMS)]
    missing = [dim for dim in (EXAMPLE, UNIT) if dim not in dims]
    if unknown or missing:
        raise DimensionError(
            f"{what} has dims {tuple(dims)}: expected example and unit, and at most checkpoint, "
            f"{', '.join(POSITION_DIMS)} beside them; rename or reduce {', '.join(unknown or missing)}."
        )
    if any(math.isnan(acts.sizes[dim]) for dim in dims):
        raise InvalidInputError(
            f"{what} has chunks of unknown size: call .compute_chunk_sizes() on its dask array first."
        )
    empty = [dim for dim in dims if acts.sizes[dim] == 0]
    if empty:
        raise DimensionError(f"{what} is empty along {', '.join(empty)}: select at least one entry of each dimension.")
    if acts.dtype.kind not in "fiub":
        raise InvalidInputError(f"{what} has dtype {acts.dtype}: expected real numbers; convert it first.")
    squeezed = CHECKPOINT not in dims
    if squeezed:
        acts = acts.expand_dims(CHECKPOINT)
    after = [dim for dim in POSITION_DIMS if dim in dims and dim != TOKEN]
    before = [TOKEN] if TOKEN in dims else []
    order = (CHECKPOINT, EXAMPLE, *before, UNIT, *after)
    return (acts if acts.dims == order else acts.transpose(*order)), squeezed


def example_ids(acts: xr.DataArray) -> NDArray[np.int64]:
    """Return identifiers of the examples, their positions where there are none.

    Raises
    ------
    InvalidInputError
        The identifiers are not whole numbers.
    """
    ids = np.asarray(acts[EXAMPLE].values)
    if ids.dtype.kind not in "iu":
        raise InvalidInputError(
            f"Coordinate example has dtype {ids.dtype}: expected whole numbers, indices of the dataset."
        )
    return ids.astype(np.int64)


def as_classes(acts: xr.DataArray, labels: LabelsLike | None) -> Classes:
    """Give each example of `acts` its class.

    Parameters
    ----------
    acts : DataArray
        With ``example``.
    labels : array-like or DataArray (example,), optional
        A DataArray with an ``example`` index is matched by it and may hold more examples than `acts`; anything else
        goes by position. Without it the coordinate ``label`` of `acts` is taken.

    Raises
    ------
    NotFoundError
        There is neither.
    DimensionError
        Length or dimensions do not fit.
    InvalidInputError
        A label is missing (NaN), the examples are not those of `acts`, or all labels are the same.
    """
    if labels is None:
        if LABEL not in acts.coords:
            raise NotFoundError("The array has no coordinate 'label' over example: pass labels=.")
        labels = acts.coords[LABEL]
    values = _matched(acts, labels) if isinstance(labels, xr.DataArray) else np.asarray(labels)
    n = acts.sizes[EXAMPLE]
    if values.shape != (n,):
        raise DimensionError(f"labels has shape {values.shape} where the array has {n} examples: give one label each.")
    if values.dtype.kind == "T":
        values = values.astype(object)
    absent = np.flatnonzero(xr.DataArray(values).isnull().values)
    if absent.size:
        raise InvalidInputError(
            f"labels are missing (NaN) at {absent.size} of {n} examples, the first at position {absent[0]}: drop those "
            "examples first."
        )
    try:
        names, codes = np.unique(values, return_inverse=True)
    except TypeError as error:
        kinds = sorted({type(value).__name__ for value in values})
        raise InvalidInputError(f"labels mix {' and '.join(kinds)}: give labels of one type.") from error
    if len(names) < 2:
        raise InvalidInputError(f"labels are all {names[0]}: a question about classes needs two or more.")
    return Classes(codes.astype(np.int64), names)


def _matched(acts: xr.DataArray, labels: xr.DataArray) -> NDArray[Any]:
    if labels.dims != (EXAMPLE,):
        raise DimensionError(f"labels has dims {labels.dims}: expected (example,).")
    if EXAMPLE not in labels.indexes or EXAMPLE not in acts.indexes:
        return np.asarray(labels.values)
    wanted, held = acts.indexes[EXAMPLE], labels.indexes[EXAMPLE]
    if wanted.equals(held):
        return np.asarray(labels.values)
    if not held.is_unique:
        raise InvalidInputError("labels name an example twice and differ from the array's examples: drop duplicates.")
    place = held.get_indexer(wanted)
    if (place < 0).any():
        raise InvalidInputError(
            f"labels lack {int((place < 0).sum())} of the array's {len(wanted)} examples, the first is example "
            f"{wanted[place < 0][0]}: select the examples that both have."
        )
    matched: NDArray[Any] = np.asarray(labels.values)[place]
    return matched


def class_name(labels: xr.DataArray, label: Any) -> str:
    """Return the name of a class, from the attribute ``class_names`` of the labels; the label itself without it."""
    names = labels.attrs.get("class_names", ())
    position = int(label) if isinstance(label, int | float | np.integer | np.floating) and label == label // 1 else -1
    return str(names[position]) if 0 <= position < len(names) else str(label)


def require_steps(acts: xr.DataArray, steps: Iterable[int]) -> None:
    """Raise `NotFoundError`, naming the nearest ones, unless every step is a checkpoint of `acts`."""
    if CHECKPOINT not in acts.dims:
        raise DimensionError("The array has no dimension checkpoint: pass all checkpoints, not one of them.")
    held = np.asarray(acts[CHECKPOINT].values)
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int | np.integer):
            raise InvalidInputError(f"{step!r} is not a training step: give a whole number, a label of checkpoint.")
        if step not in held:
            raise NotFoundError(f"The array has no checkpoint {step}: {nearest_steps(held, int(step))}")


def as_names(layers: str | Sequence[str] | None) -> list[str] | None:
    """Return names of layers as a list; a single name is a list of one, and None stays None."""
    return [layers] if isinstance(layers, str) else None if layers is None else list(layers)


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """Return an option's value when it is allowed."""
    known = tuple(allowed)
    if value not in known:
        raise InvalidInputError(f"{name}={value!r} is not an option: expected one of {', '.join(known)}.")
    return value


def require_count(name: str, value: int, least: int) -> int:
    """Return a whole number that is at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidInputError(f"{name}={value!r} is not possible: expected a whole number of at least {least}.")
    return int(value)


def require_number(name: str, value: float, below: float = math.inf) -> float:
    """Return a number that is at least 0, and less than `below` where that is given."""
    given = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not given or not 0 <= value <= below or value == below < math.inf:
        limit = "" if below == math.inf else f" and less than {below:g}"
        raise InvalidInputError(f"{name}={value!r} is not possible: expected a number of at least 0{limit}.")
    return float(value)
