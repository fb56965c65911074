"""From what a model returns to class logits, and from those to one number per example to differentiate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch.nn import functional

from capture.structures import first_tensor
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = [
    "GradientOf",
    "Objective",
    "check_gradient_of",
    "class_count",
    "class_logits",
    "cross_entropy",
    "model_output",
    "scalars",
]

Objective: TypeAlias = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""From the model's output (example, ...) and the labels to one number per example, (example,)."""

GradientOf: TypeAlias = Literal["label_logit", "prediction_logit", "loss"] | Objective

_LOG: Final = logging.getLogger(__name__)
_NAMED = ("label_logit", "prediction_logit", "loss")


def check_gradient_of(gradient_of: GradientOf) -> GradientOf:
    """Return the argument when it is a known name or a callable.

    Raises
    ------
    InvalidInputError
    """
    if not callable(gradient_of) and gradient_of not in _NAMED:
        raise InvalidInputError(
            f"gradient_of is {gradient_of!r} where one of {', '.join(_NAMED)} or a callable of (output, labels) was "
            "expected"
        )
    return gradient_of


def model_output(raw: Any, extract: Callable[[Any], torch.Tensor] | None = None) -> torch.Tensor:
    """Return the tensor that stands for what a model says.

    That is what `extract` makes of the raw output; without it the output itself when it is a tensor, its ``logits``
    when it is a mapping or an object that has them, otherwise the first tensor in it.

    Raises
    ------
    CaptureError
        When there is no such tensor.
    """
    if extract is not None:
        found: Any = extract(raw)
    elif isinstance(raw, Mapping) and "logits" in raw:
        found = raw["logits"]
    elif hasattr(raw, "logits"):
        found = raw.logits
    else:
        found = first_tensor(raw)
    if not isinstance(found, torch.Tensor):
        raise CaptureError(
            f"the model returned {type(raw).__name__}, in which {type(found).__name__} was found where a tensor of "
            "logits was expected; pass output=, a callable that takes what the model returns and gives the logits"
        )
    return found


def class_logits(output: torch.Tensor, count: int) -> torch.Tensor | None:
    """Return the output where it can be class logits, floating (example, class) for `count` examples, else None."""
    good = output.ndim == 2 and output.shape[0] == count and output.is_floating_point()
    return output if good else None


def class_count(logits: torch.Tensor | None, labels: NDArray[Any], needed: bool) -> int | None:
    """Return the number of classes, None where the logits of labelled examples are not to be stored.

    Parameters
    ----------
    logits : torch.Tensor or None
        Of a few examples.
    labels : ndarray of whole numbers
        Of all examples.
    needed : bool
        Whether gradients depend on the labels. Without them, labels beyond the classes only leave logits, loss and
        prediction out, and the log says so.

    Raises
    ------
    InvalidInputError
        The labels are needed and do not fit.
    """
    if logits is None:
        return None
    n_classes, largest = logits.shape[1], int(labels.max())
    if largest < n_classes:
        return n_classes
    found = f"The labels run to {largest} and the model gives {n_classes} class scores"
    if needed:
        raise InvalidInputError(f"{found}: expected labels from 0 to {n_classes - 1}.")
    _LOG.warning("%s, which does not fit: logits, loss and prediction are not captured", found)
    return None


def cross_entropy(logits: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor | None:
    """Return the cross-entropy of each example, (example,) in nats, None without class logits and class labels.

    Half-precision logits are widened to float32 first.

    Raises
    ------
    CaptureError
        When a label is not a class of the logits.
    """
    if logits is None or labels is None or not _are_class_labels(labels, logits.shape[0]):
        return None
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise CaptureError(
            f"labels run from {low} to {high} where the model's logits have the classes 0 to {logits.shape[1] - 1}; "
            "number the classes from 0, or use the model that was trained on them"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(wide, labels.to(logits.device, torch.int64), reduction="none")


def _are_class_labels(labels: torch.Tensor, count: int) -> bool:
    return labels.shape == (count,) and not labels.is_floating_point() and not labels.is_complex()


def scalars(gradient_of: GradientOf, output: torch.Tensor, labels: torch.Tensor | None, count: int) -> torch.Tensor:
    """Return the number per example whose gradient is wanted, (example,).

    Parameters
    ----------
    gradient_of : {"label_logit", "prediction_logit", "loss"} or callable
        The logit of the example's label, its largest logit, its cross-entropy, or ``gradient_of(output, labels)``.
    output : torch.Tensor
        What the model says.
    labels : torch.Tensor or None
        A callable gets them on the device of the output.
    count : int
        Number of examples.

    Raises
    ------
    CaptureError
        When the output or the labels do not allow it.
    """
    if callable(gradient_of):
        values: Any = gradient_of(output, None if labels is None else labels.to(output.device))
        if not isinstance(values, torch.Tensor) or values.shape != (count,):
            got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise CaptureError(
                f"the gradient_of callable returned {got} where a tensor of shape ({count},), one number per example, "
                "was expected; sum over all axes but the first"
            )
        return values
    logits = class_logits(output, count)
    if logits is None:
        raise CaptureError(
            f"gradient_of={gradient_of!r} needs logits of shape ({count}, classes), but the model's output has shape "
            f"{tuple(output.shape)} and type {output.dtype}; pass gradient_of=, a callable of (output, labels) that "
            "gives one number per example, or output=, a callable that finds the logits"
        )
    if gradient_of == "prediction_logit":
        return logits.gather(1, logits.detach().argmax(1, keepdim=True)).squeeze(1)
    loss = cross_entropy(logits, labels)
    if loss is None or labels is None:
        got = "no labels" if labels is None else f"labels of shape {tuple(labels.shape)} and type {labels.dtype}"
        raise CaptureError(
            f"gradient_of={gradient_of!r} needs one integer class label per example, but got {got} for {count} "
            "examples; give labels, or use gradient_of='prediction_logit'"
        )
    if gradient_of == "loss":
        return loss
    return logits.gather(1, labels.to(logits.device, torch.int64)[:, None]).squeeze(1)
