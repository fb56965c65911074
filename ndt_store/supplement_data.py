"""Reading what a supplement holds, checked against its record.

What was written once is read like the static arrays of a store: lazily, block by block (`catalogue_of`). A series is
small and read whole, as of now, while its writer may add rows (`read_series`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import BlockArray
from ndt_store.catalogue import Catalogue
from ndt_store.codecs import CRC_NBYTES, crc32c
from ndt_store.commits import BlockEntry
from ndt_store.dims import TRAINING_GROUP
from ndt_store.errors import IntegrityError, NotFoundError
from ndt_store.layout import block_shape, numpy_dtype
from ndt_store.schema import ArraySpec
from ndt_store.storage import Storage
from ndt_store.supplements import SupplementRecord, read_record

__all__ = ["SupplementCatalogue", "catalogue_of", "read_rows", "read_series", "require_record"]


@dataclass(frozen=True, slots=True)
class SupplementCatalogue(Catalogue):
    """A supplement as a catalogue of its own, whose arrays are all static.

    Parameters
    ----------
    supplement : SupplementRecord
        Its record.
    """

    supplement: SupplementRecord = field(kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return catalogue_of, (self.storage, self.supplement)

    def entries(self, array: str, step: int | None) -> tuple[BlockEntry, ...]:  # noqa: ARG002 - nothing has steps here
        """Return what the record says of the blocks of an array."""
        return self.supplement.blocks[array]


def catalogue_of(storage: Storage, record: SupplementRecord) -> SupplementCatalogue:
    """Return the catalogue of a supplement."""
    return SupplementCatalogue(storage, record.schema, {}, (), record.digest, supplement=record)


def require_record(storage: Storage, group: str) -> SupplementRecord:
    """Read the record of a supplement.

    Raises
    ------
    NotFoundError
        There is none; says how to make one.
    """
    record = read_record(storage, group)
    if record is not None:
        return record
    if group == TRAINING_GROUP:
        raise NotFoundError(
            f"{storage.path} has no series of a training: train with tracking into this path, or append to it with "
            "ndt_store.SeriesWriter."
        )
    raise NotFoundError(f"{storage.path} has no {group}: `ndt info` lists the experiments that it has.")


def read_series(storage: Storage, group: str) -> tuple[SupplementRecord, dict[str, NDArray[Any]]]:
    """Read a series as its newest record says.

    A writer may drop rows meanwhile, so that blocks no longer fit the record that was read; then there is a new one.

    Raises
    ------
    NotFoundError
        There is no such series.
    IntegrityError
        Record or block are damaged; names the array and the block.
    """
    record = require_record(storage, group)
    while True:
        try:
            return record, _read_arrays(storage, record)
        except IntegrityError:
            newest = require_record(storage, group)
            if newest == record:
                raise
            record = newest


def _read_arrays(storage: Storage, record: SupplementRecord) -> dict[str, NDArray[Any]]:
    catalogue = catalogue_of(storage, record)
    arrays: dict[str, NDArray[Any]] = {}
    for spec in record.schema.arrays:
        if not record.grows(spec):
            arrays[spec.path] = BlockArray(catalogue, spec)[...]
            continue
        parts = [
            read_rows(storage, spec, entry, record.n_counted(spec, index))
            for index, entry in enumerate(record.blocks[spec.path])
        ]
        arrays[spec.path] = np.concatenate([np.empty((0, *spec.sizes[1:]), numpy_dtype(spec)), *parts])
    return arrays


def read_rows(storage: Storage, spec: ArraySpec, entry: BlockEntry, n_rows: int) -> NDArray[Any]:
    """Read the first rows of a block of a growing array, which may have gained rows since the record was written.

    Raises
    ------
    IntegrityError
        The block is damaged, or its first rows are not those that were recorded.
    """
    shape, dtype = block_shape(spec), numpy_dtype(spec)
    nbytes = int(np.prod(shape)) * dtype.itemsize + CRC_NBYTES
    try:
        data = storage.read(entry.key, nbytes + 1)
    except FileNotFoundError:
        raise _damaged(storage, spec, entry, "is missing") from None
    except OSError as error:
        raise _damaged(storage, spec, entry, f"cannot be read ({error})") from error
    if not len(data) == entry.nbytes == nbytes:
        what = f"has {storage.size(entry.key)} bytes and is listed with {entry.nbytes} where a block has {nbytes}"
        raise _damaged(storage, spec, entry, what)
    payload = memoryview(data)[:-CRC_NBYTES]
    if crc32c(payload) != int.from_bytes(data[-CRC_NBYTES:], "little"):
        raise _damaged(storage, spec, entry, "does not match its checksum")
    if crc32c(payload[: len(payload) // spec.rows * n_rows]) != entry.crc32c:
        raise _damaged(storage, spec, entry, f"does not begin with the {n_rows} rows that were recorded")
    return np.frombuffer(payload, dtype).reshape(shape)[:n_rows]


def _damaged(storage: Storage, spec: ArraySpec, entry: BlockEntry, what: str) -> IntegrityError:
    return IntegrityError(
        f"Block {entry.key} of array {spec.path} in {storage.path} {what}: restore the file from a copy, or remove the "
        f"folder {spec.group} and its record and track again.",
        spec.path,
        entry.key,
    )
