"""Principal components of representations, and how their subspaces turn over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.intervals import null_p_value
from ndt_query.kernels.subspaces import Principal, angles, overlap, principal, principal_of_scatter
from ndt_query.layers import described, per_layer, per_unit
from ndt_query.passes import reduce_values
from ndt_query.reduce import ADVICE, Output
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import Array, Block, as_float
from ndt_store.views.gram_view import sample_shape
from ndt_store.views.samples import on_samples, sample_rows
from ndt_store.views.scatter import Scatter, merge_scatter, scatter

__all__ = ["pca", "subspace_drift", "subspace_overlap"]

F64 = NDArray[np.float64]

POSITIONS: Final = ("mean", "flatten", "samples")
OTHER: Final = "other_checkpoint"


@dataclass(frozen=True, slots=True)
class _Components:
    """Reduces values to principal components, from sums of products or from the samples themselves."""

    mode: str
    centre: bool
    k: int
    n_features: int
    on_samples: bool
    by_unit: bool = False
    working_factor: float = 2.0

    def update(self, block: Block, start: int) -> Any:  # noqa: ARG002 - the protocol's
        """State of one block: samples, or their sums."""
        rows = sample_rows(as_float(block), self.mode)
        if self.on_samples:
            return np.array(rows.reshape(rows.shape[0], -1, rows.shape[3]))
        return scatter(rows, np.zeros(rows.shape[1], np.int64), 1)

    def merge(self, left: Any, right: Any) -> Any:
        """Join two states."""
        return np.concatenate([left, right], axis=1) if self.on_samples else merge_scatter(left, right)

    def finalise(self, state: Any) -> Mapping[str, Array]:
        """Decompose each checkpoint."""
        found = [self._one(state[c]) for c in range(len(state if self.on_samples else state.n))]
        return {
            "component": np.stack([one.components for one in found]),
            "explained_variance": np.stack([one.variance for one in found]),
            "total_variance": np.array([one.total for one in found]),
            "mean": np.stack([one.mean for one in found]),
            "n_samples": np.array([one.n for one in found], np.int64),
        }

    def _one(self, state: Any) -> Principal:
        if self.on_samples:
            return principal(state, self.k, centre=self.centre)
        sums: Scatter = state[0]
        n, mean = int(sums.n), sums.mean
        matrix = sums.matrix if self.centre else sums.matrix + n * np.outer(mean, mean)
        return principal_of_scatter(matrix, n, mean, self.k, centre=self.centre)

    def outputs(self) -> Mapping[str, Output]:
        """Describe what `finalise` returns."""
        return {
            "component": Output(("rank", "feature"), (self.k, self.n_features), "float64"),
            "explained_variance": Output(("rank",), (self.k,), "float64"),
            "total_variance": Output((), (), "float64"),
            "mean": Output(("feature",), (self.n_features,), "float64"),
            "n_samples": Output((), (), "int64"),
        }

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of the samples, or of one matrix."""
        if self.on_samples:
            return n_checkpoints * 8 * self.n_features * n_examples + 16 * n_examples**2
        return 24 * n_checkpoints * self.n_features * (self.n_features + 2)


