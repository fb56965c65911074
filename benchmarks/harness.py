"""Timing that a noisy machine cannot easily fool: alternate the candidates, take medians, report ratios.

Absolute seconds on a shared machine drift; two candidates timed in turn within one run drift together, so that their
ratio is what a figure rests on. The first round of each candidate warms caches and is not counted.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Row", "against", "race"]


@dataclass(frozen=True)
class Row:
    """One figure: ours against one baseline.

    Parameters
    ----------
    what : str
        The question.
    ours, baseline : float
        Medians, in `unit`.
    against : str
        What the baseline is.
    ratio : float
        ``ours / baseline``.
    spread : tuple of float
        Smallest and largest ratio over the rounds.
    unit : str
        Of the medians.
    n : int
        Counted rounds.
    """

    what: str
    against: str
    ours: float
    baseline: float
    ratio: float
    spread: tuple[float, float]
    unit: str
    n: int

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def race(candidates: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, list[float]]:
    """Time the candidates in turn, once each a round, after one round that does not count; seconds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            gc.collect()
            start = time.perf_counter()
            candidate()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def against(what: str, times: Mapping[str, list[float]], ours: str, baseline: str) -> Row:
    """Make a row of two candidates of one race."""
    ratios = [a / b for a, b in zip(times[ours], times[baseline], strict=True)]
    return Row(
        what,
        baseline,
        statistics.median(times[ours]),
        statistics.median(times[baseline]),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        "s",
        len(ratios),
    )
