"""Tap a model once as the capture will, and check that the taps change nothing and hold what they should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from capture.naming import Site
from capture.objective import GradientOf, model_output, scalars
from capture.probing import Observation
from capture.taps import Tapper
from ndt_store.dims import ACTIVATIONS, GRADIENTS
from ndt_store.errors import CaptureError

__all__ = ["rehearse"]


def rehearse(
    model: nn.Module,
    sites: Sequence[Site],
    seen: Observation,
    inputs: Any,
    labels: torch.Tensor | None,
    *,
    gradient_of: GradientOf,
    device: torch.device,
    output: Callable[[Any], torch.Tensor] | None,
) -> None:
    """Compare a tapped pass with the same pass watched only.

    Parameters
    ----------
    model, sites, gradient_of, device, output
        As for `Tapper`.
    seen : Observation
        The pass that was only watched, on the same `inputs`.
    inputs, labels
        The probing batch, of two or more examples.

    Raises
    ------
    CaptureError
        When the tapped model says something else, a tap holds something else than what left its module, or the
        first example's scalar has a gradient at another example.
    """
    said: list[torch.Tensor] = []

    def listen(raw: Any) -> torch.Tensor:
        said.append(model_output(raw, output))
        return said[-1]

    def of_first_example(heard: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        values = scalars(gradient_of, heard, given, seen.count)
        return values * (torch.arange(seen.count, device=values.device) == 0)

    options: dict[str, Any] = {"gradient_of": of_first_example, "device": device, "output": listen}
    with Tapper(model, sites, scores=False, **options) as tapper:
        result = tapper.run(inputs, labels)
    if not _close(said[0].detach(), model_output(seen.raw, output)):
        raise CaptureError(
            f"{type(model).__name__} gives another output when its layers are tapped, because a module writes into "
            "memory that it shares with one of them; use operations that are not in place there, or tap other layers"
        )
    order = {(firing.path, firing.call): (index, firing) for index, firing in enumerate(seen.firings)}
    mixed: list[tuple[int, Site]] = []
    for site in sites:
        if site.kind == ACTIVATIONS and not site.of_heads:
            value = order[site.path, site.call][1].value
            assert value is not None
            if not _close(result.tensors[site.name, site.kind], value.permute(site.axes)):
                raise CaptureError(
                    f"module {site.path!r} ({site.module_type}) emits other values when it is run again on the same "
                    "examples, where the same were expected; make it deterministic in evaluation mode"
                )
        elif site.kind == GRADIENTS:
            others = result.tensors[site.name, site.kind][1:]
            if bool(((others != 0) & ~others.isnan()).any()):
                mixed.append((order[site.path, site.call][0], site))
    if mixed:
        nearest = max(mixed, key=lambda pair: pair[0])[1]
        raise CaptureError(
            f"the scalar of one example has a gradient at other examples in module {nearest.path!r} "
            f"({nearest.module_type}), so that something after it lets the examples of a batch influence each other; "
            "leave gradients out, or make that module treat examples apart in evaluation mode"
        )


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compare to the accuracy of the type: kernels may differ between passes with and without a graph."""
    relative = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(other.dtype, 1e-4)
    if one.shape != other.shape:
        return False
    wide = other.double()
    scale = float(wide[wide.isfinite()].abs().max()) if wide.isfinite().any() else 1.0
    return torch.allclose(one.double(), wide, rtol=0.0, atol=relative * max(scale, 1e-30), equal_nan=True)
