"""Grad-CAM and receptive fields of real architectures, by way of a store, are those of a direct computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import open_store

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[capture]'")
capture = pytest.importorskip("capture")
models = pytest.importorskip("capture.models")
torchvision = pytest.importorskip("capture._torchvision")

N = 12


def cnn_deep() -> Any:
    return models.build_model("cnn_deep", input_shape=(1, 28, 28), n_classes=10, seed=3)


def resnet18() -> Any:
    torch.manual_seed(3)
    return torchvision.import_torchvision().models.resnet18(weights=None, num_classes=10)


NETS = {
    "cnn_deep": (cnn_deep, (1, 28, 28), ("relu1", "relu2", "relu3", "relu4")),
    "resnet18": (resnet18, (3, 64, 64), ("layer1", "layer2", "layer3.0.conv1", "layer4")),
}


def by_hand(model: Any, images: Any, labels: Any, layer: str) -> np.ndarray:
    """Grad-CAM of one image at a time, as its paper says it: weights are mean gradients, the map is ReLU of the sum."""
    found = []
    module = dict(model.named_modules())[layer]
    for image, label in zip(images, labels, strict=True):
        kept: list[Any] = []
        handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))  # noqa: B023
        score = model(image[None])[0, label]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept[0])
        weights = gradient[0].double().flatten(1).mean(1)
        cam = torch.einsum("k,kyx->yx", weights, kept[0][0].double()).clamp(min=0)
        found.append(cam.detach().numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", NETS)
def test_grad_cam__equals_a_direct_computation(tmp_path: Path, name: str) -> None:
    make, shape, layers = NETS[name]
    model = make().eval()
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(N, *shape, generator=generator), torch.arange(N) % 10
    capture.capture(
        model, (images, labels), store=tmp_path / "r.zarr", layers=list(layers),
        kinds=["activations", "gradients"], batch_size=5, progress=False,
    )  # fmt: skip
    store = open_store(tmp_path / "r.zarr")
    for layer in layers:
        expected = by_hand(model, images, labels, layer)
        found = nq.grad_cam(store[layer]).sel(checkpoint=0)
        assert expected.max() > 0
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max(), rtol=0)


def test_receptive_fields__of_resnet18_are_read_back_from_the_store(tmp_path: Path) -> None:
    model = resnet18().eval()
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    layers = ["layer1", "layer2", "layer3", "layer4", "fc"]
    capture.capture(model, (images, labels), store=tmp_path / "r.zarr", layers=layers, progress=False)
    capture.receptive_fields(
        model, (images, labels), layers=layers, store=tmp_path / "r.zarr", checkpoints=[(0, model.state_dict())],
        units=2, n_groups=2, progress=False,
    )  # fmt: skip
    store = open_store(tmp_path / "r.zarr")
    published = {"layer1": (43, 4), "layer2": (99, 8), "layer3": (211, 16), "layer4": (435, 32)}
    for layer, (size, stride) in published.items():
        field = nq.receptive_field(store, layer)
        assert field["size"].values.tolist() == [size, size], layer
        assert field["stride"].values.tolist() == [stride, stride], layer
    assert str(nq.receptive_field(store, "fc")["kind"].values) == "global"
