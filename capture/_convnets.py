"""Convolutional networks: plain stacks, and torchvision's ResNet-18 for small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from capture._model_options import InputShape, positive_ints
from capture._torchvision import import_torchvision
from ndt_store.errors import InvalidInputError

__all__ = ["cnn", "resnet18"]


def cnn(input_shape: InputShape, n_classes: int, *, channels: Sequence[int] = (32, 64, 128, 256)) -> nn.Sequential:
    """Build a convolutional network: (convolution, ReLU, max-pool) per entry of `channels`, then linear.

    Convolutions are 3x3 and pad by 1; pools are 2x2 and halve the image, rounding down, so that an image
    needs at least ``2 ** len(channels)`` pixels a side. Modules ``conv1 relu1 pool1 conv2 ... flatten
    classifier``.
    """
    widths = positive_ints("channels", channels)
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


def resnet18(input_shape: InputShape, n_classes: int) -> nn.Module:
    """Build torchvision's ResNet-18 for small images: a 3x3 stem of stride 1 and no max-pool.

    The first stage then works at the image's full size. Any number of input channels; module names are torchvision's
    (``conv1 bn1 relu layer1.0.conv1 ... layer4 avgpool fc``), ``maxpool`` hands its input on. ReLUs do not work in
    place; the sum of a residual block does write into the output of its second batch norm, of which a tap keeps a copy.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2 of which
    begins with a 3x3 convolution where images are small.
    """
    model: nn.Module = import_torchvision().models.resnet18(weights=None, num_classes=n_classes)
    stem = nn.Conv2d(input_shape[0], 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem
    model.maxpool = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model
