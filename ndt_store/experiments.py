"""Results of experiments, written once beside the cubes: ``experiments/<name>``.

Blocks and metadata are written and made durable first, then the record, with which the experiment exists, then the
root, which shows it to plain readers. A writer that dies leaves no experiment, or a whole one that the same call shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ndt_store.blocks import write_block
from ndt_store.catalogue import Catalogue
from ndt_store.codecs import encode
from ndt_store.dims import EXPERIMENTS_GROUP
from ndt_store.errors import AlreadyExistsError
from ndt_store.experiment_plan import plan_experiment, require_examples
from ndt_store.layout import ROOT_DOCUMENT, Rows, blocks, padded, rows_of
from ndt_store.resume import json_mapping
from ndt_store.root import changing_root, supplement_root
from ndt_store.schema import ArraySpec, Schema
from ndt_store.storage import TEMPORARY, Storage, of_writer, open_storage
from ndt_store.supplements import SupplementRecord, experiment_group, read_record, record_key

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_experiment"]


def write_experiment(
    path: Any,
    name: str,
    dataset: xr.Dataset,
    *,
    identity: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write the results of an experiment into a store, once and for all.

    A capture may write the store at the same time. Nothing is written where the store holds the same already.

    Parameters
    ----------
    path : str, PathLike or Storage
        Of a store.
    name : str
        Of the experiment: ``Store.experiment(name)`` reads it.
    dataset : xarray.Dataset
        Numbers, booleans and strings, with JSON attributes. It may be larger than memory: blocks of about 8 MB are
        taken from it one after the other. The dimension ``checkpoint`` belongs to the store's cubes; call an
        experiment's own steps ``step``. A dimension ``example`` has to be the store's.
    identity : mapping
        JSON values that tell what the experiment was.
    replace : bool
        Write it in the place of another of this name, which is gone first. Who still reads that one gets an error.

    Raises
    ------
    NotFoundError
        There is no store.
    AlreadyExistsError
        There is another experiment of this name.
    InvalidInputError
        The dataset, or the identity, holds what cannot be kept as it is.
    DimensionError
        A dimension is empty, or is one of the store's and does not fit it.
    StoreLockedError
        Another process writes an experiment.
    """
    storage = open_storage(path)
    group = experiment_group(name)
    catalogue = Catalogue.read(storage)
    identity = json_mapping(identity or {}, "identity")
    require_examples(catalogue, dataset)
    schema, values = plan_experiment(group, dataset)
    supplement_root(storage, group, SupplementRecord(group, schema, {}).nodes())  # raises before anything is written
    storage = storage.for_writer(EXPERIMENTS_GROUP)
    lock = storage.lock()
    try:
        storage.delete(of_writer(TEMPORARY, EXPERIMENTS_GROUP))
        found = read_record(storage, group)
        if found is not None and not replace:
            _require_same(storage, found, schema, values, identity)
            _show(storage, group, found.nodes())
            return
        _remove(storage, group)
        _show(storage, group, _write(storage, group, schema, values, identity).nodes())
        storage.delete(of_writer(TEMPORARY, EXPERIMENTS_GROUP))
    finally:
        lock.release()


def _write(
    storage: Storage, group: str, schema: Schema, values: Mapping[str, Rows], identity: Mapping[str, Any]
) -> SupplementRecord:
    with storage.gather() as sink:
        written = {
            spec.path: tuple(write_block(sink, spec, b, rows_of(spec, values[spec.path], b))[0] for b in blocks(spec))
            for spec in schema.arrays
        }
        record = SupplementRecord(group, schema, written, identity)
        for key, data in record.documents().items():
            sink.write(key, [data])
        sink.sync()
        sink.write(record_key(group), [record.to_json()])
        sink.sync()
    return record


def _show(storage: Storage, group: str, nodes: Mapping[str, Any]) -> None:
    """Let the root show an experiment to plain readers, or hide it where there are no nodes."""
    with changing_root(storage):
        root = supplement_root(storage, group, nodes)
        if storage.read(ROOT_DOCUMENT, len(root) + 1) != root:
            storage.write(ROOT_DOCUMENT, [root])
            storage.sync()


def _remove(storage: Storage, group: str) -> None:
    """Remove an experiment, or what an interrupted writer left; nobody ever sees half of one."""
    _show(storage, group, {})
    storage.delete(record_key(group))
    storage.sync()
    storage.delete(group)


def _require_same(
    storage: Storage, found: SupplementRecord, schema: Schema, values: Mapping[str, Rows], identity: Mapping[str, Any]
) -> None:
    what = "another identity" if identity != found.identity else ""
    what = what or ("other variables" if schema.to_json() != found.schema.to_json() else "")
    if not what:
        changed = (spec.name for spec in schema.arrays if not _equal(spec, values[spec.path], found))
        what = "".join(f"other values of {name!r}" for name in list(changed)[:1])
    if what:
        raise AlreadyExistsError(
            f"{storage.path} has {found.group} already, with {what}: choose another name, or replace it (replace=True)."
        )


def _equal(spec: ArraySpec, values: Rows, found: SupplementRecord) -> bool:
    return all(
        encode(padded(spec, rows_of(spec, values, b)), spec.codec).crc32c == entry.crc32c
        for b, entry in zip(blocks(spec), found.blocks[spec.path], strict=True)
    )
