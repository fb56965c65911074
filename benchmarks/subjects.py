"""What is measured: models, images, and stores of their activations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import capture
from capture._torchvision import import_torchvision
from capture.data import load_embedded
from capture.models import build_model
from ndt_store import Store

__all__ = [
    "BATCH_SIZE",
    "LAYERS",
    "N_EXAMPLES",
    "batches",
    "captured",
    "colour_images",
    "dense",
    "images",
    "model_and_data",
    "resnet18",
]

N_EXAMPLES = 1000
LAYERS = ("relu1", "relu2", "relu3", "relu4", "classifier")
BATCH_SIZE = 256

Pair = tuple[NDArray[np.float32], NDArray[np.int64]]


def model_and_data() -> tuple[torch.nn.Module, Any]:
    """cnn_deep as initialised, and the 1,000 test images that come with the package."""
    data = load_embedded("test").standardised((0.286,), (0.353,))
    return build_model("cnn_deep", input_shape=data.input_shape, n_classes=data.n_classes, seed=0).eval(), data


@cache
def images(n: int) -> Pair:
    """Return `n` images: the embedded training images, then the same again with noise, so that no two are equal."""
    data = load_embedded("train").standardised((0.286,), (0.353,))
    rng = np.random.default_rng(0)
    parts = [data.inputs[:n]]
    for start in range(len(data), n, len(data)):
        part = data.inputs[: n - start]
        parts.append(part + 0.05 * rng.standard_normal(part.shape, dtype=np.float32))
    return np.concatenate(parts), np.resize(data.labels, n)


def resnet18() -> torch.nn.Module:
    """Return torchvision's ResNet-18 with 1,000 classes and random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = import_torchvision().models.resnet18(weights=None, num_classes=1000)
    return model.eval()


def colour_images(n: int, side: int = 64) -> Pair:
    """Return `n` random colour images; a convolution's cost does not depend on what they show."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, 3, side, side), dtype=np.float32), rng.integers(0, 1000, n)


def batches(data: Any, size: int = BATCH_SIZE) -> list[torch.Tensor]:
    """Cut the inputs into batches as the capture does."""
    inputs = data[0] if isinstance(data, tuple) else data.inputs
    return [torch.from_numpy(inputs[n : n + size]) for n in range(0, len(inputs), size)]


def captured(
    path: Path,
    compression: str,
    *,
    n_checkpoints: int = 2,
    data: Any = None,
    layers: Sequence[str] = LAYERS,
    **options: Any,
) -> Store:
    """Capture activations of cnn_deep; each checkpoint is the one before with noise on its weights."""
    model, test_images = model_and_data()
    states = []
    generator = torch.Generator().manual_seed(0)
    for step in range(n_checkpoints):
        states.append((step * 100, {name: value.clone() for name, value in model.state_dict().items()}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return capture.capture(
        model,
        test_images if data is None else data,
        store=path,
        checkpoints=states,
        layers=list(layers),
        batch_size=BATCH_SIZE,
        compression=compression,
        progress=False,
        **options,
    )


def dense(store: Store, layer: str) -> NDArray[np.float32]:
    """All activations of a layer, (checkpoint, example, unit, ...)."""
    return np.asarray(store[layer].activations.values)
