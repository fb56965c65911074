"""Whether one trajectory is smoother than another: derivatives, compared by tests that know of their dependence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from ndt_query.dependent import Resampled, resampled
from ndt_query.inputs import require_count
from ndt_query.intervals import require_level
from ndt_query.layers import described
from ndt_query.series import SeriesLike, Trajectories, as_trajectories
from ndt_store.errors import DimensionError

__all__ = ["smoothness"]

F64 = NDArray[np.float64]
SERIES: Final = "series"
INTERVAL: Final = "interval"
LEAST: Final = 9
OF_EACH: Final = ("variance", "variance_low", "variance_high", "block_length")
NUMBERS: Final = (
    "log_variance_ratio", "log_variance_ratio_low", "log_variance_ratio_high", "log_variance_ratio_p_value",
    "levene_statistic", "levene_p_value", "levene_block_p_value", "kruskal_statistic", "kruskal_p_value",
    "kruskal_block_p_value", "epsilon_squared", "rank_biserial", "rank_biserial_low", "rank_biserial_high",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _How:
    confidence: float
    n_resamples: int
    seed: int


def smoothness(
    series_a: SeriesLike,
    series_b: SeriesLike,
    steps: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Compare how smooth two trajectories are, by the variance of their derivatives.

    Parameters
    ----------
    series_a, series_b : array_like (step,), or DataArray or Dataset (..., step)
        Two runs' values of one measure, or two measures, at the same steps. Of named ones, ``step`` or ``checkpoint``
        is training, and each pair along the other dimensions, which both have, is compared.
    steps : array_like (step,), optional
        Training step of each value of plain arrays; 0, 1, 2, ... without it.
    confidence : float
        Nominal level of the intervals.
    n_resamples, seed : int
        Resamples of blocks, and what makes them repeatable.

    Returns
    -------
    Dataset
        A derivative is the difference of neighbouring values over the steps between them, after each series has been
        divided by its own range, so that series on different scales compare: it is in ranges a step. Over the
        dimensions of the series but training:

        ``variance`` (..., series)
            Of the derivatives, with ``variance_low`` and ``variance_high``.
        ``log_variance_ratio``
            log of the variance of a over that of b, above 0 where b is smoother, with ``_low``, ``_high`` and
            ``_p_value``, from blocks. Few large derivatives make a variance.
        ``levene_statistic``, ``levene_p_value``, ``levene_block_p_value``
            Brown and Forsythe's form: whether the mean distance from the median differs, to which most derivatives add.
        ``kruskal_statistic``, ``kruskal_p_value``, ``kruskal_block_p_value``
            Whether derivatives of one tend to be larger than those of the other.
        ``rank_biserial``
            Probability that a derivative of a exceeds one of b, less that of the opposite, with ``_low`` and ``_high``;
            ``epsilon_squared`` is the share of the variance of ranks between the series, H / (n - 1).
        ``trajectory`` (..., series, step), ``derivative`` (..., series, interval)
            What was compared; ``interval`` is the middle between two steps.
        ``block_length`` (..., series), ``n``, ``nan_count`` (..., series)
            Blocks of the deviations from the median, in derivatives; derivatives of each series; values that are NaN.

        A NaN or Inf in either series, or one that never changes, makes all but the counts NaN. Beside a straight line,
        whose variance is 0, the variance of the other is all that is told.

    Raises
    ------
    DimensionError
        The series differ in their steps or dimensions, or have fewer than 9 values.

    Notes
    -----
    Derivatives depend on their neighbours, so that the p values of Levene and of Kruskal are too small: they call 33%
    and 51% of like pairs different at 5%, where derivatives are autoregressive with a correlation of 0.8 (1,000 pairs
    of 200 derivatives); the block p values call 4% and 5% so. These are Welch's tests of a difference in mean, of
    distances from the median and of ranks in both series together, with the standard errors of
    `ndt_query.block_bootstrap`, and the intervals go with them. About 0.2 s a pair of 400 values.

    Each series goes through its own range once, so that the mean derivatives of two rising ones agree whatever they do
    between: their ranks tell where most derivatives lie, near 0 in a series that rises in few leaps. A series whose
    range is all noise is divided by that noise, and so is its roughness.

    What is compared is two series, as they would go on: n is derivatives, not seeds. That one architecture learns more
    smoothly than another is a claim about seeds: give the log variance ratios of several pairs to
    `ndt_query.agreement_over_seeds`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> trend = np.linspace(0, 10, 200)
    >>> rough, smooth = trend + rng.standard_normal(200), trend + 0.1 * rng.standard_normal(200)
    >>> found = smoothness(rough, smooth)
    >>> bool(found["log_variance_ratio_low"] > 0), bool(found["levene_block_p_value"] < 0.001)
    (True, True)
    """
    require_level(confidence)
    require_count("n_resamples", n_resamples, 2)
    require_count("seed", seed, 0)
    a, b = _pair(series_a, series_b, steps)
    n = len(a.steps)
    how = _How(confidence, n_resamples, seed)
    pairs = zip(a.values.reshape(-1, n), b.values.reshape(-1, n), strict=True)
    rows = [_compared(np.stack(pair), a.steps, how) for pair in pairs]
    variables = {}
    for name, first in rows[0].items():
        last = {"trajectory": (SERIES, a.dim), "derivative": (SERIES, INTERVAL)}.get(name, (SERIES,) * first.ndim)
        stacked = np.stack([row[name] for row in rows]).reshape((*a.values.shape[:-1], *first.shape))
        variables[name] = xr.Variable((*a.others, *last), stacked)
    names = [a.name, b.name] if a.name and b.name and a.name != b.name else ["a", "b"]
    coords = {**a.coords, SERIES: names, INTERVAL: (a.steps[1:] + a.steps[:-1]) / 2}
    what = "smoothness of two trajectories, by their derivatives"
    return described(variables, a.source, what, asdict(how), squeeze=False, coords=coords)


