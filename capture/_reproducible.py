"""Torch's global state, borrowed: seeded and deterministic inside, as it was found outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["deterministic", "mode"]

_CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in training or evaluation mode, and each submodule back into its own afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and allow deterministic kernels only; global state is put back, also after an exception.

    Random states of the CPU and, where it is one, of the CUDA `device` are put back too.
    """
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    settings: Any = torch.utils.deterministic  # whose one attribute is a property that mypy does not see
    filled = settings.fill_uninitialized_memory
    benchmark = torch.backends.cudnn.benchmark
    workspace = os.environ.get(_CUBLAS_VARIABLE)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            # cuBLAS refuses to run deterministically without a fixed workspace; it reads this at each call.
            os.environ.setdefault(_CUBLAS_VARIABLE, ":4096:8")
            torch.use_deterministic_algorithms(True)
            # Every output would be filled with NaN before it is computed: 4% of a step of cnn_deep.
            settings.fill_uninitialized_memory = False
            torch.backends.cudnn.benchmark = False
            torch.manual_seed(seed)
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            settings.fill_uninitialized_memory = filled
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                os.environ.pop(_CUBLAS_VARIABLE, None)
