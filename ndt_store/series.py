"""SeriesWriter: appends rows to the series that is tracked while a network trains.

1. `SeriesWriter.open` takes the series' own lock, so that a capture may write beside it, also before there is a store.
2. `append` keeps a row in memory. `flush`, which begins on its own every other second and then runs beside the caller,
   writes the blocks that have new rows, with those they had, and makes them durable. Then come the metadata of plain
   Zarr readers and the record; until then every reader sees the rows before.
3. `truncate` drops rows from the record at once, so that what is appended instead never meets a record of the old rows.

A writer that dies loses the rows since its last flush. Open it again and append from `last_step` on.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Self

from numpy.typing import ArrayLike

from ndt_store.dims import STEP, TRAINING_GROUP
from ndt_store.errors import InvalidInputError, StorageError
from ndt_store.resume import json_mapping
from ndt_store.schema import as_step
from ndt_store.series_blocks import begin, extend, last_rows, publish, read_steps, shorten
from ndt_store.series_plan import Column, as_labels, as_row, check_place, check_same, plan_series
from ndt_store.storage import TEMPORARY, Lock, Storage, of_writer, open_storage
from ndt_store.supplements import SupplementRecord, read_record

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
        # The last block is written anew when it gains rows: what is in memory begins with it.
        self._rows = last_rows(storage, record, record.n_rows)
        self._steps = read_steps(storage, record)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ndt-series")
        self._flushing: Future[SupplementRecord] | None = None

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
            The growing dimension, whose coordinate holds the steps.
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
            if record is None:
                record = begin(storage, planned, labels)
            else:
                check_same(storage, record, planned, labels)
                publish(storage, record)  # once more, because the writer before may have died on the way
            return cls(storage, lock, record, flush_interval_s)
        except BaseException:
            lock.release()
            raise

    @property
    def last_step(self) -> int | None:
        """The last step that was appended, None before the first."""
        return self._steps[-1] if self._steps else None

    def append(self, step: int, /, **values: ArrayLike) -> None:
        """Add one row; it is safe after the next flush, which comes on its own in time and beside the caller.

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
        StorageError
            The file system refused the last flush; the row is not added, those before are kept.
        """
        self._require_open()
        self._settle(wait=False)
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
        if self._flushing is None and time.monotonic() - self._flushed_at >= self._flush_interval_s:
            self._begin_flush()

    def flush(self) -> None:
        """Make every row so far durable and visible; waits for it.

        Raises
        ------
        StorageError
            The file system refuses; the rows are kept, and the next flush tries again.
        """
        self._require_open()
        with suppress(StorageError):
            self._settle()  # what was refused then is tried again now, and raises if it is refused again
        self._begin_flush()
        self._settle()

    def truncate(self, step: int) -> None:
        """Drop the rows after a step, for a training that goes on from an older state.

        Raises
        ------
        StorageError
            The file system refuses.
        """
        self.flush()
        n = bisect_right(self._steps, step)
        if n < len(self._steps):
            rows = last_rows(self._storage, self._record, n)
            self._record = shorten(self._storage, self._record, n)
            self._rows = rows
            del self._steps[n:]

    def close(self) -> None:
        """Flush, and let the next writer in."""
        if self._lock is None:
            return
        try:
            self.flush()
            self._storage.delete(of_writer(TEMPORARY, TRAINING_GROUP))
        finally:
            self._pool.shutdown()
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

    def _begin_flush(self) -> None:
        """Begin to write the rows that are not counted yet, if there are any."""
        self._flushed_at = time.monotonic()
        n = len(self._steps)
        if n > self._record.n_rows:
            rows = {path: list(kept) for path, kept in self._rows.items()}
            self._flushing = self._pool.submit(extend, self._storage, self._record, rows, n)

    def _settle(self, *, wait: bool = True) -> None:
        """Take note of a flush that has ended, or wait for its end; raises what it raised."""
        if self._flushing is None or not (wait or self._flushing.done()):
            return
        flushing, self._flushing = self._flushing, None
        before, self._record = self._record.n_rows, flushing.result()
        for spec in self._growing:
            del self._rows[spec.path][: (self._record.n_rows // spec.rows - before // spec.rows) * spec.rows]
