"""Rules of operators whose windows slide over positions: convolutions, pools and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from capture.reach import NOTHING, Reach, every, padded, reduced, slid
from capture.reach_calls import Call
from capture.reach_moves import moved

__all__ = ["adaptively_pooled", "convolved", "padded_again", "padded_blank", "pooled"]


def convolved(call: Call) -> list[Reach]:
    """Unite channels of a group, then what lies under the window; a transposed one looks at spread positions."""
    reach, weight, groups = call.first, call.args[1], call.get("groups")
    spatial = weight.ndim - 2
    transposed, shape = call.get("transposed"), call.shape
    n_out = weight.shape[1] * groups if transposed else weight.shape[0]

    def over_channels(hull: Tensor) -> Tensor:
        rest = hull.shape[hull.ndim - spatial :]
        grouped = hull.reshape(-1, groups, hull.shape[-spatial - 1] // groups, *rest).amax(2)
        return grouped.repeat_interleave(n_out // groups, 1).reshape(*hull.shape[: -spatial - 1], n_out, *rest)

    reach = reach.mapped(over_channels)
    for n, axis in enumerate(range(-spatial, 0)):
        kernel, stride, padding, dilation = (
            one[n if len(one) > 1 else 0]
            for one in ([*weight.shape[2:]], call.get("stride"), call.get("padding"), call.get("dilation"))
        )
        if transposed:
            reach = _stuffed(reach, axis, stride)
            stride, padding = 1, dilation * (kernel - 1) - padding
        reach = slid(reach, axis, kernel, stride, padding, dilation, shape[axis])
    return [reach]


def _stuffed(reach: Reach, axis: int, stride: int) -> Reach:
    """Put positions that see nothing between those of an axis, as a transposed convolution does."""
    if stride == 1:
        return reach

    def stuff(hull: Tensor) -> Tensor:
        shape = list(hull.shape)
        shape[axis] = (shape[axis] - 1) * stride + 1
        wide = torch.full(shape, NOTHING)
        wide[every(axis, stride)] = hull
        return wide

    return replace(reach.mapped(stuff), jumps=(None,) * len(reach.jumps))


def pooled(call: Call) -> list[Reach]:
    """Unite what lies under the window, in each channel."""
    reach = call.first
    kernels = call.get("kernel_size")
    strides, paddings, dilations = call.get("stride") or kernels, call.get("padding"), call.get("dilation") or [1]
    for n, axis in enumerate(range(-_pool_axes(call), 0)):
        kernel, stride, padding, dilation = (
            one[n if len(one) > 1 else 0] for one in (kernels, strides, paddings, dilations)
        )
        reach = slid(reach, axis, kernel, stride, padding, dilation, call.shape[axis])
    return [reach] * len(call.outputs)


def _pool_axes(call: Call) -> int:
    return int(next(part for part in call.func._schema.name if part.isdigit()))


def adaptively_pooled(call: Call) -> list[Reach]:
    """Pool in as many bins as asked for, which are of one size only where that divides the positions."""
    reach = call.first
    for axis in range(-_pool_axes(call), 0):
        n_in, n_out = reach.shape[axis], call.shape[axis]
        if n_out == 1:
            reach = reduced(reach, [axis])
        elif n_in % n_out == 0:
            reach = slid(reach, axis, n_in // n_out, n_in // n_out, 0, 1, n_out)
        else:
            bins = [(place * n_in // n_out, -(-(place + 1) * n_in // n_out)) for place in range(n_out)]
            reach = replace(reach.mapped(_in_bins(axis, bins)), jumps=(None,) * call.n_axes)
    return [reach] * len(call.outputs)


def _in_bins(axis: int, bins: Sequence[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
    def unite(hull: Tensor) -> Tensor:
        parts = [hull.narrow(axis, first, last - first).amax(axis, keepdim=True) for first, last in bins]
        return torch.cat(parts, axis)

    return unite


def padded_blank(call: Call) -> list[Reach]:
    """Add positions that hold a constant."""
    reach, amounts = call.first, call.get("pad")
    for n in range(len(amounts) // 2):
        reach = padded(reach, -1 - n, amounts[2 * n], amounts[2 * n + 1])
    return [reach]


def padded_again(call: Call) -> list[Reach]:
    """Rule of padding that repeats what is inside: its positions see that, and stand where they stand."""
    reach, amounts = call.first, call.get("padding")
    for n in range(len(amounts) // 2):
        reach = padded(reach, -1 - n, amounts[2 * n], amounts[2 * n + 1])
    return [replace(reach, exact=moved(call)[0].exact)]
