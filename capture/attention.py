"""Attention probabilities out of any module that attends through PyTorch.

While a recorder is active, a ``TorchFunctionMode`` sees each call of ``multi_head_attention_forward`` (what
``nn.MultiheadAttention`` and all of ``nn.Transformer*`` run) and of ``scaled_dot_product_attention``, under whatever
name it was imported. The call itself runs unchanged, so that the model computes what it always does; the probabilities
are made beside it, without gradient:

1. for ``multi_head_attention_forward`` by the same function with ``need_weights=True, average_attn_weights=False``;
2. for ``scaled_dot_product_attention`` as ``softmax(scale * Q K' + mask)`` in float32 (float64 for float64 inputs).

A call belongs to the innermost module that is running. Rows sum to 1 and masked keys get exactly 0. A row whose keys
are all masked attends to nothing and is all 0, although PyTorch's own answer for it is NaN in some paths. Keys that
``add_bias_kv`` or ``add_zero_attn`` append are part of the key axis. In grouped-query attention, head means query head.

Attention written out by hand, as a matrix product and a softmax, cannot be told from other arithmetic and is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from capture.naming import Site
from capture.probabilities import MultiHead, ScaledDotProduct, check_probabilities, sdpa_probabilities
from capture.summaries import summarised
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, SUMMARY_KINDS
from ndt_store.errors import CaptureError

__all__ = ["MHA", "SDPA", "AttentionCall", "AttentionRecorder", "Wanted", "sdpa_probabilities"]

MHA: Final = functional.multi_head_attention_forward
"""What ``nn.MultiheadAttention`` and all of ``nn.Transformer*`` run."""

SDPA: Final = (
    functional.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention,
    torch.ops.aten.scaled_dot_product_attention.default,
)
"""The names of attention without projections."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of an attention function.

    Parameters
    ----------
    path : str
        Path of the innermost module that was running, "" for the model itself.
    call : int
        How many calls the same module had made before in this pass.
    probabilities : torch.Tensor or None
        (example, head, query, key), float32, or float64 in a float64 model.
    heads : torch.Tensor or None
        What each head puts out before they are mixed, (example, query, head, unit).
    summaries : dict
        As `capture.summaries.summarised` gives them.

    What was not asked for of the module is None or empty.
    """

    path: str
    call: int
    probabilities: torch.Tensor | None
    heads: torch.Tensor | None
    summaries: Mapping[str, torch.Tensor]

    def of(self, kind: str) -> torch.Tensor | None:
        """Return what a site of the kind is made of."""
        return {ATTENTIONS: self.probabilities, ACTIVATIONS: self.heads}.get(kind, self.summaries.get(kind))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which modules to record, by path, and what of them; None is all modules.

    Parameters
    ----------
    patterns : collection of str or None
        Whose probabilities are kept.
    heads : collection of str
        Of which what each head puts out is kept.
    summaries : collection of str
        Whose probabilities are summarised at once.
    """

    patterns: Collection[str] | None = None
    heads: Collection[str] = ()
    summaries: Collection[str] = ()

    @classmethod
    def of(cls, sites: Iterable[Site]) -> Wanted:
        """Return what the sites are made of."""
        known = tuple(sites)
        return cls(
            patterns=frozenset(site.path for site in known if site.kind == ATTENTIONS),
            heads=frozenset(site.path for site in known if site.of_heads),
            summaries=frozenset(site.path for site in known if site.kind in SUMMARY_KINDS),
        )

    def __contains__(self, path: str) -> bool:
        return self.keeps_pattern(path) or path in self.heads or path in self.summaries

    def keeps_pattern(self, path: str) -> bool:
        """Whether the probabilities of a module are kept as they are."""
        return self.patterns is None or path in self.patterns


class AttentionRecorder(TorchFunctionMode):
    """Record attention probabilities while it is entered.

    Parameters
    ----------
    innermost : callable
        Returns the path of the innermost running module.
    wanted : Wanted
    verify : bool
        Check of each recorded call that probabilities times values give back the model's own output.
    """

    def __init__(
        self,
        innermost: Callable[[], str],
        wanted: Wanted = Wanted(),
        *,
        verify: bool = False,
    ) -> None:
        super().__init__()
        self._innermost = innermost
        self._wanted = wanted
        self._verify = verify
        self._counts: Counter[str] = Counter()
        self.calls: list[AttentionCall] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func is MHA:
            self._record(MultiHead.bind(args, kwargs), output[0])
        elif func in SDPA:
            self._record(ScaledDotProduct.bind(*args, **kwargs), output)
        return output

    def _record(self, attention: MultiHead | ScaledDotProduct, output: torch.Tensor) -> None:
        path = self._innermost()
        if path not in self._wanted:
            return
        where = f"attention in module {path!r}"
        if attention.dropout > 0.0:
            raise CaptureError(
                f"{where} drops out {attention.dropout:g} of its probabilities in evaluation mode, where none was "
                "expected; pass dropout_p=0.0 unless self.training"
            )
        with torch.no_grad():
            probabilities = attention.probabilities(where)
            if self._verify:
                check_probabilities(where, attention.rebuild(probabilities), attention.own(output), probabilities)
            heads = attention.heads(probabilities) if path in self._wanted.heads else None
            summaries = summarised(probabilities) if path in self._wanted.summaries else {}
        kept = probabilities if self._wanted.keeps_pattern(path) else None
        self.calls.append(AttentionCall(path, self._counts[path], kept, heads, summaries))
        self._counts[path] += 1
