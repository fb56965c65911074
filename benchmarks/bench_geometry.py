"""Geometry of representations when the examples double: time and peak memory, each question in fresh processes.

Values are random, so that the linear machine is at its hardest; classes are ten. A question runs with two threads and
no view to answer from. Its time and peak memory with twice the examples stand over those with once, from one run. With
fewer samples than features, samples are multiplied with each other: as many products as their number squared, until
there are as many samples as features. Their time has no bar; the samples of a checkpoint take more than a tile of them.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.bench_memory import Cube, Peak, peak, write_cube
from benchmarks.harness import Bar, Row, is_quick

__all__ = ["QUESTIONS", "run"]

ROUNDS: Final = 2
TIMES: Final = 2.0
PEAKS: Final = 1.05

FEATURES: Final = (Cube(4, 4000, (256, 3, 3)), Cube(2, 200, (32, 3, 3)))
SAMPLES: Final = (Cube(4, 600, (4096, 5, 5)), Cube(2, 40, (64, 3, 3)))
CLASSES: Final = (Cube(2, 2000, (64, 3, 3)), Cube(1, 100, (16, 3, 3)))
"""Full and quick extents, with once the examples."""

QUESTIONS: Final[Mapping[str, tuple[str, tuple[Cube, Cube], tuple[float | None, float | None]]]] = {
    "pca, feature side": ("nq.pca(acts, 10)", FEATURES, (TIMES, PEAKS)),
    "dimensionality, feature side": (
        "nq.dimensionality(acts, positions='mean', views=False)",
        FEATURES,
        (TIMES, PEAKS),
    ),
    "overlap of subspaces, feature side": ("nq.subspace_overlap(acts, 10)", FEATURES, (TIMES, PEAKS)),
    "overlap of subspaces, sample side": ("nq.subspace_overlap(acts, 10, positions='flatten')", SAMPLES, (None, PEAKS)),
    "disentanglement": ("nq.disentanglement(acts)", CLASSES, (TIMES, None)),
}
"""What is asked, of what, and the bars of time and peak memory."""


def run(folder: Path) -> list[Row]:
    """Ask each question of once and twice the examples, in turn."""
    rows = []
    for number, (name, (question, (full, quick), bars)) in enumerate(QUESTIONS.items()):
        once = quick if is_quick() else full
        twice = replace(once, n_examples=2 * once.n_examples)
        paths = [folder / f"{number}-{cube.n_examples}.zarr" for cube in (once, twice)]
        for path, cube in zip(paths, (once, twice), strict=True):
            write_cube(path, cube)
        rounds = range(1 if is_quick() else ROUNDS)
        found = [[_without_views(path, f"{question}.compute()") for path in paths] for _ in rounds]
        for path in paths:
            shutil.rmtree(path)
        n = once.n_examples
        seconds = [(one.seconds, two.seconds) for one, two in found]
        sizes = [(one.nbytes / 1e6, two.nbytes / 1e6) for one, two in found]
        time_bar, peak_bar = (None if bar is None or is_quick() else Bar(bar) for bar in bars)
        rows.append(_doubled(f"time of {name}", seconds, "s", n, time_bar, twice.nbytes))
        rows.append(_doubled(f"peak memory of {name}", sizes, "MB", n, peak_bar, twice.nbytes))
    return rows


def _without_views(path: Path, question: str) -> Peak:
    """Ask after what an earlier question kept is gone."""
    shutil.rmtree(path / "views", ignore_errors=True)
    return peak(path, question)


def _doubled(
    what: str, pairs: list[tuple[float, float]], unit: str, n: int, bar: Bar | None, nbytes: int
) -> Row:  # fmt: skip
    ratios = [two / one for one, two in pairs]
    low, high = min(ratios), max(ratios)
    once, twice = (statistics.median(side) for side in zip(*pairs, strict=True))
    times = {"twice the examples": [two for _, two in pairs], "once": [one for one, _ in pairs]}
    return Row(what, f"{n:,} examples", twice, once, statistics.median(ratios), (low, high), unit, len(pairs),
               nbytes=nbytes, n_examples=2 * n, bar=bar, times=times)  # fmt: skip
