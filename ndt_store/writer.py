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
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from ndt_store.blocks import write_block
from ndt_store.catalogue import Catalogue
from ndt_store.commits import ArrayEntry, BlockEntry, CommitRecord, commit_key
from ndt_store.creation import check_only_leftovers, create, restore_documents, static_values
from ndt_store.errors import AlreadyExistsError, IncompleteStoreError, InvalidInputError, NotFoundError
from ndt_store.layout import ROOT_DOCUMENT, Rows, block, documents, n_blocks
from ndt_store.resume import as_json, check_same, check_static
from ndt_store.root import changing_root, has_store, store_root
from ndt_store.schema import ArraySpec, Schema, as_step
from ndt_store.storage import TEMPORARY, Lock, Storage, open_storage
from ndt_store.views.shelf import PREFIX as VIEWS

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
        InvalidInputError
            Values are missing, or provenance holds what JSON cannot.
        AlreadyExistsError
            The place holds something that is not a store.
        IntegrityError
            The place holds commits without the store they belong to, or a damaged store.
        StoreLockedError
            Another writer holds it.
        ResumeMismatchError
            The store was begun with another schema, probe set or identity; names the field and both values.
        """
        storage = open_storage(path)
        values = static_values(schema, static)
        rendered = documents(schema, provenance := as_json(provenance))
        if not has_store(storage):
            check_only_leftovers(storage, rendered)
        lock = storage.lock()
        try:
            storage.delete(TEMPORARY)
            storage.delete(f"{VIEWS}/{TEMPORARY}")
            if has_store(storage):
                catalogue = Catalogue.read(storage)
                check_same(catalogue, schema, provenance)
                check_static(catalogue, values)
                restore_documents(catalogue)
            else:
                catalogue = create(storage, schema, values, rendered)
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
        self._replan((*self.schema.checkpoints, *(as_step(step) for step in steps)))

    def abandon(self, step: int) -> None:
        """Take back the last planned checkpoint, which is not committed.

        Raises
        ------
        InvalidInputError
            It is not the last, or it is committed.
        """
        if self.schema.checkpoints[-1:] != (step,) or step in self.committed:
            raise InvalidInputError(
                f"Checkpoint {step} of {self._storage.path} cannot be abandoned: only the last planned one can, and "
                "only before it is committed."
            )
        self._pending.pop(step, None)
        self._replan(self.schema.checkpoints[:-1])

    def _replan(self, checkpoints: tuple[int, ...]) -> None:
        self._require_open()
        catalogue = self._catalogue
        before = documents(catalogue.schema, catalogue.provenance)
        schema = catalogue.schema.with_checkpoints(checkpoints)
        # Blocks that other threads write meanwhile go their own way: these documents may fail and be dropped.
        with self._storage.gather() as sink:
            rendered = documents(schema, catalogue.provenance)
            root = rendered.pop(ROOT_DOCUMENT)
            for key, data in rendered.items():
                if before.get(key) != data:
                    sink.write(key, [data])
            # The root comes last and after a sync: readers see either plan, never a mixture.
            sink.sync()
            with changing_root(self._storage):
                sink.write(ROOT_DOCUMENT, [store_root(self._storage, root)])
                sink.sync()
        self._catalogue = replace(catalogue, schema=schema)

    def write_block(self, step: int, array: str, index: int, data: NDArray[Any], *, is_finite: bool = False) -> None:
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
        is_finite : bool
            Whether the caller knows that no value is NaN or infinite, so that they need not be counted.
        """
        spec, position = self._target(step, array)
        if not 0 <= index < n_blocks(spec):
            raise NotFoundError(f"Array {array} has {n_blocks(spec)} blocks a checkpoint: there is no block {index}.")
        entry, nan, inf = write_block(self._storage, spec, block(spec, index, position), data, is_finite=is_finite)
        with self._guard:
            self._pending.setdefault(step, {}).setdefault(array, {})[index] = (entry, nan, inf)

    def commit(self, step: int, weights_digest: str = "") -> None:
        """Make a checkpoint visible, for good.

        Raises
        ------
        IncompleteStoreError
            Blocks of this checkpoint were not written.
        """
        self._require_open()
        self._require_planned(step)
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
            arrays[spec.path] = ArrayEntry.of([found[index] for index in sorted(found)])
        record = CommitRecord(step, self.schema.checkpoints.index(step), arrays, weights_digest, _now())
        self._storage.sync()
        self._storage.write(commit_key(step), [record.to_json()])
        self._storage.sync()
        with self._guard:
            del self._pending[step]
        self._catalogue = self._catalogue.with_commit(step)

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

    def _require_open(self) -> None:
        if self._lock is None:
            raise InvalidInputError(f"The writer of {self._storage.path} is closed: open it again.")

    def _require_planned(self, step: int) -> None:
        if step not in self.schema.checkpoints:
            raise NotFoundError(f"Checkpoint {step} is not planned in {self._storage.path}: extend the store first.")

    def _target(self, step: int, array: str) -> tuple[ArraySpec, int]:
        self._require_open()
        self._require_planned(step)
        if step in self.committed:
            raise AlreadyExistsError(
                f"Checkpoint {step} of {self._storage.path} is committed and never changes: use a new store."
            )
        spec = self.schema.find(array)
        if spec is None or not spec.is_cube:
            raise NotFoundError(f"{self._storage.path} has no array {array!r} with a checkpoint axis.")
        return spec, self.schema.checkpoints.index(step)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
