"""The probabilities inside one call of an attention function, and what they make of the values.

Both calls answer the same questions: how much dropout, which probabilities, what each head puts out with them, which
output that gives, which output the call gave itself, in the same layout, and which it would give were a head replaced
or scaled.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import functional

from ndt_store.errors import CaptureError

__all__ = ["MultiHead", "ScaledDotProduct", "check_probabilities", "sdpa_probabilities"]

_MHA_SIGNATURE: Final = inspect.signature(functional.multi_head_attention_forward)


def check_probabilities(where: str, rebuilt: torch.Tensor, own: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Compare two outputs, (example, query, ...), wherever each head attends to something."""
    attended = probabilities.sum(-1)
    off = float((attended - 1).abs().masked_fill(attended == 0, 0).max())
    tolerance = _tolerance(own.dtype)
    if not off <= tolerance:
        raise CaptureError(
            f"{where} gave probabilities whose rows differ from a sum of 1 by up to {off:.2g}, where at most "
            f"{tolerance:g} was expected; look for NaN or infinite queries, keys or weights"
        )
    somewhere = (attended > 0).all(1)
    if not somewhere.any():
        return
    mine, own = rebuilt[somewhere].double(), own[somewhere].double()
    error = float((mine - own).abs().max())
    allowed = tolerance * max(1.0, float(own.abs().max()))
    if not error <= allowed:
        raise CaptureError(
            f"{where} gave probabilities that reproduce its output to {error:.2g} only, where {allowed:.2g} was "
            "expected; capture its activations instead, and report how it attends"
        )


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float16: 1e-2, torch.bfloat16: 5e-2}.get(dtype, 1e-4)


