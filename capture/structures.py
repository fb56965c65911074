"""Small walks over what models take and give: tensors inside tuples, mappings and dataclasses.

"The first tensor" of a structure is the first one met depth first, in the order of the items or fields. It stands for
a module that returns several things: the output of ``nn.MultiheadAttention`` rather than its weights, the sequence of
an ``nn.LSTM`` rather than its state.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["batch_size", "call_model", "first_tensor", "replace_first", "take_examples", "tensors_in", "version_of"]


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor of a structure, depth first."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    for _, child in _children(value):
        yield from tensors_in(child)


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor's memory was written to, -1 for inference tensors, which do not count."""
    return -1 if tensor.is_inference() else tensor._version


def first_tensor(value: Any) -> torch.Tensor | None:
    """Return the first tensor of a structure, None where there is none.

    Examples
    --------
    >>> first_tensor((None, {"hidden": torch.ones(2)})).shape
    torch.Size([2])
    """
    return next(tensors_in(value), None)


def replace_first(value: Any, new: torch.Tensor) -> Any:
    """Return the structure with its first tensor replaced, the containers around it copied, the rest shared."""
    if isinstance(value, torch.Tensor):
        return new
    for key, child in _children(value):
        if first_tensor(child) is None:
            continue
        return _with_child(value, key, replace_first(child, new))
    return value


def _with_child(value: Any, key: Any, child: Any) -> Any:
    if isinstance(value, tuple):
        items = [child if index == key else item for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list | Mapping):
        changed: Any = copy.copy(value)
        changed[key] = child
        return changed
    return dataclasses.replace(value, **{key: child})


def batch_size(inputs: Any) -> int:
    """Return the number of examples in a batch: the leading size of its first tensor.

    Raises
    ------
    InvalidInputError
        When the batch holds no tensor, or no example.
    """
    first = first_tensor(inputs)
    if first is None or first.ndim == 0 or first.shape[0] == 0:
        got = type(inputs).__name__ if first is None else f"a tensor of shape {tuple(first.shape)}"
        raise InvalidInputError(
            f"inputs of a batch are {got} where a tensor, tuple or mapping with examples along the first axis was "
            "expected; stack the examples first"
        )
    return int(first.shape[0])


def take_examples(inputs: Any, count: int) -> Any:
    """Return the first `count` examples of a batch, repeated from the start where it holds fewer."""
    size = batch_size(inputs)
    index = torch.arange(count) % size

    def take(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value[index.to(value.device)] if value.ndim and value.shape[0] == size else value
        if isinstance(value, Mapping):
            return {key: take(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return tuple(take(child) for child in value)
        return value

    return take(inputs)


def call_model(model: nn.Module, inputs: Any, device: torch.device) -> Any:
    """Run the model: a tensor as its argument, a tuple or list as its arguments, a mapping as its keywords.

    Tensors are copied to `device`: the copy is in no graph of the caller and not bound to inference mode, and a model
    that writes into its input does not spoil the caller's data.
    """

    def prepare(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(device, non_blocking=True, copy=True)
        if isinstance(value, Mapping):
            return {key: prepare(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return tuple(prepare(child) for child in value)
        return value

    prepared = prepare(inputs)
    if isinstance(prepared, dict):
        if not all(isinstance(key, str) for key in prepared):
            raise CaptureError(
                f"inputs of {type(model).__name__} are a mapping with keys {list(prepared)} where names of the "
                "arguments of forward were expected; name them as forward does"
            )
        return model(**prepared)
    return model(*prepared) if isinstance(prepared, tuple) else model(prepared)
