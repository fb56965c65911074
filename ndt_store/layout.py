"""Where everything lies: pure functions from a schema to keys, blocks, bytes and metadata documents.

A block is one checkpoint of an array, a run of entries of its first other dimension, and all of the rest. It is one
Zarr chunk and one file. `documents` renders every byte of the store that follows from the schema and the provenance
alone: the ``zarr.json`` of each node, the consolidated metadata in the root, and the ``checkpoint`` coordinate. The
writer writes them, verification compares them, and nothing here touches a disk.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ndt_store.codecs import encode, profile
from ndt_store.dims import CHECKPOINT
from ndt_store.schema import FORMAT_VERSION, ArraySpec, Schema

__all__ = [
    "BLOCK_NBYTES",
    "Block",
    "Rows",
    "array_document",
    "block",
    "block_nbytes",
    "block_shape",
    "blocks",
    "canonical_json",
    "documents",
    "fill_value",
    "forecast",
    "group_document",
    "n_blocks",
    "numpy_dtype",
    "padded",
    "render",
    "root_attributes",
    "rows_of",
    "rows_per_block",
]

BLOCK_NBYTES: Final = 8 << 20
"""Size a block aims at, uncompressed: large enough that opening a file costs nothing beside reading it."""

CHUNK_NBYTES: Final = 16 << 20
"""Size a dask chunk aims at: its task's 0.2 ms are little beside reading it, two of them stay in a processor's cache,
and the C library hands out the pages of arrays up to 32 MB again, where larger ones are faulted in anew each time."""

CHECKPOINT_ATTRS: Final = {"long_name": "training step", "units": "optimizer steps"}
ROOT_DOCUMENT: Final = "zarr.json"
CHECKPOINTS_PER_CHUNK: Final = 4096
STRING_NBYTES: Final = 80

_FILLS: Final[Mapping[str, Any]] = {"string": "", "bool": False}


@dataclass(frozen=True, slots=True)
class Block:
    """One block of one array: where it lies and which entries it holds.

    Parameters
    ----------
    array : str
        Path of the array.
    index : int
        Position among the blocks of one checkpoint.
    start, stop : int
        The run of entries of the first dimension after ``checkpoint``.
    key : str
        Key of the chunk, relative to the store.
    """

    array: str
    index: int
    start: int
    stop: int
    key: str


def numpy_dtype(spec: ArraySpec) -> np.dtype[Any]:
    """Return the dtype that a block of this array has in memory."""
    if spec.dtype == "string":
        return np.dtypes.StringDType()
    return np.dtype(spec.dtype).newbyteorder("<")


def fill_value(dtype: str) -> Any:
    """Value that a chunk which was never written reads as in a plain Zarr reader: NaN for floats."""
    return _FILLS.get(dtype, math.nan if dtype.startswith("float") else 0)


def rows_per_block(sizes: tuple[int, ...], dtype: str, target_nbytes: int = BLOCK_NBYTES) -> int:
    """Choose how many entries of the first size make a block.

    The blocks of a checkpoint come out as equal as they can be, because Zarr pads the last one to full size: splitting
    1,000 rows of which 600 would fit gives two blocks of 500, not 600 and a half-empty one.
    """
    if not sizes:
        return 1
    row_nbytes = max(1, math.prod(sizes[1:]) * np.dtype(dtype if dtype != "string" else "uint8").itemsize)
    n_blocks = math.ceil(sizes[0] / max(1, target_nbytes // row_nbytes))
    return math.ceil(sizes[0] / max(1, n_blocks))


def block_shape(spec: ArraySpec) -> tuple[int, ...]:
    """Shape of one block on disk, without ``checkpoint``; the last one is padded to it."""
    return (spec.rows, *spec.sizes[1:]) if spec.sizes else ()


def block_nbytes(spec: ArraySpec) -> int:
    """Bytes of one decoded block; strings count as many as a SHA-256 in hex and its length take, and some."""
    itemsize = STRING_NBYTES if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    return math.prod(block_shape(spec)) * itemsize


def n_blocks(spec: ArraySpec) -> int:
    """Count the blocks of the array, for a cube at each checkpoint."""
    return math.ceil(spec.sizes[0] / spec.rows) if spec.sizes else 1


def block(spec: ArraySpec, index: int, checkpoint_index: int = 0) -> Block:
    """Return one block of a static array, or of a cube at one checkpoint."""
    prefix = f"{spec.path}/c" + (f"/{checkpoint_index}" if spec.is_cube else "")
    if not spec.sizes:
        return Block(spec.path, 0, 0, 1, prefix)
    start = index * spec.rows
    key = f"{prefix}/{index}" + "/0" * (len(spec.sizes) - 1)
    return Block(spec.path, index, start, min(start + spec.rows, spec.sizes[0]), key)


def blocks(spec: ArraySpec, checkpoint_index: int = 0) -> Iterator[Block]:
    """Yield the blocks of a static array, or of a cube at one checkpoint, in order."""
    return (block(spec, index, checkpoint_index) for index in range(n_blocks(spec)))


class Rows(Protocol):
    """Values that are read a run of rows at a time: an array, or something that makes the rows when asked."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of the whole."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the values of a slice of rows."""


def rows_of(spec: ArraySpec, values: Rows, where: Block) -> NDArray[Any]:
    """Return one block's values, contiguous and of the array's dtype."""
    part = np.asarray(values[where.start : where.stop] if spec.sizes else values)
    return part if spec.dtype == "string" else np.asarray(part, numpy_dtype(spec), order="C")


def padded(spec: ArraySpec, data: NDArray[Any]) -> NDArray[Any]:
    """Fill the last block up to the size that all blocks have on disk."""
    if not spec.sizes or data.shape[0] == spec.rows:
        return data
    full = np.full(block_shape(spec), fill_value(spec.dtype), dtype=numpy_dtype(spec))
    full[: data.shape[0]] = data
    return full


def forecast(schema: Schema) -> dict[str, int]:
    """Bytes that each array takes on disk before compression, padding and checksums included, over all checkpoints.

    A compressed store is smaller, by how much depends on the data.
    """
    n = len(schema.checkpoints)
    return {spec.path: (block_nbytes(spec) + 4) * n_blocks(spec) * (n if spec.is_cube else 1) for spec in schema.arrays}


def canonical_json(value: Any) -> bytes:
    """JSON with one spelling for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hex."""
    return sha256(canonical_json(value)).hexdigest()


def array_document(spec: ArraySpec, n_checkpoints: int = 0) -> dict[str, Any]:
    """Return the ``zarr.json`` of an array; a cube's has as many checkpoints as are planned."""
    lead = (n_checkpoints,) if spec.is_cube else ()
    chunk = ((1,) if spec.is_cube else ()) + block_shape(spec)
    fill = fill_value(spec.dtype)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*lead, *spec.sizes],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if fill != fill else fill,
        "codecs": profile(spec.codec).zarr_codecs(spec.dtype),
        "attributes": dict(spec.attrs),
        "dimension_names": list(spec.dims),
        "storage_transformers": [],
    }


