"""`python -m benchmarks.jump_tables`: false alarms and power of `detect_jumps` by simulation, kept in JUMPS.md.

With ``--quick`` 20 series of each kind, and nothing is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.__main__ import machine
from benchmarks.harness import n_cores
from benchmarks.jump_series import N_MEASUREMENTS, NULLS, PLANTED, Scenario
from ndt_query import clopper_pearson, detect_jumps

__all__ = ["Outcome", "main", "outcomes"]

HERE: Final = Path(__file__).parent
LEVEL: Final = 0.05
NEAR: Final = 1
EVERY: Final = 5
TITLES: Final = {
    "noise": "Noise",
    "exponentials": "Exponentials",
    "drift": "Drift",
    "beyond": "Beyond what is promised",
    "several": "Several jumps",
}
HEAD: Final = """# How often `detect_jumps` is wrong, and how often it finds what is there

By `python -m benchmarks.jump_tables`, {seconds:.0f} s on {cores} cores ({cpu}, {day}). Series of {n} measurements, one
each 5 steps, with the defaults of `detect_jumps`. Sizes are in standard deviations of the noise; exponentials have
height 1, and tau is in measurements. Each series is random in all that its name leaves open. Intervals are Clopper and
Pearson's, at 95%.
"""


@dataclass(frozen=True)
class Outcome:
    """What was found in one series.

    Parameters
    ----------
    n_planted, n_found : int
        Jumps that are there; of these, found within one measurement.
    n_false : int
        Jumps found elsewhere.
    n_placed, n_covered : int
        Jumps found within five measurements; of these, with the true position in their interval.
    """

    n_planted: int
    n_found: int
    n_false: int
    n_placed: int
    n_covered: int


def outcome(scenario: Scenario, number: int) -> Outcome:
    """Look for jumps in one series."""
    values, planted = scenario.series(number)
    jumps = detect_jumps(values, np.arange(N_MEASUREMENTS) * EVERY, LEVEL)
    at, low, high = jumps["index"].values, jumps["low"].values, jumps["high"].values
    found = [place for place in planted if (abs(at - place) <= NEAR).any()]
    false = [place for place in at if all(abs(place - there) > NEAR for there in planted)]
    placed = [(place, k) for place in planted for k in np.flatnonzero(abs(at - place) <= 5)[:1]]
    covered = sum(low[k] <= place * EVERY <= high[k] for place, k in placed)
    return Outcome(len(planted), len(found), len(false), len(placed), int(covered))


def outcomes(kind: str, place: int, n_series: int, pool: ProcessPoolExecutor) -> list[Outcome]:
    """Look for jumps in `n_series` series of one scenario of ``NULLS`` or ``PLANTED``."""
    return list(pool.map(partial(_numbered, kind, place), range(n_series), chunksize=5))


def _numbered(kind: str, place: int, number: int) -> Outcome:
    # Scenarios hold functions, which do not travel between processes: their place in the list does.
    return outcome((NULLS if kind == "nulls" else PLANTED)[place], number)


def rate(count: int, of: int) -> str:
    """Return a rate with its interval as text."""
    low, high = clopper_pearson(count, of)
    return f"{count / of:.1%} ({float(low):.1%} to {float(high):.1%})"


def tables(n_nulls: int, n_planted: int) -> str:
    """Simulate everything and return the tables as Markdown."""
    parts = [f"\n## Series without a jump\n\nShare of {n_nulls} series in which any jump is found.\n"]
    with ProcessPoolExecutor(n_cores()) as pool:
        for place, scenario in enumerate(NULLS):
            if place == 0 or NULLS[place - 1].group != scenario.group:
                parts.append(f"\n| {TITLES[scenario.group].lower()} | any jump |\n|---|---|\n")
            results = outcomes("nulls", place, n_nulls, pool)
            parts.append(f"| {scenario.name} | {rate(sum(one.n_false > 0 for one in results), n_nulls)} |\n")
            print(parts[-1], end="", file=sys.stderr, flush=True)
        parts.append(
            f"\n## Planted jumps\n\n{n_planted} series each. Found: share of the jumps that are found within one "
            "measurement. Elsewhere: share of the series with a jump that is not there. Covered: share of the found "
            "positions, up to five measurements off, whose 95% interval holds the true one.\n"
        )
        for place, scenario in enumerate(PLANTED):
            if place == 0 or PLANTED[place - 1].group != scenario.group:
                title = TITLES[scenario.group].lower()
                parts.append(f"\n| {title} | found | elsewhere | covered |\n|---|---|---|---|\n")
            results = outcomes("planted", place, n_planted, pool)
            found = rate(sum(one.n_found for one in results), sum(one.n_planted for one in results))
            false = rate(sum(one.n_false > 0 for one in results), n_planted)
            placed = sum(one.n_placed for one in results)
            covered = rate(sum(one.n_covered for one in results), placed) if placed else ""
            parts.append(f"| {scenario.name} | {found} | {false} | {covered} |\n")
            print(parts[-1], end="", file=sys.stderr, flush=True)
    return "".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and keep those that are not quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jump_tables", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 series of each kind; nothing is kept")
    quick = parser.parse_args(arguments).quick
    start = time.perf_counter()
    body = tables(*((20, 20) if quick else (500, 300)))
    head = HEAD.format(seconds=time.perf_counter() - start, n=N_MEASUREMENTS, **machine())
    if not quick:
        (HERE / "JUMPS.md").write_text(head + body)
    print(head + body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
