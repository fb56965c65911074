"""One checkpoint: every batch of the probe set through the tapped model, cast, copied and cut into blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from capture.heap import freed_memory_kept
from capture.parameter_gradients import gradient_statistics
from capture.pipeline import BlockAssembler, HostCopies
from capture.probe import Probe
from capture.results import BatchResult
from capture.taps import Tapper
from ndt_store.dims import EXAMPLE, MEAN_PATTERN, PARAMETERS_GROUP
from ndt_store.progress import progress_bar
from ndt_store.schema import ArraySpec, layer_path
from ndt_store.views.flight import CheckpointSummary
from ndt_store.writer import StoreWriter

__all__ = ["OUTPUTS", "write_checkpoint"]

OUTPUTS: Final = ("logits", "loss", "prediction")
"""What is stored of the model's output, at the root, where it is class scores."""


def write_checkpoint(
    writer: StoreWriter,
    step: int,
    tapper: Tapper,
    probe: Probe,
    summaries: CheckpointSummary,
    *,
    weights_digest: str,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> dict[str, int]:
    """Write every block of a planned checkpoint and give it to the summaries; the caller commits and keeps them.

    Returns
    -------
    dict of str to int
        By array path, how many finite values became infinite in the type they are stored as; without zeros.

    Raises
    ------
    CaptureError
        The probe set has changed since it was first read, or the model emits something else than at discovery.
    """
    specs = [spec for spec in writer.schema.cubes if EXAMPLE in spec.dims]
    casts = _Casts(specs)
    n_batches = -(-len(probe) // batch_size)
    of_parameters = any(spec.group == PARAMETERS_GROUP for spec in writer.schema.cubes)
    n_passes = n_batches * (1 + of_parameters)
    with ExitStack() as scope:
        if device.type == "cpu":
            scope.enter_context(freed_memory_kept())
        blocks = scope.enter_context(BlockAssembler(writer, step, specs, summaries))
        advance = scope.enter_context(progress_bar(f"checkpoint {step}", show=progress))
        gradients = (
            gradient_statistics(
                tapper.model,
                probe,
                batch_size=batch_size,
                device=device,
                output=tapper.output,
                advance=lambda done: advance(done, n_passes),
            )
            if of_parameters
            else {}
        )
        scope.enter_context(tapper)
        copies = HostCopies(device)

        sums: dict[str, torch.Tensor] = {}

        def hand(layer: str, kind: str, tensor: torch.Tensor) -> None:
            path = layer_path(layer, kind)
            if kind == MEAN_PATTERN:
                sums[path] = sums[path] + tensor if path in sums else tensor
            else:
                blocks.add(path, casts.of(path, tensor).numpy())

        for done, (inputs, labels) in enumerate(probe.batches(batch_size), 1):
            result = tapper.run(inputs, labels.to(device), hand if device.type == "cpu" else None)
            for (layer, kind), tensor in result.tensors.items():
                if kind == MEAN_PATTERN:
                    hand(layer, kind, tensor)
            _add_all(blocks, copies.exchange(casts.of_all(result)))
            advance(done + n_passes - n_batches, n_passes)
        _add_all(blocks, copies.exchange(None))
        for path, total in sums.items():
            blocks.put(path, (total / len(probe)).float().cpu().numpy())
        for name, values in gradients.items():
            blocks.put(f"{PARAMETERS_GROUP}/{name}", values)
        blocks.put("weights_digest", np.asarray(weights_digest, dtype=object))
        blocks.finish()
    return casts.overflowed()


class _Casts:
    """Brings results to the types they are stored as, on the device, and counts what does not fit."""

    def __init__(self, specs: Sequence[ArraySpec]) -> None:
        self._wanted: dict[str, torch.dtype] = {spec.path: getattr(torch, spec.dtype) for spec in specs}
        self._overflowed: dict[str, torch.Tensor] = {}

    def of_all(self, result: BatchResult) -> dict[str, torch.Tensor]:
        arrays = {
            layer_path(name, kind): tensor for (name, kind), tensor in result.tensors.items() if kind != MEAN_PATTERN
        }
        arrays.update((name, tensor) for name in OUTPUTS if (tensor := getattr(result, name)) is not None)
        # Cast on the device: half the bytes to copy, and the CPU stays free for the writers.
        return {path: self.of(path, tensor.detach()) for path, tensor in arrays.items()}

    def overflowed(self) -> dict[str, int]:
        counts = {path: int(count) for path, count in self._overflowed.items()}
        return {path: count for path, count in counts.items() if count}

    def of(self, path: str, tensor: torch.Tensor) -> torch.Tensor:
        wanted = self._wanted[path]
        stored = tensor.to(wanted)
        if wanted.is_floating_point and torch.finfo(wanted).max < torch.finfo(tensor.dtype).max:
            # Summed on the device, because reading a number from it would wait for the pass.
            lost = stored.isinf().sum() - tensor.isinf().sum()
            self._overflowed[path] = lost + self._overflowed[path] if path in self._overflowed else lost
        return stored


def _add_all(blocks: BlockAssembler, arrays: Mapping[str, NDArray[Any]]) -> None:
    for path, rows in arrays.items():
        blocks.add(path, rows)
