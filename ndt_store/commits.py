"""Commit records: which blocks a checkpoint is made of, and how to know them again.

A checkpoint exists for readers when ``commits/<step>.json`` exists. The record lists every block of every cube with
its key, size and CRC-32C, counts what is not finite, and carries the digest of the weights and of itself. One more
record, ``commits/static.json``, lists the blocks of the static arrays; it is written when the store is made.

Zarr alone cannot say whether a block is missing: what is not there reads as the fill value. The record can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from ndt_store.errors import IntegrityError
from ndt_store.layout import blocks, canonical_json, digest, n_blocks
from ndt_store.schema import ArraySpec

__all__ = ["ArrayEntry", "BlockEntry", "CommitRecord", "commit_key"]

STATIC: Final = "static"
PREFIX: Final = "commits"
MAX_RECORD_NBYTES: Final = 256 << 20


def commit_key(step: int | None) -> str:
    """Key of the record of a checkpoint, or of the static arrays for None."""
    return f"{PREFIX}/{STATIC if step is None else step}.json"


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One stored block: its key, its bytes on disk, and the CRC-32C of its payload."""

    key: str
    nbytes: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class ArrayEntry:
    """The blocks of one array in block order, and how many of its values are NaN or infinite."""

    blocks: tuple[BlockEntry, ...]
    nan: int = 0
    inf: int = 0

    @classmethod
    def of(cls, parts: Sequence[tuple[BlockEntry, int, int]]) -> Self:
        """Make an entry of what writing each block gave: its entry, its NaN and its infinite values."""
        return cls(tuple(part[0] for part in parts), sum(part[1] for part in parts), sum(part[2] for part in parts))


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """What one commit made visible.

    Parameters
    ----------
    step : int or None
        Training step, None for the static arrays.
    index : int
        Position on the checkpoint axis.
    arrays : mapping of str to ArrayEntry
        By array path.
    weights_digest : str
        SHA-256 of the model's weights, "" for the static arrays or where there is no model.
    committed_at : str
        UTC time in ISO 8601; the only part of a store that depends on when it was written.
    digest : str
        SHA-256 of the rest, of a record that was read; what is derived from a checkpoint names it.
    """

    step: int | None
    index: int
    arrays: Mapping[str, ArrayEntry]
    weights_digest: str = ""
    committed_at: str = ""
    digest: str = field(default="", compare=False)

    def to_json(self) -> bytes:
        """Render the record, its own digest included."""
        content = {
            "checkpoint": self.step,
            "index": self.index,
            "weights_digest": self.weights_digest,
            "committed_at": self.committed_at,
            "arrays": {
                path: {
                    "nan": entry.nan,
                    "inf": entry.inf,
                    "blocks": [[b.key, b.nbytes, f"{b.crc32c:08x}"] for b in entry.blocks],
                }
                for path, entry in self.arrays.items()
            },
        }
        return canonical_json({**content, "digest": digest(content)})

    @classmethod
    def from_json(cls, data: bytes, key: str) -> Self:
        """Read a record.

        Raises
        ------
        IntegrityError
            When the bytes are not a record or do not match their own digest.
        """
        try:
            content = json.loads(data)
            claimed = content.pop("digest")
            if digest(content) != claimed:
                raise ValueError("its content does not match its digest")
            arrays = {
                path: ArrayEntry(
                    tuple(BlockEntry(str(k), int(size), int(crc, 16)) for k, size, crc in entry["blocks"]),
                    int(entry["nan"]),
                    int(entry["inf"]),
                )
                for path, entry in content["arrays"].items()
            }
            return cls(
                content["checkpoint"],
                content["index"],
                arrays,
                content["weights_digest"],
                content["committed_at"],
                str(claimed),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IntegrityError(
                f"The commit record {key} is damaged ({error}): restore it from a copy, or remove it and resume the "
                "capture to write this checkpoint again.",
                key,
            ) from error

    def check_covers(self, specs: tuple[ArraySpec, ...], key: str) -> None:
        """Check that the record lists exactly the blocks that the schema plans, under the keys the layout gives.

        Raises
        ------
        IntegrityError
            A record that disagrees with the schema could send a read anywhere.
        """
        counts = {spec.path: n_blocks(spec) for spec in specs}
        if counts != {path: len(entry.blocks) for path, entry in self.arrays.items()}:
            raise IntegrityError(
                f"The commit record {key} lists other numbers of blocks than the schema plans: record and schema are "
                "of different stores; restore both from one copy.",
                key,
            )
        planned = {spec.path: tuple(block.key for block in blocks(spec, self.index)) for spec in specs}
        listed = {path: tuple(block.key for block in entry.blocks) for path, entry in self.arrays.items()}
        if planned != listed:
            wrong = next(path for path in {**planned, **listed} if planned.get(path) != listed.get(path))
            raise IntegrityError(
                f"The commit record {key} does not list the blocks that the schema plans for {wrong}: record and "
                f"schema are of different stores; restore both from one copy.",
                wrong,
            )


def parse_step(key: str) -> int | None:
    """Return the step whose record lies at `key`, or None when the key is not a checkpoint's record."""
    name = key.removeprefix(PREFIX + "/").removesuffix(".json")
    return int(name) if name.isascii() and name.isdigit() and commit_key(int(name)) == key else None
