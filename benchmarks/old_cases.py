"""The old ways and ours put to the same data of known truth: what `old_mistakes` tabulates and its tests assert."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import ndt_query as nq
from benchmarks import old_ways

__all__ = [
    "STEPS",
    "Found",
    "Maps",
    "Two",
    "cams",
    "events",
    "first_late",
    "found_here",
    "gathered",
    "jump_place",
    "late_jumps",
    "numbers_of_jumps",
    "old_hits",
    "phases",
    "probes",
    "similarities",
    "stable_ranks",
    "stable_ranks_off_centre",
]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

N: Final = 400
AT: Final = np.arange(N)
STEPS: Final = AT * 5
"""Of a training of 2,000 steps that is measured each 5, as the study's were."""

PLANTED_SIZE: Final = 4.0
NEAR: Final = 10
"""Measurements from a planted jump within which a hit is taken to be about it."""


class Two(NamedTuple):
    """What the old way and ours say of the same data.

    Parameters
    ----------
    old, ours : ndarray
        One value for each data set; NaN where there is none.
    truth : ndarray
        What the data were made with.
    """

    old: F64
    ours: F64
    truth: F64


class Maps(NamedTuple):
    """Grad-CAM of two examples (example, y, x) before and after, and both differences of them."""

    before: F64
    after: F64
    old: F64
    ours: F64


class Found(NamedTuple):
    """Everything that the page and the figure show."""

    ranks: Two
    noise: Two
    noise_events: F64
    exponentials: Two
    trailing: Two
    trailing_short: Two
    places: Two
    per_jump: Two
    phases: Two
    probes: Two
    cams: Maps
    similarities: Two
    off_centre: Two


def labelled(values: F64) -> xr.DataArray:
    """Name the dimensions of (example, unit)."""
    return xr.DataArray(values, dims=("example", "unit"))


def stable_ranks(n_sets: int = 12, n: int = 2000, d: int = 32) -> Two:
    """Stable rank of normal data whose variances fall off at different rates."""
    rows = []
    for number, rate in enumerate(1 - 1 / np.geomspace(1.1, 24, n_sets)):
        variances = rate ** np.arange(d)
        values = np.random.default_rng([1, number]).standard_normal((n, d)) * np.sqrt(variances)
        here = float(nq.dimensionality(labelled(values), interval="none")["stable_rank"])
        rows.append((old_ways.stable_rank_of_frobenius(values), here, variances.sum()))
    return Two(*np.array(rows).T)


def stable_ranks_off_centre(means: Sequence[float] = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10), n: int = 200, d: int = 64) -> Two:
    """Stable rank of the same normal noise about different means: the truth is the mean here."""
    noise = np.random.default_rng(2).standard_normal((n, d))
    rows = []
    for mean in means:
        here = float(nq.dimensionality(labelled(noise + mean), interval="none")["stable_rank"])
        rows.append((old_ways.uncentred_stable_rank(noise + mean), here, mean))
    return Two(*np.array(rows).T)


def white_noise(number: int) -> F64:
    """Return a series that has nothing in it."""
    return np.random.default_rng([3, number]).standard_normal(N)


def exponential(number: int) -> F64:
    """Return a smooth curve with a little noise, as dimensions are while a network learns."""
    return 1 - np.exp(-AT / 20) + 0.01 * np.random.default_rng([4, number]).standard_normal(N)


def jump_place(number: int) -> int:
    """Return the measurement at which `planted` jumps."""
    return int(np.random.default_rng([5, number]).integers(100, 300))


def planted(number: int) -> F64:
    """Return white noise with one jump of four standard deviations."""
    return np.random.default_rng([6, number]).standard_normal(N) + PLANTED_SIZE * (jump_place(number) <= AT)


SERIES: Final = {"white noise": white_noise, "exponential": exponential, "planted": planted}
WINDOWS: Final = {"trailing": 50, "trailing, short windows": 5}


@cache
def found_here(kind: str, number: int) -> tuple[int, ...]:
    """Return the indices of the jumps that `detect_jumps` finds in a series of a kind of ``SERIES``."""
    return tuple(int(place) for place in nq.detect_jumps(SERIES[kind](number), STEPS)["index"].values)


def old_hits(old: str, kind: str, number: int) -> I64:
    """Return the indices at which an old detector fires: ``global`` or one of ``WINDOWS``."""
    series = SERIES[kind](number)
    return old_ways.global_z(series) if old == "global" else old_ways.trailing_z(series, fewest=WINDOWS[old])


def events(hits: I64) -> int:
    """Count hits, with those of neighbouring measurements as one."""
    return int((np.diff(hits, prepend=-N) > 1).sum())


