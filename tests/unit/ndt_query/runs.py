"""Four runs to compare: trainings of two paces, of which one jumps."""

import math

import numpy as np

from ndt_store import Column, SeriesWriter, open_store
from ndt_store.testing import simulate_store

LAYERS = {"relu": (6,), "classifier": (3,)}
STEPS = np.arange(0, 400, 5)
GROUPS = ["slow", "slow", "fast", "fast"]


def tracked(path, pace, *, seed=0, jump=0.0):
    """A store whose training learns at a pace: accuracy from 0 to 0.9, dimension from 2 to 6, and perhaps a jump."""
    simulate_store(path, checkpoints=(0, 395), n_examples=30, layers=LAYERS, seed=seed)
    learned = 1 - np.exp(-STEPS * pace / 50)
    noise = 0.02 * np.random.default_rng(seed).standard_normal((len(STEPS), 2))
    dimension = 2 + 4 * learned[:, None] + noise + jump * (STEPS >= 200)[:, None]
    columns = {"loss": Column(), "validation_loss": Column(), "validation_accuracy": Column(),
               "participation_ratio": Column(("layer",))}  # fmt: skip
    with SeriesWriter.open(path, rows=columns, coords={"layer": list(LAYERS)}) as writer:
        for place, step in enumerate(STEPS):
            writer.append(
                int(step), loss=1 - learned[place] if place else math.nan, validation_loss=2 * (1 - learned[place]),
                validation_accuracy=0.9 * learned[place], participation_ratio=dimension[place],
            )  # fmt: skip
    return open_store(path)


def four_runs(folder):
    """Two slow ones and two fast ones, by name."""
    return {
        "slow 0": tracked(folder / "slow0.zarr", 1.0),
        "slow 1": tracked(folder / "slow1.zarr", 1.1, seed=1),
        "fast 0": tracked(folder / "fast0.zarr", 2.0, seed=2),
        "fast 1": tracked(folder / "fast1.zarr", 2.2, seed=3, jump=2.0),
    }


def with_batch_size(monkeypatch, stores):
    """Let the stores say that they were captured from a recipe with a batch."""
    identity = {"recipe": {"name": "slow", "training": {"batch_size": 64}}, "model": "net"}
    monkeypatch.setattr(type(stores["slow 0"]), "provenance", property(lambda _: {"identity": identity}))
    return stores
