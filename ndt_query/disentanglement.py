"""How far classes have come apart: separability, silhouette, separation, dimension of classes, intrinsic dimension."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import as_classes, canonical, one_of, require_count
from ndt_query.intervals import mean_ci, require_level
from ndt_query.kernels.manifolds import class_dimension, scatter_ratio, silhouettes, two_nn
from ndt_query.layers import described, per_layer
from ndt_query.proportions import clopper_pearson
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import as_block, as_float, spans
from ndt_store.views.samples import sample_rows

__all__ = ["disentanglement"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

POSITIONS: Final = ("mean", "flatten")
SHARE: Final = 0.95

BLOCK_NBYTES: Final = 32 << 20
"""Of the activations that are read at a time."""

LARGEST: Final = 1e100
"""Squares of larger values, of which everything here is made, add up to more than numbers can be."""

N_SOLVERS: Final = 2
"""Folds that are solved side by side: each holds three times the samples."""


@per_layer
def disentanglement(
    acts: xr.DataArray,
    labels: Any = None,
    *,
    positions: str = "mean",
    n_folds: int = 5,
    confidence: float = 0.95,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Measure how far a layer's representation has pulled classes apart.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    labels : array_like (example,), optional
        Classes; the coordinate ``label`` without it.
    positions : {"mean", "flatten"}
        What becomes of conv positions or tokens: their mean, or features of the example.
    n_folds : int
        Of cross-validation.
    confidence : float
        Level of the intervals.
    seed : int
        Of the folds, of shuffled labels, and of which examples stand for a class.
    memory : int or str, optional
        Budget, see `ndt_query.budget`.

    Returns
    -------
    Dataset ([checkpoint])
        ``accuracy`` of a linear support vector machine on held-out examples, with ``accuracy_low`` and
        ``accuracy_high`` (Clopper-Pearson), ``control``, that of shuffled labels, and ``training_accuracy`` beside it;
        ``silhouette``, mean over examples, with ``_low`` and ``_high`` (Student's t); ``separation``, trace of the
        scatter between classes over that within; ``class_dimension`` (class), components that hold 95% of the variance
        of a class, of as many examples of each; ``intrinsic_dimension`` (TwoNN) of ``n_distinct`` different examples.

    Raises
    ------
    InvalidInputError
        A class has fewer examples than folds.
    MemoryBudgetError
        The samples of one checkpoint exceed the budget.

    Notes
    -----
    One pass; the samples of one checkpoint are held, and maps are read in runs of examples. Silhouettes and neighbours
    take ``n^2 d`` products by their nature, block by block: four times the time for twice the examples, 16 MiB whatever
    n. Together with the linear machines, which take most of the time and grow about as n, twice the examples took
    1.4 times as long from 2,000 to 4,000 of 64 features (2.4 on a busy machine). Memory is ``56 n d`` bytes, most of it
    for two folds that are solved side by side. With 4,000 examples of 512 features in ten classes a fold takes 1 s, or
    10 s where classes are neither far apart nor mixed.

    A NaN, or a value beyond 1e100, makes its checkpoint NaN. Dimensions of classes grow with the examples, so compare
    them at the same number alone: it is in the attribute ``n_per_class``. TwoNN is too small near borders and above ten
    dimensions.

    References
    ----------
    P. Rousseeuw, "Silhouettes", 1987; E. Facco et al., "Estimating the intrinsic dimension of datasets by a minimal
    neighborhood information", Scientific Reports 7, 2017.
    """
    one_of("positions", positions, POSITIONS)
    n_folds, seed = require_count("n_folds", n_folds, 2), require_count("seed", seed, 0)
    level = require_level(confidence)
    given = acts
    acts, squeeze = canonical(given)
    classes = as_classes(acts, labels)
    counts = np.bincount(classes.codes)
    if counts.min() < n_folds:
        raise InvalidInputError(f"A class has {counts.min()} examples and n_folds={n_folds}: expected one a fold.")
    n = acts.sizes[EXAMPLE]
    places = math.prod(acts.sizes[dim] for dim in POSITION_DIMS if dim in acts.dims)
    n_features = acts.sizes[UNIT] * (places if positions == "flatten" else 1)
    block = _rows_of_a_block(acts)
    one = acts.sizes[UNIT] * places * acts.dtype.itemsize
    # The samples, and for each fold these scaled, with the solver's copy that has an index beside each value.
    terms = Projection(block * one, 8 * n * n_features, 1.0 + 3.0 * N_SOLVERS, 1, 0, 0, 0)
    check(f"disentanglement with positions={positions!r}", terms, allowed_nbytes(memory), "select fewer examples")
    rows = []
    for place in range(acts.sizes[CHECKPOINT]):
        samples = _samples(acts.isel({CHECKPOINT: [place]}), positions, block, n_features)
        rows.append(_measured(samples, classes.codes, n_folds, level, seed))
    found: dict[str, xr.Variable] = {
        name: xr.Variable((CHECKPOINT,), np.array([row[name] for row in rows])) for name in rows[0] if name != "classes"
    }
    found["class_dimension"] = xr.Variable((CHECKPOINT, "class"), np.stack([row["classes"] for row in rows]))
    parameters = {"positions": positions, "n_folds": n_folds, "confidence": confidence, "seed": seed}
    result = described(found, acts, "how far classes have come apart", parameters, squeeze=squeeze)
    return result.assign_coords({"class": classes.names}).assign_attrs(n_per_class=int(counts.min()))