def _pair(series_a: SeriesLike, series_b: SeriesLike, steps: ArrayLike | None) -> tuple[Trajectories, Trajectories]:
    a, b = as_trajectories(series_a, steps), as_trajectories(series_b, steps)
    if not np.array_equal(a.steps, b.steps):
        raise DimensionError(
            f"The series have {len(a.steps)} and {len(b.steps)} values, not at the same steps, and derivatives over "
            "other spans of training do not compare: select the steps that both have."
        )
    if a.others != b.others or a.values.shape != b.values.shape:
        raise DimensionError(
            f"The series have dims {a.others} of {a.values.shape[:-1]} and {b.others} of {b.values.shape[:-1]} beside "
            "training: give the same ones, or select one series of each."
        )
    for name in a.others:
        labels = [one.coords[name] for one in (a, b) if name in one.coords]
        if len(labels) == 2 and not np.array_equal(labels[0], labels[1]):
            raise DimensionError(f"The series differ in the labels of {name}: select those that both have.")
    if len(a.steps) < LEAST:
        raise DimensionError(f"A comparison of derivatives needs {LEAST} values or more: got {len(a.steps)}.")
    return a, b


def _compared(pair: F64, steps: F64, how: _How) -> dict[str, NDArray[Any]]:
    """Everything about two series (2, step), by the names of the result."""
    with np.errstate(invalid="ignore", divide="ignore"):
        extent = np.ptp(pair, axis=1, keepdims=True)
        shown = (pair - pair.min(axis=1, keepdims=True)) / np.where(extent > 0, extent, np.nan)
    derivatives = np.diff(shown, axis=1) / np.diff(steps)
    found: dict[str, Any] = dict.fromkeys(NUMBERS, np.nan) | {name: np.full(2, np.nan) for name in OF_EACH}
    found |= {"trajectory": shown, "derivative": derivatives, "n": len(steps) - 1}
    found["nan_count"] = np.isnan(pair).sum(axis=1)
    # Equal steps up have derivatives that differ by rounding.
    varies = derivatives.std(axis=1) > 1e-10 * np.abs(derivatives).max(axis=1)
    if varies.all():
        found |= _spreads(derivatives, how) | _ranks(derivatives, how)
    elif np.isfinite(derivatives).all():
        found["variance"] = np.where(varies, derivatives.var(axis=1, ddof=1), 0.0)
    return {name: np.asarray(value) for name, value in found.items()}


