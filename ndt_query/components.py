"""Principal components of representations at each checkpoint, decomposed on whichever side is smaller."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.asked import asked_of
from ndt_query.inputs import canonical, one_of, require_count
from ndt_query.kernels.subspaces import Principal, principal, principal_of_scatter
from ndt_query.layers import described, per_unit
from ndt_query.passes import reduce_values
from ndt_query.reduce import ADVICE, Output
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.views.blocks import Array, Block, as_float
from ndt_store.views.gram_view import GRAM_VIEWS, GroupSums, sample_shape
from ndt_store.views.samples import on_samples, sample_rows
from ndt_store.views.scatter import Scatter, merge_scatter, scatter, stacked
from ndt_store.views.shelf import load

__all__ = ["pca"]

POSITIONS: Final = ("mean", "flatten", "samples")


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
    One pass, or none where Gram views hold the sums (`ndt index --gram`). Whichever side is smaller is decomposed: with
    n samples of d features, ``8 d^2`` bytes of sums, or the ``8 n d`` of the samples where they are fewer. A NaN makes
    its checkpoint NaN. Large variances are biased upwards where n is not large against d.
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
    found = _from_views(acts, how)
    if found is None:
        found = reduce_values(given, acts, how, what=f"pca with positions={positions!r}", memory=memory, advice=ADVICE)
    total = found["total_variance"]
    found["explained_variance_ratio"] = found["explained_variance"] / total
    parameters = {"n_components": n_components, "centre": centre, "positions": positions}
    result = described(found, acts, "principal components", parameters, squeeze=squeeze)
    if positions != "flatten" and UNIT in acts.coords:
        result = result.assign_coords(feature=acts[UNIT].values)
    return result


def _from_views(acts: xr.DataArray, how: _Components) -> dict[str, xr.Variable] | None:
    """Decompose the sums that Gram views keep, None where they do not hold what is asked at every checkpoint.

    Products of samples tell how samples lie, not along which features: on that side the samples are read.
    """
    asked, _ = asked_of(acts)
    if asked is None or how.on_samples or not asked.all_examples:
        return None
    if not np.array_equal(asked.units, np.arange(asked.frame.n_units)):
        return None
    states = []
    for step in asked.steps:
        view = load(asked.catalogue, asked.frame, step, GRAM_VIEWS[how.mode])[0]
        if view is None or not isinstance(view.state, GroupSums):
            return None
        groups = (view.state[group] for group in range(len(view.state)))
        states.append(stacked([functools.reduce(merge_scatter, groups)]))
    found, outputs = how.finalise(stacked(states)), how.outputs()
    return {name: xr.Variable((CHECKPOINT, *outputs[name].dims), values) for name, values in found.items()}
