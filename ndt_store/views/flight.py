"""Views made in flight: the blocks of a checkpoint are summarised while the capture has them in memory."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.errors import StorageError
from ndt_store.views.build import BlockSummary
from ndt_store.views.frame import frame_of, has_views

__all__ = ["CheckpointSummary"]


class CheckpointSummary:
    """Collects the views of every array with units at the checkpoint in flight.

    Parameters
    ----------
    catalogue : Catalogue
        The store that is written.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._frames = {spec.path: frame_of(catalogue, spec) for spec in catalogue.schema.cubes if has_views(spec)}
        self._summaries = {path: BlockSummary(frame) for path, frame in self._frames.items()}

    def add(self, path: str, index: int, data: NDArray[Any]) -> bool:
        """Take block number `index` of an array, shape (examples of the block, *other sizes); any thread may call.

        Returns
        -------
        bool
            Whether every value is known to be finite; arrays without views are passed over.
        """
        return path in self._summaries and self._summaries[path].add(index, data)

    def keep(self, catalogue: Catalogue, step: int) -> None:
        """Write the views, once the checkpoint is committed; `catalogue` shows it.

        Nothing is lost where they cannot be written: they are made again from the blocks.
        """
        with suppress(StorageError):
            for path, frame in self._frames.items():
                self._summaries[path].views().keep(catalogue, frame, step)
