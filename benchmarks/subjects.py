"""What is measured: ReLU activations of cnn_deep on real images, as initialised and after a random step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import capture
from capture.data import load_embedded
from capture.models import build_model
from ndt_store import Store

__all__ = ["LAYERS", "N_EXAMPLES", "batches", "captured", "model_and_data"]

N_EXAMPLES = 1000
LAYERS = ("relu1", "relu2", "relu3", "relu4", "classifier")
BATCH_SIZE = 256


def model_and_data() -> tuple[torch.nn.Module, Any]:
    """cnn_deep as initialised, and the 1,000 test images that come with the package."""
    data = load_embedded("test").standardised((0.286,), (0.353,))
    return build_model("cnn_deep", input_shape=data.input_shape, n_classes=data.n_classes, seed=0).eval(), data


def batches(data: Any) -> list[torch.Tensor]:
    """Cut the images into batches as the capture does."""
    return [torch.from_numpy(data.inputs[n : n + BATCH_SIZE]) for n in range(0, len(data), BATCH_SIZE)]


def captured(path: Path, compression: str, *, n_checkpoints: int = 2) -> Store:
    """Capture activations; the second checkpoint is the first with noise on its weights."""
    model, data = model_and_data()
    states = []
    generator = torch.Generator().manual_seed(0)
    for step in range(n_checkpoints):
        states.append((step * 100, {name: value.clone() for name, value in model.state_dict().items()}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return capture.capture(
        model,
        data,
        store=path,
        checkpoints=states,
        layers=list(LAYERS),
        batch_size=BATCH_SIZE,
        compression=compression,
        progress=False,
    )


def dense(store: Store, layer: str) -> NDArray[np.float32]:
    """All activations of a layer, (checkpoint, example, unit, ...)."""
    return np.asarray(store[layer].activations.values)
