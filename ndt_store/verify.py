"""Whether a store is whole: every document, record and block against what was committed.

Three things are compared, each with something independent of it. Metadata documents are rendered again from the schema
and compared byte for byte. Commit records carry their own digest and have to list the blocks that the schema plans.
Block files are compared in size, and with ``read_data`` in content, with what the records say. The same holds for what
lies beside the cubes and for the root, which shows both (`ndt_store.verify_supplements`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ndt_store.catalogue import Catalogue
from ndt_store.codecs import CRC_NBYTES, crc32c
from ndt_store.commits import BlockEntry, commit_key, parse_step
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import IntegrityError, StorageError
from ndt_store.findings import DAMAGED, INCOMPLETE, VIEW, Finding, measured, read
from ndt_store.layout import ROOT_DOCUMENT, documents
from ndt_store.reader import Store
from ndt_store.schema import ArraySpec
from ndt_store.supplements import parse_group
from ndt_store.verify_supplements import check_supplements
from ndt_store.views.frame import frame_of, has_views
from ndt_store.views.gram_view import GRAM_VIEWS, GramView
from ndt_store.views.kinds import MomentsView, TopView
from ndt_store.views.shelf import DAMAGED as DAMAGED_VIEW
from ndt_store.views.shelf import STALE, index_command, look, view_key

__all__ = ["Finding", "VerifyReport", "verify"]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verification looked at and what it found."""

    path: str
    read_data: bool
    n_documents: int
    n_commits: int
    n_blocks: int
    nbytes: int
    n_supplements: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong and nothing is missing; views can be made again and do not count."""
        return all(finding.severity == VIEW for finding in self.findings)


def verify(
    store: Store, *, read_data: bool = False, n_threads: int = 2, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Check a store against its own records.

    Parameters
    ----------
    store : Store
        What to check, as of now.
    read_data : bool
        Also read, checksum and decode every committed block, and look at the checksum, origin and form of every view,
        not at its numbers. Without it files are only counted and measured, and views passed over.
    n_threads : int
        Blocks read at once.
    progress : callable, optional
        Called with (blocks done, blocks in all).

    Returns
    -------
    VerifyReport
        Never raises for damage inside the store; one `Finding` per damaged or missing thing.
    """
    catalogue = store.refresh().catalogue
    findings: list[Finding] = []
    rendered = documents(catalogue.schema, catalogue.provenance)
    beside = check_supplements(catalogue, rendered.pop(ROOT_DOCUMENT), read_data=read_data)
    for key, expected in rendered.items():
        findings.extend(_check_document(catalogue, key, expected))
    for key in catalogue.storage.list("commits"):
        if parse_step(key) not in catalogue.schema.checkpoints and parse_group(key) is None and key != commit_key(None):
            findings.append(Finding(DAMAGED, key, "", f"{key} is the record of no planned checkpoint."))
    missing = [step for step in catalogue.schema.checkpoints if step not in catalogue.committed]
    if missing:
        shown = ", ".join(str(step) for step in missing[:5]) + (", ..." if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(catalogue.schema.checkpoints)} checkpoints are not committed: {shown}."
        findings.append(Finding(INCOMPLETE, "", "", message))

    findings.extend(beside.findings)
    work: list[tuple[Catalogue, ArraySpec, BlockEntry]] = list(beside.work)
    for step in (None, *catalogue.committed):
        try:
            record = catalogue.record(step)
        except IntegrityError as error:
            findings.append(Finding(DAMAGED, error.array, error.block, str(error)))
            continue
        except StorageError as error:
            findings.append(Finding(DAMAGED, commit_key(step), "", str(error)))
            continue
        specs = {spec.path: spec for spec in catalogue.schema.arrays}
        work.extend(
            (catalogue, specs[path], entry) for path, arrays in record.arrays.items() for entry in arrays.blocks
        )
    check = read if read_data else measured
    with ThreadPoolExecutor(n_threads) as pool:
        for done, finding in enumerate(pool.map(lambda item: check(*item), work), 1):
            findings.extend(finding)
            if progress is not None:
                progress(done, len(work))
    if read_data:
        findings.extend(_check_views(catalogue))
    return VerifyReport(
        catalogue.storage.path,
        read_data,
        len(rendered) + 1 + beside.n_documents,
        len(catalogue.committed),
        len(work) + len(beside.growing),
        sum(entry.nbytes for _, _, entry in work) + sum(entry.nbytes for entry in beside.growing),
        len(catalogue.supplements),
        tuple(findings),
    )


def _check_views(catalogue: Catalogue) -> Iterator[Finding]:
    for spec in filter(has_views, catalogue.schema.cubes):
        try:
            frame = frame_of(catalogue, spec)
            kinds: tuple[type[MomentsView | TopView | GramView], ...] = (MomentsView, TopView, *GRAM_VIEWS.values())
            for step, kind in itertools.product(catalogue.committed, kinds):
                _, state, why = look(catalogue, frame, step, kind)
                if state in (STALE, DAMAGED_VIEW):
                    key = view_key(kind.name, spec, step)
                    message = f"View {key} is {state} ({why}); `{index_command(kind.name)}` makes it again."
                    yield Finding(VIEW, spec.path, key, message)
        except (IntegrityError, StorageError):
            return  # labels or records are damaged, which is found and named where they are read


def _check_document(catalogue: Catalogue, key: str, expected: bytes) -> Iterable[Finding]:
    try:
        found = catalogue.storage.read(key, len(expected) + (1 << 20))
    except OSError:
        yield Finding(DAMAGED, key, "", f"{key} is missing; a resumed capture writes it again.")
        return
    if found == expected:
        return
    if key.startswith(f"{CHECKPOINT}/c/"):
        yield from _check_checkpoints(key, expected, found)
    elif not _plans_another_length(expected, found):
        yield Finding(DAMAGED, key.removesuffix("/zarr.json"), "", f"{key} is not the document that the schema gives.")
    else:
        yield _interrupted(key)


def _plans_another_length(expected: bytes, found: bytes) -> bool:
    """Whether a node document differs from the root's only in how many checkpoints are planned."""
    try:
        ours, theirs = json.loads(expected), json.loads(found)
        length, *rest = theirs.pop("shape")
        planned, *sizes = ours.pop("shape")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return bool(ours == theirs and rest == sizes and isinstance(length, int) and length != planned)


def _check_checkpoints(key: str, expected: bytes, found: bytes) -> Iterator[Finding]:
    payload = memoryview(found)[:-CRC_NBYTES]
    whole = len(found) == len(expected) and crc32c(payload) == int.from_bytes(found[-CRC_NBYTES:], "little")
    if not whole:
        yield Finding(DAMAGED, CHECKPOINT, key, f"Block {key} of array {CHECKPOINT} does not match its checksum.")
        return
    ours: Any = np.frombuffer(expected[:-CRC_NBYTES], "<i8")
    theirs = np.frombuffer(payload, "<i8")
    # Steps increase, so that the padding begins after the last one that is not 0.
    n = min(int(np.flatnonzero(steps).max(initial=-1)) + 1 for steps in (ours, theirs))
    if (theirs[:n] == ours[:n]).all():
        yield _interrupted(key)
    else:
        yield Finding(DAMAGED, CHECKPOINT, key, f"Block {key} of array {CHECKPOINT} does not hold the planned steps.")


def _interrupted(key: str) -> Finding:
    message = f"{key} plans other checkpoints than the root: a change of plan was interrupted; resume the capture."
    return Finding(INCOMPLETE, key, "", message)
