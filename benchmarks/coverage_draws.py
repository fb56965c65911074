"""Draws whose truth is known, and how often the intervals and tests of `ndt_query` are right about them.

`benchmarks.coverage` lists them as cases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import scipy.signal
import scipy.stats
import xarray as xr

import ndt_query as nq

SEED: Final = 17
DRAWS: Final = 1000
MANY: Final = 4000
"""Draws where they are the columns of few arrays."""

COLUMNS: Final = 250
EIGENVALUES: Final = 0.7 ** np.arange(12)
MIXED: Final = np.random.default_rng(1).standard_normal((2, 3, 8))
"""What three factors add to each of eight units, on two sides."""

WRONG_BEFORE, WRONG_AFTER = 0.1, 0.2

Array = np.ndarray[Any, np.dtype[np.float64]]


def mean(sample: Array, axis: int) -> Array:
    """Mean of a sample."""
    return np.asarray(sample.mean(axis=axis))


def deviation(sample: Array, axis: int) -> Array:
    """Sample standard deviation, whose own distribution is skewed."""
    return np.asarray(sample.std(axis=axis, ddof=1))


def exponential(n: int, columns: int, part: int) -> Array:
    """Return skewed data of mean and standard deviation 1."""
    return np.random.default_rng((SEED, part)).standard_exponential((n, columns))


def normal(n: int, columns: int, part: int) -> Array:
    """Return normal data of mean and standard deviation 1."""
    return 1 + np.random.default_rng((SEED, part)).standard_normal((n, columns))


def answers(n: int, columns: int, part: int) -> Array:
    """Return differences of right and wrong answers to the same examples before and after, moved to a mean of 1."""
    hard, luck = np.random.default_rng((SEED, part)).random((2, n, columns))
    before, after = hard > WRONG_BEFORE, hard > WRONG_AFTER
    # Some change their answer by luck alone, alike often before and after.
    swapped = luck < 0.1
    before, after = np.where(swapped, after, before), np.where(swapped, before, after)
    return 1 + before.astype(float) - after - 0.8 * (WRONG_AFTER - WRONG_BEFORE)


def held(low: Any, high: Any, truth: Any) -> float:
    """Share of intervals that hold the truth."""
    return float(np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high))))


def of_mean(draw: Callable[..., Array], n: int) -> float:
    """Student's interval of a mean that is 1."""
    found = nq.mean_ci(draw(n, MANY, 0))
    return held(found.low, found.high, 1)


