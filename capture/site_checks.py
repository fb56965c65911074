"""What is demanded of firings: at discovery a dense floating output with named axes, and later as many as then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import nn

from capture.axes import axis_of_examples
from capture.naming import Site
from capture.probing import Firing, Observation
from ndt_store.dims import EXAMPLE
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = [
    "DTYPES", "PROBES", "check_example_axis", "check_firings", "check_names", "check_output", "refuse_batch_statistics",
]  # fmt: skip

PROBES: Final = (3, 2)
"""Numbers of examples in the two passes of discovery."""

DTYPES: Final = {
    torch.float16: "float16",
    torch.bfloat16: "float32",
    torch.float32: "float32",
    torch.float64: "float64",
}
"""NumPy names of the types that a module may emit, as they are handed out."""


def _described(firing: Firing) -> str:
    return f"module {firing.path!r} ({type(firing.module).__name__})"


def check_output(firing: Firing) -> str:
    """Return the NumPy name of the type of a firing's output.

    Raises
    ------
    CaptureError
        It is no dense floating-point tensor, or an empty one.
    """
    tensor = firing.output
    if tensor is None:
        raise CaptureError(
            f"{_described(firing)} returned no tensor where one was expected; leave it out of layers and name the "
            "modules inside it"
        )
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_inference():
        raise CaptureError(
            f"{_described(firing)} returned a nested, sparse or inference-mode tensor where a dense one was "
            "expected; leave it out of layers"
        )
    if tensor.dtype not in DTYPES:
        raise CaptureError(
            f"{_described(firing)} returned {tensor.dtype} where floating point was expected; leave it out of "
            "layers, or tap a module before or after it"
        )
    if tensor.numel() == 0:
        raise CaptureError(
            f"{_described(firing)} emits shape {tuple(tensor.shape)}, which holds no number, where at least one value "
            "an example was expected; leave it out of layers, or give the model larger inputs"
        )
    return DTYPES[tensor.dtype]


def check_example_axis(firing: Firing, shape: tuple[int, ...], again: tuple[int, ...]) -> int:
    """Return the axis of the examples, from the shapes in both passes.

    Raises
    ------
    CaptureError
        No single axis holds them.
    """
    axis = axis_of_examples(shape, again, PROBES)
    if axis is None:
        raise CaptureError(
            f"{_described(firing)} emits shape {shape} for {PROBES[0]} examples and {again} for {PROBES[1]}, where "
            "exactly one axis, of the number of examples, was expected to differ (windows or tokens folded into it?); "
            "leave it out of layers, or tap the module that gives the examples an axis of their own"
        )
    return axis


def check_names(firing: Firing, shape: tuple[int, ...], axis: int, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names of the axes of an output of this shape.

    Raises
    ------
    CaptureError
        There are none.
    InvalidInputError
        Those that the caller gave do not fit.
    """
    if names is None:
        raise CaptureError(
            f"{_described(firing)} emits shape {shape}, whose axes neither its type nor its surroundings name; say "
            f"what they are with dims={{{firing.path!r}: (...)}}, one name an axis, example at place {axis}"
        )
    if len(names) != len(shape) or names[axis] != EXAMPLE:
        raise InvalidInputError(
            f"dims names {names} for {_described(firing)}, which emits shape {shape} with the examples at place "
            f"{axis}; give one name an axis, as the module emits them"
        )
    return names


def refuse_batch_statistics(seen: Observation) -> None:
    """Refuse batch norm that uses the statistics of the batch even in evaluation mode.

    Raises
    ------
    CaptureError
    """
    for firing in seen.firings:
        if isinstance(firing.module, nn.modules.batchnorm._BatchNorm) and firing.module.running_mean is None:
            raise CaptureError(
                f"{_described(firing)} normalises by the statistics of the batch even in evaluation mode, so that "
                "gradients of one example depend on the others; use track_running_stats=True, or leave gradients out"
            )


def check_firings(sites: Iterable[Site], fired: Mapping[str, int], attended: Mapping[str, int]) -> None:
    """Check that every module of a site fired, or attended, in a batch as often as at discovery.

    Parameters
    ----------
    sites : iterable of Site
    fired, attended : mapping of str to int
        By path, how often; a missing path is never.

    Raises
    ------
    CaptureError
        One did not.
    """
    for site in sites:
        found = (attended if site.of_attention else fired).get(site.path, 0)
        if found != site.calls:
            verb = "attended" if site.of_attention else "fired"
            raise CaptureError(
                f"module {site.path!r} ({site.module_type}) {verb} {found} times for this batch where discovery saw "
                f"{site.calls}; leave modules that depend on the data out of layers, or make every batch take the same "
                "path"
            )
