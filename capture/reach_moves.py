"""Rules of operators that only move values: views, permutations, concatenation."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.utils._pytree import tree_map

from capture.reach import Reach, rearranged, united
from capture.reach_calls import Call

__all__ = ["joined", "moved", "permuted", "reshaped", "sliced"]


def moved(call: Call) -> list[Reach]:
    """Let the operator itself move the hulls as it moves the values."""
    first = call.first
    if call.reaches((call.args[1:], dict(call.kwargs))):
        return []  # Where to look depends on the input.
    others = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(call.args[1:]))

    def change(hull: Tensor) -> list[Tensor]:
        result = call.func(hull, *others, **call.kwargs)
        return [result] if isinstance(result, Tensor) else list(result)

    exact, virtual = ([change(hull) for hull in hulls] for hulls in (first.exact, first.virtual))
    return [
        rearranged(first, tuple(hulls[place] for hulls in exact), tuple(hulls[place] for hulls in virtual))
        for place in range(len(call.outputs))
    ]


def reshaped(call: Call) -> list[Reach]:
    """Give the hulls the new shape; they may lie otherwise in memory than the values, whose view this is."""
    exact, virtual = (
        tuple(hull.reshape(call.shape) for hull in hulls) for hulls in (call.first.exact, call.first.virtual)
    )
    return [rearranged(call.first, exact, virtual)]


def sliced(call: Call) -> list[Reach]:
    """Take a run of positions, and know by how much each is then from the next."""
    reach, step = call.first, call.get("step")
    at = call.get("dim") % len(reach.shape) - len(reach.shape)
    jumps = tuple(
        jump * step if jump is not None and axis == at else jump
        for jump, axis in zip(reach.jumps, reach.axes, strict=True)
    )
    return [replace(after, axes=reach.axes, jumps=jumps) for after in moved(call)]


def permuted(call: Call) -> list[Reach]:
    """Let axes change places."""
    n = len(call.first.shape)
    order = list(range(n))
    dims = call.get("dims")
    if dims is not None:
        order = [dim % n for dim in dims]
    elif n > 1:
        one, other = (default if call.get(name) is None else call.get(name) for name, default in _SWAPPED.items())
        order[one % n], order[other % n] = order[other % n], order[one % n]
    axes = tuple(None if axis is None else order.index(axis % n) - n for axis in call.first.axes)
    return [replace(after, axes=axes) for after in moved(call)]


def joined(call: Call) -> list[Reach]:
    """Put tensors one after the other, of which some may not depend on the input."""
    parts = [call.reach_of(tensor) for tensor in call.args[0]]

    def join(which: str, n: int) -> Tensor:
        hull: Tensor = call.func([getattr(part, which)[n] for part in parts], *call.args[1:], **call.kwargs)
        return hull

    exact, virtual = (tuple(join(which, n) for n in range(2 * call.n_axes)) for which in ("exact", "virtual"))
    # Only how fields move is asked of the union, which needs a value of each.
    agreed = united([part.mapped(lambda hull: hull.flatten()[:1]) for part in parts], (1,))
    return [rearranged(parts[0].like(agreed), exact, virtual)]


_SWAPPED = {"dim0": 0, "dim1": 1}
