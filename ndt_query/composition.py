"""How far the units of a late layer are linear compositions of the units of an early one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.composing import LEVEL, OUTPUTS, Composing
from ndt_query.inputs import canonical, one_of, require_count, require_number
from ndt_query.intervals import require_level
from ndt_query.layers import OneLayer, activations_of, described
from ndt_query.passes import reduce_values
from ndt_query.reduce import pick
from ndt_query.reductions import RowsOfExamples
from ndt_query.threads import TASK_PREFIX, install
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT
from ndt_store.errors import DimensionError, InvalidInputError
from ndt_store.views.samples import deal_groups

__all__ = ["ALPHAS", "compose"]

ALPHAS: Final = tuple(10.0**exponent for exponent in range(-2, 7))
FEWEST: Final = round(1 / LEVEL) - 1
"""Permutations without which no q value reaches the level."""

POSITIONS: Final = ("mean", "max")
INTERVALS: Final = ("jackknife", "none")


def compose(
    early: OneLayer,
    late: OneLayer,
    *,
    alphas: Sequence[float] = ALPHAS,
    folds: int = 5,
    positions: str = "mean",
    k: int = 10,
    threshold: float = 0.7,
    n_permutations: int = 50,
    interval: str = "jackknife",
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Measure how far each unit of a late layer is a linear composition of the units of an early one.

    Ridge regression of each late unit on all early units, scored on examples that had no part in the fit nor in the
    choice of the penalty. Each checkpoint is taken alone.

    Parameters
    ----------
    early, late : DataArray (checkpoint, example, [token,] unit[, y, x]) or layer Dataset
        Activations of the same examples, in the same order, at the same checkpoints.
    alphas : sequence of float
        Penalties to choose from, above 0: what scikit-learn's `Ridge` calls alpha, for standardised features. The
        largest should predict nothing but the mean.
    folds : int
        Folds of examples, 3 or more; n must be twice that or more. Each is predicted from the others, with the penalty
        that predicts best when each of the others is left out in turn.
    positions : {"mean", "max"}
        What an example's positions or tokens are reduced to, in both layers.
    k : int
        Contributors to list for each late unit; all early units where these are fewer.
    threshold : float
        A composed unit has a larger R2 than this.
    n_permutations : int
        Shuffles m for the null, 19 or more: no q value is below 1 / (m + 1).
    interval : {"jackknife", "none"}
        Do everything again without one of ``2 folds`` groups of examples at a time, or give no interval.
    confidence : float
        Nominal level of the intervals.
    seed : int
        Makes folds and shuffles repeatable; checkpoints share them.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over (checkpoint, unit) with the units of the late layer; lazy where either array is, and best computed at once:

        ``r2``
            1 - SSE / SST over all held-out examples. SST is about the mean of each fold's *training part*, the best
            guess without the early layer. Negative where that guess is better.
        ``r2_low``, ``r2_high``
            Jackknife interval over examples; NaN without one, and where one group holds all that varies.
        ``r2_by_fold`` (checkpoint, fold, unit)
            The same for each fold.
        ``r2_in_sample``
            Of the fit to all examples, scored on these: never evidence, only what the held-out value is to be seen
            against.
        ``null_r2`` (checkpoint, permutation, unit)
            Held-out R2 where the examples of the late layer are shuffled against those of the early one, the penalty
            chosen anew each time.
        ``p_value``, ``q_value``
            Share of R2 of all units, observed and shuffled, that reach this unit's; Benjamini-Hochberg of these over
            the units of one checkpoint.
        ``composed``
            ``r2 > threshold`` and ``q_value <= 0.05``.
        ``early_unit``, ``coefficient``, ``share``, ``leave_out`` (checkpoint, unit, rank)
            Contributors of a fit to all examples, the largest coefficient first: label of the early unit, -1 where
            unknown; standardised coefficient, in standard deviations of the late unit for one of the early unit; its
            size over the sum of the sizes of all early units; and by how much the penalised loss rises when this unit
            alone is left out, as a share of the late unit's variance. Units that stand in for each other have large
            coefficients and hardly any leave-out.
        ``alpha``
            Penalty of that fit, the best over all folds.
        ``nan_count``, ``early_nan_count`` (checkpoint,)
            Examples with a NaN, and values of the early layer with one.

        A late unit with a NaN or Inf, or that never varies, has NaN throughout and does not count among the tests. A
        NaN or Inf in the early layer makes the whole checkpoint NaN. Early units that are constant in a training part
        contribute nothing there.

    Raises
    ------
    DimensionError
        Examples or checkpoints of the layers differ in number, or examples are fewer than twice the folds.
    InvalidInputError
        Examples or checkpoints have other labels, labels of early units are no whole numbers, or an option is not
        possible.
    MemoryBudgetError
        Rows and matrices of the checkpoints in work exceed the budget.

    Notes
    -----
    One pass over each layer gathers a row an example, 8 n (p + q) bytes for p early and q late units. All else follows
    from second moments of each fold: an eigendecomposition, p^3, of each of the 1 + folds (folds + 1) / 2 training
    parts serves all penalties, units and shuffles; a shuffle then costs about ``folds (folds - 1)`` times the number of
    penalties times ``min(n / folds, p) p q`` products, 0.1 s for n = 500, p = 128, q = 256 on one core. Memory: about
    8 p^2 folds^2 / 2 bytes a checkpoint in work, and 16 MB of shuffles; all of it is held to the budget, for
    arrays in memory too.

    The folds, penalties and R2 are those of scikit-learn's `GridSearchCV` of ``StandardScaler`` and ``Ridge`` by mean
    squared error, nested in the same folds. Standardisation sees training parts only.

    The p value is exact for a unit drawn at random. A single unit whose null is wider than that of the others may have
    one that is too small; ``null_r2`` shows it. Pooling is what lets few shuffles find few composed units among many
    (Tusher, Tibshirani and Chu 2001): a unit above all shuffles of all units has ``q_value = 1 / (m + 1)``, while its
    own m shuffles alone could not outlive the correction for q tests.

    The interval is for the R2 that coefficients fitted to so many examples have on others of the same distribution.
    Each group is left out of fits, choices of the penalty and scores alike, at ``2 folds`` times the
    eigendecompositions; leaving out its scores alone would hold the truth in three quarters where p is near n.
    docs/explanation/statistics.md says how often it is right. More examples would fit better: with p near n, R2 itself
    is lower than what more examples would find.

    References
    ----------
    Stone 1974, "Cross-validatory choice and assessment of statistical predictions". Varma and Simon 2006, "Bias in
    error estimation when using cross-validation for model selection".

    Examples
    --------
    The first late unit is the sum of three early ones, the second is noise.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 30))
    >>> y = np.stack([x[:, 3] + x[:, 7] - x[:, 20], rng.standard_normal(200)], axis=1)
    >>> dims = ("example", "unit")
    >>> found = compose(xr.DataArray(x, dims=dims), xr.DataArray(y, dims=dims), k=3)
    >>> found["composed"].values.tolist(), sorted(found["early_unit"].values[0].tolist())
    ([True, False], [3, 7, 20])
    """
    one_of("positions", positions, POSITIONS)
    require_count("seed", seed, 0)
    require_count("n_permutations", n_permutations, FEWEST)
    require_count("folds", folds, 3)
    require_count("k", k, 1)
    require_number("threshold", threshold, 1)
    penalties = _as_penalties(alphas)
    given = activations_of(early), activations_of(late)
    (x, squeeze), (y, squeezed) = canonical(given[0]), canonical(given[1])
    if squeeze != squeezed:
        raise DimensionError("One of early and late has a dimension checkpoint and the other has none: select alike.")
    for dim in (EXAMPLE, CHECKPOINT):
        _require_same(x, y, dim)
    n = x.sizes[EXAMPLE]
    if n < 2 * folds:
        raise DimensionError(f"{folds} folds need {2 * folds} examples or more: got {n}; use fewer folds.")
    asking = Composing(
        penalties, deal_groups(n, 2 * folds, seed), folds, min(k, x.sizes[UNIT]), threshold, n_permutations,
        one_of("interval", interval, INTERVALS), require_level(confidence), seed, _unit_labels(x),
    )  # fmt: skip
    rows = [
        reduce_values(one, acts, RowsOfExamples(n, positions), what="compose", memory=memory)["rows"]
        for one, acts in zip(given, (x, y), strict=True)
    ]
    lazy = any(one.chunks is not None for one in rows)
    x_rows, y_rows = (one.chunk({CHECKPOINT: 1, EXAMPLE: -1, UNIT: -1}).data for one in rows)
    _check_memory(asking, x_rows.shape, y_rows.shape[2], memory)
    found = _asked(asking, x_rows, y_rows)
    parameters = {
        "alphas": list(penalties), "folds": folds, "positions": positions, "k": k, "threshold": threshold,
        "n_permutations": n_permutations, "interval": interval, "confidence": confidence, "seed": seed,
        "early_units": x.sizes[UNIT],
    }  # fmt: skip
    result = described(found, y, "linear composition of each unit from an early layer", parameters, squeeze=squeeze)
    if "layer" in x.attrs:
        result.attrs["early_layer"] = x.attrs["layer"]
    return result if lazy else result.compute()


