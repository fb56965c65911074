"""Change what single heads of attention put out while a model runs, and find out what its loss thinks of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from capture.attention import MHA, SDPA
from capture.probabilities import MultiHead, ScaledDotProduct

__all__ = ["Call", "HeadOutputs", "HeadReplaced", "HeadsScaled"]

Call = tuple[str, int]
"""Path of the module that attends, and how many calls it has made before in the pass."""


class _Edits(TorchFunctionMode):
    """Hands every call of attention, with what it gave, to `edited`, and lets the model go on with the answer."""

    def __init__(self, innermost: Callable[[], str]) -> None:
        super().__init__()
        self._innermost = innermost
        self._counts: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        attention: MultiHead | ScaledDotProduct
        if func is MHA:
            attention = MultiHead.bind(args, kwargs)
        elif func in SDPA:
            attention = ScaledDotProduct.bind(*args, **kwargs)
        else:
            return output
        path = self._innermost()
        call = path, self._counts[path]
        self._counts[path] += 1
        return self.edited(call, attention, output)

    def edited(self, call: Call, attention: MultiHead | ScaledDotProduct, output: Any) -> Any:
        """Return what the model goes on with."""
        raise NotImplementedError


class HeadReplaced(_Edits):
    """Replaces what one head puts out, by a value (query, unit) or by 0."""

    def __init__(self, innermost: Callable[[], str], call: Call, head: int, value: torch.Tensor | None) -> None:
        super().__init__(innermost)
        self._call, self._head, self._value = call, head, value

    def edited(self, call: Call, attention: MultiHead | ScaledDotProduct, output: Any) -> Any:
        """Replace the head of the one call."""
        return attention.replaced(output, self._head, self._value) if call == self._call else output


class HeadOutputs(_Edits):
    """Adds up what heads put out over examples, (query, head, unit) by call, and changes nothing."""

    def __init__(self, innermost: Callable[[], str]) -> None:
        super().__init__(innermost)
        self.sums: dict[Call, torch.Tensor] = {}

    def edited(self, call: Call, attention: MultiHead | ScaledDotProduct, output: Any) -> Any:
        """Add the heads of one call."""
        total = _heads(attention).double().sum(0)
        self.sums[call] = self.sums[call] + total if call in self.sums else total
        return output


class HeadsScaled(_Edits):
    """Scales each head of each example by a factor of 1, of which the gradient can be taken; `factors` by call."""

    def __init__(self, innermost: Callable[[], str]) -> None:
        super().__init__(innermost)
        self.factors: dict[Call, torch.Tensor] = {}

    def edited(self, call: Call, attention: MultiHead | ScaledDotProduct, output: Any) -> Any:
        """Scale the heads of one call."""
        heads = _heads(attention)
        self.factors[call] = torch.ones(heads.shape[0], heads.shape[2], dtype=heads.dtype, device=heads.device)
        return attention.scaled(output, heads, self.factors[call].requires_grad_())


def _heads(attention: MultiHead | ScaledDotProduct) -> torch.Tensor:
    with torch.no_grad():
        return attention.heads(attention.probabilities("attention"))
