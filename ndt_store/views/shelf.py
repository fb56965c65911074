"""Where views lie, when one may be used, and how one is kept.

A view is used only if its bytes are whole, its version is this software's, and the digests that it covers are those of
the commit record of its checkpoint and of the record of the static arrays. Anything else is as good as none: the view
is made again where that is possible, and a damaged or stale one is named in a `ViewWarning`. A store that cannot be
written to is none the worse: its views are made for each question and not kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol, Self, TypeVar

from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.dims import LAYERS_GROUP
from ndt_store.errors import StorageError
from ndt_store.schema import ArraySpec
from ndt_store.views.files import ViewFile, decode, encode
from ndt_store.views.frame import Frame

__all__ = ["PREFIX", "View", "ViewWarning", "covers", "index_command", "keep", "load", "look", "view_key"]

PREFIX: Final = "views"
STALE: Final = "stale"
DAMAGED: Final = "damaged"
_HEADER_NBYTES: Final = 1 << 17


class ViewWarning(UserWarning):
    """A view on disk is damaged or stale and is not used."""


class View(Protocol):
    """What the shelf needs of a view."""

    name: ClassVar[str]
    version: ClassVar[int]

    def meta(self) -> dict[str, int]:
        """Return numbers to keep."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return arrays to keep."""
        ...

    @classmethod
    def from_arrays(cls, frame: Frame, meta: Mapping[str, int], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild the view; ValueError where it does not fit the frame."""
        ...

    @classmethod
    def largest_nbytes(cls, frame: Frame) -> int:
        """Return the most bytes that its arrays may take."""
        ...


V = TypeVar("V", bound=View)


def view_key(name: str, spec: ArraySpec, step: int) -> str:
    """Key of a view: ``views/<view>/<layer>/<kind>/<checkpoint>``."""
    return f"{PREFIX}/{name}/{spec.path.removeprefix(LAYERS_GROUP + '/')}/{step}"


def index_command(name: str) -> str:
    """Command that makes a view of this name again; Gram views are made only where they are named."""
    _, is_gram, mode = name.partition("gram-")
    return f"ndt index --gram {mode}" if is_gram else "ndt index"


def covers(catalogue: Catalogue, step: int) -> tuple[str, str]:
    """Digests of what a view of this checkpoint is made from."""
    return catalogue.record(step).digest, catalogue.record(None).digest


def load(catalogue: Catalogue, frame: Frame, step: int, kind: type[V]) -> tuple[V | None, str]:
    """Return the view of an array at a committed checkpoint, or None and why there is none to use.

    Costs one read of the file; reads the commit record once for each catalogue. Warns of a damaged or stale view.
    """
    view, state, why = look(catalogue, frame, step, kind)
    if state in (STALE, DAMAGED):
        warnings.warn(
            f"View {view_key(kind.name, frame.spec, step)} of {catalogue.storage.path} is {state} ({why}) and is not "
            f"used: its numbers come from the blocks, and `{index_command(kind.name)}` replaces it.",
            ViewWarning,
            stacklevel=2,
        )
    return view, state


def look(catalogue: Catalogue, frame: Frame, step: int, kind: type[V]) -> tuple[V | None, str, str]:
    """Return a view or None, in what state it is, "" for one that may be used, and what is wrong with it."""
    key = view_key(kind.name, frame.spec, step)
    try:
        size = catalogue.storage.size(key)
        if size is None:
            if catalogue.storage.exists(key):
                raise ValueError("it is no file: remove what stands there")
            return None, "not made yet", ""
        if size > kind.largest_nbytes(frame) + _HEADER_NBYTES:
            raise ValueError(f"it has {size} bytes")
        found = decode(catalogue.storage.read(key, size))
        if (found.view, found.array, found.checkpoint) != (kind.name, frame.spec.path, step):
            raise ValueError(f"it says that it is view {found.view} of {found.array} at {found.checkpoint}")
        if found.version != kind.version:
            return None, f"made by version {found.version} where this is {kind.version}", ""
        if found.covers != covers(catalogue, step):
            return None, STALE, "it was made from another commit"
        return kind.from_arrays(frame, found.meta, found.arrays), "", ""
    except (ValueError, OSError, StorageError) as error:
        return None, DAMAGED, str(error)


def keep(catalogue: Catalogue, frame: Frame, step: int, view: View) -> None:
    """Write a view to the store, whole or not at all.

    Raises
    ------
    StorageError
        The store cannot be written to, or a link stands where a folder of views should: nothing is written through it.
    """
    contents = ViewFile(
        view.name, view.version, frame.spec.path, step, covers(catalogue, step), view.meta(), view.arrays()
    )
    # A view that a crash takes away is made again: it need not wait for the disk as a block does.
    catalogue.storage.write(view_key(view.name, frame.spec, step), [encode(contents)], durable=False)
