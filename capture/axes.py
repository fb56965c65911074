"""Name the axes of what a module emits, from what is known about it.

The axis of the examples is measured: two probing passes with different numbers of examples differ in that axis alone.
The other axes follow from the module's type where it fixes them (a convolution, a linear layer), from the tensors the
module took or made inside itself where it does not (an activation function, a block), and from their number
otherwise. Evidence that contradicts itself decides nothing: the caller has to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn

from ndt_store.dims import EXAMPLE, HEAD, TOKEN, UNIT, X, Y, Z
from ndt_store.errors import InvalidInputError

__all__ = ["axis_of_examples", "canonical_axes", "check_dims", "default_dims", "permuted", "rearranges", "typed_dims"]

_ORDER: Final = (EXAMPLE, TOKEN, HEAD, UNIT, Z, Y, X)
"""Order in which axes are handed out, whatever order the module has them in."""

_SPATIAL: Final = {1: (X,), 2: (Y, X), 3: (Z, Y, X)}

_UNIT_LAST: Final = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.LayerNorm,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.Transformer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)

_UNIT_FIRST_NAMES: Final = tuple(
    f"{stem}{rank}d"
    for rank in (1, 2, 3)
    for stem in (
        *("Conv", "ConvTranspose", "LazyConv", "BatchNorm", "InstanceNorm"),
        *("MaxPool", "AvgPool", "LPPool", "FractionalMaxPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "MaxUnpool"),
        *("ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad", "CircularPad"),
    )
)
_UNIT_FIRST: Final[tuple[type[nn.Module], ...]] = (
    *(getattr(nn, name) for name in _UNIT_FIRST_NAMES if hasattr(nn, name)),
    nn.GroupNorm,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)

_REARRANGING: Final = ("Flatten", "Unflatten", "Permute", "Transpose", "Rearrange", "Reduce")
"""Class names, of torch, torchvision and einops, of modules whose axes follow from their arguments."""


def rearranges(module: nn.Module) -> bool:
    """Tell whether a module reorders or merges axes, so that neither its input nor its rank says what they are."""
    return type(module).__name__ in _REARRANGING


def permuted(module: nn.Module, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names after a module that permutes axes and says how in ``dims``, as torchvision's Permute does."""
    order = getattr(module, "dims", None)
    if type(module).__name__ != "Permute" or sorted(order or ()) != list(range(len(names))):
        return None
    return tuple(names[axis] for axis in order or ())


def axis_of_examples(first: tuple[int, ...], second: tuple[int, ...], sizes: tuple[int, int]) -> int | None:
    """Return the axis that holds the examples, None where the shapes of two passes do not single one out.

    Parameters
    ----------
    first, second : tuple of int
        Shapes of the same output in passes of ``sizes[0]`` and ``sizes[1]`` examples.
    sizes : tuple of int
        The two numbers of examples.

    Examples
    --------
    >>> axis_of_examples((7, 3, 4), (7, 2, 4), (3, 2))
    1
    """
    if len(first) != len(second):
        return None
    moved = [axis for axis, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]]
    if len(moved) != 1 or (first[moved[0]], second[moved[0]]) != sizes:
        return None
    return moved[0]


def typed_dims(module: nn.Module, rank: int, example_axis: int) -> tuple[str, ...] | None:
    """Return the names of the axes of an output where the module's type fixes them, None where it does not.

    Parameters
    ----------
    module : torch.nn.Module
    rank : int
        Number of axes of the output, the one of the examples included.
    example_axis : int
    """
    # A subclass of LayerNorm often permutes around it (torchvision's LayerNorm2d), so its type says nothing.
    unit_last = isinstance(module, _UNIT_LAST) and (
        not isinstance(module, nn.LayerNorm) or (type(module) is nn.LayerNorm and len(module.normalized_shape) == 1)
    )
    if unit_last and example_axis <= 1:
        places = {1: (), 2: (TOKEN,), 3: (Y, X), 4: (Z, Y, X)}.get(rank - 1)
        return None if places is None else _insert((*places, UNIT), example_axis)
    if isinstance(module, nn.Unfold) and example_axis == 0:
        return (EXAMPLE, UNIT, TOKEN)
    if isinstance(module, _UNIT_FIRST) and example_axis == 0 and rank - 2 in (0, *_SPATIAL):
        return (EXAMPLE, UNIT, *_SPATIAL.get(rank - 2, ()))
    return None


def default_dims(rank: int, example_axis: int) -> tuple[str, ...] | None:
    """Return names for axes of which only the number is known, None where that is too little.

    Two axes are (example, unit), three (example, token, unit), four and five (example, unit, [z,] y, x).
    """
    if rank == 2 and example_axis == 0:
        return (EXAMPLE, UNIT)
    if rank == 3 and example_axis <= 1:
        return _insert((TOKEN, UNIT), example_axis)
    if rank in (4, 5) and example_axis == 0:
        return (EXAMPLE, UNIT, *_SPATIAL[rank - 2])
    return None


def _insert(names: tuple[str, ...], example_axis: int) -> tuple[str, ...]:
    return (*names[:example_axis], EXAMPLE, *names[example_axis:])


def canonical_axes(dims: Sequence[str]) -> tuple[int, ...]:
    """Return the permutation that brings named axes into the order in which they are handed out.

    That is example, token, head, unit, z, y, x.

    Examples
    --------
    >>> canonical_axes(("token", "example", "unit")), canonical_axes(("example", "y", "x", "unit"))
    ((1, 0, 2), (0, 3, 1, 2))
    """
    return tuple(sorted(range(len(dims)), key=lambda axis: _ORDER.index(dims[axis])))


def check_dims(pattern: str, dims: Sequence[str]) -> tuple[str, ...]:
    """Check the names a caller gave for the axes of an output.

    Raises
    ------
    InvalidInputError
        When a name is unknown or given twice, or when ``example`` or ``unit`` is missing.
    """
    names = tuple(dims)
    if (
        len(set(names)) != len(names)
        or not {EXAMPLE, UNIT} <= set(names)
        or not set(names) <= set(_ORDER)
        or isinstance(dims, str)
    ):
        raise InvalidInputError(
            f"dims[{pattern!r}] is {dims!r} where the axes of the module's output were expected, each once, from "
            f"{', '.join(_ORDER)}, with example and unit among them; name every axis as the module emits it"
        )
    return names
