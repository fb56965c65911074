"""Curves of learning: when a level is first reached, the mean below a curve, and values at other places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["area", "first_reached", "resampled", "smooth"]

F64 = NDArray[np.float64]

WIDTH: Final = 5
LEAST: Final = 20
LAST_SHARE: Final = 0.05


def smooth(values: F64) -> F64:
    """Return the running median of five, of fewer at the ends; NaN is passed over."""
    half = WIDTH // 2
    padded = np.pad(values, half, constant_values=math.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, WIDTH)
    return np.array([np.median(one[~np.isnan(one)]) if (~np.isnan(one)).any() else math.nan for one in windows])


def first_reached(places: F64, values: F64, fractions: Sequence[float]) -> F64:
    """Place at which a smoothed curve first reached fractions of its final value, by linear interpolation.

    The final value is the median of the last 5% of values, three at least. NaN where it never got there, and all NaN of
    fewer than `LEAST` values, of which a median of neighbours and a final value would be made of the same.
    """
    found = np.full(len(fractions), math.nan)
    last = values[-max(3, math.ceil(LAST_SHARE * len(values))) :]
    if len(values) < LEAST or np.isnan(last).all():
        return found
    curve, final = smooth(values), float(np.nanmedian(last))
    for n, fraction in enumerate(fractions):
        level = fraction * final
        above = np.flatnonzero(curve >= level)
        if not above.size:
            continue
        at = int(above[0])
        if at == 0:
            found[n] = places[0]
            continue
        share = (level - curve[at - 1]) / (curve[at] - curve[at - 1])
        found[n] = places[at - 1] + share * (places[at] - places[at - 1])
    return found


def area(places: F64, values: F64, low: float, high: float) -> float:
    """Mean of a curve between two places that it reaches; NaN is passed over, and is the mean of no curve."""
    known = ~np.isnan(values)
    if not known.any() or not places[known][0] <= low < high <= places[known][-1]:
        return math.nan
    at = np.concatenate([[low], places[(places > low) & (places < high) & known], [high]])
    return float(np.trapezoid(np.interp(at, places[known], values[known]), at) / (high - low))


def resampled(places: F64, values: F64, grid: F64) -> F64:
    """Values at other places, by linear interpolation, NaN beyond.

    NaN is passed over; of places that stand still the first counts.
    """
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(grid), math.nan)
    places, values = places[known], values[known]
    keep = np.insert(np.diff(places) > 0, 0, True)
    found: F64 = np.interp(grid, places[keep], values[keep], left=math.nan, right=math.nan)
    return found
