"""Which steps a series has: found greedily, told from slopes and spikes, each tested with the others in the model.

1. Steps are taken in one after the other while the best one gains more than 15, so that several jumps do not hide each
   other by passing for noise. What a slope over more than about four measurements, a spike of at most three or a bend
   explains clearly better than a step does is taken in as that, as part of the curve.
2. The scale of the noise is estimated from what is left. Where it changes over training, 1 and 2 are done again.
3. Each step is tested with the others in the model, the weakest first; one with ``p > alpha`` leaves.
4. The best step beside those that stay is tested as well, and joins with ``p <= alpha``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.special
from numpy.typing import NDArray

from ndt_query.kernels.changepoints import (
    EDGE,
    Fit,
    Keep,
    Scan,
    fit,
    gains_of,
    scan,
    steps,
)
from ndt_query.kernels.noise import scale_over_training, tail_weight
from ndt_query.kernels.stepdesign import design, scaled_design
from ndt_query.kernels.stepnull import p_value, simulated, spacing

__all__ = ["APART", "Level", "Search", "Step"]

F64 = NDArray[np.float64]

APART: Final = 3
"""A change within this many measurements of a jump belongs to it."""

_WORTH: Final = 15.0
"""Gain from which a step is taken in before it is tested; noise gains that much in 1 to 5 series of 100."""

_CLEARLY: Final = 6.0
"""Gain by which another shape beats a step; a true step of 4 noise deviations loses by it in 1 series of 50."""

_NEAR: Final = 24.0
"""Points of the grid that are this much less likely than the best, as 2 log L, are not tried on simulated series."""

_ROUNDING: Final = 1e-8
"""Variance, in squares of the series' range, of the least noise there is taken to be."""

_LEAST_FOR_SCALE: Final = 60
_ROUNDS: Final = 3
_SLOPES: Final = (2.0, 2.8, 4.0, 5.6, 8.0, 11.0, 16.0)
_SPIKES: Final = (1, 2, 3)
_SHARE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Step:
    """The best step beside others, tested.

    Parameters
    ----------
    at : int
        Its first measurement.
    p_value, gain : float
        Of the gain in 2 log L among series without the step.
    null : ndarray (draw,)
        Those series' best gains.
    low, high : int
        Ends of the positions that hold 95% of the likelihood.
    keep : frozenset of int
        Points of the grid that the test tried.
    """

    at: int
    p_value: float
    gain: float
    null: F64
    low: int
    high: int
    keep: Keep


@dataclass(frozen=True, slots=True)
class Level:
    """A series taken apart, in its own units.

    Parameters
    ----------
    sizes, errors : ndarray (step,)
        Height of each step and its standard error.
    curve, level, error : ndarray (measurement,)
        The smooth part, the same with the steps, and the standard error of that.
    noise : ndarray (measurement,)
        Standard deviation of the rest.
    """

    sizes: F64
    errors: F64
    curve: F64
    level: F64
    error: F64
    noise: F64


