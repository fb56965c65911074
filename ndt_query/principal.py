"""Principal components of a layer's samples: from Gram views, by a pass over values, and of samples beyond memory.

Sums of features hold the components themselves. Products of samples tell how far each sample lies along a component,
not of which features it is made: one more pass over the blocks adds the samples up in these proportions. So nothing is
held but the products, a run of blocks and the components, and what is held does not grow with the checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_query.budget import n_threads
from ndt_query.dimension import Measuring
from ndt_query.gramviewed import FromGram
from ndt_query.kernels.subspaces import Principal, along, leading, principal, principal_of_scatter, unknown
from ndt_query.reduce import Output
from ndt_query.viewed import Finalise
from ndt_store.views.blocks import Array, Block, as_float, spans
from ndt_store.views.gram import SampleGram
from ndt_store.views.gram_build import RUN_NBYTES, GramPart
from ndt_store.views.gram_view import GramView
from ndt_store.views.samples import STRIPE_NBYTES, on_samples, sample_mean, sample_rows, unpacked
from ndt_store.views.scatter import Scatter, merge_scatter, scatter
from ndt_store.views.shelf import view_key

__all__ = ["ComponentsFromGram", "ComponentsReduction", "viewed_components"]

F64 = NDArray[np.float64]

PASS_NBYTES: Final = RUN_NBYTES // 4
"""Most memory for the samples that are added up at once."""


@dataclass(frozen=True, slots=True)
class ComponentsReduction:
    """Reduces values to principal components, from sums of products or from the samples themselves."""

    mode: str
    centre: bool
    k: int
    n_features: int
    by_samples: bool
    by_unit: bool = False
    working_factor: float = 2.0

    def update(self, block: Block, start: int) -> Any:  # noqa: ARG002 - the protocol's
        """State of one block: samples, or their sums."""
        rows = sample_rows(as_float(block), self.mode)
        if self.by_samples:
            return np.array(rows.reshape(rows.shape[0], -1, rows.shape[3]))
        return scatter(rows, np.zeros(rows.shape[1], np.int64), 1)

    def merge(self, left: Any, right: Any) -> Any:
        """Join two states."""
        return np.concatenate([left, right], axis=1) if self.by_samples else merge_scatter(left, right)

    def finalise(self, state: Any) -> Mapping[str, Array]:
        """Decompose each checkpoint."""
        if self.by_samples:
            return _collected([principal(samples, self.k, centre=self.centre) for samples in state])
        return _collected([_of_sums(state[c][0], self.k, self.centre) for c in range(len(state.n))])

    def outputs(self) -> Mapping[str, Output]:
        """Describe what `finalise` returns."""
        return {
            "component": Output(("rank", "feature"), (self.k, self.n_features), "float64"),
            "explained_variance": Output(("rank",), (self.k,), "float64"),
            "explained_variance_ratio": Output(("rank",), (self.k,), "float64"),
            "total_variance": Output((), (), "float64"),
            "mean": Output(("feature",), (self.n_features,), "float64"),
            "n_samples": Output((), (), "int64"),
        }

    def state_nbytes(self, n_checkpoints: int, n_examples: int, n_units: int) -> int:  # noqa: ARG002
        """Return the size of the samples, or of one matrix."""
        if self.by_samples:
            return n_checkpoints * 8 * self.n_features * n_examples + 16 * n_examples**2
        return 24 * n_checkpoints * self.n_features * (self.n_features + 2)


@dataclass(frozen=True, slots=True)
class ComponentsFromGram(FromGram):
    """Principal components of one array, from its Gram views.

    Parameters
    ----------
    k : int
        Components.
    """

    k: int

    def _part(self, asked: Asked) -> GramPart:
        """Features come in the order that is asked for, which products of samples do not depend on."""
        return GramPart(asked.frame, self.how.mode, np.sort(asked.rows), asked.units)

    def refusal(self, asked: Asked) -> str:
        """Say so where sums of features are others than those that are kept already.

        One pass adds up the sums of all examples, which takes less than those of each group that a view keeps.
        """
        why = FromGram.refusal(self, asked)
        if why or on_samples(*self._part(asked).shape):
            return why
        if (np.diff(asked.units) < 0).any():
            return "units are selected in another order than the store's"
        keys = (view_key(self.kind.name, asked.spec, step) for step in asked.steps)
        if all(asked.catalogue.storage.size(key) is not None for key in keys):
            return ""
        return f"{self.kind.name} is not kept of every checkpoint"

    def rereads(self, asked: Asked) -> bool:
        """Products of samples name no feature."""
        return on_samples(*self._part(asked).shape)

    def bound(self, asked: Asked) -> Finalise[Any]:
        """Keep what the pass after the view needs."""
        threads = n_threads() if len(set(asked.steps)) == 1 else 1
        return _Decomposed(asked, self._part(asked), self.how.centre, self.k, threads)

    def fixed_nbytes(self, part: GramPart) -> int:
        """Add the components while they are added up, and what they come from."""
        n, d = part.shape
        return FromGram.fixed_nbytes(self, part) + 8 * self.k * (3 * d + n) + min(part.nbytes, PASS_NBYTES)


@dataclass(frozen=True, slots=True)
class _Decomposed:
    asked: Asked
    part: GramPart
    centre: bool
    k: int
    n_threads: int

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Name what is asked of the view; which array it is of is in the names already."""
        return type(self).__name__, self.part.mode, self.part.rows, self.part.units, self.centre, self.k

    def __call__(self, view: GramView, step: int) -> Mapping[str, Array]:
        state = view.state
        if isinstance(state, SampleGram):
            return _collected([self._of_products(state, step)])
        sums = functools.reduce(merge_scatter, (state[group] for group in range(len(state))))
        return _collected([_of_sums(sums, self.k, self.centre)])

    def _of_products(self, gram: SampleGram, step: int) -> Principal:
        n, d = self.part.shape
        matrix = unpacked(gram.products, n)
        if not self.centre:
            matrix += gram.with_mean[:, None]
            matrix += gram.with_mean + gram.mean_square
        total = float(np.trace(matrix))
        if not np.isfinite(matrix).all():
            return unknown(self.k, d, self._added(np.zeros((n, 0)), step)[0], n)
        squares, left = leading(matrix, self.k)
        mean, rows = self._added(left, step)
        return along(rows, squares, total, mean, n, centre=self.centre)

    def _added(self, left: F64, step: int) -> tuple[F64, F64]:
        """Mean of the samples (feature,), and their sums weighted by each column of `left`, (column, feature).

        Samples are added up about a vector near their mean, which costs no digits where the mean is large.
        """
        part, each = self.part, self.part.per_example
        n, d = part.shape
        runs = list(part.runs(0, PASS_NBYTES))
        buffer = np.empty((max(run.stop - run.start for run in runs) * each, d), part.dtype)
        about: F64 | None = None
        total, rows = np.zeros(d), np.zeros((left.shape[1], d))
        for run in runs:
            values = part.read(self.asked.catalogue, step, run, buffer, self.n_threads)
            about = sample_mean(values) if about is None else about
            weights = left[run.start * each : run.stop * each].T
            with np.errstate(invalid="ignore", over="ignore"):
                for columns in spans(d, STRIPE_NBYTES // (8 * len(values))):
                    y = values[:, columns] - about[columns]
                    total[columns] += y.sum(axis=0)
                    rows[:, columns] += weights @ y
        assert about is not None
        shift, sums = total / n, left.sum(axis=0)
        rows += np.outer(sums, -shift if self.centre else about)
        return about + shift, rows


def viewed_components(
    n_examples: int, mode: str, k: int, *, centre: bool, views: bool, allowed_nbytes: int
) -> ComponentsFromGram:
    """Ask Gram views for components: of all examples, in no groups."""
    how = Measuring(mode, centre, "none", 1, 0.95)
    return ComponentsFromGram(np.zeros(n_examples, np.int64), how, views, allowed_nbytes, k)


def _of_sums(sums: Scatter, k: int, centre: bool) -> Principal:
    n, mean = int(sums.n), sums.mean
    matrix = sums.matrix if centre else sums.matrix + n * np.outer(mean, mean)
    return principal_of_scatter(matrix, n, mean, k, centre=centre)


def _collected(found: Sequence[Principal]) -> Mapping[str, Array]:
    ratios = [one.variance / one.total if one.total != 0 else np.full(len(one.variance), np.nan) for one in found]
    return {
        "component": np.stack([one.components for one in found]),
        "explained_variance": np.stack([one.variance for one in found]),
        "explained_variance_ratio": np.stack(ratios),
        "total_variance": np.array([one.total for one in found]),
        "mean": np.stack([one.mean for one in found]),
        "n_samples": np.array([one.n for one in found], np.int64),
    }
