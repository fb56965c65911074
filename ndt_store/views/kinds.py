"""The views themselves: what each holds, as arrays in a file and as states that queries merge and finalise.

`MomentsView`
    Moments of each unit, sums by class, and a zone map: least and largest value and number of active values of each
    unit in each block, which tells the blocks that cannot matter to a filter.
`TopView`
    The `K` examples that drive each unit most, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from ndt_store.layout import n_blocks
from ndt_store.views.classes import ClassSums
from ndt_store.views.frame import Frame
from ndt_store.views.moments import Moments
from ndt_store.views.topk import TopK

__all__ = ["Expected", "K", "MomentsView", "TopView", "Zones", "check_arrays"]

K: Final = 64
"""Ranks kept by a `TopView`."""

Arrays = Mapping[str, NDArray[Any]]

Expected = Mapping[str, tuple[str, tuple[int, ...]]]
"""NumPy type and shape of each array of a view."""


@dataclass(frozen=True, slots=True)
class Zones:
    """Extremes and activity by block; every field is (block, unit).

    Parameters
    ----------
    minimum, maximum : ndarray
        Extremes, NaN where a value is NaN.
    active : ndarray of uint32
        Values that are not zero.
    """

    minimum: NDArray[Any]
    maximum: NDArray[Any]
    active: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class MomentsView:
    """Moments, sums by class and zone map of one array at one checkpoint.

    Parameters
    ----------
    moments : Moments
        Fields (1, unit), active meaning not zero.
    classes : ClassSums or None
        Over the labels of the store; None where there are none or too many.
    zones : Zones
        Of the array's blocks, in order.
    """

    name: ClassVar[str] = "moments"
    version: ClassVar[int] = 1
    moments: Moments
    classes: ClassSums | None
    zones: Zones

    @classmethod
    def largest_nbytes(cls, frame: Frame) -> int:
        """Return the most bytes that its arrays may take."""
        return frame.n_units * (64 + 20 * n_blocks(frame.spec) + 8 * len(frame.classes))

    def meta(self) -> dict[str, int]:
        """Return the numbers that every unit shares."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept: what follows from the array's shape or from the zones is not."""
        m = self.moments
        found = {
            "counts": np.stack([m.nan_count[0], m.active_examples[0]]),
            "means": np.stack([m.mean[0], m.m2[0], m.abs_mean[0]]),
            "zone_minimum": self.zones.minimum,
            "zone_maximum": self.zones.maximum,
            "zone_active": self.zones.active,
        }
        if self.classes is not None:
            found |= {"class_total": self.classes.total[0], "class_nan": self.classes.nan_count[0]}
        return found

    @classmethod
    def from_arrays(cls, frame: Frame, meta: Mapping[str, int], arrays: Arrays) -> Self:  # noqa: ARG003
        """Rebuild the view; ValueError where the arrays are not those of `frame`."""
        u, b = frame.n_units, n_blocks(frame.spec)
        zone = dict.fromkeys(("zone_minimum", "zone_maximum"), (frame.dtype.str, (b, u)))
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            "counts": ("<i8", (2, u)),
            "means": ("<f8", (3, u)),
            "zone_active": ("<u4", (b, u)),
            **zone,
        }
        if frame.codes is not None:
            expected |= {"class_total": ("<f8", (len(frame.classes), u)), "class_nan": ("<i8", (u,))}
        check_arrays(arrays, expected)
        counts, means = arrays["counts"], arrays["means"]
        zones = Zones(arrays["zone_minimum"], arrays["zone_maximum"], arrays["zone_active"])
        shape = (1, u)
        moments = Moments(
            np.full(shape, frame.n_examples * frame.n_positions),
            counts[:1],
            np.full(shape, frame.n_examples),
            counts[1:],
            zones.active.sum(axis=0, dtype=np.int64)[None],
            means[:1],
            means[1:2],
            means[2:],
            zones.minimum.min(axis=0)[None].astype(np.float64),
            zones.maximum.max(axis=0)[None].astype(np.float64),
        )
        sums = None
        if frame.codes is not None:
            count = np.bincount(frame.codes, minlength=len(frame.classes))
            sums = ClassSums(arrays["class_total"][None], count, arrays["class_nan"][None])
        return cls(moments, sums, zones)


@dataclass(frozen=True, slots=True)
class TopView:
    """The examples that drive each unit most, of one array at one checkpoint.

    Parameters
    ----------
    value : ndarray (unit, rank)
        Largest value over positions, descending; NaN first.
    row : ndarray (unit, rank)
        Position of the example on the example axis.
    place : ndarray (unit, rank)
        Flat position of the value within the example.
    """

    name: ClassVar[str] = "topk"
    version: ClassVar[int] = 1
    value: NDArray[Any]
    row: NDArray[Any]
    place: NDArray[Any]

    @classmethod
    def of(cls, state: TopK, frame: Frame) -> Self:
        """Make a view of the state of all blocks, whose examples are named by identifier."""
        order = np.argsort(frame.examples, kind="stable")
        row = order[np.searchsorted(frame.examples, state.example[0], sorter=order)]
        return cls(
            state.value[0].astype(frame.dtype, copy=False),
            row.astype(_smallest(frame.n_examples)),
            state.position[0].astype(_smallest(frame.n_positions)),
        )

    def state(self, frame: Frame, k: int) -> TopK:
        """Return the first `k` ranks as a state, (1, unit, rank)."""
        example = frame.examples[self.row[:, :k]]
        return TopK(self.value[None, :, :k], example[None], self.place[None, :, :k].astype(np.int64))

    @classmethod
    def largest_nbytes(cls, frame: Frame) -> int:
        """Return the most bytes that its arrays may take."""
        return frame.n_units * 16 * K

    def meta(self) -> dict[str, int]:
        """Return the numbers that every unit shares."""
        return {"k": K}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept; places only where an example has more than one."""
        found = {"value": self.value, "row": self.row}
        return found if not self.place.any() else found | {"place": self.place}

    @classmethod
    def from_arrays(cls, frame: Frame, meta: Mapping[str, int], arrays: Arrays) -> Self:
        """Rebuild the view; ValueError where the arrays are not those of `frame`."""
        if meta.get("k") != K:
            raise ValueError(f"it holds {meta.get('k')} ranks where {K} are expected")
        shape = (frame.n_units, min(K, frame.n_examples))
        row_type, place_type = (np.dtype(_smallest(n)).str for n in (frame.n_examples, frame.n_positions))
        held = {"place": np.zeros(shape, place_type), **arrays}
        expected = {"value": (frame.dtype.str, shape), "row": (row_type, shape), "place": (place_type, shape)}
        check_arrays(held, expected)
        value, row, place = held["value"], held["row"], held["place"]
        if (row >= frame.n_examples).any() or (place >= frame.n_positions).any():
            raise ValueError("it names examples or positions that the array does not have")
        return cls(value, row, place)


def _smallest(size: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if size <= 1 << 16 else np.uint32


def check_arrays(arrays: Arrays, expected: Expected) -> None:
    """Raise ValueError unless the arrays of a view have the types and shapes that they should."""
    found = {name: (values.dtype.str, values.shape) for name, values in arrays.items()}
    if found != dict(expected):
        raise ValueError(f"it holds {found} where {dict(expected)} are expected")
