"""Run a batch through a model and hand out what its modules emit, and the gradients of it.

How a gradient is taken: the sum over examples of one scalar each is differentiated with respect to every tapped output
at once, and to nothing else, so that parameters get no gradient and cost none. An output that is in no graph yet, of
frozen layers or an embedding, begins one. In evaluation mode examples do not influence each other, so the gradient of
the sum is each example's own (discovery checks it).

Why the tensors are those that left the module: a module downstream may write into them (``ReLU(inplace=True)``).
Where discovery saw that, the tap keeps the output and the model goes on with a copy; where it did not, the version
counter of the kept tensor proves that nothing wrote into it this time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import nn

from capture.attention import AttentionRecorder, Wanted
from capture.modelstate import (
    as_device,
    borrowed,
    differentiable,
    model_device,
    refuse_inference_weights,
    refuse_wrapped,
)
from capture.naming import Site
from capture.objective import GradientOf, check_gradient_of, class_logits, cross_entropy, model_output, scalars
from capture.results import BatchResult, Sink
from capture.running import ModuleStack
from capture.site_checks import check_firings
from capture.structures import batch_size, call_model, first_tensor, replace_first
from ndt_store.dims import ACTIVATIONS, GRADIENTS
from ndt_store.errors import CaptureError

__all__ = ["Tapper"]


class Tapper:
    """Tap the sites of a model while it is entered; on the way out the model is as it was found.

    Parameters
    ----------
    model : torch.nn.Module
        An attribute too, as is `output`.
    sites : sequence of Site
        What ``discover_sites`` found on this model.
    gradient_of : {"label_logit", "prediction_logit", "loss"} or callable
        One scalar per example, or a callable of (output, labels) that gives it.
    device : torch.device or str, optional
        Where batches are moved; by default where the model's first parameter is. The model itself is never moved.
    output : callable, optional
        From what the model returns to its logits; by default the tensor returned, its ``logits``, or the first
        tensor in it.
    scores : bool
        Whether results hold logits, loss and prediction; without them any labels will do.

    Raises
    ------
    InvalidInputError
        When `gradient_of` is unknown or a site names a module the model does not have.
    CaptureError
        When the model is wrapped so that taps do not reach its modules.

    Notes
    -----
    A gradient is zero where the scalar does not depend on the output. Without gradient sites the pass records no
    graph. Parameters that require gradients make PyTorch keep more of the graph in memory, not compute more. On
    CUDA, models with recurrent layers run without cuDNN for gradients, because cuDNN differentiates them in training
    mode only.

    Examples
    --------
    >>> from capture.sites import discover_sites
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    >>> inputs, labels = torch.ones(5, 3), torch.zeros(5, dtype=torch.int64)
    >>> sites = discover_sites(net, ["0"], ["activations", "gradients"], inputs)
    >>> with Tapper(net, sites) as tapper:
    ...     result = tapper.run(inputs, labels)
    >>> {key: tuple(tensor.shape) for key, tensor in result.tensors.items()}
    {('0', 'activations'): (5, 4), ('0', 'gradients'): (5, 4)}
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        gradient_of: GradientOf = "label_logit",
        device: torch.device | str | None = None,
        output: Callable[[Any], torch.Tensor] | None = None,
        scores: bool = True,
    ) -> None:
        refuse_wrapped(model)
        self.model = model
        self._sites = tuple(sites)
        self._gradient_of = check_gradient_of(gradient_of)
        self._device = model_device(model) if device is None else as_device(device)
        self.output = output
        self._scores = scores
        self._gradients = any(site.kind == GRADIENTS for site in self._sites)
        if self._gradients:
            refuse_inference_weights(model)
        self._outputs = {(site.path, site.call): site for site in self._sites if not site.of_attention}
        self._attention = Wanted.of(self._sites)
        self._emitting = {
            (site.path, site.call): site for site in self._sites if site.kind == ACTIVATIONS and not site.of_heads
        }
        self._differentiated = {(site.path, site.call) for site in self._sites if site.kind == GRADIENTS}
        self._calls = {site.path: site.calls for site in self._outputs.values()}
        self._modules = {site.path: site.module_in(model) for site in self._outputs.values()}
        self._stack: ModuleStack | None = None
        self._undo: ExitStack | None = None
        self._recording = False
        self._sink: Sink | None = None
        self._count = 0
        self._fired: Counter[str] = Counter()
        self._kept: dict[tuple[str, int], torch.Tensor] = {}
        self._versions: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Tapper:
        if self._undo is not None:
            raise CaptureError("this Tapper is entered already, and a model is lent once at a time; make a second one")
        with ExitStack() as undo:
            undo.enter_context(borrowed(self.model))
            if any(site.of_attention for site in self._sites):
                self._stack = undo.enter_context(ModuleStack(self.model))
            for path, module in self._modules.items():
                undo.callback(self._attach(path, module))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()

    def run(self, inputs: Any, labels: torch.Tensor | None = None, sink: Sink | None = None) -> BatchResult:
        """Run one batch.

        Parameters
        ----------
        inputs : torch.Tensor, tuple, list or mapping
            A tensor is the model's argument, a tuple or list its arguments, a mapping its keyword arguments;
            examples along the first axis of the first tensor.
        labels : torch.Tensor, optional
            (example,), integer classes, or whatever a callable `gradient_of` takes.
        sink : callable, optional
            Takes each tensor instead of the result: activations as they leave their modules, so that the model's
            memory is its own again, then the other kinds. Where the run fails, it has had some of them.

        Returns
        -------
        BatchResult

        Raises
        ------
        CaptureError
            When a tap does not fire as often as at discovery, an output was written to without notice, or the
            model's output does not allow the gradient asked for.

        Notes
        -----
        Costs one forward pass, with gradients also one backward pass without parameters, and for attentions the
        score matrices. Exceptions of the model itself pass through unchanged.
        """
        if self._undo is None:
            raise CaptureError("Tapper.run was called outside its with block; write `with Tapper(...) as tapper:`")
        self._sink, self._count = sink, batch_size(inputs)
        self._fired.clear()
        kernels = differentiable(self.model, self._device) if self._gradients else nullcontext()
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(self._gradients), kernels:
                # Labels made under inference mode could not be saved for the backward pass.
                usable = labels.clone() if labels is not None and labels.is_inference() else labels
                return self._pass(inputs, usable, self._count)
        finally:
            self._recording = False
            self._sink = None
            self._kept.clear()
            self._versions.clear()

    def _pass(self, inputs: Any, labels: torch.Tensor | None, count: int) -> BatchResult:
        recorder: AttentionRecorder | None = None
        with ExitStack() as scope:
            if self._stack is not None:
                recorder = AttentionRecorder(self._stack.innermost, self._attention)
                scope.enter_context(recorder)
            self._recording = True
            raw = call_model(self.model, inputs, self._device)
            self._recording = False
        attended = {(call.path, call.call): call for call in (recorder.calls if recorder else ())}
        check_firings(self._sites, self._fired, Counter(path for path, _ in attended))
        output = model_output(raw, self.output)
        gradients = self._differentiate(output, labels, count) if self._gradients else {}
        self._check_versions()
        tensors: dict[tuple[str, str], torch.Tensor] = {}
        for site in self._sites:
            if (
                self._sink is not None
                and (site.path, site.call) in self._emitting
                and site is self._emitting[site.path, site.call]
            ):
                continue
            key = site.path, site.call
            if site.of_attention:
                found = attended[key].of(site.kind)
                assert found is not None
            else:
                found = (gradients if site.kind == GRADIENTS else self._kept)[key]
            tensor = site.hand_out(found, count)
            if self._sink is None:
                tensors[site.name, site.kind] = tensor
            else:
                self._sink(site.name, site.kind, tensor)
        logits = class_logits(output.detach(), count) if self._scores else None
        return BatchResult(
            logits=logits.float() if logits is not None and logits.dtype == torch.bfloat16 else logits,
            loss=cross_entropy(logits, labels),
            prediction=None if logits is None else logits.argmax(1),
            tensors=tensors,
        )

    def _attach(self, path: str, module: nn.Module) -> Callable[[], None]:
        def tap(_module: nn.Module, _args: Any, output: Any) -> Any:
            call = self._fired[path]
            self._fired[path] += 1
            if not self._recording:
                # A checkpointed block runs again in the backward pass and has to meet the same taps as before.
                call %= self._calls[path]
            site = self._outputs.get((path, call))
            return output if site is None else self._on_output(site, output)

        return module.register_forward_hook(tap).remove

    def _on_output(self, site: Site, output: Any) -> Any:
        emitted = first_tensor(output)
        if emitted is None or emitted.is_inference():
            got = "no tensor" if emitted is None else "a tensor made under torch.inference_mode"
            raise CaptureError(
                f"module {site.path!r} ({site.module_type}) returned {got} where a tensor was found at discovery; "
                "make its forward return the same structure for every batch, outside inference mode"
            )
        key = (site.path, site.call)
        if self._recording and self._sink is not None and key in self._emitting:
            self._sink(site.name, ACTIVATIONS, self._emitting[key].hand_out(emitted, self._count))
            if key not in self._differentiated:
                return output
        kept = self._node(site, emitted) if key in self._differentiated else emitted
        if self._recording:
            self._kept[key] = kept
            self._versions[key] = kept._version
        onward = kept.clone() if site.clone else kept
        return output if onward is emitted else replace_first(output, onward)

    def _node(self, site: Site, emitted: torch.Tensor) -> torch.Tensor:
        """Return the place in the graph whose gradient is that of the output as it left the module."""
        shared = site.hands_on or any(emitted is kept for kept in self._kept.values())
        if emitted.requires_grad:
            return emitted.view_as(emitted) if shared else emitted
        # Marked itself where it can be: a module in place may be called for what it does rather than what it returns.
        return (emitted.detach() if shared else emitted).requires_grad_()

    def _differentiate(
        self, output: torch.Tensor, labels: torch.Tensor | None, count: int
    ) -> dict[tuple[str, int], torch.Tensor]:
        kept = {key: self._kept[key] for key in self._kept if key in self._differentiated}
        values = scalars(self._gradient_of, output, labels, count)
        found: tuple[torch.Tensor | None, ...] = (None,) * len(kept)
        if values.requires_grad:
            found = torch.autograd.grad(values.sum(), list(kept.values()), allow_unused=True)
        if all(gradient is None for gradient in found):
            raise CaptureError(
                f"the gradient at {', '.join(dict.fromkeys(path for path, _ in kept))} was asked for, but the model's "
                "output depends on none of them; look for torch.no_grad or detach in its forward, or tap modules on "
                "the way to the output"
            )
        return {
            key: torch.zeros_like(node) if gradient is None else gradient
            for (key, node), gradient in zip(kept.items(), found, strict=True)
        }

    def _check_versions(self) -> None:
        for key, kept in self._kept.items():
            if kept._version != self._versions[key]:
                raise CaptureError(
                    f"the output of module {key[0]!r} was written to after it left the module, which discovery did "
                    "not see and a copy cannot mend; use an operation that is not in place on it"
                )
