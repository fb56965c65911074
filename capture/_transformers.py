"""Transformers on image patches: the study's encoder, and torchvision's vision transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from capture._model_options import InputShape, positive_ints
from capture._torchvision import import_torchvision
from ndt_store.errors import InvalidInputError

__all__ = ["ImageTransformer", "transformer", "vit"]


def transformer(
    input_shape: InputShape,
    n_classes: int,
    *,
    n_layers: int = 2,
    d_model: int = 128,
    n_heads: int = 4,
    d_feedforward: int = 512,
    grid: int = 4,
    dropout: float = 0.0,
) -> ImageTransformer:
    """Build a transformer encoder over ``grid * grid`` image patches; see `ImageTransformer`."""
    for option, value in (
        ("n_layers", n_layers),
        ("d_model", d_model),
        ("n_heads", n_heads),
        ("d_feedforward", d_feedforward),
        ("grid", grid),
    ):
        positive_ints(option, [value])
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"Model option dropout is {dropout!r}, expected a number from 0 to below 1.")
    _require_heads(d_model, n_heads)
    _, height, width = input_shape
    if height % grid or width % grid:
        common = math.gcd(height, width)
        divisors = [str(g) for g in range(1, common + 1) if common % g == 0]
        raise InvalidInputError(
            f"Images of {height}x{width} pixels cannot be cut into {grid}x{grid} equal patches, "
            f"expected a grid of {', '.join(divisors)}."
        )
    return ImageTransformer(input_shape, n_classes, n_layers, d_model, n_heads, d_feedforward, grid, dropout)


class ImageTransformer(nn.Module):
    """Encoder on image patches: embed, add learned positions, encode, average the tokens, classify.

    The image (y, x) is cut into ``grid x grid`` equal patches in reading order (16 patches of 7x7 for 28x28),
    each flattened as (channel, y, x) and mapped linearly to `d_model`. Layers are PyTorch's post-norm
    `torch.nn.TransformerEncoderLayer` with ReLU. Modules ``embed encoder.layers.0 ... classifier``.

    Raises
    ------
    InvalidInputError
        From `transformer`, which checks the options.
    """

    def __init__(
        self,
        input_shape: InputShape,
        n_classes: int,
        n_layers: int,
        d_model: int,
        n_heads: int,
        d_feedforward: int,
        grid: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.grid = grid
        self.embed = nn.Linear(channels * (height // grid) * (width // grid), d_model)
        self.positions = nn.Parameter(torch.empty(grid * grid, d_model))
        nn.init.normal_(self.positions, std=0.02)

        def layer() -> nn.TransformerEncoderLayer:
            return nn.TransformerEncoderLayer(d_model, n_heads, d_feedforward, dropout, batch_first=True)

        self.encoder = nn.TransformerEncoder(layer(), 1, enable_nested_tensor=False)
        # TransformerEncoder deep-copies one layer, so all would start with the same weights.
        self.encoder.layers = nn.ModuleList(layer() for _ in range(n_layers))
        self.encoder.num_layers = n_layers
        self.classifier = nn.Linear(d_model, n_classes)

    def patches(self, images: Tensor) -> Tensor:
        """Cut images (example, channel, y, x) into (example, token, channel * patch y * patch x)."""
        n, channels, height, width = images.shape
        tiles = images.reshape(n, channels, self.grid, height // self.grid, self.grid, width // self.grid)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(n, self.grid**2, -1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (example, channel, y, x) to logits (example, class)."""
        tokens = self.encoder(self.embed(self.patches(images)) + self.positions)
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits


def vit(
    input_shape: InputShape,
    n_classes: int,
    *,
    patch: int = 7,
    n_layers: int = 6,
    d_model: int = 128,
    n_heads: int = 4,
    d_feedforward: int = 512,
) -> nn.Module:
    """Build torchvision's VisionTransformer for small images with any number of channels.

    Beside `ImageTransformer` it normalises before each part and not after, has GELU for ReLU and reads the class off a
    token of its own instead of the mean. Patches are squares of `patch` pixels in a square image. Module names are
    torchvision's: ``conv_proj encoder.layers.encoder_layer_0 ... encoder.ln heads.head``. The head begins at 0, so that
    at step 0 no logit depends on the image and every gradient of one is 0.

    References
    ----------
    A. Dosovitskiy et al., "An image is worth 16x16 words: transformers for image recognition at scale", ICLR 2021.
    """
    for option, value in (
        ("patch", patch),
        ("n_layers", n_layers),
        ("d_model", d_model),
        ("n_heads", n_heads),
        ("d_feedforward", d_feedforward),
    ):
        positive_ints(option, [value])
    _require_heads(d_model, n_heads)
    channels, height, width = input_shape
    if height != width or height % patch:
        raise InvalidInputError(
            f"Images of {height}x{width} pixels cannot be cut into patches of {patch}x{patch}, expected square images "
            f"whose side is a multiple of model option patch = {patch}."
        )
    model: nn.Module = import_torchvision().models.VisionTransformer(
        image_size=height,
        patch_size=patch,
        num_layers=n_layers,
        num_heads=n_heads,
        hidden_dim=d_model,
        mlp_dim=d_feedforward,
        num_classes=n_classes,
    )
    # torchvision's takes three channels and no other number; begun as it begins its own.
    projection = nn.Conv2d(channels, d_model, kernel_size=patch, stride=patch)
    nn.init.trunc_normal_(projection.weight, std=math.sqrt(1 / (channels * patch * patch)))
    assert projection.bias is not None
    nn.init.zeros_(projection.bias)
    model.conv_proj = projection
    return model


def _require_heads(d_model: int, n_heads: int) -> None:
    if d_model % n_heads:
        raise InvalidInputError(f"Model option d_model is {d_model}, expected a multiple of n_heads = {n_heads}.")
