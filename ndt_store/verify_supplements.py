"""Whether what lies beside the cubes is whole, and the root, which shows plain readers both.

Documents are rendered again from the records and compared byte for byte. A series may grow meanwhile, and its writer
may have died at any point: where a document differs in the number of rows alone, nothing is damaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ndt_store.catalogue import Catalogue
from ndt_store.commits import BlockEntry
from ndt_store.dims import EXPERIMENTS_GROUP, TRAINING_GROUP
from ndt_store.errors import IntegrityError, NdtError, SchemaError
from ndt_store.findings import DAMAGED, INCOMPLETE, Finding, measured
from ndt_store.layout import ROOT_DOCUMENT
from ndt_store.root import MAX_ROOT_NBYTES, is_supplement, merged, nodes_of, parse_root
from ndt_store.schema import MAX_SIZE, ArraySpec
from ndt_store.storage import Storage
from ndt_store.supplement_data import catalogue_of, read_rows, require_record
from ndt_store.supplements import SupplementRecord, record_key

__all__ = ["SupplementCheck", "check_supplements"]


@dataclass(slots=True)
class SupplementCheck:
    """What was found, and what is left to look at.

    Parameters
    ----------
    findings : list of Finding
        What is wrong.
    work : list
        Blocks that were written once, to be looked at like those of the cubes.
    growing : list of BlockEntry
        Blocks of a series, which were looked at.
    n_documents : int
        Metadata documents, which were looked at.
    """

    findings: list[Finding] = field(default_factory=list)
    work: list[tuple[Catalogue, ArraySpec, BlockEntry]] = field(default_factory=list)
    growing: list[BlockEntry] = field(default_factory=list)
    n_documents: int = 0


def check_supplements(catalogue: Catalogue, root: bytes, *, read_data: bool) -> SupplementCheck:
    """Check series and experiments of a store, and the root.

    Parameters
    ----------
    catalogue : Catalogue
        The store.
    root : bytes
        Its root document as the schema alone gives it.
    read_data : bool
        Read the blocks of series, and do not only measure them.
    """
    storage, check = catalogue.storage, SupplementCheck()
    try:
        # Once, because a series may grow meanwhile.
        found = storage.read(ROOT_DOCUMENT, MAX_ROOT_NBYTES)
    except OSError as error:
        found = b""
        check.findings.append(Finding(DAMAGED, ROOT_DOCUMENT, "", f"{ROOT_DOCUMENT} cannot be read: {error}"))
    shown = _shown(storage, found)
    nodes: dict[str, Any] = {}
    for group in sorted({*shown, *catalogue.supplements}):
        own = shown.get(group, {})
        try:
            record = require_record(storage, group)
        except NdtError as error:
            # What the root shows of it is left as it is: this is one finding and not two.
            nodes |= own
            check.findings.append(
                Finding(DAMAGED, record_key(group), "", f"{record_key(group)} cannot be used: {error}")
            )
            continue
        if own:
            as_shown = _at_length(record, own.get(f"{group}/{record.dim}"))
            nodes |= as_shown.nodes()
            if as_shown.n_rows != record.n_rows:
                check.findings.append(_interrupted(ROOT_DOCUMENT, record, as_shown.n_rows))
        elif not record.dim:
            message = f"{ROOT_DOCUMENT} does not show {group}: its writer was interrupted; write the experiment again."
            check.findings.append(Finding(INCOMPLETE, group, "", message))
        check.n_documents += len(record.documents())
        check.findings += _check_documents(storage, record)
        _check_blocks(storage, record, check, read_data=read_data)
    try:
        expected = merged(storage, json.loads(root), nodes) if nodes else root
        if found and found != expected:
            message = f"{ROOT_DOCUMENT} is not the document that schema and records give."
            check.findings.append(Finding(DAMAGED, ROOT_DOCUMENT, "", message))
    except SchemaError as error:
        message = f"{storage.path} cannot be opened as one tree: {error}"
        check.findings.append(Finding(DAMAGED, ROOT_DOCUMENT, "", message))
    return check


def _shown(storage: Storage, root: bytes) -> dict[str, dict[str, Any]]:
    """Return the nodes of supplements that a root shows, by group."""
    try:
        nodes = nodes_of(storage, parse_root(storage, root))
    except IntegrityError:
        return {}  # it is not what the schema gives, and is found where it is compared
    shown: dict[str, dict[str, Any]] = {}
    for path, node in nodes.items():
        if is_supplement(path) and path != EXPERIMENTS_GROUP:
            group = "/".join(path.split("/")[: 1 if path.split("/")[0] == TRAINING_GROUP else 2])
            shown.setdefault(group, {})[path] = node
    return shown


def _at_length(record: SupplementRecord, node: Any) -> SupplementRecord:
    """Return the record of a series with as many rows as the document of an array shows."""
    shape = node.get("shape") if isinstance(node, Mapping) else None
    n = shape[0] if record.dim and isinstance(shape, list) and shape else None
    return replace(record, n_rows=n) if isinstance(n, int) and 0 <= n <= MAX_SIZE else record


def _check_documents(storage: Storage, record: SupplementRecord) -> Iterator[Finding]:
    advice = "opening its writer again writes it" if record.dim else "write the experiment again with replace=True"
    for key, expected in record.documents().items():
        try:
            found = storage.read(key, len(expected) + (1 << 20))
        except OSError:
            yield Finding(DAMAGED, key, "", f"{key} is missing; {advice}.")
            continue
        if found == expected:
            continue
        as_shown = _at_length(record, _array_of(record, key, found))
        if found == as_shown.documents()[key]:
            yield _interrupted(key, record, as_shown.n_rows)
        else:
            message = f"{key} is not the document that the record gives; {advice}."
            yield Finding(DAMAGED, key.removesuffix("/zarr.json"), "", message)


def _interrupted(key: str, record: SupplementRecord, n_rows: int) -> Finding:
    message = (
        f"{key} shows {n_rows} rows of {record.group} where the record counts {record.n_rows}: its writer is at work, "
        "or was interrupted and mends it when it is opened again."
    )
    return Finding(INCOMPLETE, key, "", message)


def _array_of(record: SupplementRecord, key: str, found: bytes) -> Any:
    """Return what says how many rows a document shows: itself, or the steps among those that it consolidates."""
    try:
        document = json.loads(found)
        if key == f"{record.group}/zarr.json":
            document = document["consolidated_metadata"]["metadata"][record.dim]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return document


def _check_blocks(storage: Storage, record: SupplementRecord, check: SupplementCheck, *, read_data: bool) -> None:
    own = catalogue_of(storage, record)
    for spec in record.schema.arrays:
        if not record.grows(spec):
            check.work += [(own, spec, entry) for entry in record.blocks[spec.path]]
    while True:
        findings = list(_check_rows(storage, record, read_data=read_data))
        newest = require_record(storage, record.group) if findings else record
        if newest == record:
            break
        record = newest
    check.findings += findings
    check.growing += [
        entry for spec in record.schema.arrays if record.grows(spec) for entry in record.blocks[spec.path]
    ]


def _check_rows(storage: Storage, record: SupplementRecord, *, read_data: bool) -> Iterator[Finding]:
    own = catalogue_of(storage, record)
    for spec in filter(record.grows, record.schema.arrays):
        for index, entry in enumerate(record.blocks[spec.path]):
            if not read_data:
                yield from measured(own, spec, entry)
                continue
            try:
                read_rows(storage, spec, entry, record.n_counted(spec, index))
            except IntegrityError as error:
                yield Finding(DAMAGED, error.array, error.block, str(error))
