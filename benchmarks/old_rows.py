"""The rows of the table of old mistakes: what was measured, the number once noted, that of the old way, and ours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.old_cases import Found, Two

__all__ = [
    "Row",
    "of_cams",
    "of_global_z",
    "of_phases",
    "of_probes",
    "of_ranks",
    "of_ranks_off_centre",
    "of_similarities",
    "of_trailing_z",
]

F64 = NDArray[np.float64]
Row = tuple[str, str, str, str]
"""What was measured, the number noted when the mistake was found, that of the old way, and ours."""


def _spread(values: F64, digits: int = 2) -> str:
    return f"{np.nanmin(values):.{digits}f} to {np.nanmax(values):.{digits}f}"


def _mean(values: F64, digits: int = 1) -> str:
    return _number(float(np.nanmean(values)), digits)


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-" + f"{0:.{digits}f}", f"{0:.{digits}f}")


def _percent(holds: F64 | NDArray[np.bool_]) -> str:
    return f"{np.mean(holds):.0%}" if np.mean(holds) in (0, 1) else f"{np.mean(holds):.1%}"


def of_ranks(found: Found) -> list[Row]:
    """Stable rank by two Frobenius norms."""
    two = found.ranks
    what = f"stable rank of {len(two.truth)} data sets, truly {_spread(two.truth, 1)}"
    return [(what, "1.0", _spread(two.old), _spread(two.ours, 1))]


def of_ranks_off_centre(found: Found) -> list[Row]:
    """Stable rank with the mean left in."""
    two = found.off_centre
    return [
        (f"stable rank of normal noise, 200 × 64, about a mean of {mean:g}", noted, f"{old:.2f}", f"{here:.1f}")
        for old, here, mean, noted in zip(*two, [""] * (len(two.truth) - 1) + ["1.01; 26.3 here"], strict=True)
        if mean in (0, 1, two.truth[-1])
    ]


def of_global_z(found: Found) -> list[Row]:
    """Detect by z of the gradient."""
    n = len(found.noise.old)
    curves = found.exponentials
    return [
        ("jumps in 400 points of white noise", "about 7", _mean(found.noise.old), _mean(found.noise.ours, 2)),
        ("the same, neighbouring hits as one", "", _mean(found.noise_events), ""),
        ("jumps in a smooth, noisy exponential", "21", _mean(curves.old), _mean(curves.ours, 2)),
        (f"series of these {2 * n} with any jump", "", *_shares(found.noise, curves)),
    ]


def of_trailing_z(found: Found) -> list[Row]:
    """Detect by z in a trailing window."""
    late, off = (values[np.isfinite(values)] for values in found.places[:2])
    return [
        ("series of white noise with any jump", "90%", *_shares(found.trailing)),
        ("the same, windows short at the beginning", "", *_shares(found.trailing_short)),
        ("hits in a series with one jump of 4 standard deviations", "", _mean(found.per_jump.old),
         _mean(found.per_jump.ours)),
        ("measurements late that the jump is reported", "1 to 4", _lateness(late), _lateness(off)),
    ]  # fmt: skip


def _lateness(late: F64) -> str:
    return f"0 in {np.mean(late == 0):.0%}, 1 to 4 in {np.mean((late >= 1) & (late <= 4)):.0%}"


def _shares(*several: Two) -> tuple[str, str]:
    old, here = (np.concatenate([two[side] for two in several]) > 0 for side in (0, 1))
    return _percent(old), _percent(here)


def of_phases(found: Found) -> list[Row]:
    """Place jumps by index and by step."""
    two = found.phases
    return [
        ("phase of 9 jumps, truly " + _spread(two.truth), "", _spread(two.old), _spread(two.ours)),
        (f"of {int((two.truth > 0.5).sum())} jumps after half of training, said to be there", "0",
         *(str(int((side[two.truth > 0.5] > 0.5).sum())) for side in two[:2])),
    ]  # fmt: skip


def of_probes(found: Found) -> list[Row]:
    """Score fits in sample and held out."""
    two = found.probes
    return [
        ("R2 of noise from noise, 160 examples, 128 units", "0.76", _mean(two.old, 2), _mean(two.ours, 2)),
        ("targets of noise with R2 > 0.7", "", *(_percent(side > 0.7) for side in two[:2])),
    ]


def of_cams(found: Found) -> list[Row]:
    """Subtract maps."""
    maps = found.cams
    place = np.unravel_index(maps.before[0].argmax(), maps.before[0].shape)
    grown = [np.abs(side[1]).max() for side in (maps.old, maps.ours)]
    return [
        ("change at a place that stayed as it was", "", *(_number(side[0][place], 2) for side in maps[2:])),
        ("largest change of a map that grew from 1 to 3", "", *(_number(value, 2) for value in grown)),
    ]


def of_similarities(found: Found) -> list[Row]:
    """Compare independent data."""
    two = found.similarities
    return [
        ("CKA of independent data, 64 examples, 512 units", "0.89; 0.003 here", _mean(two.old, 3), _mean(two.ours, 3))
    ]