@dataclass(frozen=True, slots=True)
class MultiHead:
    """A call of multi_head_attention_forward; tensors are (token, example, unit) there."""

    arguments: dict[str, Any]

    @classmethod
    def bind(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MultiHead:
        """Take the arguments of the call by name, defaults filled in."""
        bound = _MHA_SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        return cls(bound.arguments)

    @property
    def dropout(self) -> float:
        """Share of the probabilities that the call drops."""
        return float(self.arguments["dropout_p"]) if self.arguments["training"] else 0.0

    def probabilities(self, where: str) -> torch.Tensor:
        """Return (example, head, query, key); `where` begins the message of an error."""
        query = self.arguments["query"]
        if query.ndim != 3:
            raise CaptureError(
                f"{where} has a query of shape {tuple(query.shape)} where (token, example, unit) was expected; call "
                "it with a batch axis"
            )
        asked = {**self.arguments, "need_weights": True, "average_attn_weights": False}
        weights = functional.multi_head_attention_forward(**asked)[1]
        assert weights is not None
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        empty = self._empty_rows(weights)
        return weights if empty is None else weights.masked_fill(empty, 0.0)

    def _empty_rows(self, weights: torch.Tensor) -> torch.Tensor | None:
        given = self.arguments
        if given["add_zero_attn"] or given["bias_k"] is not None:
            return None
        batch, heads, queries, keys = weights.shape
        mask, padding = given["attn_mask"], given["key_padding_mask"]
        if mask is None and padding is None:
            return None
        # Boolean masks mask where True, additive ones where -inf.
        masked = torch.zeros_like(weights, dtype=torch.bool)
        if mask is not None:
            hidden = mask if mask.dtype == torch.bool else mask == -math.inf
            masked |= hidden.view(batch, heads, queries, keys) if mask.ndim == 3 else hidden
        if padding is not None:
            hidden = padding if padding.dtype == torch.bool else padding == -math.inf
            masked |= hidden.view(batch, 1, 1, keys)
        return masked.all(-1, keepdim=True)

    def own(self, output: torch.Tensor) -> torch.Tensor:
        """Bring the call's output into the layout of `rebuild`."""
        return output.transpose(0, 1)

    def heads(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return probabilities times projected values: (example, query, head, unit)."""
        given = self.arguments
        width, heads, batch = given["embed_dim_to_check"], given["num_heads"], given["query"].shape[1]
        weight = given["v_proj_weight"] if given["use_separate_proj_weight"] else given["in_proj_weight"][2 * width :]
        bias = None if given["in_proj_bias"] is None else given["in_proj_bias"][2 * width :]
        values = functional.linear(given["value"], weight, bias)
        if given["bias_v"] is not None:
            values = torch.cat([values, given["bias_v"].repeat(1, batch, 1)])
        split = values.reshape(-1, batch, heads, width // heads).permute(1, 2, 0, 3)
        if given["static_v"] is not None:
            split = given["static_v"].unflatten(0, (batch, heads))
        if given["add_zero_attn"]:
            split = functional.pad(split, (0, 0, 0, 1))
        return (probabilities.to(split.dtype) @ split).transpose(1, 2)

    def rebuild(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return what the heads put out, projected out: (example, query, unit)."""
        mixed = self.heads(probabilities).flatten(2)
        return functional.linear(mixed, self.arguments["out_proj_weight"], self.arguments["out_proj_bias"])

    def replaced(self, output: Any, head: int, value: torch.Tensor | None) -> Any:
        """Return the call's output with what one head puts out replaced: by `value` (query, unit), or by 0."""
        weight = self.arguments["out_proj_weight"]
        width = weight.shape[1] // self.arguments["num_heads"]
        own = slice(head * width, (head + 1) * width)
        rest = weight.clone()
        rest[:, own] = 0
        changed = functional.multi_head_attention_forward(**{**self.arguments, "out_proj_weight": rest})[0]
        if value is not None:
            changed = changed + functional.linear(value.to(weight.dtype), weight[:, own])[:, None]
        return (changed, *output[1:])

    def scaled(self, output: Any, heads: torch.Tensor, factors: torch.Tensor) -> Any:
        """Return the call's output with heads (example, query, head, unit) scaled by `factors` (example, head).

        Differentiable by the factors.
        """
        more = (heads * (factors - 1)[:, None, :, None]).flatten(2)
        return (output[0] + functional.linear(more, self.arguments["out_proj_weight"]).transpose(0, 1), *output[1:])


@dataclass(frozen=True, slots=True)
class ScaledDotProduct:
    """A call of scaled_dot_product_attention."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    causal: bool
    scale: float | None

    @classmethod
    def bind(
        cls,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG003 - the numbers of heads tell
    ) -> ScaledDotProduct:
        """Take the arguments by the names PyTorch gives them."""
        return cls(query, key, value, attn_mask, dropout_p, is_causal, scale)

    def probabilities(self, where: str) -> torch.Tensor:
        """Return (example, head, query, key); `where` begins the message of an error."""
        if self.query.is_nested or self.query.ndim not in (3, 4):
            shape = "nested" if self.query.is_nested else tuple(self.query.shape)
            raise CaptureError(
                f"{where} has a query of shape {shape} where (example, head, query, unit) or (example, query, unit) "
                "was expected; reshape it in the module, or leave the module out of attentions"
            )
        weights = sdpa_probabilities(self.query, self.key, attn_mask=self.mask, is_causal=self.causal, scale=self.scale)
        return weights if weights.ndim == 4 else weights.unsqueeze(1)

    def own(self, output: torch.Tensor) -> torch.Tensor:
        """Bring the call's output into the layout of `rebuild`."""
        return (output if output.ndim == 4 else output.unsqueeze(1)).transpose(1, 2)

    def heads(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return probabilities times values: (example, query, head, unit)."""
        value = self.value if self.value.ndim == 4 else self.value.unsqueeze(1)
        return (probabilities @ _for_each_head(value, probabilities.shape[1]).to(probabilities.dtype)).transpose(1, 2)

    def rebuild(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return what the heads put out, which is what the call gives."""
        return self.heads(probabilities)

    def replaced(self, output: torch.Tensor, head: int, value: torch.Tensor | None) -> torch.Tensor:
        """Return the call's output with what one head puts out replaced: by `value` (query, unit), or by 0."""
        changed = output.clone()
        place = changed if changed.ndim == 4 else changed.unsqueeze(1)
        place[:, head] = 0 if value is None else value.to(output.dtype)
        return changed

    def scaled(self, output: torch.Tensor, _heads: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return the call's output with heads scaled by `factors` (example, head); differentiable by these."""
        # Factors are float32 where the output is half precision, which the rest of the model needs back.
        return (output * (factors[:, :, None, None] if output.ndim == 4 else factors[:, :, None])).to(output.dtype)


def _for_each_head(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Repeat the heads of keys or values for the query heads that share them."""
    shared = tensor.shape[-3]
    return tensor if shared in (1, heads) else tensor.repeat_interleave(heads // shared, dim=-3)


def sdpa_probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Compute the probabilities inside ``scaled_dot_product_attention``: softmax over keys of scale * Q K' + mask.

    Parameters
    ----------
    query, key : torch.Tensor
        (..., head, query, unit) and (..., head, key, unit); where there are fewer key heads, each serves a run of
        query heads, as with ``enable_gqa=True``.
    attn_mask : torch.Tensor, optional
        Boolean, True takes part, or additive; broadcast to (..., head, query, key).
    is_causal : bool
        Query i sees keys 0 to i.
    scale : float, optional
        1 / sqrt(unit) by default.

    Returns
    -------
    torch.Tensor
        (..., head, query, key), float32, or float64 for float64 inputs. Rows sum to 1; masked keys are exactly 0; a
        row that is masked throughout is all 0. NaN in a query makes its row NaN.

    Notes
    -----
    Time and memory are O(head * query * key), which the fused kernels avoid.

    Examples
    --------
    >>> sdpa_probabilities(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), is_causal=True).tolist()
    [[[[1.0, 0.0], [0.5, 0.5]]]]
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    with torch.autocast(query.device.type, enabled=False):
        keys = key if key.ndim < 4 else _for_each_head(key, query.shape[-3])
        scores = query.to(wide) @ keys.to(wide).transpose(-2, -1) * factor
        taking_part: torch.Tensor | None = None
        if is_causal:
            taking_part = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            taking_part = attn_mask
        elif attn_mask is not None:
            scores = scores + attn_mask.to(wide)
            taking_part = attn_mask != -math.inf
        if taking_part is None:
            return scores.softmax(-1)
        weights = scores.masked_fill(~taking_part, -math.inf).softmax(-1)
        return weights.masked_fill(~taking_part.any(-1, keepdim=True), 0.0)
