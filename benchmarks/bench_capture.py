"""What capturing costs on top of the forward pass that it cannot do without, beside every way to keep the same bytes.

ResNet-18 is heavy: the forward pass dominates and capture should vanish behind it. cnn_deep is light: writing dominates
and capture should cost little more than writing the same bytes to a disk that is waited for. What a candidate wrote is
removed, and the disk waited for, before the next one's clock starts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import capture
from benchmarks.harness import Bar, Row, against, is_quick, race, slower_of
from benchmarks.pagecache import files_below
from benchmarks.peers import PEERS
from benchmarks.subjects import BATCH_SIZE, batches, colour_images, images, model_and_data, resnet18
from ndt_store import open_store
from ndt_store.codecs import DEFAULT_PROFILE
from ndt_store.layout import block_nbytes, n_blocks

__all__ = ["run"]

PROFILES = ("none", "fast")
BARE = "bare forward pass"
WRITE = "writing the same bytes with fsync, {}"
FLOOR = "larger of forward pass and writing the same bytes with fsync"
FASTEST = Bar(1.0, text="fastest")


@dataclass(frozen=True)
class Subject:
    """A capture: a model, its inputs and the layers that are kept."""

    title: str
    model: torch.nn.Module
    data: Any
    layers: Sequence[str]

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.data[0])

    def capture(self, path: Path, compression: str, **options: Any) -> None:
        """Capture into a new store."""
        capture.capture(
            self.model,
            self.data,
            store=path,
            layers=list(self.layers),
            batch_size=BATCH_SIZE,
            compression=compression,
            progress=False,
            **options,
        )


def run(folder: Path) -> list[Row]:
    """Capture ResNet-18 and cnn_deep."""
    n = 16 if is_quick() else 1000
    stages = Subject("ResNet-18, 4 stages and classifier", resnet18(), colour_images(n), RESNET_LAYERS)
    n = 256 if is_quick() else 4000
    model, _ = model_and_data()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    light = Subject("cnn_deep, every conv and linear layer", model, images(n), layers)
    return [
        *_against_peers(folder, stages, heavy=True),
        *_gradients(folder),
        *_against_peers(folder, light, heavy=False),
    ]


RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4", "fc")


def _against_peers(folder: Path, subject: Subject, *, heavy: bool) -> list[Row]:
    inputs = batches(subject.data)
    out = folder / "out"

    def forward() -> None:
        with torch.no_grad():
            for batch in inputs:
                subject.model(batch)

    candidates: dict[str, Callable[[], object]] = {BARE: forward}
    nbytes = 0
    for profile in PROFILES:
        _clear(out)
        subject.capture(out, profile)
        nbytes = _raw_nbytes(out)
        stored = _blocks(out)
        candidates[WRITE.format(profile)] = partial(_write, stored, out)
        candidates[f"capture, {profile}"] = partial(subject.capture, out, profile)
    if heavy:
        # Writing is no part of what a heavy model is held to.
        candidates = {name: run for name, run in candidates.items() if not name.startswith("writing")}
    peers = [(peer, durable) for peer in PEERS.values() if peer.is_installed for durable in (False, True)]
    for peer, durable in peers:
        keep = partial(peer.keep, subject.model, subject.layers, inputs, out, durable=durable)
        candidates[_named(peer.name, durable)] = keep
    times: dict[str, list[float]] = race(candidates, between=lambda: _clear(out))
    sizes: dict[str, Any] = {"nbytes": nbytes, "n_examples": subject.n, "cache": ""}
    rows = []
    for profile in PROFILES:
        ours, what = f"capture, {profile}", f"capture of {subject.title}, profile {profile}"
        bar = Bar(1.10) if heavy else None
        rows.append(against(what, times, ours, BARE, bar=bar, **sizes))
        if not heavy:
            write = WRITE.format(profile)
            rows.append(against(what, times, ours, write, **sizes))
            times[FLOOR] = slower_of(times, BARE, write)
            rows.append(against(what, times, ours, FLOOR, bar=Bar(1.6), **sizes))
    return rows + [
        against(
            f"capture of {subject.title}, profile {profile}",
            times,
            f"capture, {profile}",
            _named(peer.name, durable),
            bar=FASTEST,
            **sizes,
        )
        for profile in PROFILES
        for peer, durable in peers
    ]


def _gradients(folder: Path) -> list[Row]:
    """Activations and gradients of ResNet-18, against the same two passes with nothing kept."""
    n = 16 if is_quick() else 500
    subject = Subject("ResNet-18", resnet18(), colour_images(n), RESNET_LAYERS)
    inputs = batches(subject.data)
    classes = torch.split(torch.from_numpy(subject.data[1]), BATCH_SIZE)
    out = folder / "out"

    def passes() -> None:
        kept: list[torch.Tensor] = []
        modules = [subject.model.get_submodule(layer) for layer in subject.layers]
        handles = [module.register_forward_hook(lambda _m, _i, output: kept.append(output)) for module in modules]
        for batch, labels in zip(inputs, classes, strict=True):
            kept.clear()
            logits = subject.model(batch)
            torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), kept)
        for handle in handles:
            handle.remove()

    kinds = ["activations", "gradients"]
    _clear(out)
    subject.capture(out, DEFAULT_PROFILE, kinds=kinds)
    nbytes = _raw_nbytes(out)
    both = "bare forward and backward passes"
    times = race(
        {both: passes, "ours": lambda: subject.capture(out, DEFAULT_PROFILE, kinds=kinds)}, between=lambda: _clear(out)
    )
    what = f"capture of ResNet-18, activations and gradients, profile {DEFAULT_PROFILE}"
    return [against(what, times, "ours", both, nbytes=nbytes, n_examples=n, cache="")]


def _named(peer: str, durable: bool) -> str:
    return f"{peer}, fsync" if durable else f"{peer}, no fsync"


def _raw_nbytes(path: Path) -> int:
    schema = open_store(path).schema
    return sum(block_nbytes(spec) * n_blocks(spec) for spec in schema.cubes if spec.path.startswith("layers/"))


def _blocks(path: Path) -> list[tuple[str, bytes]]:
    """Block files of a store, by their path in it."""
    files = [file for file in files_below(path / "layers") if "c" in file.relative_to(path).parts]
    return [(str(file.relative_to(path)), file.read_bytes()) for file in files]


def _write(stored: Sequence[tuple[str, bytes]], folder: Path) -> None:
    """Write files one after the other, each one waited for."""
    for name, content in stored:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        os.close(descriptor)


def _clear(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
