"""Intervals, nulls and multiple tests: everything that a number takes to say how far it may be chance.

What varies by chance is whole examples, or seeds, or blocks of a series. Which of them stands behind which number, and
what each covers in simulation: docs/explanation/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from ndt_query.dependent import block_bootstrap
from ndt_query.inputs import one_of, require_count
from ndt_query.intervals import Interval, bootstrap_ci, jackknife, mean_ci, null_p_value
from ndt_query.proportions import clopper_pearson, paired_shares
from ndt_query.resampling import block_length, block_resamples
from ndt_query.seeds import agreement_over_seeds
from ndt_store.errors import DimensionError, InvalidInputError

__all__ = [
    "Interval",
    "PermutationNull",
    "agreement_over_seeds",
    "block_bootstrap",
    "block_length",
    "block_resamples",
    "bootstrap_ci",
    "clopper_pearson",
    "effect_size",
    "fdr",
    "jackknife",
    "mean_ci",
    "null_p_value",
    "paired_permutation_test",
    "paired_shares",
    "permutation_null",
]

F64 = NDArray[np.float64]
_BATCH: Final = 100


@dataclass(frozen=True, slots=True)
class PermutationNull:
    """An observed statistic, its values under permuted labels, and p = (b + 1) / (m + 1).

    Parameters
    ----------
    observed : ndarray (...)
        The statistic of the labels as they are.
    null : ndarray (permutation, ...)
        The statistic of permuted labels.
    p_value : ndarray (...)
        Share of labellings, the observed one among them, that reach the observed statistic.
    """

    observed: F64
    null: F64
    p_value: F64


def fdr(p_values: ArrayLike, *, axis: int = -1) -> F64:
    """Adjust p values for the false discovery rate, after Benjamini and Hochberg.

    Parameters
    ----------
    p_values : array_like
        Between 0 and 1. NaN stands for a test that could not be made: it stays NaN and does not count in the family.
    axis : int
        Tests along this axis are one family.

    Returns
    -------
    ndarray of float64
        From `scipy.stats.false_discovery_control`. The level holds for independent and for positively dependent tests
        (Benjamini and Yekutieli 2001).

    Examples
    --------
    >>> fdr([0.01, 0.02, 0.9]).round(3).tolist()
    [0.03, 0.03, 0.9]
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not -values.ndim <= axis < values.ndim:
        raise DimensionError(f"fdr needs p values along axis {axis}: got shape {values.shape}.")
    values = np.moveaxis(values, axis, -1)
    if ((values < 0) | (values > 1)).any():
        raise InvalidInputError("fdr needs p values between 0 and 1: got one outside of that.")
    adjusted = np.full(values.shape, np.nan)
    for place in np.ndindex(values.shape[:-1]):
        made = ~np.isnan(values[place])
        if made.any():
            adjusted[place][made] = scipy.stats.false_discovery_control(values[place][made])
    return np.moveaxis(adjusted, -1, axis)


