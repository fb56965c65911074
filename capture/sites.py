"""Find out, before the first byte is written, what the named modules emit and whether it can be captured.

Discovery runs the model on three examples, then on two: the axis that changes holds the examples. A third pass taps
the sites as the capture will and checks that the model still says the same, that each tap holds what left its module,
and that no example's gradient reaches another example.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from capture.attention_sites import check_heads, head_sites, pattern_sites
from capture.axes import canonical_axes, check_dims
from capture.modelstate import as_device, model_device, refuse_wrapped
from capture.naming import Site, match_layers, split_heads
from capture.objective import GradientOf, check_gradient_of, class_logits, model_output
from capture.probing import Observation, infer_dims, observe
from capture.rehearsal import rehearse
from capture.site_checks import (
    PROBES,
    check_example_axis,
    check_names,
    check_output,
    refuse_batch_statistics,
)
from capture.structures import take_examples
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, GRADIENTS, KINDS, LAYER_ARRAYS, SUMMARIES
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["Site", "discover_sites", "discover_with_logits", "match_layers"]


def discover_sites(
    model: nn.Module,
    patterns: Sequence[str],
    kinds: Sequence[str],
    example_inputs: Any,
    labels: torch.Tensor | None = None,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    gradient_of: GradientOf = "label_logit",
    device: torch.device | str | None = None,
    output: Callable[[Any], torch.Tensor] | None = None,
) -> tuple[Site, ...]:
    """Describe every tensor that the patterns and kinds ask for, from small passes that leave no trace.

    Parameters
    ----------
    model : torch.nn.Module
    patterns : sequence of str
        Globs over module paths, see `match_layers`. Matched modules that never run are passed over, as long as each
        pattern names one that does. One that ends in ``@heads`` means what each head of the attention in such a module
        puts out, as activations (example, token, head, unit).
    kinds : sequence of str
        Any of ``"activations"``, ``"gradients"``, ``"attentions"``, ``"attention_summaries"``.
    example_inputs : torch.Tensor, tuple, list or mapping
        A batch as the model takes it; its first three examples are used, repeated where there are fewer.
    labels : torch.Tensor, optional
        (example,), used with gradients; class 0 by default.
    dims : mapping, optional
        Pattern -> names of all axes of the module's output as the module emits them, for instance
        ``{"norm": ("example", "y", "x", "unit")}`` for channels last. They are handed out in canonical order.
    gradient_of, device, output
        As in `capture.taps.Tapper`.

    Returns
    -------
    tuple of Site
        In the order in which modules are done, so that a block comes after what is in it, then by kind. Axes are
        (example, unit), (example, token, unit), (example, unit, x), (example, unit, y, x) or
        (example, unit, z, y, x), whichever the module's type, its inputs and the modules inside it imply; a module
        that emits tokens before examples is transposed. Of several tensors returned the first counts.

    Raises
    ------
    InvalidInputError
        When a pattern, kind or `dims` is unusable.
    CaptureError
        When the model fails on the probing batch, a pattern names only modules that never run, an output is not
        floating point, lacks an axis of examples or has axes that cannot be named, nothing attends, attention
        cannot be verified, batch norm uses batch statistics under gradients, or examples influence each other.

    Notes
    -----
    Costs three forward passes of two or three examples, and a backward pass with gradients.
    """
    check_gradient_of(gradient_of)
    refuse_wrapped(model)
    asked = _check_kinds(kinds)
    plain, headed = split_heads(patterns)
    check_heads(headed, plain, asked)
    paths = match_layers(model, plain) if plain or not headed else ()
    attending = match_layers(model, headed) if headed else ()
    given = _given_dims(model, dims or {})
    place = model_device(model) if device is None else as_device(device)
    first, second = (
        observe(
            model,
            take_examples(example_inputs, count),
            place,
            keep=frozenset(paths),
            attentions=bool(asked & {ATTENTIONS, SUMMARIES}) or bool(headed),
            heads=frozenset(attending),
        )
        for count in PROBES
    )
    _check_each_pattern_fires(model, [*plain, *headed], first)
    sites: list[Site] = []
    if plain and asked & {ACTIVATIONS, GRADIENTS}:
        sites += _output_sites(first, second, given, frozenset(paths), asked)
    if plain and asked & {ATTENTIONS, SUMMARIES}:
        sites += pattern_sites(model, first, second, frozenset(paths), asked)
    if headed:
        sites += head_sites(model, first, second, frozenset(attending))
    ended = {(firing.path, firing.call): index for index, firing in enumerate(first.firings)}
    last = {path: index for (path, _), index in ended.items()}
    sites.sort(
        key=lambda site: (
            ended.get((site.path, site.call), last.get(site.path, len(ended))), site.call, site.of_heads,
            LAYER_ARRAYS.index(site.kind),
        )
    )  # fmt: skip
    if GRADIENTS in asked:
        refuse_batch_statistics(first)
    inputs = take_examples(example_inputs, PROBES[0])
    some_labels = torch.zeros(PROBES[0], dtype=torch.int64) if labels is None else take_examples(labels, PROBES[0])
    rehearse(model, sites, first, inputs, some_labels, gradient_of=gradient_of, device=place, output=output)
    return tuple(sites)


def discover_with_logits(
    model: nn.Module,
    patterns: Sequence[str],
    kinds: Sequence[str],
    example_inputs: Any,
    labels: torch.Tensor | None = None,
    *,
    output: Callable[[Any], torch.Tensor] | None = None,
    **options: Any,
) -> tuple[tuple[Site, ...], torch.Tensor | None]:
    """Discover sites, and hand on what the model said of the probing batch meanwhile.

    Parameters
    ----------
    model, patterns, kinds, example_inputs, labels, output, **options
        As in `discover_sites`.

    Returns
    -------
    sites : tuple of Site
    logits : torch.Tensor or None
        Of the probing batch, None where the model's output is no class scores.
    """
    said: list[torch.Tensor] = []

    def listen(raw: Any) -> torch.Tensor:
        said.append(model_output(raw, output))
        return said[-1]

    sites = discover_sites(model, patterns, kinds, example_inputs, labels, output=listen, **options)
    return sites, class_logits(said[-1].detach(), PROBES[0])


def _check_kinds(kinds: Sequence[str]) -> set[str]:
    asked = {kinds} if isinstance(kinds, str) else set(kinds)
    known = (*KINDS, SUMMARIES)
    if not asked or not asked <= set(known):
        raise InvalidInputError(
            f"kinds is {sorted(asked)} where one or more of {', '.join(known)} were expected; name what to capture"
        )
    return asked


def _given_dims(model: nn.Module, dims: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    given: dict[str, tuple[str, ...]] = {}
    for pattern, names in dims.items():
        checked = check_dims(pattern, names)
        given.update(dict.fromkeys(match_layers(model, [pattern]), checked))
    return given


def _check_each_pattern_fires(model: nn.Module, patterns: Sequence[str], seen: Observation) -> None:
    fired = {firing.path for firing in seen.firings} | {call.path for call in seen.attentions}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = match_layers(model, [pattern])
        if not fired & set(matched):
            raise CaptureError(
                f"layer pattern {pattern!r} names {', '.join(matched[:3])}, none of which runs in the model's forward "
                "(a container's items run, the container does not); name modules that run, as in "
                f"{pattern + '.*'!r}"
            )


def _output_sites(
    first: Observation,
    second: Observation,
    given: Mapping[str, tuple[str, ...]],
    paths: frozenset[str],
    asked: set[str],
) -> list[Site]:
    named = infer_dims(first, second, given)
    shapes = {
        (firing.path, firing.call): tuple(firing.output.shape) for firing in second.firings if firing.output is not None
    }
    calls, calls_again = (Counter(firing.path for firing in seen.firings) for seen in (first, second))
    sites = []
    for firing in first.firings:
        if firing.path not in paths:
            continue
        if calls[firing.path] != calls_again[firing.path]:
            raise CaptureError(
                f"module {firing.path!r} runs {calls[firing.path]} times for {first.count} examples and "
                f"{calls_again[firing.path]} times for {second.count}, where one number was expected; leave modules "
                "that depend on the data out of layers"
            )
        dtype = check_output(firing)
        assert firing.output is not None
        shape = tuple(firing.output.shape)
        axis = check_example_axis(firing, shape, shapes[firing.path, firing.call])
        names = check_names(firing, shape, axis, named[firing.path, firing.call])
        axes = canonical_axes(names)
        several = calls[firing.path] > 1
        sites += [
            Site(
                name=f"{firing.path}#{firing.call}" if several else firing.path,
                kind=kind,
                module_type=type(firing.module).__name__,
                dims=tuple(names[axis] for axis in axes),
                shape=tuple(shape[axis] for axis in axes[1:]),
                dtype=dtype,
                path=firing.path,
                call=firing.call,
                calls=calls[firing.path],
                axes=axes,
                clone=firing.written_to_later(),
                hands_on=firing.hands_on,
            )
            for kind in (ACTIVATIONS, GRADIENTS)
            if kind in asked
        ]
    return sites