def _spreads(derivatives: F64, how: _How) -> dict[str, Any]:
    """Compare variances, on the scale of their logarithms, where intervals are about even."""
    n = derivatives.shape[1]
    squares = (derivatives - derivatives.mean(axis=1, keepdims=True)) ** 2 * n / (n - 1)
    variance = squares.mean(axis=1)
    # The error of a logarithm is that of the value over the value.
    each = [_resampled(row, place, how) for place, row in enumerate(squares / variance[:, None])]
    reach = np.array([_quantile(one.degrees, how) * float(one.standard_error) for one in each])
    log_ratio = float(np.log(variance[0] / variance[1]))
    reach_of_ratio, p_value = _tested(log_ratio, each, how)
    deviations = np.abs(derivatives - np.median(derivatives, axis=1, keepdims=True))
    spreads = [_resampled(row, place, how) for place, row in enumerate(deviations)]
    _, levene_block_p_value = _tested(_difference(spreads), spreads, how)
    levene = scipy.stats.levene(*derivatives)
    return {
        "variance": variance,
        "variance_low": variance * np.exp(-reach),
        "variance_high": variance * np.exp(reach),
        "log_variance_ratio": log_ratio,
        "log_variance_ratio_low": log_ratio - reach_of_ratio,
        "log_variance_ratio_high": log_ratio + reach_of_ratio,
        "log_variance_ratio_p_value": p_value,
        "levene_statistic": levene.statistic,
        "levene_p_value": levene.pvalue,
        "levene_block_p_value": levene_block_p_value,
        "block_length": np.array([one.length for one in spreads]),
    }


def _ranks(derivatives: F64, how: _How) -> dict[str, Any]:
    """Compare where derivatives of one lie among those of the other."""
    n = derivatives.shape[1]
    ranks = scipy.stats.rankdata(derivatives).reshape(2, n)
    each = [_resampled(row, place, how) for place, row in enumerate(ranks)]
    difference = _difference(each)
    reach, p_value = _tested(difference, each, how)
    kruskal = scipy.stats.kruskal(*derivatives)
    return {
        "kruskal_statistic": kruskal.statistic,
        "kruskal_p_value": kruskal.pvalue,
        "kruskal_block_p_value": p_value,
        "epsilon_squared": kruskal.statistic / (2 * n - 1),
        # A difference of mean ranks lies between -n and n.
        "rank_biserial": difference / n,
        "rank_biserial_low": max(-1.0, (difference - reach) / n),
        "rank_biserial_high": min(1.0, (difference + reach) / n),
    }


def _resampled(scores: F64, place: int, how: _How) -> Resampled:
    # Two series are independent: their resamples have seeds of their own.
    return resampled(scores, n_resamples=how.n_resamples, seed=2 * how.seed + place)


def _difference(each: Sequence[Resampled]) -> float:
    a, b = each
    return float(a.estimate - b.estimate)


def _tested(difference: float, each: Sequence[Resampled], how: _How) -> tuple[float, float]:
    """Reach of the interval of a difference with these standard errors, and its p value, after Welch."""
    errors = np.array([float(one.standard_error) ** 2 for one in each])
    total, degrees = float(errors.sum()), np.array([one.degrees for one in each])
    together = total**2 / float((errors**2 / degrees).sum())
    error = float(np.sqrt(total))
    return _quantile(together, how) * error, float(2 * scipy.stats.t.sf(abs(difference) / error, together))


def _quantile(degrees: float, how: _How) -> float:
    return float(scipy.stats.t.ppf((1 + how.confidence) / 2, degrees))
