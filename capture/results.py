"""What one batch through a tapped model gives, as a value or piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

__all__ = ["BatchResult", "Sink"]

Sink: TypeAlias = Callable[[str, str, torch.Tensor], None]
"""Takes a site's name, its kind, and the tensor of one batch, which is its own no longer when the call returns."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one batch gave, on the model's device and out of every graph.

    Parameters
    ----------
    logits : torch.Tensor or None
        (example, class); None where the model's output is not class logits. bfloat16 becomes float32.
    loss : torch.Tensor or None
        (example,), cross-entropy in nats; None without class logits or integer labels.
    prediction : torch.Tensor or None
        (example,), int64, the largest logit.
    tensors : dict
        (site name, kind) -> tensor with the dims of the site, example first. They may share memory with each other:
        copy before writing to one.
    """

    logits: torch.Tensor | None
    loss: torch.Tensor | None
    prediction: torch.Tensor | None
    tensors: dict[tuple[str, str], torch.Tensor]
