"""Batches of images in an order that follows from a seed, and what a model makes of images."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from capture._reproducible import mode
from capture.data import ImageData
from ndt_store.errors import InvalidInputError

__all__ = ["as_tensor", "batch_positions", "evaluate", "one_device"]


def batch_positions(seed: int, step: int, n_examples: int, batch_size: int) -> npt.NDArray[np.int64]:
    """Return the positions in the data of the batch that update ``step + 1`` uses.

    Epoch e is the permutation of ``numpy.random.default_rng([seed, e])``, cut into batches of equal size;
    what is left over at its end is not used.
    """
    epoch, batch = divmod(step, n_examples // batch_size)
    return _epoch(seed, epoch, n_examples)[batch * batch_size : (batch + 1) * batch_size]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n_examples: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n_examples)


def evaluate(model: nn.Module, data: ImageData, batch_size: int = 1000) -> tuple[float, float]:
    """Return a model's mean cross-entropy (nats) and accuracy (0 to 1) on images, in evaluation mode."""
    device = one_device(model)
    loss = correct = 0.0
    with torch.inference_mode(), mode(model, training=False):
        for start in range(0, len(data), batch_size):
            logits = model(as_tensor(data.inputs[start : start + batch_size], device))
            labels = as_tensor(data.labels[start : start + batch_size], device)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss / len(data), correct / len(data)


def one_device(model: nn.Module) -> torch.device:
    """Return the device that all parameters of a model are on.

    Raises
    ------
    InvalidInputError
        There are several, or none.
    """
    devices = {p.device for p in model.parameters()}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no device, having none"
        raise InvalidInputError(f"The model's parameters are on {found}, expected one device; move it with model.to.")
    return devices.pop()


def as_tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device; on the CPU they share memory."""
    # from_numpy warns of read-only arrays; only those are copied.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
