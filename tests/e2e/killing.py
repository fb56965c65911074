"""A small real capture that dies where it is told to, run in processes of its own by test_kill.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

import capture
from ndt_store.testing import FaultyStorage

STEPS = (0, 5, 40)


class Net(nn.Module):
    """A convolution and self-attention over its rows, so that all three kinds are there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.attention = nn.MultiheadAttention(48, 2, batch_first=True)
        self.head = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(example, 1, 8, 8) to (example, 3)."""
        rows = torch.relu(self.conv(x)).permute(0, 2, 1, 3).flatten(2)
        mixed, _ = self.attention(rows, rows, rows, need_weights=False)
        return self.head(mixed.mean(1))


def run(path: str, at: int) -> None:
    """Capture into `path` and be killed at the `at`-th operation on the store, 0 for never."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    data = torch.rand(20, 1, 8, 8, generator=generator), torch.arange(20) % 3
    checkpoints = []
    for step in STEPS:
        torch.manual_seed(step)
        checkpoints.append((step, Net().state_dict()))
    storage = FaultyStorage(Path(path), at)
    capture.capture(
        Net(),
        data,
        store=storage,
        checkpoints=checkpoints,
        layers=["conv", "attention", "head"],
        kinds=["activations", "gradients", "attentions"],
        batch_size=7,
        block_nbytes=6000,
        progress=False,
    )
    (Path(path).parent / "operations.json").write_text(json.dumps(storage.n_operations))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]))
