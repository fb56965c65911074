"""Dimensions answered from Gram views, and from blocks tile by tile where samples would not fit in memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from dask.base import tokenize
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_query.budget import n_threads
from ndt_query.dimension import Measuring, collected, measured_groups, measured_samples
from ndt_query.viewed import Finalise
from ndt_store.errors import StorageError
from ndt_store.layout import block_nbytes
from ndt_store.views.blocks import Array
from ndt_store.views.gram import SampleGram
from ndt_store.views.gram_build import RUN_NBYTES, TILE_NBYTES, GramPart, Tiles, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, GramView, too_large
from ndt_store.views.samples import DEFAULT_N_GROUPS, STRIPE_NBYTES, deal_groups, on_samples
from ndt_store.views.shelf import keep

__all__ = ["FromGram"]


@dataclass(frozen=True, slots=True)
class _Measured:
    how: Measuring
    groups: NDArray[np.int64]

    def __call__(self, view: GramView, step: int) -> Mapping[str, Array]:  # noqa: ARG002
        state = view.state
        if isinstance(state, SampleGram):
            of_sample = np.repeat(self.groups, state.n // len(self.groups))
            return collected([measured_samples(state, of_sample, self.how)])
        return collected([measured_groups(state, len(state), self.how)])


@dataclass(frozen=True, slots=True)
class FromGram:
    """Measures of dimension of one array.

    On the side of samples there is no pass over chunks: where the view does not hold what is asked, the same matrix is
    made for the question alone.

    Parameters
    ----------
    groups : ndarray of int64 (example,)
        Group of each example, in the order of the selection.
    how : Measuring
        What is measured.
    views : bool
        Whether views may answer.
    allowed_nbytes : int
        Memory of the whole question.
    """

    groups: NDArray[np.int64]
    how: Measuring
    views: bool
    allowed_nbytes: int

    @property
    def kind(self) -> type[GramView]:
        """The view for this use of positions."""
        return GRAM_VIEWS[self.how.mode]

    @property
    def deferred(self) -> bool:
        """Matrices are large, and finalised by their eigenvalues."""
        return True

    def _part(self, asked: Asked) -> GramPart:
        return GramPart(asked.frame, self.how.mode, np.sort(asked.rows), np.sort(asked.units))

    def _unlike(self, asked: Asked) -> str:
        """Why no view of the array is kept that holds what is asked."""
        if not self.views:
            return "views=False"
        if not asked.all_examples:
            return "examples are selected"
        if len(asked.units) != asked.frame.n_units:
            return "units are selected"
        return too_large(self.kind, asked.frame)

    def refusal(self, asked: Asked) -> str:
        """Say so where sums of features are others than those that are kept."""
        if len(np.unique(asked.units)) != len(asked.units):
            return "a unit is selected twice"
        if on_samples(*self._part(asked).shape):
            return ""
        why = self._unlike(asked)
        if why or self.how.interval == "none":
            return why
        same = np.array_equal(self._by_row(asked), deal_groups(asked.frame.n_examples))
        return "" if same else f"the view deals examples into {DEFAULT_N_GROUPS} groups by seed 0, not into these"

    def unkept(self, asked: Asked) -> str:
        """Say so where products of samples are made for this question alone."""
        return self._unlike(asked)

    def makes(self, asked: Asked) -> tuple[str, ...]:
        """Name the view, and what is selected where it is not kept."""
        return self.kind.name, tokenize(asked.rows, asked.units) if self.unkept(asked) else ""

    def make(self, asked: Asked, step: int, n_threads: int) -> Mapping[str, Any]:
        """Make the view from the blocks, in as many tiles as the budget asks for."""
        part = self._part(asked)
        view = make_gram(
            asked.catalogue, asked.spec, step, self.how.mode,
            nbytes=self._spare_nbytes(asked), n_threads=n_threads, rows=part.rows, units=part.units,
        )  # fmt: skip
        if not self.unkept(asked):
            with suppress(StorageError):
                keep(asked.catalogue, asked.frame, step, view)
        return {self.kind.name: view}

    def n_passes(self, asked: Asked) -> float:
        """One, or more where samples are multiplied tile by tile."""
        part = self._part(asked)
        return Tiles.of(part, self._spare_nbytes(asked)).n_passes if on_samples(*part.shape) else 1

    def rereads(self, asked: Asked) -> bool:  # noqa: ARG002
        """No: measures follow from the matrices."""
        return False

    def bound(self, asked: Asked) -> Finalise[Any]:
        """Put groups into the order of the array."""
        return _Measured(self.how, self._by_row(asked))

    def _by_row(self, asked: Asked) -> NDArray[np.int64]:
        return self.groups[np.argsort(asked.rows)]

    def state_nbytes(self, asked: Asked) -> int:
        """Matrices while they are made, written and decomposed, with the samples at hand."""
        part = self._part(asked)
        two_blocks = 2 * part.nbytes // len(part.rows) * part.frame.spec.rows
        return self.fixed_nbytes(part) + min(part.nbytes, max(self._spare_nbytes(asked), two_blocks))

    def _spare_nbytes(self, asked: Asked) -> int:
        """Memory for the samples of one task, of as many as run at the same time."""
        part, threads = self._part(asked), n_threads()
        share = (self.allowed_nbytes - 3 * threads * block_nbytes(asked.spec)) // (threads + 1)
        most = TILE_NBYTES if on_samples(*part.shape) else RUN_NBYTES
        return max(0, min(most, share - self.fixed_nbytes(part)))

    def fixed_nbytes(self, part: GramPart) -> int:
        """Memory of one task beside the samples at hand."""
        n, d = part.shape
        stripes = 2 * STRIPE_NBYTES
        if on_samples(n, d):
            # The triangle, the matrix of a part of the samples, and what LAPACK copies of it.
            return stripes + 20 * n * n
        # Triangles of all groups, what lies behind each group that is left out, and a few matrices in work.
        return stripes + 8 * d * d * (3 * DEFAULT_N_GROUPS // 2 + 8)