def of_bootstrap(method: Any, statistic: Callable[..., Array], draw: Callable[..., Array], n: int) -> float:
    """Bootstrap interval of something that is 1; columns share their resamples, which are many."""
    shares, columns = [], COLUMNS if n < 500 else COLUMNS // 5  # n^2 numbers a column are held at once
    for part in range(MANY // columns):
        found = nq.bootstrap_ci(draw(n, columns, part), statistic, method=method, n_resamples=1000, seed=part)
        shares.append(held(found.low, found.high, 1))
    return float(np.mean(shares))


def of_rate(n: int) -> float:
    """Clopper-Pearson's limits, not by simulation: the least coverage of any rate, summed over all counts."""
    low, high = nq.clopper_pearson(np.arange(n + 1), n)
    rates = np.linspace(0.001, 0.999, 999)[:, None]
    inside = (low <= rates) & (rates <= high)
    return float((scipy.stats.binom.pmf(np.arange(n + 1), n, rates) * inside).sum(axis=1).min())


@functools.cache
def dimensions_found(n: int) -> xr.Dataset:
    """Dimension of normal data with a known covariance; checkpoints are draws."""
    values = np.random.default_rng(SEED).standard_normal((DRAWS, n, len(EIGENVALUES))) * np.sqrt(EIGENVALUES)
    return nq.dimensionality(xr.DataArray(values, dims=("checkpoint", "example", "unit")))


def of_dimension(measure: str, n: int) -> float:
    """Jackknife interval of the participation ratio."""
    found = dimensions_found(n)
    truth = EIGENVALUES.sum() ** 2 / (EIGENVALUES**2).sum()
    return held(found[f"{measure}_low"], found[f"{measure}_high"], truth)


@functools.cache
def compositions_found(n: int, p: int, share: float) -> xr.Dataset:
    """Late units of which five of p early units explain a share; checkpoints are draws."""
    rng = np.random.default_rng(SEED)
    n_draws, q = DRAWS // 8, 8
    early = rng.standard_normal((n_draws, n, p))
    signal = early[..., :5].sum(axis=-1, keepdims=True) * np.sqrt(share / 5)
    late = signal + np.sqrt(1 - share) * rng.standard_normal((n_draws, n, q))
    dims = ("checkpoint", "example", "unit")
    return nq.compose(xr.DataArray(early, dims=dims), xr.DataArray(late, dims=dims), n_permutations=19)


def of_composition(n: int, p: int, share: float) -> float:
    """Jackknife interval of held-out R2, whose truth is its mean over draws: each is unbiased."""
    found = compositions_found(n, p, share)
    return held(found["r2_low"], found["r2_high"], found["r2"].mean().item())


def of_no_composition(n: int, p: int, q: int) -> float:
    """Share of draws of noise in which any late unit stands out from the shuffled ones."""
    early, late = (np.random.default_rng((SEED, part)).standard_normal((DRAWS, n, k)) for part, k in enumerate((p, q)))
    dims = ("checkpoint", "example", "unit")
    found = nq.compose(xr.DataArray(early, dims=dims), xr.DataArray(late, dims=dims), interval="none")
    return float((found["q_value"] <= 0.05).any("unit").mean())


def similarities(n: int, batch_size: int, shared: bool, n_permutations: int) -> list[xr.Dataset]:
    """CKA of eight units each with eight others, which have three factors in common with them or nothing."""
    rng = np.random.default_rng(SEED)
    found = []
    for _ in range(DRAWS):
        z, noise = rng.standard_normal((n, 3)), rng.standard_normal((2, n, 8))
        pair = [
            xr.DataArray(z @ mix * shared + one, dims=("example", "unit"))
            for mix, one in zip(MIXED, noise, strict=True)
        ]
        found.append(nq.cka(*pair, batch_size=batch_size, n_permutations=n_permutations))
    return found


def of_similarity(n: int, batch_size: int) -> float:
    """Jackknife interval of CKA, whose truth follows from the covariances."""
    one, other = MIXED
    own = [np.sum((mix.T @ mix + np.eye(8)) ** 2) for mix in MIXED]
    truth = np.sum((one.T @ other) ** 2) / np.sqrt(own[0] * own[1])
    found = similarities(n, batch_size, True, 1)
    return float(np.mean([float(one["cka_low"]) <= truth <= float(one["cka_high"]) for one in found]))


def of_no_similarity(n: int, batch_size: int) -> float:
    """Share of draws of independent units whose p value is 5% or less."""
    return float(np.mean([float(one["p_value"]) <= 0.05 for one in similarities(n, batch_size, False, 99)]))


def autoregressive(rho: float, *shape: int) -> Array:
    """Stationary noise of variance 1 along the last axis; a random walk of unit steps at rho = 1."""
    noise = np.random.default_rng(SEED).standard_normal(shape)
    if rho < 1:
        noise[..., 1:] *= np.sqrt(1 - rho**2)
    return np.asarray(scipy.signal.lfilter([1.0], [1.0, -rho], noise, axis=-1))


def hidden(rho: float, *shape: int) -> Array:
    """Slow noise under white noise of the same size."""
    return autoregressive(rho, *shape) + np.random.default_rng(SEED + 1).standard_normal(shape)


def of_blocks(method: Any, draw: Callable[..., Array], rho: float, n: int) -> float:
    """Block bootstrap interval of the mean of a series that depends on its past."""
    found = [
        nq.block_bootstrap(one, method=method, n_resamples=500, seed=k) for k, one in enumerate(draw(rho, DRAWS, n))
    ]
    return held([one.low for one in found], [one.high for one in found], 0)


@functools.cache
def agreement_found(n: int, interval: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """Agreement on 20 layers of seeds with levels of their own and noise, and the truth about it."""
    rng = np.random.default_rng(SEED)
    effects = rng.standard_normal((MANY, 1, 20))
    values = effects + 0.3 * rng.standard_normal((MANY, n, 1)) + 0.5 * rng.standard_normal((MANY, n, 20))
    data = xr.DataArray(values, dims=("draw", "run", "layer"))
    between = 0.3**2 + 0.5**2
    truth = {"mean": effects[:, 0], "standard_deviation": between**0.5, "icc": 1 / (1 + between)}
    return nq.agreement_over_seeds(data, over="layer", interval=interval, n_permutations=1), truth


def of_seeds(measure: str, n: int, interval: str = "t") -> float:
    """Interval of a measure of agreement."""
    found, truth = agreement_found(n, interval)
    return held(found[f"{measure}_low"], found[f"{measure}_high"], truth[measure])


def of_growth(rho: float, n: int) -> float:
    """Intervals of all four parameters of a logistic rise of 5 deviations of its noise, where growth is found."""
    truth = {"rate": 12 / n, "midpoint": 0.45 * n, "ceiling": 7.0, "floor": 2.0}
    rise = 2 + 5 / (1 + np.exp(-truth["rate"] * (np.arange(n) - truth["midpoint"])))
    found = nq.fit_growth(
        xr.DataArray(rise + autoregressive(rho, DRAWS, n), dims=("draw", "step")), n_resamples=200, n_null=99
    )
    found = found.isel(draw=np.flatnonzero(found["growth"]))
    return float(np.mean([held(found[f"{name}_low"], found[f"{name}_high"], truth[name]) for name in truth]))


def of_no_growth(rho: float, n: int) -> float:
    """Share of series of noise in which growth is found."""
    series = xr.DataArray(autoregressive(rho, DRAWS, n), dims=("draw", "step"))
    return float(nq.fit_growth(series, n_resamples=2, n_null=499)["growth"].mean())


@functools.cache
def smoothness_found(test: str, rho: float) -> xr.Dataset:
    """Comparisons of pairs of series of one law, 200 derivatives each.

    Series that are divided by their ranges are of one law where the ranges agree: because of a steep slope, which
    leaves ranks nothing to differ in, or of one leap and back, which leaves spreads nothing to differ in.
    """
    derivatives = autoregressive(rho, 2, DRAWS, 200)
    if test == "levene":
        derivatives += 50
    else:
        derivatives[..., :2] += [1e4, -1e4]
    series = np.concatenate([np.zeros((2, DRAWS, 1)), derivatives.cumsum(axis=-1)], axis=-1)
    a, b = (xr.DataArray(one, dims=("draw", "step")) for one in series)
    return nq.smoothness(a, b, n_resamples=200)


def of_ratio(rho: float) -> float:
    """Interval of the log variance ratio of derivatives, which is 0."""
    found = smoothness_found("levene", rho)
    return held(found["log_variance_ratio_low"], found["log_variance_ratio_high"], 0)


def of_smoothness(test: str, kind: str, rho: float) -> float:
    """Share of like pairs that a test of smoothness calls different."""
    return float((smoothness_found(test, rho)[f"{test}_{kind}"] < 0.05).mean())


def of_swaps(n: int) -> float:
    """Share of pairs without a difference that the test that swaps within them calls different."""
    before, after = np.random.default_rng(SEED).standard_exponential((2, n, MANY))
    return float((nq.paired_permutation_test(before, after, n_permutations=999)[1] <= 0.05).mean())


def of_labels(n: int) -> float:
    """Share of labellings without meaning that stand out from their permutations."""
    values = np.random.default_rng(SEED).standard_exponential((MANY, n))

    def gap(labels: Any) -> Array:
        return np.abs(values[:, labels == 1].mean(axis=1) - values[:, labels == 0].mean(axis=1))

    return float((nq.permutation_null(gap, np.arange(n) % 2, n_permutations=199).p_value <= 0.05).mean())
