"""How reach passes through the operations that a model is made of: one rule for each family of PyTorch's operators.

A rule gets one call of an operator and the reach of its tensors, and returns the reach of what comes out, first things
first. An operator without a rule is not guessed at: nothing is known of what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from capture.reach import NOTHING, Reach, constant, reduced, resized, united
from capture.reach_calls import Call, Rule
from capture.reach_moves import joined, moved, permuted, reshaped, sliced
from capture.reach_windows import adaptively_pooled, convolved, padded_again, padded_blank, pooled

__all__ = ["rule_for"]


def rule_for(func: Any) -> Rule | None:
    """Return the rule of an operator, None where there is none."""
    namespace, _, name = func._schema.name.partition("::")
    if namespace != "aten":
        return None
    name = name.rstrip("_")
    if name in _RULES:
        rule = _RULES[name]
        return _of_parameters(rule) if rule in _FIRST_ALONE else rule
    if func.is_view and name != "as_strided":
        return moved
    return _elementwise if torch.Tag.pointwise in func.tags else None


def _of_parameters(rule: Rule) -> Rule:
    """Give nothing, which makes what comes out unknown, where a parameter was made of the input."""

    def guarded(call: Call) -> Sequence[Reach]:
        made = call.reaches((call.args[1:], dict(call.kwargs)))
        return [] if any(bool((hull != NOTHING).any()) for one in made for hull in one.exact) else rule(call)

    return guarded


def _elementwise(call: Call) -> list[Reach]:
    return [united(call.reaches((call.args, dict(call.kwargs))), out.shape) for out in call.outputs]


def _same(call: Call) -> list[Reach]:
    """Rule of what looks at each value alone, beside parameters: its first argument counts."""
    return [united([call.first], call.shape)]


def _copied(call: Call) -> list[Reach]:
    return [united([call.reach_of(call.args[1])], call.shape)]


def _filled(call: Call) -> list[Reach]:
    return [united([constant((), call.n_axes), *call.reaches(call.args[1:])], call.shape)]


def _over_dims(call: Call) -> list[Reach]:
    if call.get("other") is not None:
        return _elementwise(call)
    dims = call.get("dim")
    reach = call.first
    dims = range(len(reach.shape)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [resized(reduced(reach, dims), call.shape)] * len(call.outputs)


def _normalised_along(call: Call) -> list[Reach]:
    """Rule of what makes each value of an axis from all of them, as softmax does."""
    return [united([reduced(call.first, [call.get("dim")])], call.shape)]


def _layer_normed(call: Call) -> list[Reach]:
    reach = united([reduced(call.first, range(-len(call.get("normalized_shape")), 0))], call.shape)
    return [reach]


def _group_normed(call: Call) -> list[Reach]:
    reach, groups = call.first, call.get("group")
    n, channels, *rest = reach.shape

    def per_group(hull: Tensor) -> Tensor:
        return hull.reshape(n, groups, channels // groups, *rest)

    grouped = reduced(reach.mapped(per_group), range(2, 3 + len(rest)))
    whole = grouped.mapped(lambda hull: hull.expand(n, groups, channels // groups, *rest).reshape(reach.shape))
    return [whole]


def _batch_normed(call: Call) -> list[Reach]:
    reach = call.first
    # Running statistics are constants; those of the batch are made of every position.
    if call.get("training") or call.func._schema.name.endswith("legit") or call.get("running_mean") is None:
        reach = reduced(reach, [0, *range(2, len(reach.shape))])
    return [united([reach], call.shape)]


def _multiplied(call: Call) -> list[Reach]:
    """Rule of products of matrices, to which a bias may be added: rows of one with columns of the other."""
    *biases, one, other = [tensor for tensor in call.args if isinstance(tensor, Tensor)]
    rows, columns = ([reduced(reach, [axis]) for reach in call.reaches(t)] for t, axis in ((one, -1), (other, -2)))
    return [united([*call.reaches(biases), *rows, *columns], call.shape)]


def _linear(call: Call) -> list[Reach]:
    return [united([reduced(call.first, [-1])], call.shape)]


def _attended(call: Call) -> list[Reach]:
    query, key, value = (call.reach_of(tensor) for tensor in call.args[:3])
    seen = united([reduced(query, [-1]), reduced(key, [-2, -1]), reduced(value, [-2])], call.shape)
    return [seen]


_FAMILIES: Final[Mapping[Rule, str]] = {
    _elementwise: "gelu hardswish hardsigmoid hardtanh leaky_relu elu silu mish softplus threshold where addcmul",
    _same: "_prelu_kernel prelu _to_copy clone native_dropout",
    _copied: "copy",
    _filled: "zero fill",
    reshaped: "view _unsafe_view _reshape_copy _reshape_alias reshape",
    sliced: "slice",
    moved: "repeat flip roll index index_select pixel_shuffle "
    "pixel_unshuffle channel_shuffle upsample_nearest1d upsample_nearest2d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d",
    permuted: "permute transpose t",
    joined: "cat stack",
    convolved: "convolution",
    pooled: "avg_pool1d avg_pool2d max_pool1d max_pool2d max_pool2d_with_indices",
    adaptively_pooled: "_adaptive_avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d",
    padded_blank: "constant_pad_nd",
    padded_again: "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    _over_dims: "mean sum amax amin max min prod var std var_mean std_mean linalg_vector_norm norm logsumexp",
    _normalised_along: "_softmax _log_softmax softmax log_softmax",
    _layer_normed: "native_layer_norm",
    _group_normed: "native_group_norm",
    _batch_normed: "native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit "
    "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_no_update",
    _multiplied: "mm bmm addmm baddbmm matmul",
    _linear: "linear",
    _attended: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention",
}
_FIRST_ALONE: Final = (_same, convolved, _layer_normed, _group_normed, _batch_normed, _linear)
"""Rules that take their other tensors for parameters, which do not depend on the input."""

_RULES: Final = {name: rule for rule, names in _FAMILIES.items() for name in names.split()}
