"""StoreWriter: the only code that changes a store.

1. `StoreWriter.open` takes the lock. Where there is no store it writes metadata for all planned checkpoints and the
   static arrays, and the root document last: with it the store exists. Where there is one it compares schema,
   provenance and probe set with what was asked, field by field, and sweeps what an interrupted writer left behind.
2. `write_block` encodes a block, writes it beside its place, syncs it and renames it. Any number of threads may call
   it, each block has one caller.
3. `commit` publishes the checkpoint's record once every block is down and every directory is synced. Before that no
   reader sees the checkpoint; after it nothing of the checkpoint changes.
4. `extend` plans more checkpoints. Node documents go first and the root last, so that readers see either length.

A writer that dies between any two of these leaves the committed checkpoints as they were, and the same calls made
again go on from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ndt_store.catalogue import Catalogue
from ndt_store.codecs import encode
from ndt_store.commits import ArrayEntry, BlockEntry, CommitRecord, commit_key
from ndt_store.errors import (
    AlreadyExistsError,
    DimensionError,
    IncompleteStoreError,
    InvalidInputError,
    NotFoundError,
)
from ndt_store.layout import (
    ROOT_DOCUMENT,
    Block,
    Rows,
    block,
    blocks,
    documents,
    n_blocks,
    numpy_dtype,
    padded,
    rows_of,
)
from ndt_store.resume import check_same, check_static
from ndt_store.schema import ArraySpec, Schema
from ndt_store.storage import LOCK_KEY, TEMPORARY, Lock, Storage, open_storage

__all__ = ["StoreWriter"]


class StoreWriter:
    """Writes one store, block by block and checkpoint by checkpoint. Make one with `StoreWriter.open`."""

    def __init__(self, catalogue: Catalogue, lock: Lock) -> None:
        self._catalogue = catalogue
        self._lock: Lock | None = lock
        self._guard = threading.Lock()
        self._pending: dict[int, dict[str, dict[int, tuple[BlockEntry, int, int]]]] = {}

    @classmethod
    def open(
        cls,
        path: Any,
        schema: Schema,
        *,
        static: Mapping[str, Rows],
        provenance: Mapping[str, Any],
    ) -> Self:
        """Create a store, or go on with one that was begun by the same call.

        Parameters
        ----------
        path : str, PathLike or Storage
            Where the store lies or shall lie.
        schema : Schema
            What it holds. Of an existing store the planned checkpoints may be a beginning of these; the rest is
            added.
        static : mapping of str to ndarray
            Values of every static array, by path; or anything with a shape whose slices give them, so that a
            large probe set need not be in memory.
        provenance : mapping
            ``identity`` holds what makes two captures the same one and is compared on resume; ``environment`` is
            kept from the first call.

        Raises
        ------
        AlreadyExistsError
            The place holds something that is not a store.
        StoreLockedError
            Another writer holds it.
        ResumeMismatchError
            The store was begun with another schema, probe set or identity; names the field and both values.
        """
        storage = open_storage(path)
        values = {spec.path: _static_values(spec, static) for spec in schema.static}
        if storage.exists() and not storage.exists(ROOT_DOCUMENT):
            _check_only_leftovers(storage, schema)
        lock = storage.lock()
        try:
            try:
                catalogue = Catalogue.read(storage)
            except NotFoundError:
                if storage.exists(ROOT_DOCUMENT):
                    raise
                catalogue = _create(storage, schema, values, provenance)
            else:
                check_same(catalogue, schema, provenance)
                check_static(catalogue, values)
            storage.delete(TEMPORARY)
            writer = cls(catalogue, lock)
            new = schema.checkpoints[len(catalogue.schema.checkpoints) :]
            if new:
                writer.extend(new)
        except BaseException:
            lock.release()
            raise
        return writer

    @property
    def schema(self) -> Schema:
        """What the store is planned to hold at present."""
        return self._catalogue.schema

    @property
    def catalogue(self) -> Catalogue:
        """Metadata and commits as of now."""
        return self._catalogue

    @property
    def committed(self) -> tuple[int, ...]:
        """Steps of the committed checkpoints."""
        return self._catalogue.committed

    def extend(self, steps: Sequence[int]) -> None:
        """Plan more checkpoints after the last one.

        Raises
        ------
        SchemaError
            The steps do not increase beyond the last planned one.
        """
        storage = self._storage
        schema = self.schema.with_checkpoints((*self.schema.checkpoints, *steps))
        rendered = documents(schema, self._catalogue.provenance)
        root = rendered.pop(ROOT_DOCUMENT)
        for key, data in rendered.items():
            storage.write(key, [data])
        storage.sync()
        storage.write(ROOT_DOCUMENT, [root])
        storage.sync()
        self._catalogue = Catalogue.read(storage)

    def write_block(self, step: int, array: str, index: int, data: NDArray[Any]) -> None:
        """Write one block of one cube at a planned checkpoint; durable on return but for its directory entry.

        Parameters
        ----------
        step : int
            Planned checkpoint that is not committed yet.
        array : str
            Path of the cube.
        index : int
            Which block of it, counted from 0.
        data : ndarray
            The block's entries, shape (rows of this block, *other sizes), dtype as in the schema.
        """
        spec, position = self._target(step, array)
        if not 0 <= index < n_blocks(spec):
            raise NotFoundError(f"Array {array} has {n_blocks(spec)} blocks a checkpoint: there is no block {index}.")
        entry, nan, inf = _put(self._storage, spec, block(spec, index, position), data)
        with self._guard:
            self._pending.setdefault(step, {}).setdefault(array, {})[index] = (entry, nan, inf)

    def commit(self, step: int, weights_digest: str = "") -> None:
        """Make a checkpoint visible, for good.

        Raises
        ------
        IncompleteStoreError
            Blocks of this checkpoint were not written.
        """
        with self._guard:
            written = self._pending.get(step, {})
        arrays = {}
        for spec in self.schema.cubes:
            found = written.get(spec.path, {})
            missing = [index for index in range(n_blocks(spec)) if index not in found]
            if missing:
                raise IncompleteStoreError(
                    f"Checkpoint {step} of {self._storage.path} cannot be committed: {len(missing)} of "
                    f"{n_blocks(spec)} blocks of {spec.path} were not written, the first is block {missing[0]}."
                )
            parts = [found[index] for index in sorted(found)]
            arrays[spec.path] = ArrayEntry(
                tuple(part[0] for part in parts),
                sum(part[1] for part in parts),
                sum(part[2] for part in parts),
            )
        record = CommitRecord(step, self.schema.checkpoints.index(step), arrays, weights_digest, _now())
        self._storage.sync()
        self._storage.write(commit_key(step), [record.to_json()])
        self._storage.sync()
        with self._guard:
            del self._pending[step]
        self._catalogue = Catalogue.read(self._storage)

    def close(self) -> None:
        """Release the lock. A checkpoint that was not committed is forgotten."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            try:
                self._storage.delete(TEMPORARY)
            finally:
                lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _storage(self) -> Storage:
        return self._catalogue.storage

    def _target(self, step: int, array: str) -> tuple[ArraySpec, int]:
        if self._lock is None:
            raise InvalidInputError(f"The writer of {self._storage.path} is closed: open it again.")
        if step not in self.schema.checkpoints:
            raise NotFoundError(f"Checkpoint {step} is not planned in {self._storage.path}: extend the store first.")
        if step in self.committed:
            raise AlreadyExistsError(
                f"Checkpoint {step} of {self._storage.path} is committed and never changes: use a new store."
            )
        spec = self.schema.find(array)
        if spec is None or not spec.is_cube:
            raise NotFoundError(f"{self._storage.path} has no array {array!r} with a checkpoint axis.")
        return spec, self.schema.checkpoints.index(step)