def _asked(asking: Composing, early: da.Array, late: da.Array) -> dict[str, xr.Variable]:
    """One task a checkpoint, for values in memory too: tasks run with one BLAS thread each, see `ndt_query.threads`."""
    install()
    token = tokenize(asking, early.name, late.name)
    solve = f"{TASK_PREFIX}compose-{token}"
    steps = range(early.numblocks[0])
    tasks = {(solve, c): (asking, (early.name, c, 0, 0), (late.name, c, 0, 0)) for c in steps}
    layers: dict[str, Any] = {**early.dask.layers, **late.dask.layers, solve: tasks}
    needs = {**early.dask.dependencies, **late.dask.dependencies}
    needs[solve] = {*early.__dask_layers__(), *late.__dask_layers__()}
    sizes, found = asking.sizes(late.shape[2]), {}
    for name, (dims, kind) in OUTPUTS.items():
        key = f"{TASK_PREFIX}{name}-{token}"
        picks: dict[Any, Any] = {(key, c, *(0,) * len(dims)): (pick, (solve, c), name) for c in steps}
        graph = HighLevelGraph({**layers, key: picks}, {**needs, key: {solve}})
        chunks = (early.chunks[0], *((sizes[dim],) for dim in dims))
        found[name] = xr.Variable((CHECKPOINT, *dims), da.Array(graph, key, chunks=chunks, dtype=np.dtype(kind)))
    return found


