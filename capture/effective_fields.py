"""Effective receptive fields: how much the central unit's value changes with each input pixel, averaged over examples.

For each unit and example the gradient of the central unit with respect to the input is taken, its absolute values are
added up over channels, and what comes out is averaged over examples (Luo et al. 2016).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from capture.field_theory import Field
from capture.modelstate import borrowed
from capture.naming import Site
from capture.structures import first_tensor, replace_first
from ndt_store.dims import UNIT
from ndt_store.errors import CaptureError

__all__ = ["Crop", "EffectiveMaps", "Probing", "crop_of", "effective_maps"]

F64 = NDArray[np.float64]
LEAK: Final = 1e-3
"""Share of the gradient that rounding may put outside of a field: fast convolutions mix neighbouring positions."""


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of the input that a map is kept of: first positions and sizes, over the axes of the input."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def slices(self) -> tuple[Any, ...]:
        """Of the spatial axes of the input, behind others."""
        return (..., *(slice(start, start + size) for start, size in zip(self.start, self.size, strict=True)))


@dataclass(frozen=True, slots=True)
class Probing:
    """A layer whose effective fields are wanted.

    Parameters
    ----------
    site : Site
    field : Field
    units : tuple of int
    crop : Crop
    """

    site: Site
    field: Field
    units: tuple[int, ...]
    crop: Crop


@dataclass(frozen=True, slots=True)
class EffectiveMaps:
    """Effective fields of some units of a layer.

    Parameters
    ----------
    mean : ndarray (unit, *crop)
        Mean over examples.
    margins : tuple of ndarray (unit, group, position)
        For each axis of the input the mean over a group's examples, added up over the other axes.
    """

    mean: F64
    margins: tuple[F64, ...]


def crop_of(field: Field, shape: Sequence[int]) -> Crop:
    """Return the part of an input of this spatial shape that the central unit sees, all of it where that is unknown."""
    starts, sizes = [], []
    for first, last, size in zip(field.first, field.last, shape, strict=True):
        low, high = (0, size - 1) if math.isnan(first) else (max(int(first), 0), min(int(last), size - 1))
        starts.append(low)
        sizes.append(high - low + 1)
    return Crop(tuple(starts), tuple(sizes))


def effective_maps(
    model: nn.Module,
    inputs: Tensor,
    probings: Sequence[Probing],
    groups: NDArray[np.int64],
    *,
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> dict[str, EffectiveMaps]:
    """Measure effective fields of the weights that a model has now, by the names of layers.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found.
    inputs : Tensor (example, channel, y, x) or (example, channel, x)
    probings : sequence of Probing
    groups : ndarray (example,)
        To which group each example belongs; all from 0 up occur.
    batch_size : int
        Examples that go through the model together.
    device : torch.device
    advance : callable of (backward passes made)

    Raises
    ------
    CaptureError
        A unit has a gradient outside of its theoretical field, or one that is not finite.

    Notes
    -----
    Costs a forward pass, and for each unit a backward pass from its layer on down; holds the graph of one batch.
    """
    sums = {one.site.name: _Sums(one, int(groups.max()) + 1) for one in probings}
    with ExitStack() as scope:
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.enable_grad())
        scope.enter_context(borrowed(model))
        emitted = _Emitted(model, [one.site for one in probings], scope)
        for start in range(0, len(inputs), batch_size):
            rows = slice(start, start + batch_size)
            leaf = inputs[rows].to(device, copy=True).requires_grad_()
            values = emitted.run(leaf)
            for one in probings:
                for place, unit in enumerate(one.units):
                    central = values[one.site.name].permute(one.site.axes)[_at(one, unit)]
                    (found,) = torch.autograd.grad(central.sum(), leaf, retain_graph=True, allow_unused=True)
                    gradient = torch.zeros_like(leaf) if found is None else found
                    sums[one.site.name].add(place, groups[rows], gradient.abs().double().sum(1).cpu().numpy())
                advance(len(one.units))
            del values
    counts = np.bincount(groups)
    return {name: of_layer.means(counts) for name, of_layer in sums.items()}


def _at(probing: Probing, unit: int) -> tuple[Any, ...]:
    """Return the index of a unit's central values, over the dims of its layer."""
    position = iter(probing.field.position)
    return (slice(None), *(unit if dim == UNIT else next(position) for dim in probing.site.dims[1:]))


class _Emitted:
    """Hands out what sites emit, from which gradients can be taken although later modules may write into it."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], scope: ExitStack) -> None:
        self._model = model
        self._sites: Mapping[tuple[str, int], Site] = {(site.path, site.call): site for site in sites}
        self._calls: Counter[str] = Counter()
        self._values: dict[str, Tensor] = {}
        for path in {site.path for site in sites}:
            scope.callback(model.get_submodule(path).register_forward_hook(self._tap(path)).remove)

    def run(self, leaf: Tensor) -> dict[str, Tensor]:
        self._calls.clear()
        self._values = {}
        # A copy, because a model may write into what it is given and a leaf must not be written to.
        self._model(leaf.clone())
        values, self._values = self._values, {}
        return values

    def _tap(self, path: str) -> Callable[[nn.Module, Any, Any], Any]:
        def tap(_module: nn.Module, _args: Any, output: Any) -> Any:
            site = self._sites.get((path, self._calls[path]))
            self._calls[path] += 1
            value = first_tensor(output)
            if site is None or value is None:
                return output
            self._values[site.name] = value
            return replace_first(output, value.clone()) if site.clone else output

        return tap


class _Sums:
    """Sums over examples of one layer's maps, and over each group's of their margins."""

    def __init__(self, probing: Probing, n_groups: int) -> None:
        n_units, crop = len(probing.units), probing.crop
        self._probing = probing
        self._total = np.zeros((n_units, *crop.size))
        self._margins = [np.zeros((n_units, n_groups, size)) for size in crop.size]

    def add(self, place: int, groups: NDArray[np.int64], maps: F64) -> None:
        """Add maps (example, *input)."""
        where = f"{self._probing.site.name!r}, unit {self._probing.units[place]}"
        inside = maps[self._probing.crop.slices]
        total, kept = float(maps.sum()), float(inside.sum())
        if not math.isfinite(total):
            raise CaptureError(
                f"The gradient of layer {where} with respect to the input is not finite, where numbers were expected: "
                "look for NaN in the weights of this checkpoint, or leave the layer out."
            )
        if total - kept > LEAK * total:
            raise CaptureError(
                f"Layer {where}, has {1 - kept / total:.1%} of its gradient outside of the field that follows from the "
                "model's operators, expected 0%: its forward does something else when gradients are asked for; leave "
                "the layer out."
            )
        self._total[place] += inside.sum(axis=0)
        for axis, margin in enumerate(self._margins):
            others = tuple(1 + other for other in range(len(self._margins)) if other != axis)
            np.add.at(margin[place], groups, inside.sum(axis=others))

    def means(self, counts: NDArray[np.int64]) -> EffectiveMaps:
        """Divide by the numbers of examples, of each group."""
        margins = tuple(margin / counts[:, None] for margin in self._margins)
        return EffectiveMaps(self._total / counts.sum(), margins)
