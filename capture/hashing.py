"""Hash weights beside the work that does not change them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import nn
from torch.nn.parameter import is_lazy

from capture.checkpoints import weights_digest

__all__ = ["WeightsHash"]


class WeightsHash:
    """The digest of a model's weights, hashed beside whatever else goes on.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters must not change before `digest` returns; buffers may, as passes write into them. What a lazy
        module has not initialised yet cannot be hashed: such a model is hashed when `digest` is called, and may run,
        and so initialise itself, before.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._future = None if _is_lazy(model) else _begun(model)

    def digest(self) -> str:
        """Return what `weights_digest` returns of the model's state dict, or raise what it raises."""
        return weights_digest(self._model.state_dict()) if self._future is None else self._future.result()


def _is_lazy(model: nn.Module) -> bool:
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _begun(model: nn.Module) -> Future[str]:
    buffers = {id(buffer) for buffer in model.buffers()}
    weights = model.state_dict(keep_vars=True)
    kept = {name: value.detach().clone() if id(value) in buffers else value for name, value in weights.items()}
    pool = ThreadPoolExecutor(1, thread_name_prefix="ndt-hash")
    future = pool.submit(weights_digest, kept)
    pool.shutdown(wait=False)
    return future