def _create(storage: Storage, schema: Schema, values: Mapping[str, Rows], provenance: Mapping[str, Any]) -> Catalogue:
    rendered = documents(schema, provenance)
    root = rendered.pop(ROOT_DOCUMENT)
    for key, data in rendered.items():
        storage.write(key, [data])
    arrays = {}
    for spec in schema.static:
        parts = [_put(storage, spec, b, rows_of(spec, values[spec.path], b)) for b in blocks(spec)]
        arrays[spec.path] = ArrayEntry(
            tuple(part[0] for part in parts), sum(part[1] for part in parts), sum(part[2] for part in parts)
        )
    storage.sync()
    storage.write(commit_key(None), [CommitRecord(None, -1, arrays).to_json()])
    storage.sync()
    storage.write(ROOT_DOCUMENT, [root])
    storage.sync()
    return Catalogue.read(storage)


def _put(storage: Storage, spec: ArraySpec, target: Block, data: NDArray[Any]) -> tuple[BlockEntry, int, int]:
    shape = (target.stop - target.start, *spec.sizes[1:]) if spec.sizes else ()
    if data.shape != shape:
        raise DimensionError(f"Block {target.key} has shape {data.shape}: expected {shape} for dims {spec.dims}.")
    dtype = numpy_dtype(spec)
    if spec.dtype != "string" and data.dtype != dtype:
        raise InvalidInputError(f"Block {target.key} has dtype {data.dtype}: expected {dtype}; cast it first.")
    nan, inf = _count_nonfinite(data)
    encoded = encode(padded(spec, data), spec.codec)
    storage.write(target.key, encoded.buffers)
    return BlockEntry(target.key, encoded.nbytes, encoded.crc32c), nan, inf


def _count_nonfinite(data: NDArray[Any]) -> tuple[int, int]:
    if data.dtype.kind != "f":
        return 0, 0
    # Almost every block is finite, and one fast pass says so; overflow to infinity only means a second look.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.dot(flat := data.reshape(-1), flat)):
            return 0, 0
    nan = int(np.count_nonzero(np.isnan(data)))
    return nan, int(np.count_nonzero(np.isinf(data)))


def _static_values(spec: ArraySpec, static: Mapping[str, Rows]) -> Rows:
    if spec.path not in static:
        raise InvalidInputError(f"The schema plans the static array {spec.path}, and no values were given for it.")
    values = static[spec.path]
    if tuple(values.shape) != spec.sizes:
        raise DimensionError(f"Values of {spec.path} have shape {values.shape}: expected {spec.sizes}.")
    return values


def _check_only_leftovers(storage: Storage, schema: Schema) -> None:
    ours = {TEMPORARY, LOCK_KEY, "commits", *(key.split("/")[0] for key in documents(schema, {}))}
    foreign = sorted({key.split("/")[0] for key in storage.list()} - ours)
    if foreign:
        raise AlreadyExistsError(
            f"{storage.path} is no activation store but holds {foreign[0]!r}: choose a path that does not exist yet."
        )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
