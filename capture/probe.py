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

from capture._describe import described
from capture._images import ImageData
from capture._rows import DatasetRows, SteadyRows, as_array, is_bfloat16
from ndt_store.errors import InvalidInputError
from ndt_store.planning import ProbeSet

__all__ = ["Probe", "as_probe"]

_DIGEST_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe set, its digest, and what it is called.

    Parameters
    ----------
    contents : ProbeSet
        Its inputs raise `CaptureError` when they are read again and have changed.
    digest : str
        SHA-256, in hex.
    name : str
    bfloat16 : bool
        Whether the inputs were given as bfloat16; the model is handed what was given.
    """

    contents: ProbeSet
    digest: str
    name: str
    bfloat16: bool = False

    def __len__(self) -> int:
        return int(self.contents.inputs.shape[0])

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels) in order; the last batch may be shorter. Inputs may share memory with the data."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            values = self.contents.inputs[rows]
            inputs = torch.from_numpy(values if values.flags.writeable else np.array(values))
            labels = torch.from_numpy(np.asarray(self.contents.labels[rows]).astype(np.int64))
            yield inputs.bfloat16() if self.bfloat16 else inputs, labels


def as_probe(data: Any) -> Probe:
    """Make a probe set.

    Parameters
    ----------
    data : ImageData, pair of arrays or tensors (inputs, labels), or dataset
        Of a pair, the inputs are an array or a tensor, and the labels anything that NumPy makes an array of. A dataset
        has a length and gives (input, label) for each position, the same at every call, each input one array. A plain
        tuple or list of two is always taken for a pair.

    Raises
    ------
    InvalidInputError
        The data are none of these, empty, of unequal lengths, or have labels that are no class numbers.

    Notes
    -----
    Reads every input once, for the digest.
    """
    if isinstance(data, ImageData):
        contents = ProbeSet(
            SteadyRows(data.inputs, data.inputs.shape, data.inputs.dtype),
            np.array(data.labels),
            data.examples,
            [data.split] * len(data) if data.split else None,
            data.class_names,
            ("channel", "row", "column"),
        )
        return Probe(contents, data.digest, data.name)
    if isinstance(data, tuple | list) and len(data) == 2:
        return _from_pair(*data)
    array = isinstance(data, np.ndarray | torch.Tensor)
    if not array and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return _from_dataset(data)
    raise InvalidInputError(
        f"data is {type(data).__name__}: expected a pair of arrays (inputs, labels) or a dataset with a length "
        "that gives (input, label)."
    )


def _from_pair(given: Any, classes: Any) -> Probe:
    if not hasattr(given, "shape"):
        raise InvalidInputError(
            f"data is a pair whose inputs are {described(given)}: expected an array or a tensor with one row an "
            "example; stack the inputs, and give the labels as the second part."
        )
    inputs, labels = as_array(given, "The first part of data"), as_array(classes, "The second part of data, labels,")
    if not inputs.shape or not labels.shape or len(labels) != inputs.shape[0]:
        found = f"there are {len(labels)} labels" if labels.shape else "the labels are one number"
        raise InvalidInputError(f"inputs have shape {inputs.shape} and {found}: expected one label each example.")
    return _probe(SteadyRows(inputs, inputs.shape, inputs.dtype), labels, "arrays", is_bfloat16(given))


def _from_dataset(dataset: Any) -> Probe:
    if len(dataset) == 0:
        raise InvalidInputError("The dataset is empty: give at least one example.")
    rows = DatasetRows(dataset)
    return _probe(SteadyRows(rows, rows.shape, rows.dtype), rows.labels, type(dataset).__name__, rows.bfloat16)


def _probe(inputs: SteadyRows, labels: NDArray[Any], name: str, bfloat16: bool) -> Probe:
    """Digest the inputs, and only then look at the labels: those of a dataset come to light with its inputs."""
    if 0 in inputs.shape[1:]:
        raise InvalidInputError(
            f"inputs have shape {inputs.shape}, which holds no number: expected at least one value an example."
        )
    sha = sha256()
    dtype = "bfloat16" if bfloat16 else str(inputs.dtype)
    sha.update(json.dumps(["inputs", dtype, list(inputs.shape)]).encode() + b"\n")
    for start in range(0, inputs.shape[0], _DIGEST_ROWS):
        sha.update(inputs[start : start + _DIGEST_ROWS].data)
    # A copy, because the caller may write into the labels while the session lasts.
    contents = ProbeSet(inputs, np.array(labels))
    sha.update(b"labels\n" + np.asarray(labels).astype("<i8").tobytes())
    return Probe(contents, sha.hexdigest(), name, bfloat16)
