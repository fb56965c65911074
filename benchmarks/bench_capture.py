"""What capturing costs on top of the forward pass that it cannot do without."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import torch

import capture
from benchmarks.harness import Row, against, race
from benchmarks.subjects import BATCH_SIZE, LAYERS, batches, model_and_data

__all__ = ["run"]


def run(folder: Path) -> list[Row]:
    """Capture every ReLU and the classifier of cnn_deep over 1,000 images, against the bare forward pass."""
    model, data = model_and_data()
    inputs = batches(data)
    counter = itertools.count()

    def forward() -> None:
        with torch.no_grad():
            for batch in inputs:
                model(batch)

    def captured(compression: str) -> None:
        path = folder / f"capture-{next(counter)}.zarr"
        capture.capture(
            model, data, store=path, layers=list(LAYERS), batch_size=BATCH_SIZE, compression=compression, progress=False
        )
        shutil.rmtree(path)

    times = race(
        {"bare forward pass": forward, "none": lambda: captured("none"), "fast": lambda: captured("fast")}, rounds=7
    )
    what = "capture of 5 layers of cnn_deep over 1,000 images, profile {}"
    return [against(what.format(name), times, name, "bare forward pass") for name in ("none", "fast")]
