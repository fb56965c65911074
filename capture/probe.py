"""What users call data, as a probe set: arrays, tensors, `ImageData` or any map-style dataset of (input, label).

A dataset is read a run of examples at a time and never held whole, so that a probe set may be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from capture._images import ImageData
from ndt_store.errors import InvalidInputError
from ndt_store.layout import Rows
from ndt_store.planning import ProbeSet

__all__ = ["Probe", "as_probe"]

_DIGEST_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe set, its digest, and what it is called."""

    contents: ProbeSet
    digest: str
    name: str

    def __len__(self) -> int:
        return int(self.contents.inputs.shape[0])

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels) in order; the last batch may be shorter."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            # A copy of its own: the model may write into its input.
            inputs = torch.from_numpy(np.array(self.contents.inputs[rows]))
            yield inputs, torch.from_numpy(np.asarray(self.contents.labels[rows]).astype(np.int64))


class _DatasetRows:
    """The inputs of a map-style dataset, stacked a run at a time."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        first = self._item(0)
        if not np.array_equal(first, self._item(0), equal_nan=first.dtype.kind == "f"):
            raise InvalidInputError(
                "The dataset gives other values when example 0 is read again: a probe set never changes, so remove "
                "random transforms."
            )
        self.dtype = first.dtype
        self.shape = (len(dataset), *first.shape)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return np.stack([self._item(n) for n in range(*rows.indices(self.shape[0]))])

    def _item(self, position: int) -> NDArray[Any]:
        return _array(self._dataset[position][0])


def as_probe(data: Any) -> Probe:
    """Make a probe set.

    Parameters
    ----------
    data : ImageData, pair of arrays or tensors (inputs, labels), or dataset
        A dataset has a length and gives (input, label) for each position, the same at every call.

    Raises
    ------
    InvalidInputError
        The data are none of these, empty, of unequal lengths, or have labels that are no class numbers.
    """
    if isinstance(data, ImageData):
        contents = ProbeSet(
            data.inputs,
            data.labels,
            data.examples,
            [data.split] * len(data) if data.split else None,
            data.class_names,
            ("channel", "row", "column"),
        )
        return Probe(contents, data.digest, data.name)
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        inputs, labels = (_array(part) for part in data)
        name = "arrays"
    elif hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        inputs, labels = _from_dataset(data)
        name = type(data).__name__
    else:
        raise InvalidInputError(
            f"data is {type(data).__name__}: expected a pair of arrays (inputs, labels) or a dataset with a length "
            "that gives (input, label)."
        )
    if not inputs.shape or len(labels) != inputs.shape[0]:
        raise InvalidInputError(
            f"inputs have shape {tuple(inputs.shape)} and there are {len(labels)} labels: expected one each example."
        )
    contents = ProbeSet(inputs, labels)
    return Probe(contents, _digest(contents), name)


def _from_dataset(dataset: Any) -> tuple[Any, NDArray[Any]]:
    if len(dataset) == 0:
        raise InvalidInputError("The dataset is empty: give at least one example.")
    try:
        labels = np.asarray([float(dataset[n][1]) for n in range(len(dataset))])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise InvalidInputError(f"The dataset does not give (input, label) with a class number ({error}).") from error
    return _DatasetRows(dataset), labels


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _digest(contents: ProbeSet) -> str:
    inputs: Rows = contents.inputs
    sha = sha256()
    labels = np.asarray(contents.labels).astype("<i8")
    sha.update(json.dumps(["inputs", str(contents.inputs.dtype), list(inputs.shape)]).encode() + b"\n")
    for start in range(0, inputs.shape[0], _DIGEST_ROWS):
        sha.update(np.ascontiguousarray(inputs[start : start + _DIGEST_ROWS]).tobytes())
    sha.update(b"labels\n" + labels.tobytes())
    return sha.hexdigest()
