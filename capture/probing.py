"""Watch a model run a few examples: what fires, in which order, what it takes and emits, and who writes into what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from capture.attention import AttentionCall, AttentionRecorder, Wanted
from capture.axes import axis_of_examples, default_dims, permuted, rearranges, typed_dims
from capture.modelstate import borrowed
from capture.running import ModuleStack
from capture.structures import batch_size, call_model, first_tensor, tensors_in, version_of
from ndt_store.errors import CaptureError, NdtError

__all__ = ["Firing", "Observation", "infer_dims", "observe"]


@dataclass(slots=True)
class Firing:
    """One run of one module.

    Parameters
    ----------
    path, call, module
        The module, and how many runs of it came before in the pass.
    begun : int
        How many firings had ended when it began: those between are inside it.
    inputs : list of torch.Tensor
    output : torch.Tensor or None
        The first tensor it returned, None where it returned none.
    hands_on : bool
        Whether the output is one of the inputs and was not written to.
    version : int
        Version counter of the output as it left the module.
    value : torch.Tensor or None
        Copy of the output as it left the module, kept for the modules asked for.
    """

    path: str
    call: int
    module: nn.Module
    begun: int
    inputs: list[torch.Tensor]
    output: torch.Tensor | None
    hands_on: bool
    version: int
    value: torch.Tensor | None

    def written_to_later(self) -> bool:
        """Tell whether something changed the output after it left; needs `value`."""
        assert self.output is not None
        assert self.value is not None
        if version_of(self.output) != self.version:
            return True
        # Writing through .data does not count versions.
        return not torch.equal(self.value.nan_to_num(), self.output.nan_to_num()) or not torch.equal(
            self.value.isnan(), self.output.isnan()
        )


@dataclass(slots=True)
class Observation:
    """One pass: firings in the order in which they ended, calls of attention, and what the model returned."""

    count: int
    firings: list[Firing] = field(default_factory=list)
    attentions: list[AttentionCall] = field(default_factory=list)
    raw: Any = None


def observe(
    model: nn.Module,
    inputs: Any,
    device: torch.device,
    *,
    keep: frozenset[str],
    attentions: bool,
    heads: frozenset[str] = frozenset(),
) -> Observation:
    """Run the model once without gradient and write down every firing.

    Parameters
    ----------
    model : torch.nn.Module
    inputs : tensor or structure
    device : torch.device
    keep : frozenset of str
        Paths of the modules whose outputs are copied as they leave.
    attentions : bool
        Whether calls of attention are recorded and verified.
    heads : frozenset of str
        Paths of the modules of which what heads put out is recorded too.

    Raises
    ------
    CaptureError
        When the model fails on these inputs, with the model's own error as its cause.

    Notes
    -----
    Holds every output of the pass in memory at once.
    """
    seen = Observation(batch_size(inputs))
    begun: list[tuple[int, list[tuple[torch.Tensor, int]]]] = []
    counts: Counter[str] = Counter()

    def enter(_module: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append((len(seen.firings), [(tensor, version_of(tensor)) for tensor in tensors_in((args, kwargs))]))

    def leave(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _args: Any, output: Any) -> None:
            start, inputs_then = begun.pop()
            first = first_tensor(output)
            kept = first.clone() if first is not None and path in keep else None
            hands_on = any(tensor is first and version_of(tensor) == version for tensor, version in inputs_then)
            given = [tensor for tensor, _ in inputs_then]
            version = -1 if first is None else version_of(first)
            seen.firings.append(Firing(path, counts[path], module, start, given, first, hands_on, version, kept))
            counts[path] += 1

        return note

    with ExitStack() as scope:
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.no_grad())
        scope.enter_context(borrowed(model))
        for path, module in model.named_modules():
            scope.callback(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True).remove)
            scope.callback(module.register_forward_hook(leave(path), always_call=True).remove)
        if attentions:
            stack = scope.enter_context(ModuleStack(model))
            recorder = scope.enter_context(AttentionRecorder(stack.innermost, Wanted(heads=heads), verify=True))
            seen.attentions = recorder.calls
        try:
            seen.raw = call_model(model, inputs, device)
        except NdtError:
            raise
        except Exception as error:
            shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
            raise CaptureError(
                f"{type(model).__name__} failed on a probing batch of {seen.count} examples with inputs of shape "
                f"{', '.join(map(str, shapes))}: {type(error).__name__}: {error}; run the model on such a batch first"
            ) from error
    return seen


def infer_dims(
    first: Observation, second: Observation, given: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, int], tuple[str, ...] | None]:
    """Name the axes of every output of the first pass, None where the evidence does not decide.

    Parameters
    ----------
    first, second : Observation
        Passes with different numbers of examples.
    given : mapping
        Module path -> names that the caller gave.
    """
    shapes = {
        (firing.path, firing.call): tuple(firing.output.shape) for firing in second.firings if firing.output is not None
    }
    # By identity: a block that returns what its last module returned, an activation that takes what a layer made.
    known: dict[int, tuple[str, ...]] = {}
    named: dict[tuple[str, int], tuple[str, ...] | None] = {}
    for index, firing in enumerate(first.firings):
        key = (firing.path, firing.call)
        if firing.output is None:
            continue
        axis = axis_of_examples(tuple(firing.output.shape), shapes.get(key, ()), (first.count, second.count))
        names = given.get(firing.path)
        if names is None and axis is not None:
            names = _from_evidence(firing, first.firings[firing.begun : index], axis, known)
        named[key] = names
        if names is not None:
            known[id(firing.output)] = names
    return named


def _from_evidence(
    firing: Firing, inside: list[Firing], axis: int, known: Mapping[int, tuple[str, ...]]
) -> tuple[str, ...] | None:
    output = firing.output
    assert output is not None
    typed = typed_dims(firing.module, output.ndim, axis)
    if typed is not None:
        return typed
    if id(output) in known:
        return known[id(output)]
    if rearranges(firing.module) and output.ndim > 2:
        taken = next((known[id(tensor)] for tensor in firing.inputs if id(tensor) in known), ())
        return permuted(firing.module, taken)
    evidence: set[tuple[str, ...]] = set()
    inner = [one.output for one in inside if one.output is not None and id(one.output) in known]
    same = [tensor for tensor in inner if tensor.shape == output.shape]
    for tensor in (*same[-1:], *firing.inputs):
        if id(tensor) in known and tensor.shape == output.shape:
            evidence.add(known[id(tensor)])
    if evidence:
        return evidence.pop() if len(evidence) == 1 else None
    names = default_dims(output.ndim, axis)
    contrary = any(tensor.ndim == output.ndim and known[id(tensor)] != names for tensor in inner)
    return None if contrary else names
