"""Whether a capture that is begun again is the one that was begun: compare, and name what differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ndt_store.catalogue import Catalogue
from ndt_store.codecs import encode
from ndt_store.errors import InvalidInputError, ResumeMismatchError
from ndt_store.layout import Rows, blocks, canonical_json, padded, rows_of
from ndt_store.schema import Schema

__all__ = ["as_json", "check_fields", "check_same", "check_static", "json_mapping", "mismatch"]

IDENTITY = "identity"


def mismatch(where: str, field: str, stored: Any, given: Any, what: str = "capture") -> ResumeMismatchError:
    """Make the error for one differing field."""
    return ResumeMismatchError(
        f"{where} was begun with {field} = {_short(stored)} and this {what} has {_short(given)}: repeat the first "
        "command to resume it, or choose a new store.",
        field,
    )


def check_fields(where: str, stored: Mapping[str, Any], given: Mapping[str, Any], what: str = "capture") -> None:
    """Compare two JSON objects.

    Raises
    ------
    ResumeMismatchError
        Names the first field that differs, with both values.
    """
    for field, before, now in _differences(stored, given, ""):
        raise mismatch(where, field, before, now, what)


def as_json(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return provenance as it will be read back: tuples as lists, keys as strings.

    Raises
    ------
    InvalidInputError
        JSON cannot hold it; names the entry.
    """
    kept: dict[str, Any] = {}
    for section, entries in provenance.items():
        if not isinstance(entries, Mapping):
            raise InvalidInputError(f"provenance[{section!r}] is {type(entries).__name__}: expected a mapping.")
        kept[section] = json_mapping(entries, f"provenance[{section!r}]")
    return kept


def json_mapping(entries: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """Return a mapping as it will be read back: tuples as lists, keys as strings.

    Raises
    ------
    InvalidInputError
        JSON cannot hold it; names the entry.
    """
    kept: dict[str, Any] = {}
    for key, value in entries.items():
        try:
            kept[str(key)] = json.loads(canonical_json(value))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError(
                f"{what}[{key!r}] cannot be kept as JSON ({error}): give text, finite numbers, lists and mappings."
            ) from error
    return kept


def check_same(catalogue: Catalogue, schema: Schema, provenance: Mapping[str, Any]) -> None:
    """Compare identity and schema with the store's; planned checkpoints may only be added.

    Raises
    ------
    ResumeMismatchError
        Names the first field that differs, with both values.
    """
    where = catalogue.storage.path
    # Identity first: "another data set" says more than the sizes that follow from it.
    check_fields(where, catalogue.provenance.get(IDENTITY, {}), provenance.get(IDENTITY, {}))
    planned = catalogue.schema.checkpoints
    if schema.checkpoints[: len(planned)] != planned and planned[: len(schema.checkpoints)] != schema.checkpoints:
        raise mismatch(where, "checkpoints", planned, schema.checkpoints)
    stored_schema, given_schema = (
        {**s.to_json(), "arrays": {a.path: a.to_json() for a in s.arrays}} for s in (catalogue.schema, schema)
    )
    for content in (stored_schema, given_schema):
        del content["checkpoints"]
    for field, stored, given in _differences(stored_schema, given_schema, ""):
        raise mismatch(where, field.removeprefix("arrays."), stored, given)


def check_static(catalogue: Catalogue, values: Mapping[str, Rows]) -> None:
    """Compare the probe set with the store's, by the checksums of its encoded blocks.

    Raises
    ------
    ResumeMismatchError
        Names the array.
    """
    record = catalogue.record(None)
    for spec in catalogue.schema.static:
        for block, entry in zip(blocks(spec), record.arrays[spec.path].blocks, strict=True):
            part = padded(spec, rows_of(spec, values[spec.path], block))
            if encode(part, spec.codec).crc32c != entry.crc32c:
                raise mismatch(
                    catalogue.storage.path,
                    spec.path,
                    f"other values in entries {block.start} to {block.stop}",
                    "these",
                )


def _differences(stored: Any, given: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in {**stored, **given}:
            yield from _differences(stored.get(key), given.get(key), f"{field}.{key}".lstrip("."))
    elif stored != given:
        yield field, stored, given


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
