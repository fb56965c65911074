"""One call of an operator, as the rules of reach see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from capture.reach import Reach, constant

__all__ = ["Call", "Rule"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator.

    Parameters
    ----------
    func : operator
    args, kwargs
        As it was called.
    outputs : sequence of Tensor
    known : callable
        Gives the reach of a tensor, None where it does not depend on the input.
    n_axes : int
        Spatial axes of the input.
    """

    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    known: Callable[[Tensor], Reach | None]
    n_axes: int

    def get(self, name: str) -> Any:
        """Return an argument by its name in the operator's schema, or its default."""
        for place, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if place < len(self.args):
                    return self.args[place]
                return self.kwargs.get(name, argument.default_value)
        return None

    @property
    def first(self) -> Reach:
        """Reach of the first argument."""
        return self.reach_of(self.args[0])

    def reach_of(self, tensor: Tensor) -> Reach:
        """Return the reach of a tensor, also of one that does not depend on the input."""
        found = self.known(tensor)
        return constant(tensor.shape, self.n_axes) if found is None else found

    def reaches(self, given: Any) -> list[Reach]:
        """Return the reach of all tensors in some arguments that depend on the input."""
        found = (self.known(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        return [reach for reach in found if reach is not None]

    @property
    def shape(self) -> torch.Size:
        """Of the first output."""
        return self.outputs[0].shape


Rule = Callable[[Call], Sequence[Reach]]
