"""Class selectivity of units: index, d-prime and AUROC from per-class sums and ranks, with a label-permutation null.

All functions take one checkpoint's activations averaged over positions, (example, unit). The preferred class of a unit
is the one with the largest mean. Choosing it is part of the statistic: each permutation chooses its own, so that the
null contains the selection and a p value is honest about it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import spans
from ndt_store.views.classes import one_hot

__all__ = [
    "STATISTICS",
    "auroc",
    "average_ranks",
    "batch_size",
    "class_sums",
    "dprime",
    "held_out_auroc",
    "index",
    "normalised",
    "permutation_counts",
]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

STATISTICS = ("auto", "index", "dprime", "auroc")
_BATCH_NBYTES = 32 << 20
_TIE = 1e-10
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


def class_sums(values: F64, codes: I64, n_classes: int) -> F64:
    """Return sums (..., class, unit) of values (example, unit) over the classes that codes (..., example) assign."""
    return np.asarray(one_hot(codes, n_classes) @ values)


def _preferred(sums: F64, counts: I64) -> tuple[I64, F64, F64]:
    """Preferred class (..., unit), its mean, and all class means."""
    means = sums / counts[:, None]
    preferred = means.argmax(axis=-2)
    top = np.take_along_axis(means, preferred[..., None, :], axis=-2)[..., 0, :]
    return preferred, top, means


def index(sums: F64, counts: I64) -> tuple[F64, I64]:
    """Return the index (m_max - m_rest) / (m_max + m_rest) and the preferred class, each (..., unit).

    ``m_rest`` is the mean of the other classes' means, so that classes weigh the same whatever their size. Between 0
    and 1 for non-negative units; NaN for one that never fires. Morcos et al. 2018, "On the importance of single
    directions for generalization".

    Parameters
    ----------
    sums : ndarray (..., class, unit)
        Per-class sums of the units' activations.
    counts : ndarray (class,)
        Examples of each class, at least one each.
    """
    preferred, top, means = _preferred(sums, counts)
    rest = (means.sum(axis=-2) - top) / (len(counts) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (top - rest) / (top + rest), preferred


def dprime(sums: F64, squares: F64, counts: I64) -> tuple[F64, I64]:
    """Return d' = (mean of the preferred class - mean of all other examples) / root mean of the two variances.

    Variances divide by n, so that a class of one example has one. NaN for a constant unit, infinite where both
    variances are 0 and the means differ.

    Parameters
    ----------
    sums, squares : ndarray (..., class, unit)
        Per-class sums of the activations and of their squares, best about each unit's mean.
    counts : ndarray (class,)
        Examples of each class.
    """
    preferred, top, _ = _preferred(sums, counts)
    n = counts[preferred]
    n_rest = counts.sum() - n
    chosen = preferred[..., None, :]
    top_square = np.take_along_axis(squares, chosen, axis=-2)[..., 0, :]
    rest = (sums.sum(axis=-2) - top * n) / n_rest
    rest_square = squares.sum(axis=-2) - top_square
    raw = top_square / n + rest_square / n_rest
    variance = np.maximum(top_square / n - top**2, 0) + np.maximum(rest_square / n_rest - rest**2, 0)
    # What is left of equal values after the subtraction is rounding, and would make d' a large number by chance.
    variance = np.where(variance > 1e-13 * raw, variance, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (top - rest) / np.sqrt(variance / 2), preferred


def average_ranks(values: F64) -> F64:
    """Ranks from 1 along the first axis, ties averaged, as the AUROC of tied values needs them."""
    n = len(values)
    order = values.argsort(axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    places = np.arange(n)[:, None]
    opens = np.ones(values.shape, bool)
    opens[1:] = ordered[1:] != ordered[:-1]
    closes = np.ones(values.shape, bool)
    closes[:-1] = opens[1:]
    first = np.maximum.accumulate(np.where(opens, places, 0), axis=0)
    last = np.minimum.accumulate(np.where(closes, places, n - 1)[::-1], axis=0)[::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=0)
    return ranks


def auroc(rank_sums: F64, sums: F64, counts: I64) -> tuple[F64, I64]:
    """Probability that an example of the preferred class exceeds one of the others, ties counting half.

    Parameters
    ----------
    rank_sums, sums : ndarray (..., class, unit)
        Per-class sums of `average_ranks` and of the activations.
    counts : ndarray (class,)
        Examples of each class.
    """
    preferred, _, _ = _preferred(sums, counts)
    n = counts[preferred]
    own = np.take_along_axis(rank_sums, preferred[..., None, :], axis=-2)[..., 0, :]
    return (own - n * (n + 1) / 2) / (n * (counts.sum() - n)), preferred


def statistics(values: F64, codes: I64, counts: I64, wanted: str, signed: NDArray[np.bool_]) -> dict[str, F64]:
    """Index, d-prime and AUROC of values (example, unit) under codes (..., example), each (..., unit).

    Parameters
    ----------
    values : ndarray (example, unit)
        Activations, finite.
    codes : ndarray of int64 (..., example)
        Class of each example, for one labelling or many.
    counts : ndarray (class,)
        Examples of each class, the same in every labelling.
    wanted : str
        One of `STATISTICS`, or ``"all"``; what is not wanted is not computed.
    signed : ndarray of bool (unit,)
        Units with negative values, for which the index is not defined.
    """
    values = normalised(values)
    ranks = average_ranks(values) if wanted in ("auroc", "all") else None
    return _statistics(values, ranks, codes, counts, wanted, signed)


def normalised(values: F64) -> F64:
    """Scale units to a magnitude of about 1, and make those that vary by rounding alone constant.

    No statistic here depends on the scale, but squares of very large or small activations leave the range of float64.
    Powers of two keep every digit.
    """
    largest = np.abs(values).max(axis=0)
    scaled: F64 = np.ldexp(values, -np.frexp(largest)[1])
    constant = np.ptp(scaled, axis=0) <= _ROUNDING
    scaled[:, constant] = scaled[0, constant]
    return scaled


def _statistics(
    values: F64, ranks: F64 | None, codes: I64, counts: I64, wanted: str, signed: NDArray[np.bool_]
) -> dict[str, F64]:
    centre = values.mean(axis=0)
    indicator = one_hot(codes, len(counts))
    deviations = values - centre
    sums = indicator @ deviations
    found: dict[str, F64] = {}
    if wanted in ("index", "auto", "all"):
        ratio, preferred = index(sums + counts[:, None] * centre, counts)
        found["index"] = np.where(signed, np.nan, np.clip(ratio, 0.0, 1.0))
        found["preferred"] = preferred.astype(np.float64)
    if wanted in ("dprime", "all") or (wanted == "auto" and signed.any()):
        found["dprime"] = dprime(sums, indicator @ deviations**2, counts)[0]
    if ranks is not None:
        found["auroc"] = auroc(indicator @ ranks, sums, counts)[0]
    return found


def _tested(found: dict[str, F64], statistic: str, signed: NDArray[np.bool_]) -> F64:
    if statistic != "auto":
        return found[statistic]
    return np.where(signed, found["dprime"], found["index"]) if "dprime" in found else found["index"]


def held_out_auroc(values: F64, codes: I64, n_classes: int) -> F64:
    """AUROC (unit,) of a class that was chosen on other examples: the mean over both halves of the examples.

    Halves take the examples of each class in turn. On each the class of the largest mean is chosen, whose AUROC on the
    other half counts, so that the choice cannot make chance look like selectivity. NaN where a class has one example.

    Parameters
    ----------
    values : ndarray (example, unit)
        Activations, finite.
    codes : ndarray of int64 (example,)
        Class of each example.
    n_classes : int
    """
    if np.bincount(codes, minlength=n_classes).min() < 2:
        return np.full(values.shape[1], np.nan)
    values = normalised(values)
    order = np.argsort(codes, kind="stable")
    turn = np.empty(len(codes), np.int64)
    turn[order] = np.arange(len(codes)) - np.searchsorted(codes[order], codes[order])
    halves = []
    for half in (0, 1):
        rows = turn % 2 == half
        counts = np.bincount(codes[rows], minlength=n_classes)
        sums, ranks = (class_sums(some, codes[rows], n_classes) for some in (values[rows], average_ranks(values[rows])))
        halves.append((counts, sums, ranks))
    found = np.zeros(values.shape[1])
    for (n_chosen, sums, _), (n_told, _, ranks) in (halves, halves[::-1]):
        preferred, _, _ = _preferred(sums, n_chosen)
        n = n_told[preferred]
        own = np.take_along_axis(ranks, preferred[None], axis=0)[0]
        found += (own - n * (n + 1) / 2) / (n * (n_told.sum() - n)) / 2
    return found


def permutation_counts(
    values: F64,
    codes: I64,
    n_classes: int,
    signed: NDArray[np.bool_],
    statistic: str,
    n_permutations: int,
    seed: int,
) -> tuple[I64, F64]:
    """How many of m random relabellings give each unit at least its observed statistic, and that statistic.

    Labels are permuted over whole examples; every permutation chooses the preferred class anew. Values within 1e-10
    of the observed one count as reaching it, because sums in another order differ by rounding.

    Parameters
    ----------
    values : ndarray (example, unit)
        Activations, finite.
    codes : ndarray of int64 (example,)
        Observed classes.
    n_classes : int
        Number of classes, each with an example.
    signed : ndarray of bool (unit,)
        Units with negative values, for which the index is not defined.
    statistic : str
        One of `STATISTICS`; ``"auto"`` is the index for non-negative units and d-prime for signed ones.
    n_permutations, seed : int
        Number of permutations and the seed that makes them repeatable.
    """
    counts = np.bincount(codes, minlength=n_classes)
    values = normalised(values)
    ranks = average_ranks(values) if statistic == "auroc" else None
    observed = _tested(_statistics(values, ranks, codes, counts, statistic, signed), statistic, signed)
    with np.errstate(invalid="ignore"):
        limit = observed - _TIE * np.maximum(1.0, np.abs(observed))
    # d-prime is infinite where neither the class nor the rest varies.
    limit = np.where(np.isinf(observed), observed, limit)
    rng = np.random.default_rng(seed)
    reached = np.zeros(values.shape[1], np.int64)
    for batch in spans(n_permutations, batch_size(n_classes, *values.shape)):
        permuted = rng.permuted(np.tile(codes, (batch.stop - batch.start, 1)), axis=1)
        null = _tested(_statistics(values, ranks, permuted, counts, statistic, signed), statistic, signed)
        reached += (null >= limit).sum(axis=0)
    return reached, observed


def batch_size(n_classes: int, n_examples: int, n_units: int) -> int:
    """How many permutations are worked on at a time: their indicators and four arrays of sums take 32 MB."""
    return max(1, _BATCH_NBYTES // (8 * n_classes * (n_examples + 4 * n_units)))
