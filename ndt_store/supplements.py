"""Supplements: what lies beside the cubes of a store, and the record that says what of it counts.

A supplement is a Zarr group whose arrays are made elsewhere than in a capture: ``training``, a series that grows while
a network learns, or ``experiments/<name>``, results that are written once. Its record, ``commits/<group>.json``, names
arrays, attributes and blocks as a commit record does.

In a series the arrays with the growing dimension, which comes first, have blocks of a fixed number of rows. The record
says how many rows count, and lists of each block the CRC-32C of its rows that count. Rows never change, so that a block
which has gained rows since still begins with those that an older record lists: whoever holds that record is not wrong.
The array in the record describes one full block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from ndt_store.codecs import profile
from ndt_store.commits import MAX_RECORD_NBYTES, PREFIX, BlockEntry
from ndt_store.dims import EXPERIMENTS_GROUP, TRAINING_GROUP
from ndt_store.errors import FormatVersionError, IntegrityError, SchemaError
from ndt_store.layout import array_document, block, canonical_json, digest, group_document, n_blocks, render
from ndt_store.schema import MAX_SIZE, ArraySpec, Schema, check_name
from ndt_store.storage import Storage

__all__ = ["SupplementRecord", "experiment_group", "parse_group", "read_record", "record_key"]

_FIELDS: Final = {"group", "dim", "rows", "identity", "attributes", "arrays", "blocks"}


def experiment_group(name: str) -> str:
    """Group of an experiment; `SchemaError` where the name cannot name one."""
    return f"{EXPERIMENTS_GROUP}/{check_name(name, 'experiment')}"


def record_key(group: str) -> str:
    """Key of a supplement's record."""
    return f"{PREFIX}/{group}.json"


def parse_group(key: str) -> str | None:
    """Return the group whose record lies at `key`, or None when the key is no supplement's record."""
    group = key.removeprefix(f"{PREFIX}/").removesuffix(".json")
    if record_key(group) != key:
        return None
    if group == TRAINING_GROUP:
        return group
    try:
        return group if group == experiment_group(group.removeprefix(f"{EXPERIMENTS_GROUP}/")) else None
    except SchemaError:
        return None