def _as_penalties(alphas: Sequence[float]) -> tuple[float, ...]:
    values = np.asarray(alphas, dtype=np.float64)
    if values.ndim != 1 or not values.size or not (np.isfinite(values) & (values > 0)).all():
        raise InvalidInputError(f"alphas={alphas!r} is not possible: expected one number or more, all above 0.")
    return tuple(float(value) for value in values)


def _require_same(early: xr.DataArray, late: xr.DataArray, dim: str) -> None:
    if early.sizes[dim] != late.sizes[dim]:
        raise DimensionError(
            f"early has {early.sizes[dim]} and late {late.sizes[dim]} along {dim}: select those that both have."
        )
    if dim not in early.coords or dim not in late.coords:
        return
    differ = np.atleast_1d(early[dim].values) != np.atleast_1d(late[dim].values)
    if differ.any():
        place = int(differ.argmax())
        mine, other = (np.atleast_1d(one[dim].values)[place] for one in (early, late))
        raise InvalidInputError(
            f"early and late differ in {int(differ.sum())} labels of {dim}, the first is {mine} in early and {other} "
            "in late: select the same, in the same order."
        )


def _unit_labels(early: xr.DataArray) -> NDArray[np.int64]:
    labels = np.asarray(early[UNIT].values)
    if labels.dtype.kind not in "iu":
        raise InvalidInputError(f"Coordinate unit of early has dtype {labels.dtype}: expected whole numbers.")
    return labels.astype(np.int64)


def _check_memory(asking: Composing, shape: tuple[int, ...], q: int, memory: int | str | None) -> None:
    n_checkpoints, n, p = shape
    threads = min(n_threads(), n_checkpoints)
    result = 8 * n_checkpoints * q * (asking.n_permutations + asking.folds + 4 * asking.k + 10)
    terms = Projection(8 * n * (p + q), asking.nbytes(n, p, q), 1.0, threads, 0, 0, result)
    check("compose", terms, allowed_nbytes(memory), "select fewer examples or units")