@per_unit
def pca(
    acts: xr.DataArray,
    n_components: int = 50,
    *,
    centre: bool = True,
    positions: str = "mean",
    memory: int | str | None = None,
) -> xr.Dataset:
    """Principal components of a layer's representation at each checkpoint.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    n_components : int
        At most as many as there are features or samples.
    centre : bool
        Take the mean away first. Without it the first component of non-negative activations is their mean.
    positions : {"mean", "flatten", "samples"}
        What becomes of conv positions or tokens: their mean; features of one sample an example; samples of their own.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        ``component`` (checkpoint, rank, feature), orthonormal, the largest entry of each positive; beyond the rank of
        the samples NaN. ``explained_variance`` (checkpoint, rank) with divisor n - 1, ``explained_variance_ratio``, its
        share of ``total_variance`` (checkpoint); ``mean`` (checkpoint, feature); ``n_samples``. ``feature`` is the
        unit, with ``"flatten"`` unit and positions in the order of the array.

    Raises
    ------
    InvalidInputError
        There are more components than features or samples.
    MemoryBudgetError
        Neither side fits the budget.

    Notes
    -----
    One pass. Whichever side is smaller is decomposed: with n samples of d features, ``8 d^2`` bytes of sums, or the
    ``8 n d`` of the samples where they are fewer. A NaN makes its checkpoint NaN. Large variances are biased upwards
    where n is not large against d.
    """
    one_of("positions", positions, POSITIONS)
    require_count("n_components", n_components, 1)
    given = acts
    acts, squeeze = canonical(given)
    n_places = math.prod(acts.sizes[dim] for dim in POSITION_DIMS if dim in acts.dims)
    n, d = sample_shape(positions, acts.sizes[EXAMPLE], acts.sizes[UNIT], n_places)
    if n_components > min(n, d):
        raise InvalidInputError(f"n_components={n_components}: {n} samples of {d} features have at most {min(n, d)}.")
    how = _Components(positions, centre, n_components, d, on_samples(n, d))
    found = reduce_values(given, acts, how, what=f"pca with positions={positions!r}", memory=memory, advice=ADVICE)
    total = found["total_variance"]
    found["explained_variance_ratio"] = found["explained_variance"] / total
    parameters = {"n_components": n_components, "centre": centre, "positions": positions}
    result = described(found, acts, "principal components", parameters, squeeze=squeeze)
    if positions != "flatten" and UNIT in acts.coords:
        result = result.assign_coords(feature=acts[UNIT].values)
    return result


@per_layer
def subspace_overlap(
    acts: xr.DataArray,
    k: int = 10,
    *,
    centre: bool = True,
    positions: str = "mean",
    memory: int | str | None = None,
) -> xr.Dataset:
    """Say how far the subspaces of the first k components agree between checkpoints.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations at two checkpoints or more.
    k : int
        Components.
    centre, positions, memory
        As in `pca`.

    Returns
    -------
    Dataset
        ``overlap`` (checkpoint, other_checkpoint): ``|U1' U2|_F^2 / k``, 1 where the subspaces are the same, ``chance``
        = k / d for random ones of d features; ``angle`` (checkpoint, other_checkpoint, component): principal angles in
        radians, the smallest first. NaN where a layer has fewer than k components.

    Raises
    ------
    InvalidInputError
        There is one checkpoint only, or k exceeds features or samples.
    MemoryBudgetError
        As `pca` does.

    Notes
    -----
    One pass, then ``k^2 d`` products for each pair of checkpoints. The subspaces are estimates from n samples: even of
    equal representations they agree by less than 1 on other examples, by more the closer eigenvalues k and k + 1 are.

    References
    ----------
    A. Bjorck, G. Golub, "Numerical methods for computing angles between linear subspaces", Math. Comp. 27, 1973.
    """
    bases, steps, d = _bases(acts, k, centre, positions, memory)
    found = np.array([[overlap(one, other) for other in bases] for one in bases])
    between = np.array([[angles(one, other) for other in bases] for one in bases])
    result = xr.Dataset(
        {
            "overlap": ((CHECKPOINT, OTHER), found),
            "angle": ((CHECKPOINT, OTHER, "component"), between),
            "chance": ((), k / d),
        },
        {CHECKPOINT: steps, OTHER: steps},
    )
    return _named(result, acts, "overlap of subspaces", {"k": k, "centre": centre, "positions": positions})