@dataclass(frozen=True, slots=True)
class SupplementRecord:
    """What of a supplement counts.

    Parameters
    ----------
    group : str
        Path of the group.
    schema : Schema
        Its arrays and attributes; it has no checkpoints. Of a series each growing array is described as one full block.
    blocks : mapping of str to tuple of BlockEntry
        Of each array, by path; of a growing array's last block the checksum is that of the rows that count.
    identity : mapping
        What decides whether this is the same supplement.
    dim : str
        The growing dimension, "" where nothing grows.
    n_rows : int
        Rows that count.
    digest : str
        SHA-256 of the rest, of a record that was read.
    """

    group: str
    schema: Schema
    blocks: Mapping[str, tuple[BlockEntry, ...]]
    identity: Mapping[str, Any] = field(default_factory=dict)
    dim: str = ""
    n_rows: int = 0
    digest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for spec in self.schema.arrays:
            if spec.group != self.group or spec.is_cube:
                raise SchemaError(f"Array {spec.path} of dims {spec.dims} is none of the supplement {self.group}.")
            if self.grows(spec) and (spec.codec != "none" or spec.dtype == "string" or spec.rows != spec.sizes[0]):
                raise SchemaError(f"Array {spec.path} is of {spec.dtype} with codec {spec.codec}, and cannot grow.")
        steps = self.schema.find(f"{self.group}/{self.dim}")
        if self.dim and (steps is None or steps.dims != (self.dim,) or steps.dtype != "int64"):
            raise SchemaError(f"The series {self.group} grows along {self.dim!r}, which is no whole number of it.")

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes of the group."""
        return self.schema.groups.get(self.group, {})

    def grows(self, spec: ArraySpec) -> bool:
        """Whether an array has the growing dimension."""
        return bool(self.dim) and spec.dims[:1] == (self.dim,)

    def n_blocks(self, spec: ArraySpec) -> int:
        """Count the blocks of an array, of a growing one those with rows that count."""
        return math.ceil(self.n_rows / spec.rows) if self.grows(spec) else n_blocks(spec)

    def n_counted(self, spec: ArraySpec, index: int) -> int:
        """Rows that count in one block of a growing array."""
        return min(spec.rows, self.n_rows - index * spec.rows)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the metadata of the group and of what is above and below it, by path in the store."""
        above = {EXPERIMENTS_GROUP: group_document({})} if self.group != TRAINING_GROUP else {}
        return {**above, self.group: group_document(_ordered(self.attrs)), **self._arrays()}

    def documents(self) -> dict[str, bytes]:
        """Render the ``zarr.json`` of each node; the group's shows its arrays, so that they get longer all at once."""
        arrays = self._arrays()
        own = group_document(
            _ordered(self.attrs), {path.removeprefix(f"{self.group}/"): node for path, node in arrays.items()}
        )
        return {f"{path}/zarr.json": render(node) for path, node in {**self.nodes(), self.group: own}.items()}

    def _arrays(self) -> dict[str, dict[str, Any]]:
        nodes = {}
        for spec in self.schema.arrays:
            nodes[spec.path] = array_document(replace(spec, attrs=_ordered(spec.attrs)))
            if self.grows(spec):
                nodes[spec.path]["shape"] = [self.n_rows, *spec.sizes[1:]]
        return nodes

    def to_json(self) -> bytes:
        """Render the record; its digest is computed from the rest."""
        content = {
            "group": self.group,
            "dim": self.dim,
            "rows": self.n_rows,
            "identity": dict(self.identity),
            "attributes": dict(self.attrs),
            "arrays": [spec.to_json() for spec in self.schema.arrays],
            "blocks": {path: [[e.nbytes, f"{e.crc32c:08x}"] for e in entries] for path, entries in self.blocks.items()},
        }
        return canonical_json({**content, "digest": digest(content)})

    @classmethod
    def from_json(cls, data: bytes, group: str) -> Self:
        """Read the record of a group.

        Raises
        ------
        IntegrityError
            When the bytes are no record of this group or do not match their own digest.
        FormatVersionError
            It holds what this version does not know.
        """
        key = record_key(group)
        try:
            content = json.loads(data)
            claimed = content.pop("digest")
            if digest(content) != claimed:
                raise ValueError("its content does not match its digest")
            unknown = set(content) - _FIELDS
            if unknown:
                raise FormatVersionError(f"it has {', '.join(sorted(unknown))}")
            n_rows = content["rows"]
            if content["group"] != group or not isinstance(n_rows, int) or not 0 <= n_rows <= MAX_SIZE:
                raise ValueError(f"it is of {n_rows} rows of {content['group']!r}")
            specs = tuple(ArraySpec.from_json(spec) for spec in content["arrays"])
            for spec in specs:
                profile(spec.codec)
            schema = Schema((), specs, {group: dict(content["attributes"])})
            blocks = {
                spec.path: tuple(
                    BlockEntry(block(spec, index).key, int(nbytes), int(crc, 16))
                    for index, (nbytes, crc) in enumerate(content["blocks"][spec.path])
                )
                for spec in specs
            }
            record = cls(group, schema, blocks, dict(content["identity"]), str(content["dim"]), n_rows, str(claimed))
            record.check_covers()
        except FormatVersionError as error:
            raise FormatVersionError(
                f"{key} was written by a newer version of ndt-activations ({error}): install that version to read it."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"The record {key} is damaged ({error}): restore it from a copy, or remove it and the folder {group} "
                "and make them again.",
                key,
            ) from error
        return record

    def check_covers(self) -> None:
        """Check that the record lists as many blocks of each array as it has rows for; `SchemaError` names one."""
        for spec in self.schema.arrays:
            if len(self.blocks[spec.path]) != self.n_blocks(spec):
                raise SchemaError(f"it does not list the blocks of {spec.path}")


def read_record(storage: Storage, group: str) -> SupplementRecord | None:
    """Read the record of a supplement, or None where there is none.

    Raises
    ------
    IntegrityError
        It is damaged.
    """
    key = record_key(group)
    try:
        data = storage.read(key, MAX_RECORD_NBYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_RECORD_NBYTES:
        raise IntegrityError(f"The record {key} of {storage.path} is larger than any record: restore it.", key)
    return SupplementRecord.from_json(data, group)


def _ordered(attrs: Mapping[str, Any]) -> Any:
    """Return attributes in the order in which a record gives them, so that equal records render equal documents."""
    return json.loads(canonical_json(attrs))
