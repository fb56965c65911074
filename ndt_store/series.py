"""SeriesWriter: appends rows to the series that is tracked while a network trains.

1. `SeriesWriter.open` takes the series' own lock, so that a capture may write beside it, also before there is a store.
2. `append` keeps a row in memory. `flush` writes the blocks that have new rows, with those they had, and makes them
   durable. Then come the metadata of plain Zarr readers and the record; until then every reader sees the rows before.
3. `truncate` drops rows: first from the record, so that what is appended instead never meets a record of the old rows.

A writer that dies loses the rows since its last flush. Open it again and append from `last_step` on.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_store.blocks import write_block
from ndt_store.codecs import crc32c
from ndt_store.commits import BlockEntry
from ndt_store.dims import STEP, TRAINING_GROUP
from ndt_store.errors import InvalidInputError
from ndt_store.layout import ROOT_DOCUMENT, block, blocks, rows_of
from ndt_store.resume import json_mapping
from ndt_store.root import changing_root, supplement_root
from ndt_store.schema import ArraySpec, as_step
from ndt_store.series_plan import Column, as_labels, as_row, check_place, check_same, plan_series
from ndt_store.storage import TEMPORARY, Lock, Sink, Storage, of_writer, open_storage
from ndt_store.supplement_data import read_rows
from ndt_store.supplements import SupplementRecord, read_record, record_key

__all__ = ["SeriesWriter"]


class SeriesWriter(AbstractContextManager["SeriesWriter"]):
    """Appends rows to the group ``training`` of a store, from one thread. Make one with `SeriesWriter.open`."""

    def __init__(self, storage: Storage, lock: Lock, record: SupplementRecord, flush_interval_s: float) -> None:
        self._storage = storage
        self._lock: Lock | None = lock
        self._record = record
        self._flush_interval_s = flush_interval_s
        self._flushed_at = time.monotonic()
        self._growing = tuple(spec for spec in record.schema.arrays if record.grows(spec))
        # What is in memory begins with the last block, which is written anew when it gains rows.
        self._rows: dict[str, list[NDArray[Any]]] = {}
        self._steps: list[int] = []

    @classmethod
    def open(
        cls,
        path: Any,
        *,
        rows: Mapping[str, Column],
        coords: Mapping[str, ArrayLike] | None = None,
        dim: str = STEP,
        attrs: Mapping[str, Any] | None = None,
        identity: Mapping[str, Any] | None = None,
        flush_interval_s: float = 2.0,
    ) -> Self:
        """Begin a series, or go on with one that was begun by the same call.

        Parameters
        ----------
        path : str, PathLike or Storage
            Of a store, or of one that will be: a capture into this path keeps the series.
        rows : mapping of str to Column
            What `append` takes, by name.
        coords : mapping of str to array
            Labels, shape (n,), of each dimension that columns have beside `dim`.
        dim : str
            The growing dimension; its coordinate are the steps.
        attrs : mapping
            JSON attributes of the group, kept from the first call.
        identity : mapping
            JSON values that make two trainings the same one; compared when the series is opened again.
        flush_interval_s : float
            Seconds after which `append` makes durable what there is.

        Raises
        ------
        SchemaError
            Names, dimensions or dtypes cannot be kept, or do not fit the store.
        InvalidInputError
            JSON cannot hold the attributes or the identity.
        AlreadyExistsError
            The place holds something that is neither a store nor a series.
        StoreLockedError
            Another process appends.
        ResumeMismatchError
            The series was begun with other columns, coordinates or another identity; names the field and both values.
        IntegrityError
            Record or blocks are damaged.
        """
        storage = open_storage(path).for_writer(TRAINING_GROUP)
        labels = {name: as_labels(name, values) for name, values in (coords or {}).items()}
        planned = plan_series(
            rows, labels, dim, json_mapping(attrs or {}, "attrs"), json_mapping(identity or {}, "identity")
        )
        check_place(storage, planned)
        lock = storage.lock()
        try:
            storage.delete(of_writer(TEMPORARY, TRAINING_GROUP))
            record = read_record(storage, TRAINING_GROUP)
            if record is not None:
                check_same(storage, record, planned, labels)
            writer = cls(storage, lock, record or planned, flush_interval_s)
            if record is None:
                writer._create(labels)
            else:
                writer._resume()
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def last_step(self) -> int | None:
        """The last step that was appended, None before the first."""
        return self._steps[-1] if self._steps else None

    def append(self, step: int, **values: ArrayLike) -> None:
        """Add one row; it is safe after the next flush, which comes on its own in time.

        Parameters
        ----------
        step : int
            Larger than the last one.
        **values : array-like
            One for each column, of its shape.

        Raises
        ------
        InvalidInputError
            The step does not increase, or values are missing, unknown or not of the column's type.
        DimensionError
            A value has another shape than its column.
        """
        self._require_open()
        if self._steps and as_step(step) <= self._steps[-1]:
            raise InvalidInputError(
                f"Step {step} cannot be appended to {self._where}, whose last step is {self._steps[-1]}: steps "
                "increase; truncate(step) drops what comes after a step."
            )
        given = {self._record.dim: as_step(step), **values}
        expected = {spec.name for spec in self._growing}
        if set(given) != expected:
            wrong = sorted(set(given) ^ expected)
            raise InvalidInputError(
                f"Step {step} of {self._where} was given {', '.join(values) or 'nothing'}: expected each of "
                f"{', '.join(sorted(expected - {self._record.dim}))}; {wrong[0]!r} is missing or unknown."
            )
        row = {spec.path: as_row(spec, given[spec.name]) for spec in self._growing}
        for path, value in row.items():
            self._rows[path].append(value)
        self._steps.append(int(step))
        if time.monotonic() - self._flushed_at >= self._flush_interval_s:
            self.flush()

    def flush(self) -> None:
        """Make every row so far durable and visible.

        Raises
        ------
        StorageError
            The file system refuses; the rows are kept, and the next flush tries again.
        """
        self._require_open()
        self._flushed_at = time.monotonic()
        record, n = self._record, len(self._steps)
        if n == record.n_rows:
            return
        written = dict(record.blocks)
        with self._storage.gather() as sink:
            for spec in self._growing:
                first = record.n_rows // spec.rows
                values = np.stack(self._rows[spec.path])
                tail = [
                    _write_rows(sink, spec, first + index, values[start : start + spec.rows])
                    for index, start in enumerate(range(0, len(values), spec.rows))
                ]
                written[spec.path] = (*record.blocks[spec.path][:first], *tail)
            sink.sync()
            self._publish(sink, replace(record, blocks=written, n_rows=n))
        for spec in self._growing:
            del self._rows[spec.path][: (n // spec.rows - record.n_rows // spec.rows) * spec.rows]

    def truncate(self, step: int) -> None:
        """Drop the rows after a step, for a training that goes on from an older state.

        Raises
        ------
        StorageError
            The file system refuses.
        """
        self._require_open()
        n = bisect_right(self._steps, step)
        record = self._record
        if n < record.n_rows:
            cut = {spec.path: self._cut(spec, n) for spec in self._growing}
            entries = {path: entries for path, (entries, _) in cut.items()}
            shorter = replace(record, blocks={**record.blocks, **entries}, n_rows=n)
            self._storage.write(record_key(TRAINING_GROUP), [shorter.to_json()])
            self._storage.sync()
            self._record = shorter
            self._rows = {path: rows for path, (_, rows) in cut.items()}
            with self._storage.gather() as sink:
                self._publish(sink, shorter)
        else:
            for rows in self._rows.values():
                del rows[len(rows) - (len(self._steps) - n) :]
        del self._steps[n:]

    def close(self) -> None:
        """Flush, and let the next writer in."""
        if self._lock is None:
            return
        try:
            self.flush()
            self._storage.delete(of_writer(TEMPORARY, TRAINING_GROUP))
        finally:
            lock, self._lock = self._lock, None
            lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _where(self) -> str:
        return f"{TRAINING_GROUP}/ of {self._storage.path}"

    def _require_open(self) -> None:
        if self._lock is None:
            raise InvalidInputError(f"The writer of {self._where} is closed: open it again.")

    def _create(self, labels: Mapping[str, NDArray[Any]]) -> None:
        storage, record = self._storage, self._record
        supplement_root(storage, TRAINING_GROUP, record.nodes())  # raises before anything is written
        with storage.gather() as sink:
            written = {
                spec.path: ()
                if record.grows(spec)
                else tuple(write_block(sink, spec, b, rows_of(spec, labels[spec.name], b))[0] for b in blocks(spec))
                for spec in record.schema.arrays
            }
            sink.sync()
            self._publish(sink, replace(record, blocks=written))
        self._rows = {spec.path: [] for spec in self._growing}

    def _resume(self) -> None:
        record = self._record
        self._rows = {spec.path: self._cut(spec, record.n_rows)[1] for spec in self._growing}
        steps = self._growing[0]
        for index, entry in enumerate(record.blocks[steps.path]):
            self._steps.extend(read_rows(self._storage, steps, entry, record.n_counted(steps, index)).tolist())
        with self._storage.gather() as sink:
            self._publish(sink, record)

    def _cut(self, spec: ArraySpec, n: int) -> tuple[tuple[BlockEntry, ...], list[NDArray[Any]]]:
        """Return the blocks that the first `n` rows have, and the rows of the last one if it is not full."""
        full, n_beyond = divmod(n, spec.rows)
        entries = self._record.blocks[spec.path]
        if not n_beyond:
            return entries[:full], []
        rows = read_rows(self._storage, spec, entries[full], self._record.n_counted(spec, full))[:n_beyond]
        return (*entries[:full], replace(entries[full], crc32c=_checksum(rows))), list(rows)

    def _publish(self, sink: Sink, record: SupplementRecord) -> None:
        """Show what the blocks on disk hold: to plain readers by the metadata, to ours by the record."""
        storage = self._storage
        with changing_root(storage):
            for key, data in record.documents().items():
                sink.write(key, [data])
            sink.write(record_key(TRAINING_GROUP), [record.to_json()])
            sink.write(ROOT_DOCUMENT, [supplement_root(storage, TRAINING_GROUP, record.nodes())])
            sink.sync()
        self._record = record


def _write_rows(sink: Sink, spec: ArraySpec, index: int, rows: NDArray[Any]) -> BlockEntry:
    entry, _, _ = write_block(sink, spec, replace(block(spec, index), start=0, stop=len(rows)), rows)
    return replace(entry, crc32c=_checksum(rows))


def _checksum(rows: NDArray[Any]) -> int:
    return crc32c(np.ascontiguousarray(rows).tobytes())
