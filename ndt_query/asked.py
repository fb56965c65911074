"""What part of a store a question is about, and whether that part is one that views describe.

An array that comes from a store carries the trace of its selection (`ndt_store.traced`). From it follows which
checkpoints, examples and units are asked about, whatever has been done to labels and attributes since. An array without
a trace, or with other dimensions than the store's, is computed from its values alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_store.blocks import as_selector, outer
from ndt_store.catalogue import Catalogue
from ndt_store.dims import EXAMPLE, POSITION_DIMS, UNIT
from ndt_store.schema import ArraySpec
from ndt_store.traced import part_of
from ndt_store.views.blocks import Block, as_block
from ndt_store.views.frame import Frame, frame_of, has_views

__all__ = ["Asked", "asked_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A selection of one stored array that keeps every position of its units.

    Parameters
    ----------
    catalogue : Catalogue
        The snapshot it was taken from.
    frame : Frame
        The array.
    steps : tuple of int
        Checkpoints, in the order of the selection.
    rows : ndarray (example,)
        Positions of the examples, in the order of the selection, each at most once.
    units : ndarray (unit,)
        Positions of the units.
    """

    catalogue: Catalogue
    frame: Frame
    steps: tuple[int, ...]
    rows: NDArray[np.intp]
    units: NDArray[np.intp]

    @property
    def spec(self) -> ArraySpec:
        """The stored array."""
        return self.frame.spec

    @property
    def all_examples(self) -> bool:
        """Whether no example is left out."""
        return len(self.rows) == self.frame.n_examples

    @property
    def in_order(self) -> bool:
        """Whether the examples come in the order of the store."""
        return bool((np.diff(self.rows) > 0).all())

    def take(self, data: NDArray[Any], local: NDArray[np.intp]) -> Block:
        """Pick examples of a block by their place in it, and the selected units; copies only where it has to.

        Parameters
        ----------
        data : ndarray (example, ...)
            Values of a block.
        local : ndarray of intp (example,)
            Examples, each once.

        Returns
        -------
        ndarray (1, example, token, unit, position)
        """
        rows = slice(None) if len(local) == len(data) else as_selector(local)
        every = slice(None)
        return outer(as_block(data[None], self.frame.n_before), (every, rows, every, as_selector(self.units)))


def asked_of(acts: xr.DataArray) -> tuple[Asked | None, str]:
    """Tell what part of a store an array is, or None and why views cannot speak of it."""
    part = part_of(acts.variable._data)
    if part is None:
        return None, "the array is no plain selection of a store's"
    spec = part.blocks.spec
    if not has_views(spec):
        return None, f"{spec.path} is no array of units over examples"
    if acts.dims != tuple(spec.dims[axis] for axis in part.axes):
        return None, "its dimensions are named otherwise than in the store"
    by_dim = dict(zip(spec.dims, part.positions, strict=True))
    catalogue = part.blocks.catalogue
    frame = frame_of(catalogue, spec)
    for dim, size in zip(spec.dims[1:], spec.sizes, strict=True):
        if dim in POSITION_DIMS and not np.array_equal(by_dim[dim], np.arange(size)):
            return None, f"not all of {dim} is selected"
    kept = [dim for dim in POSITION_DIMS if dim in spec.dims]
    if tuple(kept) != frame.position_dims:
        return None, f"its positions are stored in the order {', '.join(frame.position_dims)}"
    rows = by_dim[EXAMPLE]
    steps = tuple(catalogue.committed[position] for position in by_dim[spec.dims[0]])
    asked = Asked(catalogue, frame, steps, rows, by_dim[UNIT])
    if not asked.in_order and len(np.unique(rows)) != len(rows):
        return None, "an example is selected twice"
    return asked, ""
