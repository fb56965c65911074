"""Follow what of its input a model's tensors can depend on, by watching every operator while the model runs once.

Nothing is read off names or types of modules: whatever forward does, it does by operators, and each of those that is
known says what its output can depend on. What comes out of one that is not known is unknown, and so is what is made of
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capture.reach import Reach, constant, unknown
from capture.reach_calls import Call
from capture.reach_rules import rule_for

__all__ = ["ReachTracer"]

_MAKERS: Final = ("empty", "new_", "zeros", "ones", "full", "rand", "arange", "scalar_tensor", "eye", "linspace")
"""Beginnings of the names of operators that make tensors out of nothing."""


class ReachTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the reach of every tensor that was made of the input while it was entered.

    Parameters
    ----------
    source : Tensor
        The input.
    reach : Reach
        Its reach.
    where : callable
        Names the module that runs.
    """

    def __init__(self, source: Tensor, reach: Reach, where: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._n_axes = len(reach.axes)
        self._where = where
        # The tensors are kept with their reach, so that no other one gets the identity of one that is gone.
        self._known: dict[int, tuple[Tensor, Reach]] = {}
        self._lost = False
        self.gaps: list[str] = []
        self._set(source, reach)

    def reach(self, tensor: Tensor) -> Reach | None:
        """Return the reach of a tensor, None where it was seen to be made of nothing of the input."""
        if self._lost:
            return unknown(tensor.shape, self._n_axes)
        found = self._known.get(id(tensor))
        return None if found is None else found[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator, then say what its outputs can depend on."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, result)
        return result

    def _set(self, tensor: Tensor, reach: Reach) -> None:
        self._known[id(tensor)] = tensor, reach

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        name = func._schema.name.partition("::")[2]
        if name.startswith(_MAKERS):
            for out in outputs:
                self._set(out, constant(out.shape, self._n_axes))
            return
        if self._lost or all(self.reach(tensor) is None for tensor in given):
            return
        # Hulls are real numbers, of which the views of complex ones cannot be taken.
        rule = None if any(tensor.is_complex() for tensor in (*given, *outputs)) else rule_for(func)
        in_place = name.endswith("_")
        if rule is None or (func._schema.is_mutable and not in_place and "batch_norm" not in name):
            self._give_up(func, outputs, in_place)
            return
        try:
            reaches = list(rule(Call(func, args, kwargs, outputs, self.reach, self._n_axes)))
        except (IndexError, RuntimeError, TypeError, ValueError):
            reaches = []  # Called in a way that the rule does not know: as good as no rule.
        if in_place and not reaches:
            self._give_up(func, outputs, in_place)
            return
        if in_place:
            self._write(func, args[0], reaches[0])
            return
        if not reaches:
            self._note(func)
        for place, out in enumerate(outputs):
            self._set(out, reaches[place] if place < len(reaches) else unknown(out.shape, self._n_axes))

    def _write(self, func: Any, target: Tensor, reach: Reach) -> None:
        found = self.reach(target)
        if found is None:
            # A tensor from outside the pass, of which views may be about that nobody knows of.
            self._give_up(func, [], True)
            return
        found.write(reach)
        self._set(target, found.like(reach))

    def _give_up(self, func: Any, outputs: list[Tensor], in_place: bool) -> None:
        self._note(func)
        self._lost = self._lost or in_place or func._schema.is_mutable
        for out in outputs:
            self._set(out, unknown(out.shape, self._n_axes))

    def _note(self, func: Any) -> None:
        where = self._where()
        gap = f"operator {func._schema.name}" + (f" of module {where!r}" if where else "")
        if gap not in self.gaps:
            self.gaps.append(gap)
