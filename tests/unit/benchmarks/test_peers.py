"""Every peer is worth comparing with: what it keeps is, bit for bit, what the model emits."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.peers import PEERS, Peer

LAYERS = ("conv", "body.0", "body.1", "classifier")
BATCHES = (4, 4, 3)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 2, 3))
        self.classifier = nn.Linear(2 * 2 * 2, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.body(self.conv(images)).flatten(1))
        return logits


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    # nnsight replaces Tensor.backward for the whole process when it is imported; the tests after this one want theirs.
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)


def emitted(model: Small, batches: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """What each layer emits, by calling the layers themselves one after the other."""
    found: dict[str, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    with torch.no_grad():
        for batch in batches:
            conv = model.conv(batch)
            relu = conv.clamp(min=0)
            second = model.body[1](relu)
            values = (conv, relu, second, model.classifier(second.flatten(1)))
            for layer, value in zip(LAYERS, values, strict=True):
                found[layer].append(value)
    return {layer: torch.cat(parts).numpy() for layer, parts in found.items()}


def installed(peer: Peer) -> Peer:
    if not peer.is_installed:
        pytest.skip(f"{peer.package} is not installed: pip install '.[bench]'")
    return peer


@pytest.fixture
def subject() -> tuple[Small, list[torch.Tensor]]:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        # A batch in which a whole layer is dead: nothing but zeros has to be kept like anything else.
        model.conv.bias.fill_(-0.5)
    batches = [torch.randn(n, 1, 6, 6) for n in BATCHES]
    batches[1].zero_()
    return model, batches


@pytest.mark.filterwarnings("default")  # those of other people's libraries are theirs
@pytest.mark.parametrize("durable", [False, True], ids=["no fsync", "fsync"])
@pytest.mark.parametrize("name", PEERS)
def test_peer__keeps_the_same_float32_bytes_as_the_model_emits(
    name: str, durable: bool, subject: tuple[Small, list[torch.Tensor]], tmp_path: Path
) -> None:
    model, batches = subject
    peer = installed(PEERS[name])
    expected = emitted(model, batches)
    assert (expected["body.0"][4:8] == 0).all()
    peer.keep(model, LAYERS, batches, tmp_path / "kept", durable=durable)
    for layer in LAYERS:
        kept = peer.read(tmp_path / "kept", layer)
        assert kept.dtype == np.float32
        assert kept.shape == expected[layer].shape
        assert kept.tobytes() == expected[layer].tobytes()


@pytest.mark.parametrize(
    "name", [name for name, peer in PEERS.items() if peer.package == "numpy" or peer.package == "h5py"]
)
def test_peer__waits_for_the_disk_only_when_asked(
    name: str, subject: tuple[Small, list[torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = subject
    peer = installed(PEERS[name])
    synced = []
    fsync = os.fsync

    def count(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", count)
    peer.keep(model, LAYERS, batches, tmp_path / "no", durable=False)
    assert synced == []
    peer.keep(model, LAYERS, batches, tmp_path / "yes", durable=True)
    files = {str(path) for path in (tmp_path / "yes").rglob("*") if path.is_file()}
    assert files
    assert files <= set(synced)


def test_peer__leaves_no_hook_behind(subject: tuple[Small, list[torch.Tensor]], tmp_path: Path) -> None:
    model, batches = subject
    PEERS["hooks + numpy.save"].keep(model, LAYERS, batches, tmp_path / "kept", durable=False)
    assert not any(module._forward_hooks for module in model.modules())
