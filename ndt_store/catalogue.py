"""The store as its metadata tell it: schema, provenance and commit records, read and checked.

A `Catalogue` is a consistent snapshot. Which checkpoints it shows is decided when it is opened; commit records never
change once published, so each is read when it is first needed. Reading goes through the catalogue, never through the
presence of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ndt_store.codecs import profile
from ndt_store.commits import MAX_RECORD_NBYTES, PREFIX, BlockEntry, CommitRecord, commit_key, parse_step
from ndt_store.errors import FormatVersionError, IntegrityError, NotFoundError, SchemaError
from ndt_store.layout import ROOT_DOCUMENT, digest
from ndt_store.root import is_provisional, read_root
from ndt_store.schema import FORMAT_VERSION, Schema
from ndt_store.storage import Storage
from ndt_store.supplements import parse_group

__all__ = ["Catalogue"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a store holds and which of it is committed.

    Parameters
    ----------
    storage : Storage
        Where it lies.
    schema : Schema
        What was planned.
    provenance : mapping
        Where it comes from: ``identity`` decides whether a capture may resume, ``environment`` is for the reader.
    committed : tuple of int
        Steps of the committed checkpoints, increasing.
    stamp : str
        Changes when the store at this place is replaced by another; names what is cached of it.
    supplements : tuple of str
        Groups beside the cubes, ``training`` and ``experiments/<name>``, that have a record.
    memo : dict
        Small things that readers of this snapshot made of it once.
    """

    storage: Storage
    schema: Schema
    provenance: Mapping[str, Any]
    committed: tuple[int, ...]
    stamp: str = ""
    supplements: tuple[str, ...] = ()
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _records: dict[int | None, CommitRecord] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """Read a store's root document and list its commits.

        Raises
        ------
        NotFoundError
            There is no store at this place.
        FormatVersionError
            The store was written in a format this version does not know.
        IntegrityError
            The root document is damaged.
        """
        schema, provenance = _read_root(storage)
        keys = list(storage.list(PREFIX))
        steps = {parse_step(key) for key in keys} & set(schema.checkpoints)
        committed = tuple(step for step in schema.checkpoints if step in steps)
        stamps = [storage.stamp(commit_key(step)) for step in (None, *committed)]
        supplements = tuple(sorted(filter(None, map(parse_group, keys))))
        return cls(storage, schema, provenance, committed, digest(stamps), supplements)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads the records it needs; carrying them along would outweigh small tasks.
        return type(self), (
            self.storage,
            self.schema,
            self.provenance,
            self.committed,
            self.stamp,
            self.supplements,
        )

    def with_commit(self, step: int) -> Self:
        """Return the snapshot after one more commit, without reading the store again."""
        committed = tuple(sorted({*self.committed, step}))
        return replace(self, committed=committed, stamp=self.stamp + self.storage.stamp(commit_key(step)))

    @property
    def is_complete(self) -> bool:
        """Whether every planned checkpoint is committed."""
        return self.committed == self.schema.checkpoints

    def record(self, step: int | None) -> CommitRecord:
        """Return the record of a committed checkpoint, or of the static arrays for None."""
        # Two threads may read the same record at once; both get the same, because a record never changes.
        if step not in self._records:
            self._records[step] = self._read_record(step)
        return self._records[step]

    def entries(self, array: str, step: int | None) -> tuple[BlockEntry, ...]:
        """Return what the record says of the blocks of an array, at a committed checkpoint or, for None, static."""
        return self.record(step).arrays[array].blocks

    def _read_record(self, step: int | None) -> CommitRecord:
        key = commit_key(step)
        size = self.storage.size(key)
        if size is None or size > MAX_RECORD_NBYTES:
            state = "is missing" if size is None else f"has {size} bytes, more than any record"
            raise IntegrityError(
                f"The commit record {key} of {self.storage.path} {state}: restore it from a copy of the store.",
                key,
            )
        record = CommitRecord.from_json(self.storage.read(key, MAX_RECORD_NBYTES), key)
        index = -1 if step is None else self.schema.checkpoints.index(step)
        if (record.step, record.index) != (step, index):
            raise IntegrityError(
                f"The commit record {key} says that it is of checkpoint {record.step} at position {record.index} "
                f"where {step} at {index} belongs: restore it from a copy of the store.",
                key,
            )
        record.check_covers(self.schema.static if step is None else self.schema.cubes, key)
        return record


def _read_root(storage: Storage) -> tuple[Schema, Mapping[str, Any]]:
    where = storage.path
    document = read_root(storage)
    if document is None:
        what = "is no activation store: it has no zarr.json" if storage.exists() else "does not exist"
        raise NotFoundError(f"{where} {what}; give the path of a store that `ndt capture` or `ndt demo` made.")
    if is_provisional(document):
        raise NotFoundError(
            f"{where} holds what was tracked while training and no capture yet: read it with "
            "ndt_store.open_training, or capture into it with `ndt capture`."
        )
    attributes = document["attributes"]
    content = attributes.get("ndt") if isinstance(attributes, dict) else None
    if not isinstance(content, dict) or "format_version" not in content:
        raise NotFoundError(
            f"{where} is a Zarr hierarchy but no activation store: its root has no 'ndt' attribute; give the path of "
            "a store that `ndt capture` or `ndt demo` made."
        )
    if content["format_version"] != FORMAT_VERSION:
        raise FormatVersionError(
            f"{where} has format version {content['format_version']} and this software reads version "
            f"{FORMAT_VERSION}: install a version of ndt-activations that reads it."
        )
    claimed = content.pop("digest", None)
    try:
        if digest(content) != claimed:
            raise SchemaError("schema and provenance do not match their digest")
        schema, provenance = Schema.from_json(content["schema"]), content["provenance"]
        for spec in schema.arrays:
            profile(spec.codec)
        if not all(isinstance(part, dict) for part in (provenance, *provenance.values())):
            raise SchemaError("its provenance is no mapping of mappings")
    except FormatVersionError as error:
        raise FormatVersionError(
            f"{where} was written by a newer version of ndt-activations ({error}): install that version to read it."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError(
            f"{where}/zarr.json is damaged ({error}): restore it from a copy of the store.", ROOT_DOCUMENT
        ) from error
    return schema, provenance