def _checkpoint_spec() -> ArraySpec:
    return ArraySpec("checkpoint", (CHECKPOINT,), (), "int64", attrs=CHECKPOINT_ATTRS)


def group_document(attrs: Mapping[str, Any], nodes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group, with the metadata of the nodes below it where they are given, by path."""
    document: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": dict(attrs)}
    if nodes is not None:
        metadata = {path: nodes[path] for path in sorted(nodes)}
        document["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    return document


def render(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of a ``zarr.json``."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()


def checkpoint_chunks(schema: Schema) -> dict[str, bytes]:
    """Chunks of the ``checkpoint`` coordinate: the planned steps."""
    chunks = {}
    steps = np.asarray(schema.checkpoints, dtype="<i8")
    for index in range(math.ceil(len(steps) / CHECKPOINTS_PER_CHUNK)):
        part = steps[index * CHECKPOINTS_PER_CHUNK : (index + 1) * CHECKPOINTS_PER_CHUNK]
        padded = np.zeros(CHECKPOINTS_PER_CHUNK, dtype="<i8")
        padded[: len(part)] = part
        chunks[f"{CHECKPOINT}/c/{index}"] = b"".join(encode(padded, "none").buffers)
    return chunks


def root_attributes(schema: Schema, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the root group: the schema's own, and under ``ndt`` all that opening a store takes."""
    content = {"format_version": FORMAT_VERSION, "schema": schema.to_json(), "provenance": dict(provenance)}
    return {**schema.groups.get("", {}), "ndt": {**content, "digest": digest(content)}}


def documents(schema: Schema, provenance: Mapping[str, Any]) -> dict[str, bytes]:
    """Render every file of the store that follows from the schema and the provenance, by key.

    The root ``zarr.json`` comes last: with it the store comes into being, or becomes longer.
    """
    nodes: dict[str, dict[str, Any]] = {}
    for path in schema.group_paths():
        if path:
            nodes[path] = group_document(schema.groups.get(path, {}))
    checkpoint = array_document(_checkpoint_spec(), len(schema.checkpoints))
    checkpoint["chunk_grid"]["configuration"]["chunk_shape"] = [CHECKPOINTS_PER_CHUNK]
    nodes[CHECKPOINT] = checkpoint
    for spec in schema.arrays:
        nodes[spec.path] = array_document(spec, len(schema.checkpoints))
    rendered = {f"{path}/zarr.json": render(node) for path, node in nodes.items()}
    rendered.update(checkpoint_chunks(schema))
    rendered[ROOT_DOCUMENT] = render(group_document(root_attributes(schema, provenance), nodes))
    return rendered
