"""Models by name: the three of the study, their wider families, and a registry for more.

A model is built from a name, the shape of one input and the number of classes; options widen or narrow it::

    build_model("cnn_deep", input_shape=(1, 28, 28), n_classes=10, seed=0)
    build_model("cnn", input_shape=(3, 32, 32), n_classes=10, channels=[16, 32])

Module names are what users tap, so they are part of the interface: ``conv1 relu1 pool1 ... classifier``,
``linear1 relu1 ... classifier``, ``embed encoder.layers.0 ... classifier``, and torchvision's own for ``resnet18`` and
``vit_small``. No ReLU works in place, because that would overwrite the output that a tap on the layer before it
returned.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from capture._convnets import cnn, resnet18
from capture._model_options import InputShape, positive_ints
from capture._suggest import expected_one_of
from capture._transformers import ImageTransformer, transformer, vit
from ndt_store.errors import AlreadyExistsError, InvalidInputError

__all__ = [
    "ImageTransformer",
    "build_model",
    "cnn",
    "mlp",
    "model_names",
    "register_model",
    "resnet18",
    "transformer",
    "vit",
]

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
        Passed to the family's builder (`cnn`, `mlp`, `resnet18`, `transformer`, `vit`), over the name's own.

    Returns
    -------
    torch.nn.Module
        On the CPU, in training mode, float32; (example, channel, y, x) in, logits (example, class) out.

    Raises
    ------
    InvalidInputError
        Unknown name or option, or a shape that the model cannot take.
    CaptureError
        The model is torchvision's, which is not installed.

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
            expected = expected_one_of(option, known) if known else "expected none at all"
            raise InvalidInputError(f"Model {name!r} has no option {option!r}, {expected}.")
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


def mlp(input_shape: InputShape, n_classes: int, *, hidden: Sequence[int] = (32, 32, 32, 32)) -> nn.Sequential:
    """Build a multilayer perceptron: flatten, (linear, ReLU) per entry of `hidden`, then linear.

    Modules ``flatten linear1 relu1 linear2 ... classifier``.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    n_inputs = math.prod(input_shape)
    for i, n_outputs in enumerate(positive_ints("hidden", hidden), start=1):
        modules[f"linear{i}"] = nn.Linear(n_inputs, n_outputs)
        modules[f"relu{i}"] = nn.ReLU()
        n_inputs = n_outputs
    modules["classifier"] = nn.Linear(n_inputs, n_classes)
    return nn.Sequential(modules)


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
    "resnet18": (resnet18, {}),
    "transformer": (transformer, {}),
    "transformer_shallow": (transformer, {"n_layers": 2}),
    "transformer_medium": (transformer, {"n_layers": 4}),
    "transformer_deep": (transformer, {"n_layers": 6}),
    "transformer_narrow": (transformer, {"n_layers": 4, "d_model": 64}),
    "vit": (vit, {}),
    "vit_small": (vit, {}),
}
