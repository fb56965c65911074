"""Subspaces of the first principal components: how far they agree between checkpoints, and how smoothly they turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.components import pca
from ndt_query.inputs import require_count
from ndt_query.intervals import null_p_value
from ndt_query.kernels.subspaces import angles, overlap
from ndt_query.layers import described, per_layer
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import InvalidInputError

__all__ = ["subspace_drift", "subspace_overlap"]

F64 = NDArray[np.float64]

OTHER: Final = "other_checkpoint"
LEAST_SHARE: Final = 0.05

ROUNDING: Final = 1e-10
"""Drift below this, turns of less than 1e-5 radians, is that of values in single precision that stay where they are."""


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
    As `pca`, then ``k^2 d`` products for each pair of checkpoints. With more samples than features, twice the samples
    take at most twice the time and no more memory. With fewer, every two samples are multiplied, ``n^2 d / 2``, and
    memory is that of `pca`. The subspaces are estimates from n samples: even of equal representations they agree by
    less than 1 on other examples, by more the closer eigenvalues k and k + 1 are.

    References
    ----------
    A. Bjorck, G. Golub, "Numerical methods for computing angles between linear subspaces", Math. Comp. 27, 1973.
    """
    k = require_count("k", k, 1)
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
        ``drift`` (transition), ``1 - overlap`` of neighbouring checkpoints, labelled by ``before`` and ``after``; that
        ``overlap``, and ``chance``, k / d, which random subspaces of d features have; ``turn``,
        ``arccos sqrt(overlap)``, the same as an angle in radians; ``smoothness``, 1 less the share of the
        largest turn in all turning: near 1 where all are alike, 0 where one is all; ``null_05``, the 5th percentile of
        surrogates, and ``p_value``, the share of surrogates that are as abrupt. These are NaN where no more than
        rounding turns, as where k is the number of features.

    Raises
    ------
    InvalidInputError
        There are fewer than four checkpoints, or k exceeds features or samples.
    MemoryBudgetError
        As `pca` does.

    Notes
    -----
    Surrogates keep mean, variance and autocorrelation of the logarithms of the turns and shuffle their phases (Theiler
    et al. 1992): they are what a stationary series does whose turns are lognormal, large ones among many small ones. Of
    independent turns that are normal, uniform, lognormal or exponential at most 7% are called abrupt at 5%. A trend is
    no stationary series, and turns that only fall will look abrupt: choose checkpoints between which about as much
    changes.
    """
    k, n_surrogates = require_count("k", k, 1), require_count("n_surrogates", n_surrogates, 1)
    seed = require_count("seed", seed, 0)
    bases, steps, d = _bases(acts, k, centre, positions, memory)
    if not (np.diff(steps) > 0).all():
        raise InvalidInputError("Checkpoints are not in order of training: sort them, drift is from each to the next.")
    if len(bases) < 4:
        raise InvalidInputError(f"There are {len(bases)} checkpoints: drift as a series needs four or more.")
    shared = np.array([overlap(one, other) for one, other in pairwise(bases)])
    drift = 1 - shared
    drift[drift < ROUNDING] = 0.0
    turn = np.arccos(np.sqrt(1 - drift))
    score = _smooth(turn)
    null = np.array([_smooth(one) for one in _surrogates(turn, n_surrogates, seed)])
    p_value = float(null_p_value((null <= score + 1e-12).sum(), n_surrogates)) if np.isfinite(score) else math.nan
    result = xr.Dataset(
        {
            "overlap": ("transition", shared),
            "drift": ("transition", drift),
            "turn": ("transition", turn),
            "smoothness": ((), score),
            "null_05": ((), float(np.quantile(null, 0.05)) if np.isfinite(null).all() else math.nan),
            "p_value": ((), p_value),
            "chance": ((), k / d),
        },
        {"before": ("transition", steps[:-1]), "after": ("transition", steps[1:])},
    )
    parameters = {"k": k, "centre": centre, "positions": positions, "n_surrogates": n_surrogates, "seed": seed}
    return _named(result, acts, "drift of subspaces", parameters)


def _bases(
    acts: xr.DataArray, k: int, centre: bool, positions: str, memory: int | str | None
) -> tuple[list[F64], NDArray[Any], int]:
    n_steps = acts.sizes.get(CHECKPOINT, 1)
    if n_steps < 2:
        raise InvalidInputError(f"Subspaces are compared between two or more checkpoints: got {n_steps}.")
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
    """Series whose logarithms have the same spectrum and random phases, (surrogate, value)."""
    middle = float(np.median(series))
    if not middle > 0:
        return np.full((n, len(series)), math.nan)
    # A turn of nothing has no logarithm, and one of next to nothing would be all of the spectrum.
    logs = np.log(np.maximum(series, LEAST_SHARE * middle))
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft(logs - logs.mean())
    phases = np.exp(2j * np.pi * rng.random((n, len(spectrum))))
    if len(series) % 2 == 0:
        phases[:, -1] = rng.choice([-1.0, 1.0], n)
    found: F64 = np.exp(np.fft.irfft(np.abs(spectrum) * phases, len(series)) + logs.mean())
    return found
