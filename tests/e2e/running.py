"""What the test of `ndt run` runs in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ndt_store.cli import main

RECIPE = """
name = "small"
model = {name = "mlp", options = {hidden = [16, 16]}}
data = {name = "digits"}
training = {steps = 160, batch_size = 64, checkpoints = [0, 40, 160], log_every = 40}
probe = {n_examples = 60}
capture = {layers = ["relu*"], block_nbytes = 1024}
tracking = {every = 4, n_examples = 40}
"""

CNN = """
name = "small"
model = {name = "cnn_shallow"}
data = {name = "digits"}
training = {steps = 40, batch_size = 64, learning_rate = 1e-2, checkpoints = [0, 10, 40], log_every = 20}
probe = {n_examples = 60, selection = "balanced"}
capture = {layers = ["relu*", "classifier"], kinds = ["activations", "gradients"]}
"""


def run(folder: str, recipe: str = RECIPE) -> None:
    """`ndt run` a small recipe in a folder, with one thread."""
    torch.set_num_threads(1)
    place = Path(folder)
    place.mkdir(exist_ok=True)
    (place / "small.toml").write_text(recipe)
    sys.stdout = sys.stderr = (place / "log.txt").open("a")
    main(
        [
            "run", f"{place}/small.toml", "--checkpoints", f"{place}/weights", "--store", f"{place}/run.zarr",
            "--out", f"{place}/report",
        ]
    )  # fmt: skip
