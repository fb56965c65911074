"""Views of a whole store: which are missing, and making them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ndt_store.catalogue import Catalogue
from ndt_store.errors import InvalidInputError
from ndt_store.layout import numpy_dtype
from ndt_store.reader import Store
from ndt_store.schema import ArraySpec
from ndt_store.views.build import make_views
from ndt_store.views.frame import Frame, frame_of, has_views
from ndt_store.views.gram_build import TILE_NBYTES, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, GramView, too_large
from ndt_store.views.kinds import MomentsView, TopView
from ndt_store.views.shelf import keep, look, view_key

__all__ = ["IndexReport", "index_store"]

N_THREADS: Final = 2

UNIT_KINDS: Final[tuple[type[MomentsView | TopView], ...]] = (MomentsView, TopView)


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What `index_store` did.

    Parameters
    ----------
    n_present, n_made : int
        Arrays and checkpoints whose views were there, and of which some were made.
    n_too_large : int
        Gram views that are not kept, because they would be large beside their array.
    nbytes, array_nbytes : int
        Size of those views on disk, and of the arrays that they are of, decoded.
    """

    n_present: int
    n_made: int
    n_too_large: int
    nbytes: int
    array_nbytes: int


def index_store(
    store: Store,
    *,
    layers: Sequence[str] | None = None,
    checkpoints: Sequence[int] | None = None,
    gram: Sequence[str] = (),
    force: bool = False,
    n_threads: int = N_THREADS,
    progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Make every view that is missing, stale or damaged, so that questions are answered without reading blocks.

    Parameters
    ----------
    store : Store
        A store that can be written to.
    layers, checkpoints : sequence, optional
        Only these; all by default.
    gram : sequence of {"flatten", "mean", "samples"}
        Gram views to make beside the others, by what becomes of positions, as `ndt_query.dimensionality` has it.
    force : bool
        Make views again that are there and good.
    n_threads : int
        Blocks in work at once.
    progress : callable, optional
        Called with (arrays and checkpoints done, in all).

    Returns
    -------
    IndexReport

    Raises
    ------
    InvalidInputError
        There is no such Gram view.
    IntegrityError
        A block is damaged; views made before are kept.
    StorageError
        The store cannot be written to.

    Notes
    -----
    One pass over what is made, and one for each Gram view. A capture makes the views but Gram while it writes, so that
    this is for stores from elsewhere, or after a new version.
    """
    catalogue = store.catalogue
    for step in checkpoints or ():
        store.require_step(step)
    for layer in layers or ():
        store.require_layer(layer)
    unknown = [mode for mode in gram if mode not in GRAM_VIEWS]
    if unknown:
        raise InvalidInputError(f"There is no Gram view {unknown[0]!r}: expected some of {', '.join(GRAM_VIEWS)}.")
    gram = list(dict.fromkeys(gram))
    work = list(_work(store, layers, checkpoints))
    present = made = too_many = nbytes = array_nbytes = 0
    for done, (spec, step) in enumerate(work, 1):
        frame = frame_of(catalogue, spec)
        wanted = [GRAM_VIEWS[mode] for mode in gram if not too_large(GRAM_VIEWS[mode], frame)]
        too_many += len(gram) - len(wanted)
        units = force or not all(_is_good(catalogue, frame, step, kind) for kind in UNIT_KINDS)
        grams = [kind for kind in wanted if force or not _is_good(catalogue, frame, step, kind)]
        if units:
            make_views(catalogue, spec, step, n_threads=n_threads, save=False).keep(catalogue, frame, step)
        for kind in grams:
            view = make_gram(catalogue, spec, step, kind.mode, nbytes=TILE_NBYTES, n_threads=n_threads)
            keep(catalogue, frame, step, view)
        made += bool(units or grams)
        present += not (units or grams)
        kinds = [*UNIT_KINDS, *wanted]
        nbytes += sum(catalogue.storage.size(view_key(kind.name, spec, step)) or 0 for kind in kinds)
        array_nbytes += math.prod(spec.sizes) * numpy_dtype(spec).itemsize
        if progress is not None:
            progress(done, len(work))
    return IndexReport(present, made, too_many, nbytes, array_nbytes)


def _is_good(catalogue: Catalogue, frame: Frame, step: int, kind: type[MomentsView | TopView | GramView]) -> bool:
    # Looked at rather than loaded: that a view is damaged need not be said where it is about to be replaced.
    return look(catalogue, frame, step, kind)[0] is not None


def _work(
    store: Store, layers: Sequence[str] | None, checkpoints: Sequence[int] | None
) -> Iterator[tuple[ArraySpec, int]]:
    steps = [int(step) for step in store.checkpoints] if checkpoints is None else list(checkpoints)
    wanted = None if layers is None else {f"layers/{layer}" for layer in layers}
    for spec in store.schema.cubes:
        if has_views(spec) and (wanted is None or spec.group in wanted):
            yield from ((spec, step) for step in steps)
