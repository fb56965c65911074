"""What the views of an array need to know of it beside its blocks: its form, and the labels of its examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import BlockArray
from ndt_store.catalogue import Catalogue
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.schema import ArraySpec

__all__ = ["Frame", "class_limit", "frame_of", "has_views"]

LABEL: Final = "label"
FEW_CLASSES: Final = 16
CLASS_SHARE: Final = 0.01
"""Sums by class are kept up to this share of the array's own bytes, and for few classes always."""


@dataclass(frozen=True, slots=True)
class Frame:
    """An array with units, as views see it.

    Parameters
    ----------
    spec : ArraySpec
        The cube.
    n_before : int
        Position dimensions before ``unit``.
    n_units, n_positions : int
        Units, and values of one unit for one example.
    examples : ndarray of int64 (example,)
        Identifiers.
    codes : ndarray of int64 (example,) or None
        Position of each example's label in `classes`; None where there are no labels, or too many of them.
    classes : ndarray of int64 (class,)
        The labels that occur, sorted; none where `codes` is None.
    """

    spec: ArraySpec
    n_before: int
    n_units: int
    n_positions: int
    examples: NDArray[np.int64]
    codes: NDArray[np.int64] | None
    classes: NDArray[np.int64]

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return self.spec.sizes[0]

    @property
    def position_dims(self) -> tuple[str, ...]:
        """Dimensions that a flat position index runs over, slowest first."""
        return tuple(dim for dim in self.spec.dims[2:] if dim != UNIT)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of values as kernels hand them on."""
        return np.dtype("<f4" if self.spec.dtype in ("float32", "float16") else "<f8")


def has_views(spec: ArraySpec) -> bool:
    """Whether views are made of an array: a cube over examples with units, and nothing but positions beside them."""
    inner = spec.dims[2:]
    known = all(dim == UNIT or dim in POSITION_DIMS for dim in inner)
    return spec.dims[:2] == (CHECKPOINT, EXAMPLE) and UNIT in inner and known and spec.dtype != "string"


def frame_of(catalogue: Catalogue, spec: ArraySpec) -> Frame:
    """Describe an array for which `has_views` holds; reads the labels once for each catalogue."""
    frames: dict[str, Frame] = catalogue.memo.setdefault("frames", {})
    if spec.path not in frames:
        frames[spec.path] = _frame(catalogue, spec)
    return frames[spec.path]


def _frame(catalogue: Catalogue, spec: ArraySpec) -> Frame:
    examples, labels = _labels(catalogue)
    unit = spec.dims.index(UNIT)
    n_units = spec.sizes[unit - 1]
    n_positions = math.prod(spec.sizes[1:]) // n_units
    classes, codes = np.unique(labels, return_inverse=True) if labels is not None else (np.empty(0, np.int64), None)
    if len(classes) > class_limit(spec, n_units):
        classes, codes = np.empty(0, np.int64), None
    return Frame(spec, unit - 2, n_units, n_positions, examples, codes, classes)


def class_limit(spec: ArraySpec, n_units: int) -> int:
    """Return how many classes sums are kept for at most."""
    values = math.prod(spec.sizes) // n_units
    return max(FEW_CLASSES, int(CLASS_SHARE * 4 * values / 8))


def _labels(catalogue: Catalogue) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    if "labels" not in catalogue.memo:
        found = []
        for name in (EXAMPLE, LABEL):
            spec = catalogue.schema.find(name)
            whole = spec is not None and spec.dims == (EXAMPLE,) and spec.dtype == "int64"
            found.append(BlockArray(catalogue, spec)[...] if whole and spec is not None else None)
        n = next(spec.sizes[0] for spec in catalogue.schema.cubes if EXAMPLE in spec.dims)
        catalogue.memo["labels"] = (np.arange(n) if found[0] is None else found[0], found[1])
    labels: tuple[NDArray[np.int64], NDArray[np.int64] | None] = catalogue.memo["labels"]
    return labels
