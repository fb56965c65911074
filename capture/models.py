"""Models by name: the three of the study, their wider families, and a registry for more.

A model is built from a name, the shape of one input and the number of classes; options widen or narrow it::

    build_model("cnn_deep", input_shape=(1, 28, 28), n_classes=10, seed=0)
    build_model("cnn", input_shape=(3, 32, 32), n_classes=10, channels=[16, 32])

Module names are what users tap, so they are part of the interface: ``conv1 relu1 pool1 ... classifier``,
``linear1 relu1 ... classifier`` and ``embed encoder.layers.0 ... classifier``. No ReLU works in place,
because that would overwrite the output that a tap on the layer before it returned.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capture._suggest import expected_one_of
from ndt_store.errors import AlreadyExistsError, InvalidInputError

__all__ = ["ImageTransformer", "build_model", "cnn", "mlp", "model_names", "register_model", "transformer"]

InputShape = tuple[int, int, int]
Builder = Callable[..., nn.Module]


def build_model(
    name: str, *, input_shape: Sequence[int], n_classes: int, seed: int | None = None, **options: Any
) -> nn.Module:
    """Build a model by name.

    Parameters
    ----------
    name : str
        One of `model_names`.
    input_shape : (channel, y, x)
    n_classes : int
    seed : int, optional
        Seeds the initial weights; torch's global generators are left as they were. By default the weights
        come from torch's global generator.
    **options
        Passed to the family's builder (`cnn`, `mlp`, `transformer`), over the name's own.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode, float32; (example, channel, y, x) in, logits (example, class) out.

    Raises
    ------
    InvalidInputError
        Unknown name or option, or a shape that the model cannot take.

    Examples
    --------
    >>> model = build_model("mlp_narrow", input_shape=(1, 28, 28), n_classes=10, seed=0)
    >>> [name for name, _ in model.named_children()][:3]
    ['flatten', 'linear1', 'relu1']
    """
    if name not in _REGISTRY:
        raise InvalidInputError(f"No model is called {name!r}, {expected_one_of(name, model_names())}.")
    builder, defaults = _REGISTRY[name]
    known = list(inspect.signature(builder).parameters)[2:]
    for option in options:
        if option not in known:
            raise InvalidInputError(f"Model {name!r} has no option {option!r}, {expected_one_of(option, known)}.")
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InvalidInputError(f"Model {name!r} got input shape {shape}, expected (channel, y, x) above 0.")
    if n_classes < 1:
        raise InvalidInputError(f"Model {name!r} got {n_classes} classes, expected at least 1.")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return builder(shape, n_classes, **(defaults | options))


def model_names() -> tuple[str, ...]:
    """Return the names that `build_model` knows, sorted."""
    return tuple(sorted(_REGISTRY))


def register_model(name: str, builder: Builder, **defaults: Any) -> None:
    """Make a model available by name.

    Parameters
    ----------
    name : str
    builder : callable (input_shape, n_classes, *, option, ...) -> torch.nn.Module
    **defaults
        Options of `builder` that this name sets.

    Raises
    ------
    AlreadyExistsError
        The name is taken.
    """
    if name in _REGISTRY:
        raise AlreadyExistsError(f"A model is already called {name!r}; register yours under another name.")
    _REGISTRY[name] = (builder, defaults)


def cnn(input_shape: InputShape, n_classes: int, *, channels: Sequence[int] = (32, 64, 128, 256)) -> nn.Sequential:
    """Build a convolutional network: (convolution, ReLU, max-pool) per entry of `channels`, then linear.

    Convolutions are 3x3 and pad by 1; pools are 2x2 and halve the image, rounding down, so that an image
    needs at least ``2 ** len(channels)`` pixels a side. Modules ``conv1 relu1 pool1 conv2 ... flatten
    classifier``.
    """
    widths = _positive_ints("channels", channels)
    n_inputs, height, width = input_shape
    if min(height, width) < 2 ** len(widths):
        raise InvalidInputError(
            f"A CNN of {len(widths)} layers halves the image {len(widths)} times and got {height}x{width} pixels, "
            f"expected at least {2 ** len(widths)} a side; give fewer channels."
        )
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for i, n_outputs in enumerate(widths, start=1):
        modules[f"conv{i}"] = nn.Conv2d(n_inputs, n_outputs, kernel_size=3, padding=1)
        modules[f"relu{i}"] = nn.ReLU()
        modules[f"pool{i}"] = nn.MaxPool2d(2)
        n_inputs, height, width = n_outputs, height // 2, width // 2
    modules["flatten"] = nn.Flatten()
    modules["classifier"] = nn.Linear(n_inputs * height * width, n_classes)
    return nn.Sequential(modules)


def mlp(input_shape: InputShape, n_classes: int, *, hidden: Sequence[int] = (32, 32, 32, 32)) -> nn.Sequential:
    """Build a multilayer perceptron: flatten, (linear, ReLU) per entry of `hidden`, then linear.

    Modules ``flatten linear1 relu1 linear2 ... classifier``.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    n_inputs = math.prod(input_shape)
    for i, n_outputs in enumerate(_positive_ints("hidden", hidden), start=1):
        modules[f"linear{i}"] = nn.Linear(n_inputs, n_outputs)
        modules[f"relu{i}"] = nn.ReLU()
        n_inputs = n_outputs
    modules["classifier"] = nn.Linear(n_inputs, n_classes)
    return nn.Sequential(modules)


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
        _positive_ints(option, [value])
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"Model option dropout is {dropout!r}, expected a number from 0 to below 1.")
    if d_model % n_heads:
        raise InvalidInputError(f"Model option d_model is {d_model}, expected a multiple of n_heads = {n_heads}.")
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


def _positive_ints(option: str, values: Sequence[int]) -> list[int]:
    numbers = list(values) if isinstance(values, Sequence) else []
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise InvalidInputError(f"Model option {option} is {values!r}, expected whole numbers above 0.")
    return numbers


_REGISTRY: dict[str, tuple[Builder, dict[str, Any]]] = {
    "cnn": (cnn, {}),
    "cnn_shallow": (cnn, {"channels": (32, 64)}),
    "cnn_medium": (cnn, {"channels": (32, 64, 128)}),
    "cnn_deep": (cnn, {"channels": (32, 64, 128, 256)}),
    "mlp": (mlp, {}),
    "mlp_shallow_2": (mlp, {"hidden": (128, 64)}),
    "mlp_medium_5": (mlp, {"hidden": (64, 64, 64, 64, 32)}),
    "mlp_deep_10": (mlp, {"hidden": (32,) * 10}),
    "mlp_narrow": (mlp, {"hidden": (32,) * 4}),
    "mlp_medium": (mlp, {"hidden": (128, 128, 64, 64)}),
    "mlp_wide": (mlp, {"hidden": (256, 256, 128, 128)}),
    "transformer": (transformer, {}),
    "transformer_shallow": (transformer, {"n_layers": 2}),
    "transformer_medium": (transformer, {"n_layers": 4}),
    "transformer_deep": (transformer, {"n_layers": 6}),
    "transformer_narrow": (transformer, {"n_layers": 4, "d_model": 64}),
}
