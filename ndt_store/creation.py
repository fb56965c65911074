"""How a store comes into being, and how what an interrupted writer left is told from somebody's files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ndt_store.blocks import write_block
from ndt_store.catalogue import Catalogue
from ndt_store.commits import PREFIX, ArrayEntry, BlockEntry, CommitRecord, commit_key, parse_step
from ndt_store.dims import TRAINING_GROUP
from ndt_store.errors import AlreadyExistsError, DimensionError, IntegrityError, InvalidInputError
from ndt_store.layout import ROOT_DOCUMENT, Block, Rows, blocks, documents, rows_of
from ndt_store.root import ROOT_WRITER, changing_root, store_root
from ndt_store.schema import ArraySpec, Schema
from ndt_store.storage import LOCK_KEY, TEMPORARY, Sink, Storage, of_writer
from ndt_store.supplements import parse_group, record_key
from ndt_store.views.shelf import PREFIX as VIEWS

__all__ = ["check_only_leftovers", "create", "restore_documents", "static_values"]

N_THREADS: Final = 2


def static_values(schema: Schema, given: Mapping[str, Rows]) -> dict[str, Rows]:
    """Check that every static array has values of its shape."""
    values = {}
    for spec in schema.static:
        if spec.path not in given:
            raise InvalidInputError(f"The schema plans the static array {spec.path}, and no values were given for it.")
        values[spec.path] = given[spec.path]
        if tuple(values[spec.path].shape) != spec.sizes:
            raise DimensionError(f"Values of {spec.path} have shape {values[spec.path].shape}: expected {spec.sizes}.")
    return values


def create(storage: Storage, schema: Schema, values: Mapping[str, Rows], rendered: Mapping[str, bytes]) -> Catalogue:
    """Write documents, static arrays and their record, and last the root: with it the store exists."""
    for key in _leftovers(storage):
        storage.delete(key)  # of a creation that was interrupted, perhaps with other layers
    with storage.gather() as sink:
        for key, data in rendered.items():
            if key != ROOT_DOCUMENT:
                sink.write(key, [data])
        arrays = {}
        for spec in schema.static:
            arrays[spec.path] = ArrayEntry.of(_written(sink, spec, values[spec.path]))
        sink.sync()
        sink.write(commit_key(None), [CommitRecord(None, -1, arrays).to_json()])
        sink.sync()
        with changing_root(storage):
            sink.write(ROOT_DOCUMENT, [store_root(storage, rendered[ROOT_DOCUMENT])])
            sink.sync()
    return Catalogue.read(storage)


def _written(sink: Sink, spec: ArraySpec, values: Rows) -> list[tuple[BlockEntry, int, int]]:
    """Write the blocks of a static array: encoded in threads, and read by one at a time from wherever they come."""
    reading = threading.Lock()

    def one(where: Block) -> tuple[BlockEntry, int, int]:
        with reading:
            rows = rows_of(spec, values, where)
        return write_block(sink, spec, where, rows)

    with ThreadPoolExecutor(N_THREADS, thread_name_prefix="ndt-encode") as pool:
        return list(pool.map(one, blocks(spec)))


def _leftovers(storage: Storage) -> set[str]:
    """Return all that is there but a series of a training, and what its writer needs."""
    found = {key if key.startswith(f"{PREFIX}/") else key.split("/")[0] for key in storage.list()}
    of_writers = (f"{LOCK_KEY}-", f"{TEMPORARY}-")
    kept = {LOCK_KEY, ROOT_DOCUMENT, TRAINING_GROUP, record_key(TRAINING_GROUP)}
    return {key for key in found - kept if not key.startswith(of_writers)}


def restore_documents(catalogue: Catalogue) -> None:
    """Write again what an interrupted extension left longer, and what was lost; the root is known to be whole."""
    storage = catalogue.storage
    rendered = documents(catalogue.schema, catalogue.provenance)
    with changing_root(storage):
        rendered[ROOT_DOCUMENT] = store_root(storage, rendered[ROOT_DOCUMENT])
        for key, data in rendered.items():
            if storage.size(key) != len(data) or storage.read(key, len(data)) != data:
                storage.write(key, [data])
        storage.sync()


def check_only_leftovers(storage: Storage, rendered: Mapping[str, bytes]) -> None:
    """Check that a place without a store is empty, or holds only what an interrupted creation left.

    Raises
    ------
    IntegrityError
        Checkpoints are committed there, and the root document is lost.
    AlreadyExistsError
        Something of somebody else lies there.
    """
    keys = list(storage.list())
    committed = [key for key in keys if parse_step(key) is not None]
    experiments = [key for key in keys if parse_group(key) not in (None, TRAINING_GROUP)]
    if committed or experiments:
        what = f"{len(committed)} committed checkpoints" if committed else f"{len(experiments)} experiments"
        raise IntegrityError(
            f"{storage.path} has lost its zarr.json but holds {what}: restore zarr.json from a copy, or choose another "
            "path.",
            ROOT_DOCUMENT,
        )
    ours = {TEMPORARY, LOCK_KEY, PREFIX, VIEWS, TRAINING_GROUP, *(key.split("/")[0] for key in rendered)}
    ours |= {of_writer(key, writer) for key in (LOCK_KEY, TEMPORARY) for writer in (TRAINING_GROUP, ROOT_WRITER)}
    foreign = sorted({key.split("/")[0] for key in keys} - ours)
    if foreign:
        raise AlreadyExistsError(
            f"{storage.path} is no activation store but holds {foreign[0]!r}: choose a path that does not exist yet."
        )
    if storage.size("") is not None:
        raise AlreadyExistsError(f"{storage.path} is a file: choose a path that does not exist yet.")
