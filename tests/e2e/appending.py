"""A series that is appended to until it is killed, run in processes of its own by test_kill_series.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ndt_store import Column, SeriesWriter

N_STEPS = 300


def row(step: int) -> dict[str, object]:
    """Return what is tracked at a step, the same in every process."""
    rng = np.random.default_rng(step)
    return {"loss": rng.random(), "rank": rng.random(3)}


def open_series(path: str) -> SeriesWriter:
    """Open the series; every row is flushed."""
    rows = {"loss": Column(), "rank": Column(("layer",))}
    return SeriesWriter.open(path, rows=rows, coords={"layer": ["a", "b", "c"]})


def run(path: str) -> None:
    """Append to the end from where the series stands, a flush for each row, and say how many rows are safe."""
    with open_series(path) as writer:
        begin = -1 if writer.last_step is None else writer.last_step
        for step in range(begin + 1, N_STEPS):
            writer.append(step, **row(step))
            writer.flush()
            Path(path).with_suffix(".safe").write_text(str(step + 1))
