"""How often nominal 95% intervals hold the truth, and tests at 5% raise a false alarm: `python -m benchmarks.coverage`.

Each case draws data whose truth is known, asks the public function and counts. The table that this prints stands in
docs/explanation/statistics.md, and tests marked slow hold every case to its band.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import coverage_draws as d

NOMINAL: Final = (0.93, 0.97)
LEVEL: Final = (0.03, 0.07)


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation.

    Parameters
    ----------
    what : str
        Method, estimate, data and n.
    run : callable
        Share of draws in which the interval holds the truth, or the test rejects it.
    band : (float, float)
        Where that has to lie.
    """

    what: str
    run: Callable[[], float]
    band: tuple[float, float]


def _case(what: str, band: tuple[float, float], run: Callable[..., float], *arguments: Any) -> Case:
    return Case(what, functools.partial(run, *arguments), band)


INTERVALS: Final = (
    _case("`mean_ci`, normal data, n = 3", NOMINAL, d.of_mean, d.normal, 3),
    _case("`mean_ci`, exponential data, n = 500", NOMINAL, d.of_mean, d.exponential, 500),
    _case("`mean_ci`, exponential data, n = 20", (0.90, 0.935), d.of_mean, d.exponential, 20),
    _case(
        "`bootstrap_ci`, BCa, mean, exponential, n = 150", NOMINAL, d.of_bootstrap, "BCa", d.mean, d.exponential, 150
    ),
    _case("the same, percentile", NOMINAL, d.of_bootstrap, "percentile", d.mean, d.exponential, 150),
    _case(
        "`bootstrap_ci`, BCa, mean, exponential, n = 20", (0.88, 0.93), d.of_bootstrap, "BCa", d.mean, d.exponential, 20
    ),
    _case("the same, percentile", (0.87, 0.92), d.of_bootstrap, "percentile", d.mean, d.exponential, 20),
    _case(
        "`bootstrap_ci`, BCa, standard deviation, normal, n = 150",
        NOMINAL,
        d.of_bootstrap,
        "BCa",
        d.deviation,
        d.normal,
        150,
    ),
    _case("the same, percentile", (0.92, 0.96), d.of_bootstrap, "percentile", d.deviation, d.normal, 150),
    _case(
        "`bootstrap_ci`, BCa, standard deviation, exponential, n = 500",
        (0.90, 0.95),
        d.of_bootstrap,
        "BCa",
        d.deviation,
        d.exponential,
        500,
    ),
    _case("the same, percentile", (0.89, 0.94), d.of_bootstrap, "percentile", d.deviation, d.exponential, 500),
    _case("`bootstrap_ci`, BCa, mean, normal, n = 5", (0.80, 0.87), d.of_bootstrap, "BCa", d.mean, d.normal, 5),
    _case(
        "`bootstrap_ci`, BCa, mean difference of paired answers, n = 200",
        NOMINAL,
        d.of_bootstrap,
        "BCa",
        d.mean,
        d.answers,
        200,
    ),
    _case("`mean_ci`, mean difference of paired answers, n = 200", NOMINAL, d.of_mean, d.answers, 200),
    _case("`clopper_pearson`, worst rate, n = 20", (0.95, 1.0), d.of_rate, 20),
    _case("`clopper_pearson`, worst rate, n = 500", (0.95, 1.0), d.of_rate, 500),
    _case(
        "`jackknife`, corrected participation ratio 5.5 of 12 units, n = 500",
        NOMINAL,
        d.of_dimension,
        "participation_ratio_corrected",
        500,
    ),
    _case("the same, n = 100", NOMINAL, d.of_dimension, "participation_ratio_corrected", 100),
    _case("`jackknife`, plain participation ratio, n = 500", NOMINAL, d.of_dimension, "participation_ratio", 500),
    _case("the same, n = 100", (0.87, 0.94), d.of_dimension, "participation_ratio", 100),
    _case("`compose`, R2 from 20 early units that explain 85%, n = 500", NOMINAL, d.of_composition, 500, 20, 0.85),
    _case("the same, n = 150", (0.94, 1.0), d.of_composition, 150, 20, 0.85),
    _case("the same, that explain 50%", (0.94, 1.0), d.of_composition, 150, 20, 0.5),
    _case("the same, from 100 that explain 85%", (0.94, 1.0), d.of_composition, 150, 100, 0.85),
    _case("`cka`, two sides of three factors, n = 120", NOMINAL, d.of_similarity, 120, 1024),
    _case("the same, n = 480 in batches of 60", NOMINAL, d.of_similarity, 480, 60),
    _case("`block_bootstrap`, t, mean of white noise, n = 400", NOMINAL, d.of_blocks, "t", d.autoregressive, 0.0, 400),
    _case("the same, AR(1), rho = 0.5", NOMINAL, d.of_blocks, "t", d.autoregressive, 0.5, 400),
    _case("the same, AR(1), rho = 0.9", NOMINAL, d.of_blocks, "t", d.autoregressive, 0.9, 400),
    _case("the same, AR(1), rho = 0.9, n = 100", (0.91, 0.97), d.of_blocks, "t", d.autoregressive, 0.9, 100),
    _case(
        "`block_bootstrap`, percentile, mean of AR(1), rho = 0.5, n = 400",
        (0.88, 0.94),
        d.of_blocks,
        "percentile",
        d.autoregressive,
        0.5,
        400,
    ),
    _case("the same, rho = 0.9", (0.80, 0.88), d.of_blocks, "percentile", d.autoregressive, 0.9, 400),
    _case(
        "`block_bootstrap`, t, AR(1), rho = 0.95, under white noise, n = 400",
        (0.86, 0.92),
        d.of_blocks,
        "t",
        d.hidden,
        0.95,
        400,
    ),
    _case("`agreement_over_seeds`, mean, 3 seeds", NOMINAL, d.of_seeds, "mean", 3),
    _case("`agreement_over_seeds`, spread, 3 seeds", NOMINAL, d.of_seeds, "standard_deviation", 3),
    _case("`agreement_over_seeds`, ICC, 5 seeds", (0.92, 0.96), d.of_seeds, "icc", 5),
    _case("`agreement_over_seeds`, bootstrap of the mean, 3 seeds", (0.70, 0.76), d.of_seeds, "mean", 3, "bootstrap"),
    _case("the same, 5 seeds", (0.80, 0.87), d.of_seeds, "mean", 5, "bootstrap"),
    _case("`fit_growth`, its parameters, white residuals, n = 200", NOMINAL, d.of_growth, 0.0, 200),
    _case("the same, AR(1), rho = 0.5", (0.89, 0.95), d.of_growth, 0.5, 200),
    _case("the same, white residuals, n = 20", (0.87, 0.94), d.of_growth, 0.0, 20),
    _case("the same, AR(1), rho = 0.5, n = 20", (0.60, 0.72), d.of_growth, 0.5, 20),
    _case("`smoothness`, log variance ratio, white derivatives, n = 200", NOMINAL, d.of_ratio, 0.0),
    _case("the same, AR(1), rho = 0.8", NOMINAL, d.of_ratio, 0.8),
)