class Search:
    """The steps of one series (measurement,), finite and not all the same.

    Parameters
    ----------
    values : ndarray (measurement,)
        The series.
    alpha : float
        Level of each test.
    n_null, seed : int
        Series simulated for each test, at most, and the seed of the simulations, which are the same for each test.

    Attributes
    ----------
    found : list of Step
        Those with ``p <= alpha``, in order.
    next : Step
        The best one beside them, with ``p > alpha``.
    left_out : list of float
        p values of all steps that were tested and not taken, the next one among them.
    """

    def __init__(self, values: F64, alpha: float, n_null: int, seed: int) -> None:
        self._middle, self._range = float(values.mean()), float(np.ptp(values))
        self._values = (values - self._middle) / self._range
        self._spacing = spacing(self._values)
        self._rounding = max(_ROUNDING, self._spacing**2 / 12)
        self._n = len(values)
        self._n_null, self._seed = n_null, seed
        self._own: list[F64] = []  # columns of the curve's own: slopes, spikes, bends
        self._tests: dict[frozenset[int], Step] = {}
        self._model = design(self._n)
        kept = self._settled(self._started(), alpha)
        self.found = [self._beside(kept - {place}) for place in sorted(kept)]
        self.next = self._beside(kept)
        self.left_out = [one.p_value for one in self._tests.values() if one.p_value > alpha]

    def level(self, kept: list[int]) -> Level:
        """Return the fit with steps at the measurements `kept` alone."""
        last = self._fit(kept, int(self._scan(kept).without[0]))
        own = len(self._own)
        curve = last.curve + self._columns([]) @ last.coefficients[:own]
        heights = last.coefficients[own:]
        return Level(
            heights * self._range,
            np.sqrt(np.diag(last.covariance)[own:]) * self._range,
            self._middle + self._range * curve,
            self._middle + self._range * (curve + steps(self._n, kept) @ heights),
            self._range * last.error,
            self._range * np.sqrt(last.variance) * self._model.scale,
        )

    def _started(self) -> list[int]:
        """Return the steps to begin with, and choose the scale of the noise."""
        at = self._greedy()
        if self._n < _LEAST_FOR_SCALE:
            return at
        for _ in range(_ROUNDS):
            # Where noise is louder steps are taken in that are none, which makes it less loud: hence again.
            left = self._fit(at, int(self._scan(at).without[0])).innovations
            scale, doubt = scale_over_training(left)
            if not doubt.shape[1] and not self._model.doubt.shape[1]:
                break
            self._model = scaled_design(scale, doubt)
            before, at = at, self._greedy()
            if at == before:
                break
        return at

    def _columns(self, at: list[int]) -> F64:
        return np.concatenate([*(one[:, None] for one in self._own), steps(self._n, at)], axis=1)

    def _allowed(self, at: list[int]) -> NDArray[np.bool_]:
        free = np.zeros(self._n, bool)
        free[EDGE : self._n - EDGE + 1] = True
        for place in at:
            free[max(0, place - APART) : place + APART + 1] = False
        return free

    def _scan(self, at: list[int]) -> Scan:
        series, columns = self._values[:, None], self._columns(at)
        return scan(self._model, series, columns, self._allowed(at), self._rounding, locate=True)

    def _fit(self, at: list[int], point: int) -> Fit:
        return fit(self._model, self._values, self._columns(at), point, self._rounding)

    def _greedy(self) -> list[int]:
        """Take in steps, and shapes of the curve's own, while they are worth it."""
        self._own.clear()
        at: list[int] = []
        for _ in range(self._n // 10):
            found = self._scan(at)
            place = int(found.gain[:, 0].argmax())
            if found.gain[place, 0] < _WORTH:
                break
            shape = self._smoother(place, at, _near(found))
            if shape is None:
                at.append(place)
            else:
                self._own.append(shape)
        return at

    def _smoother(self, place: int, at: list[int], keep: Keep) -> F64 | None:
        """Return the slope, spike or bend that explains a step clearly better, if there is one."""
        sudden, smooth = _sudden(self._n, place), _smooth(self._n, place)
        shapes = np.concatenate([sudden, smooth], axis=1)
        gains = gains_of(self._model, self._values, self._columns(at), shapes, self._rounding, keep)
        as_jump, otherwise = gains[: sudden.shape[1]].max(), gains[sudden.shape[1] :]
        return smooth[:, otherwise.argmax()] if otherwise.max() > as_jump + _CLEARLY else None

    def _settled(self, start: list[int], alpha: float) -> frozenset[int]:
        """Let steps leave, move and join until each is significant beside the others, and no other one is."""
        at, seen = frozenset(start), set[frozenset[int]]()
        while at not in seen:
            seen.add(at)
            changed = self._weakest_gone(at, alpha)
            if changed != at:
                at = changed
                continue
            joining = self._beside(at)
            if joining.p_value > alpha or len(self._own) > self._n // 10:
                break
            shape = self._smoother(joining.at, sorted(at), joining.keep)
            if shape is None:
                at = at | {joining.at}
            else:
                self._own.append(shape)
                self._tests.clear()
                seen.clear()
        return at

    def _weakest_gone(self, at: frozenset[int], alpha: float) -> frozenset[int]:
        """Return the steps without the weakest one that fails, or with the first that lies better elsewhere moved."""
        gains = {place: float(self._scan(sorted(at - {place})).gain[place, 0]) for place in at}
        for place in sorted(at, key=lambda place: (gains[place], place)):
            one = self._beside(at - {place})
            if one.p_value > alpha:
                return at - {place}
            if one.at != place:
                return at - {place} | {one.at}
        return at

    def _beside(self, others: frozenset[int]) -> Step:
        if others not in self._tests:
            self._tests[others] = self._tested(sorted(others))
        return self._tests[others]

    def _tested(self, others: list[int]) -> Step:
        found, columns, allowed = self._scan(others), self._columns(others), self._allowed(others)
        gains = found.gain[:, 0]
        place, point, keep = int(gains.argmax()), int(found.without[0]), _near(found)
        # What is left is innovations once the step is taken out, or the step would give the null its own heavy tail.
        left, bent = self._fit([*others, place], point), self._fit(others, self._model.rougher(point))
        mean, tails = bent.curve + columns @ bent.coefficients, tail_weight(left.innovations)
        rng = np.random.default_rng(self._seed)

        def best_gains(n_series: int) -> F64:
            series = simulated(self._model, left, mean, tails, self._spacing, rng, n_series)
            found = scan(self._model, series, columns, allowed, self._rounding, keep=keep)
            return np.asarray(found.gain.max(axis=0))

        p, null = p_value(float(gains[place]), best_gains, self._n_null)
        likelihood = np.exp((gains - gains[place]) / 2) * allowed
        order = np.argsort(-likelihood, kind="stable")
        enough = int(np.searchsorted(np.cumsum(likelihood[order]), _SHARE * likelihood.sum())) + 1
        return Step(place, p, float(gains[place]), null, int(order[:enough].min()), int(order[:enough].max()), keep)


def _near(found: Scan) -> Keep:
    return frozenset(np.flatnonzero(found.near[:, 0] < _NEAR).tolist())


def _sudden(n: int, place: int) -> F64:
    """Return columns (measurement, shape) of changes that take one to three measurements and contain `place`."""
    i = np.arange(n, dtype=np.float64)
    ends = [(place, 1), *((place + late, length) for length in (2, 3) for late in range(length))]
    return np.stack([np.clip((i - end) / length + 1, 0, 1) for end, length in ends], axis=1)


def _smooth(n: int, place: int) -> F64:
    """Return columns (measurement, shape) of what may be mistaken for a step at `place`: slopes, spikes and bends."""
    i = np.arange(n, dtype=np.float64)
    slopes = [
        scipy.special.ndtr((i - place + 0.5 - shift * width) / width)
        for width in _SLOPES
        for shift in np.arange(-1.0, 1.01, 0.25)
    ]
    spikes = [((i >= a) & (i < a + length)).astype(float) for length in _SPIKES for a in (place, place - length)]
    bends = [np.maximum(0, i - place - shift) for shift in np.arange(-8, 8.1, 0.5)]
    return np.stack([shape for shape in slopes + spikes + bends if np.ptp(shape) > 0], axis=1)