def permutation_null(
    statistic: Callable[[NDArray[Any]], ArrayLike],
    labels: ArrayLike,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> PermutationNull:
    """Distribution of a statistic under permuted labels of whole examples.

    Parameters
    ----------
    statistic : callable
        Takes labels (example,) and returns a number or an array; larger means a stronger effect. Whatever is selected
        with the labels, as a preferred class is, has to be selected inside.
    labels : array_like (example,)
        Exchangeable under the null hypothesis.
    n_permutations, seed : int
        Number of permutations m and the seed that makes them repeatable.

    Returns
    -------
    PermutationNull
        With p = (b + 1) / (m + 1), b of the m permutations reaching the observed value; never 0, and valid whatever m
        is (Phipson and Smyth 2010). NaN where the observed value is NaN.
    """
    require_count("n_permutations", n_permutations, 1)
    given = np.asarray(labels)
    rng = np.random.default_rng(seed)
    observed = np.asarray(statistic(given), dtype=np.float64)
    null = np.stack([np.asarray(statistic(rng.permutation(given)), np.float64) for _ in range(n_permutations)])
    # Equal sums that were added in another order differ by rounding.
    with np.errstate(invalid="ignore"):
        limit = observed - 1e-10 * np.maximum(1.0, np.abs(observed))
    reached = (null >= np.where(np.isinf(observed), observed, limit)).sum(axis=0)
    p_value = np.where(np.isnan(observed), np.nan, null_p_value(reached, n_permutations))
    return PermutationNull(observed, null, p_value)


def paired_permutation_test(
    a: ArrayLike,
    b: ArrayLike,
    *,
    axis: int = 0,
    n_permutations: int = 9999,
    alternative: Literal["two-sided", "greater", "less"] = "two-sided",
    seed: int = 0,
) -> tuple[F64, F64]:
    """Test the mean difference of pairs against swapping within pairs.

    Parameters
    ----------
    a, b : array_like
        Paired along `axis`, of one shape.
    axis, n_permutations, seed : int
        Exact where all swaps are fewer than `n_permutations`.
    alternative : {"two-sided", "greater", "less"}
        Of ``mean(a - b)``.

    Returns
    -------
    difference, p_value : ndarray of float64
        From `scipy.stats.permutation_test`; both NaN where a pair holds a NaN.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise DimensionError(f"Pairs need one shape: got {first.shape} and {second.shape}.")
    if not -first.ndim <= axis < first.ndim or first.shape[axis] < 2:
        raise DimensionError(f"A test needs two or more pairs along axis {axis}: got shape {first.shape}.")
    one_of("alternative", alternative, ("two-sided", "greater", "less"))
    require_count("n_permutations", n_permutations, 1)

    def difference(x: F64, y: F64, axis: int) -> F64:
        return np.asarray((x - y).mean(axis=axis))

    found = scipy.stats.permutation_test(
        (first, second), difference, permutation_type="samples", axis=axis, n_resamples=n_permutations,
        alternative=alternative, vectorized=True, batch=_BATCH, rng=np.random.default_rng(seed),
    )  # fmt: skip
    observed = np.asarray(found.statistic, dtype=np.float64)
    # Comparisons with NaN are all false, which would count as the smallest p value of all.
    return observed, np.where(np.isnan(observed), np.nan, found.pvalue)


def effect_size(a: ArrayLike, b: ArrayLike, *, axis: int = 0, paired: bool = False) -> F64:
    """Standardised mean difference of a over b.

    Parameters
    ----------
    a, b : array_like
        Samples along `axis`.
    axis : int
        The axis of samples.
    paired : bool
        Divide the mean difference of pairs by its own standard deviation (d_z). Otherwise Hedges' g: by the pooled
        standard deviation, with the correction ``1 - 3 / (4 (n_a + n_b) - 9)`` for small samples (Hedges 1981).

    Returns
    -------
    ndarray of float64
        NaN where the samples vary by no more than rounding.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if not all(-one.ndim <= axis < one.ndim for one in (first, second)):
        raise DimensionError(f"effect_size needs samples along axis {axis}: got shapes {first.shape}, {second.shape}.")
    n_a, n_b = first.shape[axis], second.shape[axis]
    if min(n_a, n_b) < 2 or (paired and first.shape != second.shape):
        raise DimensionError(f"effect_size needs two or more samples, and pairs of one shape: got {n_a} and {n_b}.")
    if paired:
        change = first - second
        spread, factor, shift = change.std(axis=axis, ddof=1), 1.0, change.mean(axis=axis)
    else:
        pooled = (n_a - 1) * first.var(axis=axis, ddof=1) + (n_b - 1) * second.var(axis=axis, ddof=1)
        spread = np.sqrt(pooled / (n_a + n_b - 2))
        factor, shift = 1 - 3 / (4 * (n_a + n_b) - 9), first.mean(axis=axis) - second.mean(axis=axis)
    scale = np.maximum(np.abs(first).max(axis=axis), np.abs(second).max(axis=axis))
    varies = spread > 1e-14 * scale
    return np.asarray(np.where(varies, factor * shift / np.where(varies, spread, 1.0), np.nan))
