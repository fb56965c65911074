"""What of the input each value of a tensor can depend on, as intervals of rows and columns, and how intervals combine.

A `Reach` holds for each value of a tensor and each spatial axis of the model's input the first and the last position
that the value depends on. Two such hulls are kept. The exact one ends at the border of the input: padding adds nothing
to it. The virtual one goes on beyond the border as if the input did, which is what a receptive field's size means.

Firsts are held negated, so that a union of intervals is a maximum throughout. Where nothing is reached there is minus
infinity, and plus infinity where it is not known what is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Reach",
    "constant",
    "every",
    "of_input",
    "padded",
    "rearranged",
    "reduced",
    "resized",
    "slid",
    "united",
    "unknown",
]

NOTHING = -math.inf
ANYTHING = math.inf


@dataclass(frozen=True, slots=True)
class Reach:
    """Intervals of one tensor.

    Parameters
    ----------
    exact, virtual : tuple of Tensor
        For each axis of the input two tensors of the shape of the tensor: negated first position, last position.
    axes : tuple of int or None
        Along which axis of the tensor, counted from its end, the intervals of each input axis move.
    jumps : tuple of float or None
        By how much they move from one position to the next; 0 where all positions see the same. It is used where
        there is one position alone, which does not show it.
    sure : bool
        False where `virtual` has met padding that it could not go on into.
    """

    exact: tuple[Tensor, ...]
    virtual: tuple[Tensor, ...]
    axes: tuple[int | None, ...]
    jumps: tuple[float | None, ...]
    sure: bool = True

    @property
    def shape(self) -> torch.Size:
        """Of the tensor."""
        return self.exact[0].shape

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Reach:
        """Change every hull alike."""
        return replace(self, exact=tuple(map(change, self.exact)), virtual=tuple(map(change, self.virtual)))

    def like(self, other: Reach) -> Reach:
        """Return these intervals, moving as others do."""
        return replace(self, axes=other.axes, jumps=other.jumps, sure=other.sure)

    def write(self, other: Reach) -> None:
        """Write other intervals into these, which all views of them see."""
        for mine, theirs in zip((*self.exact, *self.virtual), (*other.exact, *other.virtual), strict=True):
            mine.copy_(theirs)

    def jump(self, field: int, axis: int) -> float | None:
        """Return by how much intervals of an input axis move along an axis of the tensor, None if unevenly."""
        if self.shape[axis] == 1:
            if self.jumps[field] == 0 or self.axes[field] not in (None, axis):
                return 0.0
            return None if self.axes[field] is None else self.jumps[field]
        first, last = (self.virtual[2 * field + end].diff(dim=axis) for end in (0, 1))
        # NaN is where both neighbours see nothing, as in channels of zeros, which says nothing of the others.
        first, last = first[~first.isnan()], last[~last.isnan()]
        step = float(last[0]) if last.numel() else math.nan
        even = math.isfinite(step) and bool((last == step).all()) and bool((first == -step).all())
        return step if even else None


def of_input(shape: Sequence[int], n_axes: int) -> Reach:
    """Return the reach of the input itself, whose last `n_axes` axes are spatial."""
    hulls = []
    for axis in range(-n_axes, 0):
        at = torch.arange(shape[axis], dtype=torch.float32).reshape(-1, *[1] * (-axis - 1)).expand(*shape)
        hulls += [-at, at.clone()]
    return Reach(tuple(hulls), tuple(hull.clone() for hull in hulls), tuple(range(-n_axes, 0)), (1.0,) * n_axes)


def constant(shape: Sequence[int], n_axes: int) -> Reach:
    """Return the reach of values that do not depend on the input; it can be written to."""
    return _filled(shape, n_axes, NOTHING)


def unknown(shape: Sequence[int], n_axes: int) -> Reach:
    """Return the reach of values of which nothing is known."""
    return _filled(shape, n_axes, ANYTHING)


def _filled(shape: Sequence[int], n_axes: int, value: float) -> Reach:
    exact, virtual = (tuple(torch.full(tuple(shape), value) for _ in range(2 * n_axes)) for _ in range(2))
    return Reach(exact, virtual, (None,) * n_axes, (None,) * n_axes)


def united(reaches: Sequence[Reach], shape: Sequence[int]) -> Reach:
    """Return the union, value by value, of tensors that broadcast to `shape`."""
    moving = [one for one in reaches if not all(bool((hull == NOTHING).all()) for hull in one.exact)] or reaches[:1]
    hulls = [
        [_largest([getattr(one, which)[n] for one in reaches], shape) for n in range(len(reaches[0].exact))]
        for which in ("exact", "virtual")
    ]
    axes, jumps = _agreed(moving)
    return Reach(tuple(hulls[0]), tuple(hulls[1]), axes, jumps, all(one.sure for one in reaches))


def _largest(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    whole = parts[0].expand(tuple(shape)).clone()
    for part in parts[1:]:
        torch.maximum(whole, part, out=whole)
    return whole


def _agreed(reaches: Sequence[Reach]) -> tuple[tuple[int | None, ...], tuple[float | None, ...]]:
    axes: list[int | None] = []
    jumps: list[float | None] = []
    for field in range(len(reaches[0].axes)):
        found = {(one.axes[field], one.jumps[field]) for one in reaches}
        axis, jump = found.pop() if len(found) == 1 else (None, None)
        axes.append(axis)
        jumps.append(jump)
    return tuple(axes), tuple(jumps)


def reduced(reach: Reach, dims: Sequence[int]) -> Reach:
    """Unite along axes, which keep one position; along which a field moves, all is seen that the input has."""
    dims = sorted({dim % len(reach.shape) - len(reach.shape) for dim in dims})
    if not dims:
        return reach
    exact = tuple(hull.amax(dims, keepdim=True) for hull in reach.exact)
    virtual = [hull.amax(dims, keepdim=True) for hull in reach.virtual]
    axes, jumps = list(reach.axes), list(reach.jumps)
    for field, axis in enumerate(reach.axes):
        pair = slice(2 * field, 2 * field + 2)
        varies = any(bool((hull.amin(dims) != hull.amax(dims)).any()) for hull in reach.virtual[pair])
        if varies and (axis is None or axis in dims):
            virtual[pair] = [hull.clone() for hull in exact[pair]]
            axes[field], jumps[field] = None, 0.0
    return Reach(exact, tuple(virtual), tuple(axes), tuple(jumps), reach.sure)


def rearranged(reach: Reach, exact: tuple[Tensor, ...], virtual: tuple[Tensor, ...]) -> Reach:
    """Replace the hulls by ones whose values changed places; an axis stays where all from it on keep their sizes."""
    shape = exact[0].shape
    axes = tuple(axis if axis is not None and shape[axis:] == reach.shape[axis:] else None for axis in reach.axes)
    return replace(reach, exact=exact, virtual=virtual, axes=axes)


def resized(reach: Reach, shape: Sequence[int]) -> Reach:
    """Give the hulls another shape of as many values, or repeat their one value."""

    def change(hull: Tensor) -> Tensor:
        return (hull.expand(tuple(shape)) if hull.numel() == 1 else hull.reshape(tuple(shape))).clone()

    changed = reach.mapped(change)
    return rearranged(reach, changed.exact, changed.virtual)


def padded(reach: Reach, axis: int, before: int, after: int) -> Reach:
    """Add positions at both ends of an axis, counted from the end; negative numbers cut off."""

    def blank(hull: Tensor) -> Tensor:
        amounts = [0, 0] * (-axis - 1) + [before, after]
        return torch.nn.functional.pad(hull, amounts, value=NOTHING)

    virtual, sure = [], reach.sure
    for field in range(len(reach.axes)):
        first, last = reach.virtual[2 * field : 2 * field + 2]
        spatial = -axis <= len(reach.axes)
        step = reach.jump(field, axis) if spatial else None
        if step is None:
            virtual += [blank(first), blank(last)]
            sure = sure and not (spatial and max(before, after) > 0)
        else:
            virtual += [_extended(first, axis, before, after, -step), _extended(last, axis, before, after, step)]
    return replace(reach, exact=tuple(map(blank, reach.exact)), virtual=tuple(virtual), sure=sure)


def _extended(hull: Tensor, axis: int, before: int, after: int, step: float) -> Tensor:
    hull = hull.narrow(axis, max(-before, 0), hull.shape[axis] - max(-before, 0) - max(-after, 0))
    along = (-1, *[1] * (-axis - 1))
    parts = [hull]
    if before > 0:
        ramp = torch.arange(before, 0, -1, dtype=hull.dtype).reshape(along)
        parts.insert(0, hull.narrow(axis, 0, 1) - step * ramp)
    if after > 0:
        ramp = torch.arange(1, after + 1, dtype=hull.dtype).reshape(along)
        parts.append(hull.narrow(axis, hull.shape[axis] - 1, 1) + step * ramp)
    return torch.cat(parts, axis)


def every(axis: int, stride: int) -> tuple[Any, ...]:
    """Return the index of every `stride`-th position of an axis, counted from the end."""
    return (..., slice(None, None, stride), *[slice(None)] * (-axis - 1))


def slid(reach: Reach, axis: int, kernel: int, stride: int, padding: int, dilation: int, n_out: int) -> Reach:
    """Unite what a window sees at each of its positions along an axis, counted from the end.

    What the last positions see beyond the end, of which `n_out` tells, is padding too.
    """
    needed = (kernel - 1) * dilation + stride * (n_out - 1) + 1
    wide = padded(reach, axis, padding, needed - reach.shape[axis] - padding)
    span = stride * (n_out - 1) + 1

    def windows(hull: Tensor) -> Tensor:
        whole: Tensor | None = None
        for tap in range(kernel):
            seen = hull.narrow(axis, tap * dilation, span)
            seen = seen[every(axis, stride)]
            whole = seen.clone() if whole is None else torch.maximum(whole, seen)
        assert whole is not None
        return whole

    jumps = tuple(
        jump * stride if jump is not None and moving == axis else jump
        for jump, moving in zip(reach.jumps, reach.axes, strict=True)
    )
    return replace(wide.mapped(windows), jumps=jumps)
