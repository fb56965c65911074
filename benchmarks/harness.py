"""Timing that a noisy machine cannot easily fool: alternate the candidates, take medians, report ratios.

Absolute seconds on a shared machine drift; two candidates timed in turn within one run drift together, so that their
ratio, taken round by round, is what a figure rests on. Each round starts with another candidate, so that none always
runs behind the same one. The first round warms caches and is not counted. With `cold` the page cache is emptied of a
candidate's files before each of its runs, and a run whose files could not be emptied is an error, not a figure.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks.pagecache import drop

__all__ = [
    "QUICK_VARIABLE",
    "Bar",
    "Row",
    "against",
    "is_quick",
    "n_cores",
    "race",
    "sized",
    "slower_of",
]

QUICK_VARIABLE: Final = "NDT_BENCH_QUICK"
ROUNDS: Final = 7
QUICK_ROUNDS: Final = 2

Times = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Bar:
    """What a figure has to stay under; shown beside it, never asserted.

    Parameters
    ----------
    limit : float
        The largest value that meets it.
    on : {"ratio", "ours"}
        What is compared: the median ratio, or our median in the row's unit.
    text : str
        How the table says it; by default the limit.
    """

    limit: float
    on: Literal["ratio", "ours"] = "ratio"
    text: str = ""

    def __str__(self) -> str:
        return self.text or f"at most {self.limit:.3g}"


@dataclass(frozen=True)
class Row:
    """One figure: ours against one baseline.

    Parameters
    ----------
    what : str
        The question.
    against : str
        What the baseline is.
    ours, baseline : float
        Medians, in `unit`.
    ratio : float
        Median over the rounds of ``ours / baseline``; less is better.
    spread : tuple of float
        Smallest and largest ratio over the rounds.
    unit : str
        Of the medians.
    n : int
        Counted rounds.
    quartiles : tuple of float
        First and third quartile of the ratios; `spread` where the row has one value.
    cache : {"warm", "cold", ""}
        State of the page cache, "" where it does not matter.
    nbytes, n_examples : int
        What was handled: bytes as raw float32, and examples; 0 where it does not apply.
    bar : Bar, optional
        What the row is held to.
    times : mapping of str to sequence of float
        Every counted round of both sides, in `unit`.
    note : str
        What a reader has to know to read the row.
    """

    what: str
    against: str
    ours: float
    baseline: float
    ratio: float
    spread: tuple[float, float]
    unit: str
    n: int
    quartiles: tuple[float, float] | None = None
    cache: Literal["warm", "cold", ""] = ""
    nbytes: int = 0
    n_examples: int = 0
    bar: Bar | None = None
    times: Times = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met, None where there is none."""
        if self.bar is None:
            return None
        return (self.ratio if self.bar.on == "ratio" else self.ours) <= self.bar.limit

    def as_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        bar = None if self.bar is None else {**asdict(self.bar), "text": str(self.bar)}
        times = {name: list(seconds) for name, seconds in self.times.items()}
        return {**asdict(replace(self, times={})), "bar": bar, "met": self.met, "times": times}


def n_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def is_quick() -> bool:
    """Whether sizes should be such that all modules together take minutes; `python -m benchmarks --quick`."""
    return bool(os.environ.get(QUICK_VARIABLE))


def race(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int | None = None,
    *,
    cold: Mapping[str, Sequence[Path]] | None = None,
    between: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Time the candidates in turn, once each a round, after one round that does not count.

    Parameters
    ----------
    candidates : mapping of str to callable
        By name; what they return is dropped.
    rounds : int, optional
        Counted rounds; by default 7, and 2 at the quick scale. Round `r` starts with candidate ``r % len(candidates)``.
    cold : mapping of str to sequence of Path, optional
        Files to remove from the page cache before each run of that candidate.
    between : callable, optional
        Called before each run, outside the time: removes what the last one wrote, waits for the disk.

    Returns
    -------
    dict of str to list of float
        Seconds by candidate, in the order of the rounds.
    """
    names = list(candidates)
    rounds = (QUICK_ROUNDS if is_quick() else ROUNDS) if rounds is None else rounds
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if between is not None:
                between()
            # Rid of the last candidate's garbage; what outlives a run, modules above all, need not be walked again.
            gc.collect()
            gc.freeze()
            if cold is not None:
                drop(cold[name])
            start = time.perf_counter()
            candidates[name]()
            elapsed = time.perf_counter() - start
            if number:
                times[name].append(elapsed)
    gc.unfreeze()
    return times


def against(
    what: str,
    times: Times,
    ours: str,
    baseline: str,
    *,
    cache: Literal["warm", "cold", ""] = "warm",
    nbytes: int = 0,
    n_examples: int = 0,
    bar: Bar | None = None,
    note: str = "",
) -> Row:
    """Make a row of two candidates of one race."""
    a, b = times[ours], times[baseline]
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return Row(
        what,
        baseline,
        statistics.median(a),
        statistics.median(b),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        "s",
        len(ratios),
        quartiles=(low, high),
        cache=cache,
        nbytes=nbytes,
        n_examples=n_examples,
        # Bars are set for full sizes; small ones are all fixed costs.
        bar=None if is_quick() else bar,
        times={ours: list(a), baseline: list(b)},
        note=note,
    )


def sized(what: str, against: str, ours_nbytes: int, baseline_nbytes: int, *, bar: Bar | None = None) -> Row:
    """Make a row of two sizes in bytes, shown in MB."""
    ratio = ours_nbytes / baseline_nbytes
    sizes = ours_nbytes / 1e6, baseline_nbytes / 1e6
    return Row(what, against, *sizes, ratio, (ratio, ratio), "MB", 1, nbytes=baseline_nbytes, bar=bar)


def slower_of(times: Times, first: str, second: str) -> list[float]:
    """Take the larger of two candidates in each round: the floor of work that could overlap but not vanish."""
    return [max(pair) for pair in zip(times[first], times[second], strict=True)]
