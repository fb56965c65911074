"""What people use today to keep activations: each peer writes the same float32 values of the same layers to disk.

A peer is a way to get at the values (forward hooks, or nnsight) and a place to put them, with and without waiting for
the disk (``fsync``). Each is written as someone who knows the library would: no copies that are not needed, arrays of
known size allocated once, chunks of one batch, asynchronous writes where the library has them, fill values that cannot
be mistaken for data. Every peer can read back what it kept; a test compares that bit by bit with what the model emits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.sinks import HdfSink, MemmapSink, SaveSink, Sink, TensorStoreSink, ThreadedSaveSink, Values, ZarrSink

__all__ = ["PEERS", "Peer"]

Driver = Callable[[torch.nn.Module, Sequence[str], Sequence[torch.Tensor], Sink], None]


@dataclass(frozen=True)
class Peer:
    """One way to keep activations.

    Parameters
    ----------
    name : str
        As the tables show it, without its durability.
    package : str
        Module that has to be importable.
    sink : callable (folder, n_examples, durable) -> Sink
        Has `Sink.read` as its attribute.
    driver : callable (model, layers, batches, sink) -> None
        Runs the model and hands the values on.
    """

    name: str
    package: str
    sink: Any
    driver: Driver

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None

    def keep(
        self,
        model: torch.nn.Module,
        layers: Sequence[str],
        batches: Sequence[torch.Tensor],
        folder: Path,
        *,
        durable: bool,
    ) -> None:
        """Run the model over the batches and keep what the layers emit; `durable` waits until it is on the disk."""
        folder.mkdir(parents=True)
        sink: Sink = self.sink(folder, sum(map(len, batches)), durable)
        with torch.no_grad():
            self.driver(model, layers, batches, sink)
        sink.close()

    def read(self, folder: Path, layer: str) -> Values:
        """Return all that was kept of a layer, (example, ...)."""
        values: Values = self.sink.read(folder, layer)
        return values


def hooked(model: torch.nn.Module, layers: Sequence[str], batches: Sequence[torch.Tensor], sink: Sink) -> None:
    """Hand each layer's output to the sink from a forward hook, as it comes."""
    start = 0
    with _hooks(model, layers, lambda layer, values: sink.write(layer, start, values)):
        for batch in batches:
            model(batch)
            start += len(batch)


@contextmanager
def _hooks(model: torch.nn.Module, layers: Sequence[str], keep: Callable[[str, Values], None]) -> Iterator[None]:
    def hook(layer: str) -> Any:
        return lambda _module, _inputs, output: keep(layer, output.detach().numpy())

    handles = [model.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def traced(model: torch.nn.Module, layers: Sequence[str], batches: Sequence[torch.Tensor], sink: Sink) -> None:
    """Collect the outputs with nnsight, as its documentation does, and hand them to the sink after each batch."""
    from nnsight import NNsight

    wrapped = NNsight(model)
    start = 0
    for batch in batches:
        kept = {}
        with wrapped.trace(batch):
            for layer in layers:
                kept[layer] = wrapped.get(layer).output.save()
        for layer, values in kept.items():
            sink.write(layer, start, values.numpy())
        start += len(batch)


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("hooks + numpy.save", "numpy", SaveSink, hooked),
        Peer("hooks + numpy.save, 2 threads", "numpy", ThreadedSaveSink, hooked),
        Peer("hooks + numpy.memmap", "numpy", MemmapSink, hooked),
        Peer("hooks + h5py", "h5py", HdfSink, hooked),
        Peer("hooks + tensorstore", "tensorstore", TensorStoreSink, hooked),
        Peer("hooks + zarr", "zarr", ZarrSink, hooked),
        Peer("nnsight + numpy.save", "nnsight", SaveSink, traced),
    )
}