TESTS: Final = (
    _case("`permutation_null`, labels of exponential data, n = 20", LEVEL, d.of_labels, 20),
    _case("`paired_permutation_test`, exponential data, n = 8", LEVEL, d.of_swaps, 8),
    _case("`compose`, any of 30 units of noise above its shuffles, n = 60", LEVEL, d.of_no_composition, 60, 8, 30),
    _case("`cka`, independent units, n = 60", LEVEL, d.of_no_similarity, 60, 1024),
    _case("the same, n = 240 in batches of 60", LEVEL, d.of_no_similarity, 240, 60),
    _case("`fit_growth`, white noise, n = 100", LEVEL, d.of_no_growth, 0.0, 100),
    _case("the same, AR(1), rho = 0.9", LEVEL, d.of_no_growth, 0.9, 100),
    _case("the same, random walk", (0.03, 0.09), d.of_no_growth, 1.0, 100),
    _case(
        "`smoothness`, Levene as it is, AR(1), rho = 0.8, n = 200",
        (0.2, 0.5),
        d.of_smoothness,
        "levene",
        "p_value",
        0.8,
    ),
    _case("the same with blocks", LEVEL, d.of_smoothness, "levene", "block_p_value", 0.8),
    _case(
        "`smoothness`, Kruskal as it is, AR(1), rho = 0.8, n = 200",
        (0.3, 0.6),
        d.of_smoothness,
        "kruskal",
        "p_value",
        0.8,
    ),
    _case("the same with blocks", LEVEL, d.of_smoothness, "kruskal", "block_p_value", 0.8),
)


def main() -> None:
    """Print both tables."""
    for title, cases in (("intervals that hold the truth", INTERVALS), ("false alarms at 5%", TESTS)):
        print(f"| method | {title} |\n|---|---|")
        for case in cases:
            print(f"| {case.what} | {100 * case.run():.1f}% |", flush=True)
        print()


if __name__ == "__main__":
    main()
