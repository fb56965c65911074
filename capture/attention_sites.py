"""Describe what calls of attention give: the pattern of each head, its summaries, and what each head puts out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

from torch import nn

from capture.axes import axis_of_examples
from capture.naming import HEADS, Site
from capture.probing import Observation
from capture.site_checks import DTYPES, PROBES
from ndt_store.dims import (
    ACTIVATIONS,
    ATTENTIONS,
    EXAMPLE,
    EXAMPLE_SUMMARIES,
    HEAD,
    KEY,
    MEAN_PATTERN,
    QUERY,
    SUMMARIES,
    TOKEN,
    UNIT,
)
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["check_heads", "head_sites", "pattern_sites"]

_PATTERN: Final = (EXAMPLE, HEAD, QUERY, KEY)
_HEADS: Final = (EXAMPLE, TOKEN, HEAD, UNIT)


def check_heads(headed: Sequence[str], plain: Sequence[str], asked: Collection[str]) -> None:
    """Check that the kinds asked for go with the patterns.

    Raises
    ------
    InvalidInputError
        Heads without activations, or other kinds with nothing but heads.
    """
    if headed and ACTIVATIONS not in asked:
        raise InvalidInputError(
            f"layer pattern {headed[0] + HEADS!r} means what heads put out, which are activations, and kinds is "
            f"{sorted(asked)}; add activations to kinds, or leave the pattern out"
        )
    others = sorted(set(asked) - {ACTIVATIONS})
    if headed and others and not plain:
        raise InvalidInputError(
            f"kinds is {sorted(asked)}, and all layer patterns end in {HEADS}, of which there are activations only; "
            f"name the modules whose {others[0]} you want, as in {headed[0]!r}"
        )


def pattern_sites(
    model: nn.Module, first: Observation, second: Observation, paths: frozenset[str], asked: Collection[str]
) -> list[Site]:
    """Return the sites of attention probabilities and of their summaries, for each call in the modules at `paths`.

    Raises
    ------
    CaptureError
        None of them attends, or the probabilities are not (example, head, query, key).
    """
    _require_some(first, paths, "attentions were asked for")
    found = list(_sites(model, first, second, paths, ATTENTIONS, _PATTERN))
    sites = list(found) if ATTENTIONS in asked else []
    if SUMMARIES in asked:
        for site in found:
            sites += [
                replace(site, kind=kind, dims=(EXAMPLE, HEAD), shape=site.shape[:1], axes=(0, 1))
                for kind in EXAMPLE_SUMMARIES
            ]
            sites.append(replace(site, kind=MEAN_PATTERN, dims=_PATTERN[1:], axes=(0, 1, 2)))
    return sites


def head_sites(model: nn.Module, first: Observation, second: Observation, paths: frozenset[str]) -> list[Site]:
    """Return the sites of what heads put out, for each call in the modules at `paths`.

    Raises
    ------
    CaptureError
        As `pattern_sites` does.
    """
    _require_some(first, paths, "the outputs of heads were asked for")
    return list(_sites(model, first, second, paths, ACTIVATIONS, _HEADS))


def _require_some(first: Observation, paths: frozenset[str], asked: str) -> None:
    attending = list(dict.fromkeys(call.path for call in first.attentions))
    if set(attending) & paths:
        return
    found = ", ".join(path or "(the model itself)" for path in attending)
    advice = (
        f"name some of those that do: {found}"
        if attending
        else "none of the model's modules does through nn.MultiheadAttention or scaled_dot_product_attention, "
        "and attention written out by hand is not seen"
    )
    raise CaptureError(f"{asked}, but none of the {len(paths)} layers named attends; {advice}")


def _sites(
    model: nn.Module,
    first: Observation,
    second: Observation,
    paths: frozenset[str],
    kind: str,
    dims: tuple[str, ...],
) -> Iterator[Site]:
    tensors, again = (
        {(call.path, call.call): tensor for call in seen.attentions if (tensor := call.of(kind)) is not None}
        for seen in (first, second)
    )
    calls = Counter(path for path, _ in tensors)
    of_heads = kind == ACTIVATIONS
    for (path, call), tensor in tensors.items():
        if path not in paths:
            continue
        module = model.get_submodule(path)
        shape = tuple(tensor.shape)
        other = tuple(again[path, call].shape) if (path, call) in again else ()
        if len(shape) != len(dims) or axis_of_examples(shape, other, PROBES) != 0:
            what = "outputs of heads" if of_heads else "probabilities"
            raise CaptureError(
                f"attention in module {path!r} ({type(module).__name__}) has {what} of shape {shape} for {PROBES[0]} "
                f"examples and {other or None} for {PROBES[1]}, where ({', '.join(dims)}) was expected; leave it out "
                "of layers for attentions"
            )
        name = f"{path}#{call}" if calls[path] > 1 else path
        yield Site(
            name=name + HEADS if of_heads else name,
            kind=kind,
            module_type=type(module).__name__,
            dims=dims,
            shape=shape[1:],
            dtype=DTYPES[tensor.dtype],
            path=path,
            call=call,
            calls=calls[path],
            axes=(0, 1, 2, 3),
            of_heads=of_heads,
        )
