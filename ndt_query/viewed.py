"""Which view answers which question, when it does so exactly, and how its numbers become the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ndt_query.asked import Asked
from ndt_query.budget import n_threads
from ndt_store.views import classes, moments
from ndt_store.views.blocks import Array
from ndt_store.views.build import make_views, summary_nbytes
from ndt_store.views.frame import Frame
from ndt_store.views.kinds import K, MomentsView, TopView

__all__ = ["FromClassSums", "FromMoments", "FromTop", "UnitPass", "Viewed"]

V = TypeVar("V", contravariant=True)


class Finalise(Protocol[V]):
    """From one checkpoint's view to arrays (1, *dims)."""

    def __call__(self, view: V, step: int) -> Mapping[str, Array]:
        """Return the arrays by name; `step` is the checkpoint."""
        ...


class Viewed(Protocol):
    """A question that a view can answer."""

    @property
    def kind(self) -> Any:
        """Class of the view."""
        ...

    @property
    def deferred(self) -> bool:
        """Whether a view is read, and finalised, only when the answer is computed, because it is large."""
        ...

    def makes(self, asked: Asked) -> tuple[str, ...]:
        """Name what one pass makes; questions of the same names share the pass."""
        ...

    def make(self, asked: Asked, step: int, n_threads: int) -> Mapping[str, Any]:
        """Make the views of one checkpoint from its blocks, and keep them unless `unkept` says why not; by name."""
        ...

    def n_passes(self, asked: Asked) -> float:
        """How often making one checkpoint's views reads its blocks."""
        ...

    def rereads(self, asked: Asked) -> bool:
        """Whether each view's blocks are read once more to finalise it."""
        ...

    def unkept(self, asked: Asked) -> str:
        """Why the view is made for this question alone and not kept; "" where it is kept."""
        ...

    def state_nbytes(self, asked: Asked) -> int:
        """Return what making one checkpoint's views holds beside the blocks in work, in bytes."""
        ...

    def refusal(self, asked: Asked) -> str:
        """Why the view does not answer this exactly; "" where it does."""
        ...

    def bound(self, asked: Asked) -> Finalise[Any]:
        """Return what turns a view into the answer."""
        ...


@dataclass(frozen=True, slots=True)
class _Moments:
    units: NDArray[np.intp]

    def __call__(self, view: MomentsView, step: int) -> Mapping[str, Array]:  # noqa: ARG002
        state = view.moments
        return moments.finalise(
            moments.Moments(*(getattr(state, field.name)[:, self.units] for field in fields(moments.Moments)))
        )


@dataclass(frozen=True, slots=True)
class _ClassSums:
    units: NDArray[np.intp]

    def __call__(self, view: MomentsView, step: int) -> Mapping[str, Array]:  # noqa: ARG002
        state = view.classes
        assert state is not None
        picked = classes.ClassSums(state.total[:, :, self.units], state.count, state.nan_count[:, self.units])
        return classes.finalise(picked)


@dataclass(frozen=True, slots=True)
class _Top:
    frame: Frame
    units: NDArray[np.intp]
    k: int

    def __call__(self, view: TopView, step: int) -> Mapping[str, Array]:  # noqa: ARG002
        picked = TopView(*(part[self.units, : self.k] for part in (view.value, view.row, view.place)))
        state = picked.state(self.frame, self.k)
        return {"value": state.value, "example": state.example, "position": state.position}


@dataclass(frozen=True, slots=True)
class UnitPass:
    """The pass that makes moments and ranking together."""

    @property
    def deferred(self) -> bool:
        """Both views are small."""
        return False

    def makes(self, asked: Asked) -> tuple[str, ...]:  # noqa: ARG002
        """Both views, whatever is asked of them."""
        return MomentsView.name, TopView.name

    def make(self, asked: Asked, step: int, n_threads: int) -> Mapping[str, Any]:
        """Make both from the blocks."""
        made = make_views(asked.catalogue, asked.spec, step, n_threads=n_threads)
        return {MomentsView.name: made.moments, TopView.name: made.top}

    def state_nbytes(self, asked: Asked) -> int:
        """Ranks, zones, and the moments and sums by class of a few blocks."""
        return summary_nbytes(asked.spec, asked.frame.n_units, len(asked.frame.classes), n_waiting=n_threads())

    def n_passes(self, asked: Asked) -> float:  # noqa: ARG002
        """One, whatever is asked."""
        return 1

    def rereads(self, asked: Asked) -> bool:  # noqa: ARG002
        """No: they hold all that is asked."""
        return False

    def unkept(self, asked: Asked) -> str:  # noqa: ARG002
        """Both are kept."""
        return ""


@dataclass(frozen=True, slots=True)
class FromMoments(UnitPass):
    """Moments of all examples; active means not zero."""

    threshold: float
    kind: type[MomentsView] = MomentsView

    def refusal(self, asked: Asked) -> str:
        """Say so where others than all values that are not zero are counted."""
        if not asked.all_examples:
            return "examples are selected"
        return "" if self.threshold == 0 else "the view counts values beyond 0, not beyond another threshold"

    def bound(self, asked: Asked) -> _Moments:
        """Take the units asked about."""
        return _Moments(asked.units)


@dataclass(frozen=True, slots=True)
class FromClassSums(UnitPass):
    """Means by class over the labels of the store."""

    codes: NDArray[np.int64]
    names: NDArray[Any]
    kind: type[MomentsView] = MomentsView

    def refusal(self, asked: Asked) -> str:
        """Say so where examples or labels are others than the store's."""
        if not asked.all_examples:
            return "examples are selected"
        frame = asked.frame
        if frame.codes is None:
            return "the view holds no sums by class, because there are too many classes beside its examples"
        same = np.array_equal(self.names, frame.classes) and np.array_equal(self.codes, frame.codes[asked.rows])
        return "" if same else "the labels are others than the store's"

    def bound(self, asked: Asked) -> _ClassSums:
        """Take the units asked about."""
        return _ClassSums(asked.units)


@dataclass(frozen=True, slots=True)
class FromTop(UnitPass):
    """The first k ranks of all examples."""

    ids: NDArray[np.int64]
    k: int
    kind: type[TopView] = TopView

    def refusal(self, asked: Asked) -> str:
        """Say so where examples are others than the store's, or ranks more than `K`."""
        if not asked.all_examples:
            return "examples are selected"
        if not np.array_equal(self.ids, asked.frame.examples[asked.rows]):
            return "the examples are named otherwise than in the store"
        return "" if self.k <= K else f"the view holds {K} ranks"

    def bound(self, asked: Asked) -> _Top:
        """Take the units and ranks asked about."""
        return _Top(asked.frame, asked.units, self.k)
