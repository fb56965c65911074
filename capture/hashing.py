"""Hash weights beside the work that does not change them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from torch import nn

from capture.checkpoints import weights_digest

__all__ = ["WeightsHash"]


class WeightsHash:
    """The digest of a model's weights, hashed beside whatever else goes on.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters must not change before `digest` returns; buffers may, as passes write into them.
    """

    def __init__(self, model: nn.Module) -> None:
        buffers = {id(buffer) for buffer in model.buffers()}
        weights = model.state_dict(keep_vars=True)
        kept = {name: value.detach().clone() if id(value) in buffers else value for name, value in weights.items()}
        pool = ThreadPoolExecutor(1, thread_name_prefix="ndt-hash")
        self._future = pool.submit(weights_digest, kept)
        pool.shutdown(wait=False)

    def digest(self) -> str:
        """Return what `weights_digest` returns of the model's state dict, or raise what it raises."""
        return self._future.result()
