"""What verification finds wrong, one value for each thing, and what it finds of one block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ndt_store.blocks import read_block
from ndt_store.catalogue import Catalogue
from ndt_store.commits import BlockEntry
from ndt_store.errors import IntegrityError, StorageError
from ndt_store.layout import block_shape, numpy_dtype
from ndt_store.schema import ArraySpec

__all__ = ["DAMAGED", "INCOMPLETE", "VIEW", "Finding", "measured", "read"]

DAMAGED: Final = "damaged"
INCOMPLETE: Final = "incomplete"
VIEW: Final = "view"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Parameters
    ----------
    severity : {"damaged", "incomplete", "view"}
        Damage means that committed data are lost or altered; incomplete means that a capture has not finished; a view
        that is damaged or stale costs time and no data.
    array, block : str
        Path of the array and key of the block or file; "" where none is concerned.
    message : str
        One sentence.
    """

    severity: str
    array: str
    block: str
    message: str


def read(catalogue: Catalogue, spec: ArraySpec, entry: BlockEntry) -> list[Finding]:
    """Read, checksum and decode one block."""
    try:
        read_block(catalogue.storage, spec, entry, np.empty(block_shape(spec), numpy_dtype(spec)))
    except IntegrityError as error:
        return [Finding(DAMAGED, error.array, error.block, str(error))]
    return []


def measured(catalogue: Catalogue, spec: ArraySpec, entry: BlockEntry) -> list[Finding]:
    """Compare the size of one block."""
    try:
        size = catalogue.storage.size(entry.key)
    except StorageError as error:
        return [Finding(DAMAGED, spec.path, entry.key, str(error))]
    if size == entry.nbytes:
        return []
    what = "is missing" if size is None else f"has {size} bytes where {entry.nbytes} were committed"
    return [Finding(DAMAGED, spec.path, entry.key, f"Block {entry.key} of array {spec.path} {what}.")]
