"""Gradients of the parameters: of the mean loss over a probe set, in numbers for each parameter.

What is differentiated is one scalar, the mean cross-entropy over all examples in evaluation mode, so that the numbers
belong to the weights and the probe set and not to a batch that training happened to draw. The gradient is summed up
over batches and only its statistics are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capture.modelstate import borrowed, differentiable, refuse_inference_weights
from capture.objective import class_logits, cross_entropy, model_output
from capture.probe import Probe
from capture.structures import call_model
from ndt_store.dims import PARAMETER_ARRAYS, PARAMETERS
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["gradient_statistics", "held_norms", "parameter_names", "parameters_to_capture"]

F64 = NDArray[np.float64]


def parameter_names(model: nn.Module) -> list[str]:
    """Return the names of the floating-point parameters, in the order of the model; tied ones once."""
    return [name for name, one in model.named_parameters() if one.is_floating_point() and one.numel()]


def parameters_to_capture(model: nn.Module, n_classes: int | None) -> dict[str, int]:
    """Return the number of values of each parameter whose gradient is to be kept.

    Raises
    ------
    InvalidInputError
        The model has no parameters, or no class scores, of which there would be a loss.
    CaptureError
        A parameter was made under ``torch.inference_mode``.
    """
    named = dict(model.named_parameters())
    sizes = {name: named[name].numel() for name in parameter_names(model)}
    if n_classes is None or not sizes:
        lacking = "no parameters" if n_classes is not None else "no class scores of the labels"
        raise InvalidInputError(
            f"kinds holds {PARAMETERS!r}, the gradient of the loss, and the model has {lacking}: leave it out."
        )
    refuse_inference_weights(model)
    return sizes


def gradient_statistics(
    model: nn.Module,
    probe: Probe,
    *,
    batch_size: int,
    device: torch.device,
    output: Callable[[Any], torch.Tensor] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Mapping[str, F64]:
    """Differentiate the mean loss over a probe set with respect to every parameter.

    Parameters
    ----------
    model : torch.nn.Module
        Left as it was found; nothing is written into ``.grad``, and frozen parameters count like others.
    probe : Probe
        With labels that are classes of the model.
    batch_size : int
        Examples in one pass.
    device : torch.device
        Where the model is.
    output : callable, optional
        From what the model returns to its class scores.
    advance : callable of (batches done), optional

    Returns
    -------
    mapping of str to ndarray of float64 (parameter,)
        `PARAMETER_ARRAYS`, in the order of `parameter_names`.

    Raises
    ------
    CaptureError
        The model's output is no class scores.

    Notes
    -----
    One forward and one backward pass over the probe set, and memory of two more sets of parameters: the sums, and the
    gradient of one batch. Sums are made in the type of the parameters, float32 at least. A parameter that the loss does
    not depend on has gradient 0.
    """
    given = dict(model.named_parameters())
    named = {name: given[name] for name in parameter_names(model)}
    with ExitStack() as scope:
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(borrowed(model))
        scope.enter_context(torch.enable_grad())
        scope.enter_context(differentiable(model, device))
        scope.enter_context(_trainable(named.values()))
        # Of the parameters' own type, float32 at least: sums of half precision would drown what comes late.
        sums = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in named.items()}
        for done, (inputs, labels) in enumerate(probe.batches(batch_size), 1):
            raw = call_model(model, inputs, device)
            loss = cross_entropy(class_logits(model_output(raw, output), len(labels)), labels.to(device))
            if loss is None:
                raise CaptureError(
                    "gradients of parameters are those of the loss, and the model's output is no class scores of the "
                    "labels: leave 'parameters' out of kinds, or pass output=, which finds the class scores"
                )
            if not loss.requires_grad:
                raise CaptureError(
                    "gradients of parameters were asked for, and the model's loss depends on none of them: its forward "
                    "may run under torch.no_grad; leave 'parameters' out of kinds"
                )
            # Of the mean, because a sum over the batch may leave the range of half precision.
            found = torch.autograd.grad(loss.mean(), list(named.values()), allow_unused=True)
            for name, gradient in zip(named, found, strict=True):
                if gradient is not None:
                    sums[name] += gradient.to(sums[name].dtype) * (len(labels) / len(probe))
            if advance is not None:
                advance(done)
        rows = [_measured(sums[name], named[name].detach()) for name in named]
    return {array: np.array([row[array] for row in rows]) for array in PARAMETER_ARRAYS}


def held_norms(model: nn.Module) -> F64:
    """Return the norm of what each parameter holds in ``.grad``, NaN where that is nothing, (parameter,)."""
    named = dict(model.named_parameters())
    held = [named[name].grad for name in parameter_names(model)]
    dense = [one.coalesce().values() if one.is_sparse else one for one in held if one is not None]
    some = [torch.linalg.vector_norm(one.detach().to(torch.promote_types(one.dtype, torch.float32))) for one in dense]
    # One reading for all of them where they are alike: each would wait for the device.
    alike = len({(one.device, one.dtype) for one in some}) == 1
    norms = iter(torch.stack(some).tolist() if alike else [one.item() for one in some])
    return np.array([math.nan if one is None else next(norms) for one in held], np.float64)


@contextmanager
def _trainable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let frozen parameters be differentiated meanwhile."""
    frozen = [one for one in parameters if not one.requires_grad]
    try:
        for one in frozen:
            one.requires_grad_()
        yield
    finally:
        for one in frozen:
            one.requires_grad_(False)


def _measured(gradient: torch.Tensor, weights: torch.Tensor) -> dict[str, float]:
    values = gradient.cpu().double().numpy().ravel()
    size = np.abs(values)
    return {
        "gradient_mean_abs": float(size.mean()),
        "gradient_std": float(values.std()),
        "gradient_max_abs": float(size.max()),
        "gradient_norm": float(np.linalg.norm(values)),
        "gradient_zero_fraction": float((values == 0).mean()),
        "weight_norm": float(np.linalg.norm(weights.cpu().double().numpy().ravel())),
    }
