"""`ImageData`: labelled images in a fixed order, their digest, and selections from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ndt_store.errors import InvalidInputError

__all__ = ["ImageData"]


@dataclass(frozen=True, slots=True)
class ImageData:
    """Images with labels, in a fixed order.

    ``len(data)`` and ``data[i] -> (input, label)`` make it a map-style dataset that PyTorch's DataLoader
    accepts.

    Parameters
    ----------
    inputs : float32 array (example, channel, y, x)
        Finite values.
    labels : int64 array (example,)
        Positions in `class_names`.
    class_names : tuple of str
    name : str
        Name of the data set.
    examples : int64 array (example,)
        Index of each image in the original data set and split; no index twice.
    split : {"train", "test", ""}
        Where the indices count.

    Raises
    ------
    InvalidInputError
        The arrays contradict each other or this description.
    """

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    name: str
    examples: npt.NDArray[np.int64]
    split: str = ""

    def __post_init__(self) -> None:
        def refuse(got: str, expected: str) -> InvalidInputError:
            return InvalidInputError(f"Data set {self.name!r} has {got}, expected {expected}.")

        if self.inputs.ndim != 4 or self.inputs.dtype != np.float32:
            raise refuse(
                f"inputs of shape {self.inputs.shape} and type {self.inputs.dtype}",
                "float32 (example, channel, y, x)",
            )
        n = len(self.inputs)
        for field, array in (("labels", self.labels), ("examples", self.examples)):
            if array.shape != (n,) or array.dtype != np.int64:
                raise refuse(f"{field} of shape {array.shape} and type {array.dtype}", f"int64 of shape ({n},)")
        if n and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise refuse(
                f"labels from {self.labels.min()} to {self.labels.max()}",
                f"0 to {len(self.class_names) - 1}, one per class name",
            )
        if len(np.unique(self.examples)) != n:
            raise refuse("an example index that occurs twice", "each index once")
        if not np.isfinite(self.inputs).all():
            raise refuse("NaN or infinite inputs", "finite values")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, position: int) -> tuple[npt.NDArray[np.float32], int]:
        return self.inputs[position], int(self.labels[position])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channel, y, x) of one image."""
        channels, height, width = self.inputs.shape[1:]
        return channels, height, width

    @property
    def n_classes(self) -> int:
        """Number of classes, whether or not each one occurs."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 of what a model sees, in hex.

        Over the JSON list of class names, then for ``inputs``, ``labels`` and ``examples`` a JSON line
        ``[name, dtype, shape]`` and the little-endian bytes in C order. The data set's name and split are
        labels, not content, and do not enter. Computed anew at each call: one pass over the bytes.
        """
        sha = hashlib.sha256(json.dumps(list(self.class_names)).encode() + b"\n")
        for field, array in (("inputs", self.inputs), ("labels", self.labels), ("examples", self.examples)):
            sha.update(json.dumps([field, str(array.dtype), list(array.shape)]).encode() + b"\n")
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            sha.update(little.reshape(-1).view(np.uint8).data)
        return sha.hexdigest()

    def select(self, positions: npt.ArrayLike) -> ImageData:
        """Return the images at these positions (not dataset indices), in the order given."""
        chosen = np.asarray(positions, dtype=np.int64)
        if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self)):
            raise InvalidInputError(
                f"Cannot take positions {positions!r} of data set {self.name!r}, "
                f"expected a list of positions from 0 to {len(self) - 1}."
            )
        return replace(self, inputs=self.inputs[chosen], labels=self.labels[chosen], examples=self.examples[chosen])

    def first(self, n: int) -> ImageData:
        """Return the first `n` images."""
        if not 0 < n <= len(self):
            raise InvalidInputError(
                f"Cannot take the first {n} of data set {self.name!r} ({self.split}), "
                f"expected a number from 1 to {len(self)}."
            )
        return self.select(np.arange(n))

    def balanced(self, n: int) -> ImageData:
        """Return `n` images, equally many of each class: the first of each, in their order here.

        Raises
        ------
        InvalidInputError
            `n` is not a positive multiple of the number of classes, or a class has too few images.
        """
        if n <= 0 or n % self.n_classes:
            raise InvalidInputError(
                f"Cannot take {n} images of data set {self.name!r} in equal parts, "
                f"expected a positive multiple of its {self.n_classes} classes."
            )
        share = n // self.n_classes
        by_class = [np.flatnonzero(self.labels == label)[:share] for label in range(self.n_classes)]
        for class_name, found in zip(self.class_names, by_class, strict=True):
            if len(found) < share:
                raise InvalidInputError(
                    f"Class {class_name!r} of data set {self.name!r} ({self.split}) has {len(found)} images, "
                    f"expected at least {share} for {n} in equal parts; ask for fewer."
                )
        return self.select(np.sort(np.concatenate(by_class)))

    def standardised(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the images as ``(x - mean) / std`` with one mean and one std a channel (or one for all)."""
        channels = self.input_shape[0]
        if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
            raise InvalidInputError(
                f"Cannot standardise data set {self.name!r} with mean {list(mean)} and std {list(std)}, "
                f"expected 1 or {channels} numbers each and every std above 0."
            )
        shift, scale = (np.asarray(v, np.float32).reshape(1, -1, 1, 1) for v in (mean, std))
        return replace(self, inputs=(self.inputs - shift) / scale)
