"""Run all examples through a model with something done to its heads of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from capture.head_edits import Call, HeadOutputs, HeadsScaled
from capture.modelstate import borrowed, differentiable
from capture.objective import class_logits, cross_entropy, model_output
from capture.probe import Probe
from capture.running import ModuleStack
from capture.structures import call_model

__all__ = ["HeadPasses"]

F32 = NDArray[np.float32]


class HeadPasses:
    """Runs all examples through the model, with something done to its heads."""

    def __init__(
        self, model: nn.Module, probe: Probe, batch_size: int, device: torch.device, output: Callable[[Any], Any] | None
    ) -> None:
        self.model, self.probe, self.batch_size, self.device, self.output = model, probe, batch_size, device, output

    def scores(self, edits: Callable[[Callable[[], str]], Any] | None = None) -> tuple[F32, F32]:
        """Return correct (0 or 1) and margin of each example, (example,) each."""
        correct, margin = [], []
        with self._lent() as stack, torch.no_grad():
            for logits, labels, _ in self._batches(stack, edits):
                right = logits.gather(1, labels[:, None])[:, 0]
                others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
                correct.append((logits.argmax(1) == labels).cpu().numpy())
                margin.append((right - others).float().cpu().numpy())
        return np.concatenate(correct).astype(np.float32), np.concatenate(margin)

    def means(self) -> dict[Call, torch.Tensor]:
        """Return what heads put out, mean over examples, (query, head, unit) by call."""
        sums: dict[Call, torch.Tensor] = {}
        with self._lent() as stack, torch.no_grad():
            for _, _, mode in self._batches(stack, HeadOutputs):
                for call, total in mode.sums.items():
                    sums[call] = sums[call] + total if call in sums else total
        return {call: total / len(self.probe) for call, total in sums.items()}

    def importance(self) -> dict[Call, F32]:
        """Return |dL / d factor|, (example, head) by call."""
        found: dict[Call, list[F32]] = {}
        with self._lent() as stack, torch.enable_grad(), differentiable(self.model, self.device):
            for logits, labels, mode in self._batches(stack, HeadsScaled):
                loss = cross_entropy(logits, labels)
                assert loss is not None
                gradients = torch.autograd.grad(loss.sum(), list(mode.factors.values()), allow_unused=True)
                for (call, factor), gradient in zip(mode.factors.items(), gradients, strict=True):
                    known = torch.zeros_like(factor) if gradient is None else gradient.abs()
                    found.setdefault(call, []).append(known.float().cpu().numpy())
        return {call: np.concatenate(parts) for call, parts in found.items()}

    @contextmanager
    def _lent(self) -> Iterator[ModuleStack]:
        with ExitStack() as scope:
            scope.enter_context(torch.inference_mode(False))
            scope.enter_context(borrowed(self.model))
            yield scope.enter_context(ModuleStack(self.model))

    def _batches(
        self, stack: ModuleStack, edits: Callable[[Callable[[], str]], Any] | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Any]]:
        for inputs, labels in self.probe.batches(self.batch_size):
            with ExitStack() as scope:
                mode = None if edits is None else scope.enter_context(edits(stack.innermost))
                raw = call_model(self.model, inputs, self.device)
            logits = class_logits(model_output(raw, self.output), len(labels))
            assert logits is not None
            yield logits, labels.to(self.device, torch.int64), mode