def _rows_of_a_block(acts: xr.DataArray) -> int:
    """Examples that are read at a time: as they lie in the store, about `BLOCK_NBYTES`."""
    chunk = 1 if acts.chunks is None else acts.chunks[acts.dims.index(EXAMPLE)][0]
    one = math.prod(acts.sizes[dim] for dim in acts.dims if dim not in (CHECKPOINT, EXAMPLE)) * acts.dtype.itemsize
    return min(acts.sizes[EXAMPLE], chunk * max(1, BLOCK_NBYTES // (chunk * one)))


def _samples(acts: xr.DataArray, positions: str, block: int, n_features: int) -> F64:
    """Read samples (example, feature) of one checkpoint in runs of examples: maps are larger than their means."""
    n, n_before = acts.sizes[EXAMPLE], [str(dim) for dim in acts.dims].index(UNIT) - 2
    found = np.empty((n, n_features))
    for run in spans(n, block):
        values = np.asarray(acts.isel({EXAMPLE: run}).compute().values)
        found[run] = sample_rows(as_float(as_block(values, n_before)), positions).reshape(len(found[run]), -1)
    return found


def _measured(samples: F64, codes: I64, n_folds: int, level: float, seed: int) -> dict[str, Any]:
    n_classes = codes.max() + 1
    names = ("accuracy", "accuracy_low", "accuracy_high", "control", "training_accuracy", "silhouette",
             "silhouette_low", "silhouette_high", "separation", "intrinsic_dimension", "n_distinct")  # fmt: skip
    if not np.abs(samples).max() <= LARGEST:
        return {**dict.fromkeys(names, math.nan), "classes": np.full(n_classes, np.nan)}
    rng = np.random.default_rng(seed)
    right, trained = _separable(samples, codes, n_folds, seed)
    shuffled = rng.permutation(codes)
    low, high = clopper_pearson(right.sum(), len(right), confidence=level)
    shape = mean_ci(silhouettes(samples, codes), confidence=level)
    dimension, n_distinct = two_nn(samples)
    least = np.bincount(codes).min()
    some = [samples[rng.permutation(np.flatnonzero(codes == one))[:least]] for one in range(n_classes)]
    return {
        "accuracy": right.mean(),
        "accuracy_low": float(low),
        "accuracy_high": float(high),
        "control": _separable(samples, shuffled, n_folds, seed)[0].mean(),
        "training_accuracy": trained,
        "silhouette": float(shape.estimate),
        "silhouette_low": float(shape.low),
        "silhouette_high": float(shape.high),
        "separation": scatter_ratio(samples, codes),
        "intrinsic_dimension": dimension,
        "n_distinct": float(n_distinct),
        "classes": np.array([class_dimension(points, SHARE) for points in some], dtype=np.float64),
    }


def _separable(samples: F64, codes: I64, n_folds: int, seed: int) -> tuple[NDArray[np.bool_], float]:
    """Return which held-out examples a linear machine gets right, and the share that it has right in training."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(samples, codes)
    right = np.zeros(len(codes), bool)
    # The solver for few samples draws from one generator of the whole process: only the other one may run side by side.
    few = len(codes) * (n_folds - 1) // n_folds <= samples.shape[1]

    def fit(fold: tuple[I64, I64]) -> float:
        rest, held = fold
        scaler = StandardScaler().fit(samples[rest])
        scaled = scaler.transform(samples[rest])
        machine = LinearSVC(random_state=seed, dual=few).fit(scaled, codes[rest])
        right[held] = machine.predict(scaler.transform(samples[held])) == codes[held]
        return float((machine.predict(scaled) == codes[rest]).mean())

    with warnings.catch_warnings(), ThreadPoolExecutor(1 if few else min(n_threads(), N_SOLVERS)) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)
        trained = list(pool.map(fit, folds))
    return right, float(np.mean(trained))