@per_layer
def subspace_drift(
    acts: xr.DataArray,
    k: int = 10,
    *,
    centre: bool = True,
    positions: str = "mean",
    n_surrogates: int = 499,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Say how far a layer's subspace turns from checkpoint to checkpoint, and whether it does so smoothly.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations at four checkpoints or more, at even spacing for the score to mean anything.
    k : int
        Components.
    centre, positions, memory
        As in `pca`.
    n_surrogates, seed : int
        Series with the same spectrum and random phases.

    Returns
    -------
    Dataset
        ``drift`` (transition), ``1 - overlap`` of neighbouring checkpoints, labelled by ``before`` and ``after``, and
        ``turn``, ``arccos sqrt(overlap)``, the same as an angle in radians; ``smoothness``, 1 less the share of the
        largest turn in all turning: near 1 where all are alike, 0 where one is all; ``null_05``, the 5th percentile of
        surrogates, and ``p_value``, the share of surrogates that are as abrupt.

    Raises
    ------
    InvalidInputError
        There are fewer than four checkpoints, or k exceeds features or samples.
    MemoryBudgetError
        As `pca` does.

    Notes
    -----
    Surrogates keep mean, variance and autocorrelation of the turns and shuffle their phases (Theiler et al. 1992), cut
    at 0: they are what a stationary series without an abrupt step would do. A trend is no stationary series, and turns
    that only fall will look abrupt: choose checkpoints between which about as much changes.
    """
    bases, steps, _ = _bases(acts, k, centre, positions, memory)
    if len(bases) < 4:
        raise InvalidInputError(f"There are {len(bases)} checkpoints: drift as a series needs four or more.")
    drift = np.array([1 - overlap(one, other) for one, other in pairwise(bases)])
    turn = np.arccos(np.sqrt(np.clip(1 - drift, 0, 1)))
    score = _smooth(turn)
    null = np.array([_smooth(one) for one in _surrogates(turn, n_surrogates, seed)])
    p_value = float(null_p_value((null <= score + 1e-12).sum(), n_surrogates)) if np.isfinite(score) else math.nan
    result = xr.Dataset(
        {
            "drift": ("transition", drift),
            "turn": ("transition", turn),
            "smoothness": ((), score),
            "null_05": ((), float(np.quantile(null, 0.05)) if np.isfinite(null).all() else math.nan),
            "p_value": ((), p_value),
        },
        {"before": ("transition", steps[:-1]), "after": ("transition", steps[1:])},
    )
    parameters = {"k": k, "centre": centre, "positions": positions, "n_surrogates": n_surrogates, "seed": seed}
    return _named(result, acts, "drift of subspaces", parameters)


def _bases(
    acts: xr.DataArray, k: int, centre: bool, positions: str, memory: int | str | None
) -> tuple[list[F64], NDArray[Any], int]:
    if CHECKPOINT not in acts.dims or acts.sizes[CHECKPOINT] < 2:
        raise InvalidInputError("There is one checkpoint only: subspaces are compared between two or more.")
    found = pca(acts, k, centre=centre, positions=positions, memory=memory)["component"]
    values = found.transpose(CHECKPOINT, "rank", "feature").compute().values
    return list(values), acts[CHECKPOINT].values, values.shape[2]


def _named(result: xr.Dataset, acts: xr.DataArray, what: str, parameters: Mapping[str, Any]) -> xr.Dataset:
    result.attrs = described({}, acts, what, parameters, squeeze=False).attrs
    return result


def _smooth(turn: F64) -> float:
    total = turn.sum()
    return float(1 - turn.max() / total) if total > 0 else math.nan


def _surrogates(series: F64, n: int, seed: int) -> F64:
    """Series of the same spectrum with random phases, none below 0, (surrogate, value)."""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(series - series.mean())
    phases = np.exp(2j * np.pi * rng.random((n, len(spectrum))))
    if len(series) % 2 == 0:
        phases[:, -1] = rng.choice([-1.0, 1.0], n)
    found: F64 = np.maximum(np.fft.irfft(np.abs(spectrum) * phases, len(series)) + series.mean(), 0.0)
    return found
