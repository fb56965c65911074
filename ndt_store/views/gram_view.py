"""The Gram views: statistics of second order of one array at one checkpoint, kept on the side that is smaller.

There is one view for each way in which examples become samples: ``gram-flatten``, ``gram-mean`` and ``gram-samples``.
Which side it holds follows from sizes alone:

samples do not outnumber features
    A `SampleGram`: answers every grouping of the examples.
else
    A `Scatter` for each of `DEFAULT_N_GROUPS` groups, as `deal_groups` deals them: answers that grouping, and questions
    without groups.

Matrices are kept as upper triangles in float64. A view that would take more than `SHARE` of what the array itself takes
at the checkpoint, and more than `FLOOR_NBYTES`, is not kept: reading such an array costs little beside what follows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.frame import Frame
from ndt_store.views.gram import SampleGram
from ndt_store.views.kinds import check_arrays
from ndt_store.views.samples import DEFAULT_N_GROUPS, deal_groups, on_samples, packed, unpacked
from ndt_store.views.scatter import Scatter

__all__ = [
    "FLOOR_NBYTES",
    "GRAM_VIEWS",
    "SHARE",
    "GramView",
    "GroupSums",
    "sample_shape",
    "too_large",
]

SHARE: Final = 0.25
FLOOR_NBYTES: Final = 4 << 20


def sample_shape(mode: str, n_examples: int, n_units: int, n_positions: int) -> tuple[int, int]:
    """Return the numbers of samples and of features that activations become."""
    per_example = n_positions if mode == "samples" else 1
    return n_examples * per_example, n_units * (n_positions if mode == "flatten" else 1)


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Sums of each group of examples, with the matrices as upper triangles.

    Parameters
    ----------
    sums : Scatter
        Of each group, (group, ...); ``matrix`` is (group, d (d + 1) / 2).
    groups : ndarray of uint8 (example,)
        Group of each example.
    """

    sums: Scatter
    groups: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.sums.n)

    def __getitem__(self, group: int) -> Scatter:
        one = self.sums[group]
        return replace(one, matrix=unpacked(one.matrix, len(one.mean)))

    @classmethod
    def of(cls, parts: list[Scatter], groups: NDArray[np.int64]) -> Self:
        """Pack the sums of each group; the list is emptied, so that no matrix is there twice."""
        n, d = len(parts), len(parts[0].mean)
        scalars = {name: np.array([getattr(part, name) for part in parts]) for name in ("n", "fourth", "nan_count")}
        vectors = {name: np.stack([getattr(part, name) for part in parts]) for name in ("mean", "cubic")}
        matrix = np.empty((n, d * (d + 1) // 2))
        for group in range(n):
            matrix[group] = packed(parts.pop(0).matrix)
        return cls(Scatter(**scalars, **vectors, matrix=matrix), groups.astype(np.uint8))


@dataclass(frozen=True, slots=True)
class GramView:
    """Statistics of second order of one array at one checkpoint; its subclasses are the views themselves.

    Parameters
    ----------
    state : SampleGram or GroupSums
        On the smaller side.
    """

    name: ClassVar[str]
    mode: ClassVar[str]
    version: ClassVar[int] = 1
    state: SampleGram | GroupSums

    @classmethod
    def shape(cls, frame: Frame) -> tuple[int, int]:
        """Return the numbers of samples and of features."""
        return sample_shape(cls.mode, frame.n_examples, frame.n_units, frame.n_positions)

    @classmethod
    def largest_nbytes(cls, frame: Frame) -> int:
        """Return the most bytes that its arrays may take."""
        return 8 * sum(math.prod(shape) for shape in _shapes(frame, cls.shape(frame)).values())

    def meta(self) -> dict[str, int]:
        """Return how many values are NaN, where they are not counted by group."""
        return {"nan_count": self.state.nan_count} if isinstance(self.state, SampleGram) else {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is kept."""
        state = self.state
        if isinstance(state, SampleGram):
            return {
                "products": state.products,
                "with_mean": state.with_mean,
                "mean_square": np.array([state.mean_square]),
            }
        return {field.name: getattr(state.sums, field.name) for field in fields(Scatter)} | {"groups": state.groups}

    @classmethod
    def from_arrays(cls, frame: Frame, meta: Mapping[str, int], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild the view; ValueError where the arrays are not those of `frame`."""
        n, d = cls.shape(frame)
        types = {"n": "<i8", "nan_count": "<i8", "groups": "|u1"}
        check_arrays(arrays, {name: (types.get(name, "<f8"), shape) for name, shape in _shapes(frame, (n, d)).items()})
        if on_samples(n, d):
            products, with_mean, square = (arrays[name] for name in ("products", "with_mean", "mean_square"))
            return cls(SampleGram(n, products, with_mean, float(square[0]), meta.get("nan_count", 0)))
        groups = arrays["groups"]
        if not np.array_equal(groups, deal_groups(frame.n_examples)) or arrays["n"].sum() != n:
            raise ValueError("its examples are dealt into other groups")
        return cls(GroupSums(Scatter(**{field.name: arrays[field.name] for field in fields(Scatter)}), groups))


class _Flatten(GramView):
    name = "gram-flatten"
    mode = "flatten"


class _Mean(GramView):
    name = "gram-mean"
    mode = "mean"


class _Samples(GramView):
    name = "gram-samples"
    mode = "samples"


GRAM_VIEWS: Final[Mapping[str, type[GramView]]] = {kind.mode: kind for kind in (_Flatten, _Mean, _Samples)}
"""The views by the way in which examples become samples."""


def _shapes(frame: Frame, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    n, d = shape
    if on_samples(n, d):
        return {"products": (n * (n + 1) // 2,), "with_mean": (n,), "mean_square": (1,)}
    g = min(DEFAULT_N_GROUPS, frame.n_examples)
    vectors = {"mean": (g, d), "cubic": (g, d), "matrix": (g, d * (d + 1) // 2)}
    return {"n": (g,), **vectors, "fourth": (g,), "nan_count": (g,), "groups": (frame.n_examples,)}


def too_large(kind: type[GramView], frame: Frame) -> str:
    """Why a view is not kept; "" where it is."""
    nbytes = kind.largest_nbytes(frame)
    array_nbytes = np.dtype(frame.spec.dtype).itemsize * frame.n_examples * frame.n_units * frame.n_positions
    if nbytes <= max(FLOOR_NBYTES, SHARE * array_nbytes):
        return ""
    return (
        f"it would take {nbytes / 1e6:.1f} MB, more than {SHARE:.0%} of the "
        f"{array_nbytes / 1e6:.1f} MB of the array at one checkpoint"
    )