def numbers_of_jumps(old: str, kind: str, n_series: int = 200) -> Two:
    """How many jumps are found in each series of a kind."""
    hits = [len(old_hits(old, kind, number)) for number in range(n_series)]
    here = [len(found_here(kind, number)) for number in range(n_series)]
    return Two(np.array(hits, float), np.array(here, float), np.full(n_series, float(kind == "planted")))


def first_late(number: int) -> float:
    """Count the measurements from a planted jump to the first hit of the trailing window; NaN where none is near."""
    late = old_hits("trailing", "planted", number) - jump_place(number)
    late = late[(late >= 0) & (late <= NEAR)]
    return float(late[0]) if late.size else np.nan


def late_jumps(n_series: int = 200) -> Two:
    """How many measurements late a planted jump is reported: the first hit from there on, and the nearest one here."""
    rows = []
    for number in range(n_series):
        true = jump_place(number)
        off = np.array([place - true for place in found_here("planted", number) if abs(place - true) <= NEAR])
        nearest = off[np.abs(off).argmin()] if off.size else np.nan
        rows.append((first_late(number), nearest, true))
    return Two(*np.array(rows, dtype=np.float64).T)


def phases(n_series: int = 9) -> Two:
    """How far into training a jump is said to be; both ways take it from where `detect_jumps` finds it."""
    rows = []
    for number, true in enumerate(np.linspace(30, 370, n_series).astype(int)):
        series = np.random.default_rng([7, number]).standard_normal(N) + 8.0 * (true <= AT)
        jumps = nq.detect_jumps(series, STEPS)
        strongest = int(np.abs(jumps["size"].values).argmax())
        old = old_ways.phase_of_index(jumps["index"].values, STEPS)
        here = nq.characterise_jumps(jumps)["phase"].values
        rows.append((old[strongest], here[strongest], STEPS[true] / STEPS[-1]))
    return Two(*np.array(rows).T)


def probes(n: int = 160, p: int = 128, n_targets: int = 64) -> Two:
    """R2 of noise from noise, of each of some targets; the truth is that there is nothing to predict."""
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((n, p)), rng.standard_normal((n, n_targets))
    here = nq.compose(labelled(x), labelled(y), interval="none", n_permutations=19)
    assert not here["composed"].any()
    return Two(old_ways.training_r2(x, y), here["r2"].values, np.zeros(n_targets))


def cams(size: int = 14) -> Maps:
    """Compare two examples: in one a place comes up beside one that stays, in the other all grows threefold."""
    y, x = np.mgrid[:size, :size]
    places = [np.exp(-((y - row) ** 2 + (x - column) ** 2) / 6) for row, column in ((4, 3), (9, 10))]
    acts = np.stack([places, places])[None].repeat(2, axis=0)
    weights = np.array([[[1.0, 0.0], [1.0, 0.5]], [[1.0, 2.0], [3.0, 1.5]]])  # (checkpoint, example, unit)
    dims = ("checkpoint", "example", "unit", "y", "x")
    grads = np.broadcast_to(weights[..., None, None], acts.shape)
    layer = xr.Dataset({"activations": (dims, acts), "gradients": (dims, grads)}, {"checkpoint": [0, 300]})
    maps = nq.grad_cam(layer)
    here = nq.cam_difference(maps, 0, 300)["difference"].values
    before, after = maps.values
    return Maps(before, after, old_ways.difference_of_scaled(before, after), here)


def similarities(n_pairs: int = 200, n: int = 64, d: int = 512) -> Two:
    """CKA of independent data."""
    rows = []
    for number in range(n_pairs):
        one, other = np.random.default_rng([9, number]).standard_normal((2, n, d))
        here = float(nq.cka(labelled(one), labelled(other), n_groups=2, n_permutations=1)["cka"])
        rows.append((old_ways.biased_cka(one, other), here, 0.0))
    return Two(*np.array(rows).T)


def gathered(n_series: int = 200) -> Found:
    """Put everything to the test, with so many series and pairs of each kind."""
    return Found(
        ranks=stable_ranks(),
        noise=numbers_of_jumps("global", "white noise", n_series),
        noise_events=np.array([events(old_hits("global", "white noise", k)) for k in range(n_series)], float),
        exponentials=numbers_of_jumps("global", "exponential", n_series),
        trailing=numbers_of_jumps("trailing", "white noise", n_series),
        trailing_short=numbers_of_jumps("trailing, short windows", "white noise", n_series),
        places=late_jumps(n_series),
        per_jump=numbers_of_jumps("trailing", "planted", n_series),
        phases=phases(),
        probes=probes(),
        cams=cams(),
        similarities=similarities(n_series),
        off_centre=stable_ranks_off_centre(),
    )
