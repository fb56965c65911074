"""Models: the architectures of the study, exactly; names to tap; errors in one sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from capture import models
from capture.models import ImageTransformer, build_model, model_names, register_model
from ndt_store.errors import AlreadyExistsError, InvalidInputError

FASHION = {"input_shape": (1, 28, 28), "n_classes": 10}


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def dense(*widths: int) -> int:
    return sum(a * b + b for a, b in itertools.pairwise(widths))


def convolutions(*channels: int) -> int:
    return sum(9 * a * b + b for a, b in itertools.pairwise(channels))


def encoder(n_layers: int, d: int, feedforward: int = 512) -> int:
    attention = 4 * (d * d + d)
    norms = 2 * 2 * d
    embedding = 49 * d + d + 16 * d
    return embedding + n_layers * (attention + dense(d, feedforward, d) + norms) + dense(d, 10)


def residual(*widths: int) -> int:
    """Two blocks of two 3x3 convolutions a stage; a 1x1 convolution where the width changes; no biases."""
    total, before = 0, widths[0]
    for width in widths:
        shortcut = before * width + 2 * width if before != width else 0
        total += 9 * (before * width + 3 * width * width) + 4 * 2 * width + shortcut
        before = width
    return total


def pre_norm_encoder(n_layers: int, d: int, feedforward: int, n_tokens: int) -> int:
    layer = 4 * (d * d + d) + dense(d, feedforward, d) + 2 * 2 * d
    return dense(49, d) + (n_tokens + 1) * d + n_layers * layer + 2 * d + dense(d, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 9 * 64 + 2 * 64 + residual(64, 128, 256, 512) + dense(512, 10)),
        ("vit_small", pre_norm_encoder(6, 128, 512, n_tokens=17)),
        ("cnn_shallow", convolutions(1, 32, 64) + dense(64 * 7 * 7, 10)),
        ("cnn_medium", convolutions(1, 32, 64, 128) + dense(128 * 3 * 3, 10)),
        ("cnn_deep", convolutions(1, 32, 64, 128, 256) + dense(256, 10)),
        ("mlp_shallow_2", dense(784, 128, 64, 10)),
        ("mlp_medium_5", dense(784, 64, 64, 64, 64, 32, 10)),
        ("mlp_deep_10", dense(784, *[32] * 10, 10)),
        ("mlp_narrow", dense(784, 32, 32, 32, 32, 10)),
        ("mlp_medium", dense(784, 128, 128, 64, 64, 10)),
        ("mlp_wide", dense(784, 256, 256, 128, 128, 10)),
        ("transformer_shallow", encoder(2, 128)),
        ("transformer_medium", encoder(4, 128)),
        ("transformer_deep", encoder(6, 128)),
        ("transformer_narrow", encoder(4, 64)),
    ],
)
def test_build_model__has_the_parameters_of_the_published_architecture(name: str, expected: int) -> None:
    model = build_model(name, **FASHION)
    assert n_parameters(model) == expected
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_build_model__names_what_users_tap() -> None:
    cnn_names = [name for name, _ in build_model("cnn_deep", **FASHION).named_children()]
    stages = [f"{module}{i}" for i in range(1, 5) for module in ("conv", "relu", "pool")]
    assert cnn_names == [*stages, "flatten", "classifier"]
    mlp_names = [name for name, _ in build_model("mlp_narrow", **FASHION).named_children()]
    hidden = [f"{module}{i}" for i in range(1, 5) for module in ("linear", "relu")]
    assert mlp_names == ["flatten", *hidden, "classifier"]
    names = dict(build_model("transformer_shallow", **FASHION).named_modules())
    assert {"embed", "encoder.layers.0.self_attn", "encoder.layers.1.linear2", "classifier"} <= set(names)
    assert "encoder.layers.2" not in names
    names = dict(build_model("resnet18", **FASHION).named_modules())
    assert {"conv1", "bn1", "relu", "layer1.0.conv1", "layer4.1.bn2", "avgpool", "fc"} <= set(names)
    names = dict(build_model("vit_small", **FASHION).named_modules())
    assert {"conv_proj", "encoder.layers.encoder_layer_5.self_attention", "encoder.ln", "heads.head"} <= set(names)


def test_resnet18__keeps_the_images_size_in_its_first_stage_and_takes_any_channels() -> None:
    model = build_model("resnet18", input_shape=(2, 12, 20), n_classes=3)
    shapes = {}
    for name in ("conv1", "maxpool", "layer1", "layer2"):
        model.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    assert model(torch.zeros(2, 2, 12, 20)).shape == (2, 3)
    assert shapes["conv1"] == shapes["maxpool"] == shapes["layer1"] == (64, 12, 20)
    assert shapes["layer2"] == (128, 6, 10)
    assert model.conv1.stride == (1, 1)


def test_vit__cuts_square_patches_and_takes_any_channels() -> None:
    model = build_model("vit", input_shape=(3, 8, 8), n_classes=4, patch=4, n_layers=1, d_model=8, n_heads=2)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert model.encoder.pos_embedding.shape == (1, 5, 8)


@pytest.mark.parametrize("name", model_names())
def test_build_model__never_overwrites_a_tapped_output(name: str) -> None:
    torch.set_num_threads(1)
    model = build_model(name, **FASHION)
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        outputs.append((output, output.clone()))

    for path, module in model.named_modules():
        # torchvision adds a block's input to the output of its second batch norm, in place.
        if not list(module.children()) and not (name == "resnet18" and path.endswith(".bn2")):
            module.register_forward_hook(keep)
    model(torch.randn(2, 1, 28, 28))
    assert outputs
    assert all(torch.equal(output, copy) for output, copy in outputs)


def test_build_model__is_seeded_and_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (build_model("mlp_narrow", **FASHION, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.linear1.weight, other.linear1.weight)
    torch.manual_seed(1)
    unseeded = build_model("mlp_narrow", **FASHION)
    assert torch.equal(unseeded.linear1.weight, first.linear1.weight)


def test_build_model__takes_options_over_the_names_own() -> None:
    model = build_model("mlp_narrow", input_shape=(3, 4, 4), n_classes=2, hidden=[5, 7])
    assert n_parameters(model) == dense(48, 5, 7, 2)
    small = build_model("transformer_shallow", input_shape=(1, 8, 8), n_classes=10, n_layers=1, grid=2)
    assert small.positions.shape == (4, 128)


def test_transformer__cuts_patches_in_reading_order() -> None:
    model = build_model("transformer", input_shape=(2, 8, 12), n_classes=3, grid=4)
    assert isinstance(model, ImageTransformer)
    images = torch.arange(2 * 2 * 8 * 12).reshape(2, 2, 8, 12)
    tokens = model.patches(images).numpy()
    for row in range(4):
        for column in range(4):
            patch = images.numpy()[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
            np.testing.assert_array_equal(tokens[:, 4 * row + column], patch.reshape(2, -1))


def test_transformer__layers_start_with_weights_of_their_own() -> None:
    model = build_model("transformer_shallow", **FASHION)
    first, second = model.encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_transformer__uses_its_positions() -> None:
    model = build_model("transformer_shallow", **FASHION, seed=0).eval()
    image = torch.randn(1, 1, 28, 28)
    flipped = image.unflatten(2, (4, 7)).flip(2).flatten(2, 3)  # the same patches at other places
    assert not torch.allclose(model(image), model(flipped), atol=1e-4)
    torch.nn.init.zeros_(model.positions)
    assert torch.allclose(model(image), model(flipped), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn_dep", {}, "'cnn_dep'.*did you mean 'cnn_deep'"),
        ("cnn_deep", {"hidden": [3]}, "no option 'hidden', expected one of channels"),
        ("cnn", {"channels": [32, 0]}, "channels is .*expected whole numbers above 0"),
        ("cnn", {"channels": []}, "channels is"),
        ("cnn", {"channels": [2.5]}, "channels is"),
        ("mlp", {"hidden": "32"}, "hidden is '32'"),
        ("cnn", {"channels": [2] * 5}, "28x28 pixels, expected at least 32 a side"),
        ("transformer", {"grid": 5}, "expected a grid of 1, 2, 4, 7, 14, 28"),
        ("transformer", {"n_heads": 3}, "expected a multiple of n_heads = 3"),
        ("transformer", {"dropout": 1.0}, "dropout is 1.0"),
        ("transformer", {"n_layers": True}, "n_layers is"),
        ("resnet18", {"channels": [3]}, "'resnet18' has no option 'channels', expected none at all"),
        ("vit", {"patch": 5}, "28x28 pixels cannot be cut into patches of 5x5, .* model option patch = 5"),
        ("vit", {"patch": 0}, "patch is"),
        ("vit_small", {"n_heads": 3}, "expected a multiple of n_heads = 3"),
    ],
)
def test_build_model__raises_one_sentence_on_what_it_cannot_build(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build_model(name, **FASHION, **options)


def test_build_model__raises_on_a_shape_that_is_no_image() -> None:
    with pytest.raises(InvalidInputError, match=r"\(28, 28\), expected \(channel, y, x\)"):
        build_model("mlp", input_shape=(28, 28), n_classes=10)
    with pytest.raises(InvalidInputError, match="0 classes"):
        build_model("mlp", input_shape=(1, 28, 28), n_classes=0)


def test_register_model__adds_a_name_and_refuses_a_taken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_REGISTRY", dict(models._REGISTRY))

    def linear(input_shape: tuple[int, int, int], n_classes: int, *, bias: bool = True) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[1] * input_shape[2], n_classes, bias=bias))

    register_model("no_bias", linear, bias=False)
    assert "no_bias" in model_names()
    assert n_parameters(build_model("no_bias", **FASHION)) == 7840
    assert n_parameters(build_model("no_bias", **FASHION, bias=True)) == 7850
    with pytest.raises(AlreadyExistsError, match="'no_bias'"):
        register_model("no_bias", linear)
