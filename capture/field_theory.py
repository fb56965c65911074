"""Theoretical receptive fields of layers: size, stride and place, from one pass that follows every operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from capture.modelstate import borrowed
from capture.naming import Site
from capture.reach import Reach, of_input
from capture.reach_tracing import ReachTracer
from capture.running import ModuleStack
from capture.structures import call_model, first_tensor, take_examples
from ndt_store.dims import UNIT, X, Y
from ndt_store.errors import CaptureError

__all__ = ["GLOBAL", "SLIDING", "UNKNOWN", "Field", "theoretical_fields"]

SLIDING: Final = "sliding"
GLOBAL: Final = "global"
UNKNOWN: Final = "unknown"
AXES: Final[Mapping[int, tuple[str, ...]]] = {1: (X,), 2: (Y, X)}


@dataclass(frozen=True, slots=True)
class Field:
    """Theoretical receptive field of the units of a layer, each tuple over the axes of the input.

    Parameters
    ----------
    kind : {"sliding", "global", "unknown"}
        Whether each position sees a window of one size, all see the same, or neither is certain.
    size : tuple of float
        Rows and columns of a field, padding included; of a global one those that exist. NaN where unknown.
    stride : tuple of float
        Input positions between the fields of neighbouring units; 0 where all see the same.
    offset : tuple of float
        Where the centre of the field of unit (0, 0) lies, in input positions; the first pixel is 0.
    position : tuple of int
        Of the layer's central unit, empty for a layer without positions.
    first, last : tuple of float
        First and last input position that the central unit sees. Those of a sliding field may lie in the padding.
    reason : str
        What is not known, and why; empty where all is.
    """

    kind: str
    size: tuple[float, ...]
    stride: tuple[float, ...]
    offset: tuple[float, ...]
    position: tuple[int, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]
    reason: str = ""


def theoretical_fields(
    model: nn.Module, inputs: Tensor, sites: Sequence[Site], device: torch.device
) -> dict[str, Field]:
    """Follow one example through a model and return the field of each site, by its name.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found.
    inputs : Tensor (example, channel, y, x) or (example, channel, x)
    sites : sequence of Site
        With dims (example, unit) and maybe positions.
    device : torch.device

    Raises
    ------
    CaptureError
        The model fails on one example.

    Notes
    -----
    Costs one forward pass of one example, four or eight numbers kept beside each value of each tensor of it, and time
    in proportion.
    """
    n_axes = inputs.ndim - 2
    wanted = {(site.path, site.call): site for site in sites}
    found: dict[str, Field] = {}
    with ExitStack() as scope:
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.no_grad())
        scope.enter_context(borrowed(model))
        stack = scope.enter_context(ModuleStack(model))
        source = take_examples(inputs, 1)
        tracer = ReachTracer(source, of_input(source.shape, n_axes), stack.innermost)
        counts: dict[str, int] = {}

        def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
            def note(_module: nn.Module, _args: Any, output: Any) -> None:
                call = counts[path] = counts.get(path, -1) + 1
                site, emitted = wanted.get((path, call)), first_tensor(output)
                if site is not None and emitted is not None:
                    found[site.name] = _field(site, tracer.reach(emitted), n_axes, tracer.gaps)

            return note

        for path in {site.path for site in sites}:
            scope.callback(model.get_submodule(path).register_forward_hook(leave(path)).remove)
        try:
            with tracer:
                call_model(model, source, device)
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} failed on one example of shape {tuple(source.shape)}, on which its receptive "
                f"fields are found: {type(error).__name__}: {error}; run the model on such a batch first"
            ) from error
    return {site.name: found[site.name] for site in sites}


def _field(site: Site, reach: Reach | None, n_axes: int, gaps: Sequence[str]) -> Field:
    position = tuple(size // 2 for dim, size in zip(site.dims[1:], site.shape, strict=True) if dim != UNIT)
    nan = (math.nan,) * n_axes

    def no(reason: str, first: tuple[float, ...] = nan, last: tuple[float, ...] = nan) -> Field:
        return Field(UNKNOWN, nan, nan, nan, position, first, last, reason)

    if reach is None:
        return no("nothing of the input was seen to reach it")
    reach = reach.mapped(lambda hull: hull.permute(site.axes)[0])
    if any(bool((hull == math.inf).any()) for hull in reach.exact):
        return no(f"it is not known what {' and '.join(gaps) or 'an operator'} can depend on")
    if not position and any(bool((hull != hull[0]).any()) for hull in reach.exact):
        return no("its units see different parts of the input")
    # Over its units, which see different windows where branches are concatenated.
    reach = reach.mapped(lambda hull: hull.amax(site.dims.index(UNIT) - 1))
    exact, virtual = _intervals(reach.exact), _intervals(reach.virtual)
    blank = exact[0][0].isinf()
    if bool(blank.all()):
        return no("nothing of the input was seen to reach it")
    first, last = (tuple(float(one[end][position]) for one in exact) for end in (0, 1))
    if reach.sure and (sliding := _sliding(position, exact, virtual, reach, n_axes)):
        return sliding
    if bool(blank.any()):
        return no("some of its positions see nothing of the input, and the others no window that moves evenly")
    if all(bool((hull == hull.flatten()[0]).all()) for pair in exact for hull in pair):
        size = tuple(one - other + 1 for one, other in zip(last, first, strict=True))
        middle = tuple((one + other) / 2 for one, other in zip(last, first, strict=True))
        return Field(GLOBAL, size, (0.0,) * n_axes, middle, position, first, last)
    return no("its positions see windows of different sizes or at uneven distances", first, last)


def _intervals(hulls: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(-hulls[2 * axis], hulls[2 * axis + 1]) for axis in range(len(hulls) // 2)]


def _sliding(
    position: tuple[int, ...],
    exact: list[tuple[Tensor, Tensor]],
    virtual: list[tuple[Tensor, Tensor]],
    reach: Reach,
    n_axes: int,
) -> Field | None:
    """Return the field where it is a window that moves evenly, and what is seen never lies outside of it."""
    if len(position) != n_axes:
        return None
    sizes, strides, offsets = [], [], []
    for axis, ((first, last), (low, high)) in enumerate(zip(virtual, exact, strict=True)):
        size = last - first + 1
        corner = (0,) * n_axes
        stride = reach.jump(axis, axis - n_axes)
        others = [reach.jump(axis, other) for other in range(-n_axes, 0) if other != axis - n_axes]
        even = bool((size == size[corner]).all()) and any(others) is False and None not in others
        if not even or bool((low < first).any()) or bool((high > last).any()):
            return None
        if stride == 0 or (stride is None and first.shape[axis] > 1):
            return None
        sizes.append(float(size[corner]))
        strides.append(math.nan if stride is None else stride)
        offsets.append(float(first[corner] + last[corner]) / 2)
    at = [tuple(float(one[end][position]) for one in virtual) for end in (0, 1)]
    unsure = any(map(math.isnan, strides))
    reason = "it has one position along an axis, which does not show its stride" if unsure else ""
    return Field(SLIDING, tuple(sizes), tuple(strides), tuple(offsets), position, at[0], at[1], reason)
