"""Series with and without jumps, as trainings measure them: what `jump_tables` tabulates and the slow tests assert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import numpy as np
import scipy.signal
from numpy.typing import NDArray

__all__ = ["NULLS", "N_MEASUREMENTS", "PLANTED", "Scenario"]

F64 = NDArray[np.float64]
Made = tuple[F64, list[int]]
Rng = np.random.Generator

N_MEASUREMENTS: Final = 400
"""Measurements of the study: 2,000 steps, one measurement each 5."""

AT: Final = np.arange(N_MEASUREMENTS, dtype=np.float64)
MARGIN: Final = 20


@dataclass(frozen=True)
class Scenario:
    """One kind of series.

    Parameters
    ----------
    name : str
        For the table.
    make : callable
        From a random generator to a series and the measurements at which it jumps.
    group : str
        Of the table; series of the groups "noise", "exponentials" and "drift" have to hold the level.
    """

    name: str
    make: Callable[[Rng], Made]
    group: str = ""

    def series(self, number: int) -> Made:
        """Return one of its series, the same for the same number."""
        return self.make(np.random.default_rng([crc32(self.name.encode()), number]))


def white(rng: Rng) -> F64:
    """Return independent noise of standard deviation 1."""
    return rng.standard_normal(N_MEASUREMENTS)


def heavy_tails(rng: Rng) -> F64:
    """Return independent noise of Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, N_MEASUREMENTS)


def ar(rng: Rng, rho: float) -> F64:
    """Return AR(1) noise of standard deviation 1."""
    innovations = rng.standard_normal(N_MEASUREMENTS)
    innovations[1:] *= np.sqrt(1 - rho**2)
    return np.asarray(scipy.signal.lfilter([1.0], [1.0, -rho], innovations))


def exponential(rng: Rng, tau: float, noise: float) -> F64:
    """Return a curve of height 1 that rises or falls with time constant `tau`."""
    return np.exp(-AT / tau) * rng.choice([-1.0, 1.0]) + noise * white(rng)


def transient(rng: Rng) -> F64:
    """Return a fall within some measurements, then a slow curve, as dimensions of layers show."""
    fast = rng.uniform(5, 10) * np.exp(-AT / rng.uniform(1, 4))
    slow = 5 * np.exp(-AT / rng.uniform(10, 150)) * rng.choice([-1.0, 1.0])
    return fast + slow + rng.uniform(0.03, 0.3) * white(rng)


def loud_start(rng: Rng) -> F64:
    """Return a curve in noise that is five times larger at first."""
    return 20 * np.exp(-AT / 30) + (1 + 4 * np.exp(-AT / 30)) * white(rng)


def spike(rng: Rng) -> F64:
    """Return AR(1) noise with one measurement that is off."""
    series = ar(rng, 0.5)
    series[rng.integers(MARGIN, N_MEASUREMENTS - MARGIN)] += 8
    return series


def slope(rng: Rng, width: float) -> F64:
    """Return a rise by 20 noise deviations, from 10% to 90% within 4.4 widths."""
    middle = rng.uniform(60, N_MEASUREMENTS - 60)
    return 20 / (1 + np.exp(-(AT - middle) / width)) + white(rng)


def bend(rng: Rng) -> F64:
    """Return a line that sets in at some measurement and rises by a fifth of the noise with each."""
    return 0.2 * np.maximum(0, AT - rng.uniform(60, N_MEASUREMENTS - 60)) + white(rng)


def without(make: Callable[[Rng], F64]) -> Callable[[Rng], Made]:
    """Make series without a jump."""
    return lambda rng: (make(rng), [])


def planted(make: Callable[[Rng], F64], size: float) -> Callable[[Rng], Made]:
    """Make series with one jump of `size`, up or down, at least `MARGIN` measurements from both ends."""

    def made(rng: Rng) -> Made:
        series, place = make(rng), int(rng.integers(MARGIN, N_MEASUREMENTS - MARGIN))
        series[place:] += size * rng.choice([-1.0, 1.0])
        return series, [place]

    return made


def three(make: Callable[[Rng], F64], size: float) -> Callable[[Rng], Made]:
    """Make series with three jumps of `size`, 70 measurements or more apart."""

    def made(rng: Rng) -> Made:
        series, places = make(rng), np.array([100, 200, 300]) + rng.integers(-15, 16, 3)
        for place in places:
            series[place:] += size * rng.choice([-1.0, 1.0])
        return series, places.tolist()

    return made


NULLS: Final = (
    Scenario("white noise", without(white), "noise"),
    *(
        Scenario(f"AR(1), rho {rho}", without(lambda rng, rho=rho: ar(rng, rho)), "noise")
        for rho in (0.3, 0.5, 0.7, 0.9)
    ),
    *(
        Scenario(
            f"exponential, tau {tau}, noise {noise:.1%}",
            without(lambda rng, tau=tau, noise=noise: exponential(rng, tau, noise)),
            "exponentials",
        )
        for tau in (10, 20, 50, 100, 150)
        for noise in (0.005, 0.02, 0.1)
    ),
    Scenario("line, up to 10", without(lambda rng: rng.uniform(-10, 10) * AT / N_MEASUREMENTS + white(rng)), "drift"),
    Scenario(
        "wave, height up to 10, period 150 to 800",
        without(
            lambda rng: (
                rng.uniform(1, 10) * np.sin(2 * np.pi * (AT / rng.uniform(150, 800) + rng.random())) + white(rng)
            )
        ),
        "drift",
    ),
    *(
        Scenario(
            f"random walk of {size}, and noise",
            without(lambda rng, size=size: np.cumsum(size * white(rng)) + white(rng)),
            "drift",
        )
        for size in (0.05, 0.1, 0.2)
    ),
    Scenario("random walk", without(lambda rng: np.cumsum(white(rng))), "beyond"),
    Scenario("fast transient, then slow", without(transient), "beyond"),
    Scenario("noise 5 times louder at first", without(loud_start), "beyond"),
    Scenario("Student's t noise, 3 degrees of freedom", without(heavy_tails), "beyond"),
    Scenario("AR(1), rho 0.5, with a spike of 8", without(spike), "beyond"),
    Scenario("slope by 20 within 9 measurements", without(lambda rng: slope(rng, 2)), "beyond"),
    Scenario("slope by 20 within 35 measurements", without(lambda rng: slope(rng, 8)), "beyond"),
    Scenario("bend", without(bend), "beyond"),
)
"""Series without a jump."""

PLANTED: Final = (
    *(Scenario(f"white noise, {size}", planted(white, size), "noise") for size in (1, 2, 3, 4, 5, 6)),
    *(
        Scenario(f"AR(1), rho {rho}, {size}", planted(lambda rng, rho=rho: ar(rng, rho), size), "noise")
        for rho in (0.5, 0.9)
        for size in (2, 3, 4, 6)
    ),
    *(
        Scenario(
            f"exponential, tau {tau}, noise 2%, {size}",
            planted(lambda rng, tau=tau: exponential(rng, tau, 0.02), 0.02 * size),
            "exponentials",
        )
        for tau in (10, 50, 150)
        for size in (4, 6)
    ),
    *(Scenario(f"three in white noise, {size}", three(white, size), "several") for size in (3, 4, 6)),
    Scenario("three in AR(1), rho 0.9, 4", three(lambda rng: ar(rng, 0.9), 4), "several"),
)
"""Series with jumps; the number at the end is their size in standard deviations of the noise."""
