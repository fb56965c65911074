"""Inputs of a probe set, read a run of examples at a time, every time the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import google_crc32c
import numpy as np
import torch
from numpy.typing import NDArray

from capture._describe import described
from ndt_store.errors import CaptureError, InvalidInputError
from ndt_store.layout import Rows

__all__ = ["DatasetRows", "SteadyRows", "as_array", "is_bfloat16"]

_NUMERIC: Final = "biuf"


class SteadyRows:
    """Rows that give the same values at every reading, or an error.

    The first reading of an example leaves its CRC-32C here (4 bytes an example), and every later one is compared with
    it: what a model is shown, what the store keeps as ``input`` and what the digest was taken of are then the same.

    Parameters
    ----------
    rows : Rows
        Slices give (example, ...).
    shape : tuple of int
        Of all rows.
    dtype : numpy.dtype
        What they are handed out as.

    Raises
    ------
    CaptureError
        On reading: an example has changed since it was first read.
    """

    def __init__(self, rows: Rows, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._rows = rows
        self.shape = shape
        self.dtype = dtype
        self._known = np.zeros(shape[0], np.bool_)
        self._checksums = np.zeros(shape[0], np.uint32)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        # In order of memory whatever the order was, so that a row is one run of bytes.
        values = np.ascontiguousarray(self._rows[rows], self.dtype)
        flat = values.reshape(len(values), -1).view(np.uint8)
        found = np.fromiter(map(google_crc32c.value, flat), np.uint32, len(values))
        changed = self._known[rows] & (found != self._checksums[rows])
        if changed.any():
            at = range(*rows.indices(self.shape[0]))[int(changed.argmax())]
            raise CaptureError(
                f"Example {at} of the probe set has other values than when it was first read, where every checkpoint "
                "is to see the same: remove random transforms, and do not write into the inputs."
            )
        self._checksums[rows], self._known[rows] = found, True
        return values


class DatasetRows:
    """The inputs of a map-style dataset of (input, label), stacked a run at a time; labels are kept as they pass by.

    Parameters
    ----------
    dataset : object
        Has a length and gives (input, label) for a position.

    Raises
    ------
    InvalidInputError
        Here and on reading: an item is not one array and a class number, items differ in shape or type, or the
        dataset itself fails.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        first, again = self._item(0)[0], self._item(0)[0]
        if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
            raise InvalidInputError(
                "The dataset gives other values when example 0 is read again: a probe set never changes, so remove "
                "random transforms."
            )
        self.bfloat16 = is_bfloat16(dataset[0][0])
        self.dtype = first.dtype
        self.shape = (len(dataset), *first.shape)
        self.labels = np.full(len(dataset), np.nan)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        positions = range(*rows.indices(self.shape[0]))
        values = np.empty((len(positions), *self.shape[1:]), self.dtype)
        for place, position in enumerate(positions):
            value, label = self._item(position)
            if value.shape != self.shape[1:] or value.dtype != self.dtype:
                raise InvalidInputError(
                    f"Example {position} of the dataset has shape {value.shape} and type {value.dtype} where example 0 "
                    f"has {self.shape[1:]} and {self.dtype}: expected one size and type throughout; crop or pad."
                )
            values[place] = value
            if np.isnan(self.labels[position]):
                self.labels[position] = label
        return values

    def _item(self, position: int) -> tuple[NDArray[Any], float]:
        try:
            item = self._dataset[position]
        except Exception as error:
            raise InvalidInputError(
                f"The dataset fails at example {position} with {type(error).__name__} ({error}), expected (input, "
                f"label) for each of its {len(self._dataset)} positions."
            ) from error
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise InvalidInputError(
                f"The dataset gives {described(item)} for example {position}, expected (input, label); wrap it so that "
                "it does."
            )
        value = as_array(item[0], f"The input of example {position}")
        try:
            # float would take a name that is made of digits.
            label = float("" if isinstance(item[1], str | bytes) else item[1])
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidInputError(
                f"The dataset gives the label {described(item[1])} for example {position}, expected (input, label) "
                "with a class number; number the classes from 0."
            ) from error
        return value, label


def is_bfloat16(value: Any) -> bool:
    """Tell whether this is a tensor of the type that NumPy lacks."""
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def as_array(value: Any, what: str) -> NDArray[Any]:
    """Return one array of numbers in native byte order; bfloat16 becomes float32, which holds it exactly.

    Parameters
    ----------
    value : tensor, array, number, or nested list of numbers
    what : str
        Begins the message of an error.

    Raises
    ------
    InvalidInputError
        It is a structure of arrays, or holds no numbers.
    """
    parts = [] if hasattr(value, "shape") or not isinstance(value, list | tuple) else value
    if isinstance(value, Mapping) or any(hasattr(part, "shape") and len(part.shape) for part in parts):
        raise InvalidInputError(
            f"{what} is {described(value)}, expected one array; stack the parts, or give the model one input."
        )
    try:
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu()
            array = (tensor.float() if is_bfloat16(tensor) else tensor).numpy()
        else:
            array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            f"{what} is {described(value)}, which gives no array ({error}), expected a dense array of numbers."
        ) from error
    if array.dtype.kind not in _NUMERIC:
        raise InvalidInputError(f"{what} is {described(value)} and holds {array.dtype}, expected an array of numbers.")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
