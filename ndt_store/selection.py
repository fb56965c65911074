"""Selectors as text, for the command line: ``--layer GLOB --checkpoint 100:700 --example 0:50 --label 3``.

A range is by label and includes both ends, as `xarray.Dataset.sel` does; a single value or a list has to be there.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ndt_store.dims import ACTIVATIONS, CHECKPOINT, EXAMPLE, HEAD
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store, nearest_steps
from ndt_store.schema import layer_path

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Selection", "matching", "pick", "unit_layers"]


def pick(text: str | None, labels: NDArray[np.int64], what: str) -> NDArray[np.intp]:
    """Positions of the labels that a selector names.

    Parameters
    ----------
    text : str or None
        ``"700"``, ``"100,200"``, ``"100:700"``, ``":700"`` or ``"100:"``; None takes all.
    labels : ndarray
        What is there, shape (n,).
    what : str
        What the labels are, for the message: ``"checkpoint"``.

    Raises
    ------
    NotFoundError
        A single value is not there, or nothing lies in the range.
    InvalidInputError
        The text is no selector.
    """
    if text is None:
        return np.arange(len(labels))
    if not len(labels):
        raise NotFoundError(f"There is no {what} at all yet, so that {text} names none.")
    try:
        if ":" in text:
            first, last = (int(end) if end else None for end in text.split(":"))
            inside = np.ones(len(labels), dtype=bool)
            inside &= labels >= first if first is not None else True
            inside &= labels <= last if last is not None else True
            found = np.flatnonzero(inside)
            if not len(found):
                raise NotFoundError(f"No {what} lies in {text}: they run from {labels.min()} to {labels.max()}.")
            return found
        wanted = [int(part) for part in text.split(",")]
    except ValueError:
        raise InvalidInputError(
            f"--{what} {text!r} is no selector: give one value (700), a list (100,200) or a range (100:700, both ends "
            "included)."
        ) from None
    position = {int(label): n for n, label in enumerate(labels)}
    for label in wanted:
        if label not in position:
            raise NotFoundError(f"There is no {what} {label}: {nearest_steps(labels, label)}")
    return np.asarray(sorted({position[label] for label in wanted}))


def unit_layers(store: Store) -> list[str]:
    """Return the layers with activations that have units alone, not units for each head of attention."""
    specs = {layer: store.schema.find(layer_path(layer, ACTIVATIONS)) for layer in store.layers}
    return [layer for layer, spec in specs.items() if spec is not None and HEAD not in spec.dims]


def matching(names: Sequence[str], pattern: str | None) -> list[str]:
    """Return the names that a pattern is about: the one it spells out, else those its glob matches."""
    if pattern is None or pattern in names:
        return list(names) if pattern is None else [pattern]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


@dataclass(frozen=True, slots=True)
class Selection:
    """What part of a store a command is about; None means all."""

    layer: str | None = None
    checkpoint: str | None = None
    example: str | None = None
    label: str | None = None

    def layers(self, store: Store) -> Sequence[str]:
        """Names of the selected layers, in the store's order."""
        found = matching(store.layers, self.layer)
        if not found:
            raise NotFoundError(f"{store.path} has no layer like {self.layer!r}: it holds {', '.join(store.layers)}.")
        return found

    def apply(self, data: xr.Dataset) -> xr.Dataset:
        """Select checkpoints, examples and classes of one layer's dataset."""
        if self.checkpoint is not None:
            data = data.isel({CHECKPOINT: pick(self.checkpoint, data[CHECKPOINT].values, CHECKPOINT)})
        if self.example is not None:
            data = data.isel({EXAMPLE: pick(self.example, data[EXAMPLE].values, EXAMPLE)})
        if self.label is not None:
            labels = data["label"].values
            classes = np.unique(labels)
            try:
                chosen = classes[pick(self.label, classes, "label")]
            except NotFoundError as error:
                present = ", ".join(str(label) for label in classes)
                raise NotFoundError(
                    f"No selected example has label {self.label}: the labels among them are {present}."
                ) from error
            data = data.isel({EXAMPLE: np.isin(labels, chosen)})
        return data
