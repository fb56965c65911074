"""A series on disk: begun, extended and shortened, each time from one record to the next.

Blocks are durable before a record counts their rows, and a record that counts fewer rows is durable before their blocks
are written anew. So no record ever counts rows that are not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import write_block
from ndt_store.codecs import crc32c
from ndt_store.commits import BlockEntry
from ndt_store.layout import ROOT_DOCUMENT, block, blocks, rows_of
from ndt_store.root import changing_root, supplement_root
from ndt_store.schema import ArraySpec
from ndt_store.storage import Sink, Storage
from ndt_store.supplement_data import read_rows
from ndt_store.supplements import SupplementRecord, record_key

__all__ = ["Rows", "begin", "extend", "last_rows", "publish", "read_steps", "shorten"]

Rows = dict[str, list[NDArray[Any]]]
"""Rows of each growing array, by path, from the first row of the last block that is not full."""


def begin(storage: Storage, planned: SupplementRecord, labels: Mapping[str, NDArray[Any]]) -> SupplementRecord:
    """Write the labels of a series without rows, and return its record.

    Raises
    ------
    SchemaError
        Its dimensions do not fit the store; nothing is written.
    """
    supplement_root(storage, planned.group, planned.nodes())
    with storage.gather() as sink:
        written = dict(planned.blocks)
        for spec in planned.schema.arrays:
            if not planned.grows(spec):
                values = labels[spec.name]
                written[spec.path] = tuple(
                    write_block(sink, spec, b, rows_of(spec, values, b))[0] for b in blocks(spec)
                )
        sink.sync()
        record = replace(planned, blocks=written)
        _publish(storage, sink, record)
    return record


def extend(
    storage: Storage, record: SupplementRecord, rows: Mapping[str, Sequence[NDArray[Any]]], n_rows: int
) -> SupplementRecord:
    """Write the blocks that gain rows, and return the record of a series of `n_rows`."""
    written = dict(record.blocks)
    with storage.gather() as sink:
        for spec in filter(record.grows, record.schema.arrays):
            first = record.n_rows // spec.rows
            values = np.stack(rows[spec.path])
            parts = [values[start : start + spec.rows] for start in range(0, len(values), spec.rows)]
            entries = [_write_rows(sink, spec, first + index, part) for index, part in enumerate(parts)]
            written[spec.path] = (*record.blocks[spec.path][:first], *entries)
        sink.sync()
        longer = replace(record, blocks=written, n_rows=n_rows)
        _publish(storage, sink, longer)
    return longer


def shorten(storage: Storage, record: SupplementRecord, n_rows: int) -> SupplementRecord:
    """Return the record of the first `n_rows` of a series, which are all that counts from then on."""
    rows = last_rows(storage, record, n_rows)
    kept = dict(record.blocks)
    for spec in filter(record.grows, record.schema.arrays):
        full = n_rows // spec.rows
        kept[spec.path] = record.blocks[spec.path][:full]
        if rows[spec.path]:
            last = replace(record.blocks[spec.path][full], crc32c=_checksum(np.stack(rows[spec.path])))
            kept[spec.path] = (*kept[spec.path], last)
    shorter = replace(record, blocks=kept, n_rows=n_rows)
    publish(storage, shorter)
    return shorter


def last_rows(storage: Storage, record: SupplementRecord, n_rows: int) -> Rows:
    """Read the rows of the last block that the first `n_rows` leave not full; none where they fill it."""
    rows: Rows = {}
    for spec in filter(record.grows, record.schema.arrays):
        full, n_beyond = divmod(n_rows, spec.rows)
        rows[spec.path] = []
        if n_beyond:
            entry = record.blocks[spec.path][full]
            rows[spec.path] = list(read_rows(storage, spec, entry, record.n_counted(spec, full))[:n_beyond])
    return rows


def read_steps(storage: Storage, record: SupplementRecord) -> list[int]:
    """Read the growing coordinate."""
    spec = record.schema.find(f"{record.group}/{record.dim}")
    assert spec is not None
    return [
        int(step)
        for index, entry in enumerate(record.blocks[spec.path])
        for step in read_rows(storage, spec, entry, record.n_counted(spec, index))
    ]


def publish(storage: Storage, record: SupplementRecord) -> None:
    """Show a series as its record says, to plain readers by the metadata, to ours by the record."""
    with storage.gather() as sink:
        _publish(storage, sink, record)


def _publish(storage: Storage, sink: Sink, record: SupplementRecord) -> None:
    with changing_root(storage):
        shown = {
            **record.documents(),
            record_key(record.group): record.to_json(),
            ROOT_DOCUMENT: supplement_root(storage, record.group, record.nodes()),
        }
        for key, data in shown.items():
            # A series that is opened again and gains nothing changes no file.
            if storage.size(key) != len(data) or storage.read(key, len(data)) != data:
                sink.write(key, [data])
        sink.sync()


def _write_rows(sink: Sink, spec: ArraySpec, index: int, rows: NDArray[Any]) -> BlockEntry:
    entry, _, _ = write_block(sink, spec, replace(block(spec, index), start=0, stop=len(rows)), rows)
    return replace(entry, crc32c=_checksum(rows))


def _checksum(rows: NDArray[Any]) -> int:
    return crc32c(np.ascontiguousarray(rows).tobytes())
