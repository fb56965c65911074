"""Borrow a model for a pass and give it back as it was found, also after an exception.

What is put back: the training flag of each submodule, buffers that the pass wrote to or replaced, the random number
generators of the CPU and of the devices the model is on, the flag of the attention fast path, and autocast. Training
flags are set as attributes rather than through ``eval()``, because a model may do more in an overridden ``train()``
(merge adapters, for one) than setting them back could undo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from capture.structures import version_of
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["as_device", "borrowed", "differentiable", "model_device", "refuse_inference_weights", "refuse_wrapped"]

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
_AUTOCASTING = ("cpu", "cuda", "mps", "xpu")


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer, the CPU for a model with neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def as_device(device: torch.device | str) -> torch.device:
    """Return a device that this machine has.

    Raises
    ------
    InvalidInputError
        There is no such device, or nothing can be computed there.
    """
    try:
        place = torch.device(device)
        torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise InvalidInputError(
            f"device is {str(device)!r}, which cannot be used here ({reason}): expected cpu, or a device that this "
            "machine and this build of PyTorch have, as cuda."
        ) from error
    return place


def refuse_wrapped(model: nn.Module) -> None:
    """Refuse models whose modules do not run where hooks can see them.

    Raises
    ------
    CaptureError
        For parallel wrappers, compiled modules and TorchScript; the message says what to pass instead.
    """
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        bases = {base.__name__ for base in type(module).__mro__}
        wrapper = next((name for name in _WRAPPERS if name in bases), None)
        if wrapper:
            raise CaptureError(
                f"{where} is wrapped in {wrapper}, which runs copies or shards that no tap reaches; pass what it "
                "wraps, its .module"
            )
        if "OptimizedModule" in bases:
            raise CaptureError(
                f"{where} is a torch.compile wrapper, inside which modules are fused away; pass the module that was "
                "compiled, its ._orig_mod, which has the same weights"
            )
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise CaptureError(
                f"{where} was compiled in place by Module.compile, so that taps inside it would not fire; capture "
                "an uncompiled copy with the same weights"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} is a TorchScript {type(module).__name__}, whose submodules fire no hooks; pass the Python "
                "module it was made from"
            )


def refuse_inference_weights(model: nn.Module) -> None:
    """Refuse models that gradients cannot pass through.

    Raises
    ------
    CaptureError
        When a parameter was made under ``torch.inference_mode``.
    """
    for path, parameter in model.named_parameters():
        if parameter.is_inference():
            raise CaptureError(
                f"parameter {path!r} was made under torch.inference_mode, which bars it from every graph, so that no "
                "gradient can be captured; build or copy the model outside inference mode"
            )


@contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for passes that leave no trace.

    The attention fast path is off meanwhile: it skips hooks and yields no weights. Autocast that the caller has
    switched on is off as well, so that what comes out does not depend on where a capture is called; a model that
    switches it on in its own forward keeps it. Parameters stay as they are, also their ``requires_grad``: PyTorch picks
    kernels by it, and a capture is to compute what the model computes.

    Parameters
    ----------
    model : torch.nn.Module

    Notes
    -----
    Costs a copy of the buffers, not of the parameters. The fast path flag belongs to the process: other threads that
    run transformers meanwhile take the slow path as well.
    """
    with ExitStack() as undo:
        _keep_fastpath(undo)
        _keep_autocast(undo)
        _keep_rng(model, undo)
        _keep_buffers(model, undo)
        for module in model.modules():
            if module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False
        yield


def _keep_fastpath(undo: ExitStack) -> None:
    undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _keep_autocast(undo: ExitStack) -> None:
    for kind in _AUTOCASTING:
        if torch.is_autocast_enabled(kind):
            undo.enter_context(torch.autocast(kind, enabled=False))


def _keep_rng(model: nn.Module, undo: ExitStack) -> None:
    undo.callback(torch.set_rng_state, torch.get_rng_state())
    for device in {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.is_cuda}:
        undo.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device)


def _keep_buffers(model: nn.Module, undo: ExitStack) -> None:
    registered = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    values = [(buffer, buffer.detach().clone(), version_of(buffer)) for buffer in model.buffers()]

    def restore() -> None:
        for module, buffers in registered:
            module._buffers.clear()
            module._buffers.update(buffers)
        for buffer, value, version in values:
            # Writing bumps the version that a graph of the caller may rely on, so only what changed is written.
            if buffer.is_inference() or version_of(buffer) != version:
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(value)

    undo.callback(restore)


def differentiable(model: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Switch cuDNN off for a pass if it has recurrent layers, which cuDNN differentiates in training mode only."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    if not recurrent or device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=False)
