"""The root document, which several writers share.

Its attributes are the store's own. The metadata that it consolidates come from whoever writes the nodes: those of the
cubes from the schema, those of each supplement (`ndt_store.supplements`) from its record. Whoever changes the root
holds `changing_root`, for milliseconds, puts its own nodes in, and carries over those of the others.

Where training begins before a capture, the root is provisional: it shows plain readers what lies below, and is no store
yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ndt_store.dims import CHECKPOINT, EXPERIMENTS_GROUP, TRAINING_GROUP
from ndt_store.errors import IntegrityError, SchemaError
from ndt_store.layout import ROOT_DOCUMENT, group_document, render
from ndt_store.schema import FORMAT_VERSION
from ndt_store.storage import Storage

__all__ = [
    "MAX_ROOT_NBYTES",
    "ROOT_WRITER",
    "changing_root",
    "has_store",
    "is_provisional",
    "is_supplement",
    "merged",
    "nodes_of",
    "parse_root",
    "read_root",
    "store_root",
    "supplement_root",
]

MAX_ROOT_NBYTES: Final = 256 << 20
ROOT_WRITER: Final = "root"

_PROVISIONAL: Final[Mapping[str, Any]] = {"ndt": {"format_version": FORMAT_VERSION, "provisional": True}}


@contextmanager
def changing_root(storage: Storage) -> Iterator[None]:
    """Keep everybody else from changing the root; waits until those who are at it have done."""
    lock = storage.for_writer(ROOT_WRITER).lock(wait=True)
    try:
        yield
    finally:
        lock.release()


def read_root(storage: Storage) -> dict[str, Any] | None:
    """Read the root document, or None where there is none.

    Raises
    ------
    IntegrityError
        It is damaged.
    """
    size = storage.size(ROOT_DOCUMENT)
    if size is None:
        return None
    if size > MAX_ROOT_NBYTES:
        raise IntegrityError(
            f"{storage.path}/zarr.json has {size} bytes: no store's metadata is as large.", ROOT_DOCUMENT
        )
    return parse_root(storage, storage.read(ROOT_DOCUMENT, MAX_ROOT_NBYTES))


def parse_root(storage: Storage, data: bytes) -> dict[str, Any]:
    """Return the root document that these bytes are.

    Raises
    ------
    IntegrityError
        They are none.
    """
    try:
        document = json.loads(data, parse_constant=_refuse)
        if not isinstance(document, dict) or "attributes" not in document:
            raise ValueError("it has no attributes")
    except (ValueError, RecursionError) as error:
        raise _damaged(storage, error) from error
    return document


def is_provisional(document: Mapping[str, Any]) -> bool:
    """Whether a root document only shows what was written before the store was made."""
    return bool(document["attributes"] == _PROVISIONAL)


def has_store(storage: Storage) -> bool:
    """Whether there is a store, or at least somebody's Zarr hierarchy, and not only what lies beside its cubes."""
    if not storage.exists(ROOT_DOCUMENT):
        return False
    document = read_root(storage)
    return document is None or not is_provisional(document)


def store_root(storage: Storage, rendered: bytes) -> bytes:
    """Return the root that the schema gives with the supplements that the root shows now; see `changing_root`."""
    nodes = {p: node for p, node in nodes_of(storage, read_root(storage)).items() if is_supplement(p)}
    return merged(storage, json.loads(rendered), nodes) if nodes else rendered


def supplement_root(storage: Storage, group: str, nodes: Mapping[str, Any]) -> bytes:
    """Return the root that is there with these nodes of one supplement, none to hide it; see `changing_root`.

    Where there is no root it is a provisional one.

    Raises
    ------
    SchemaError
        A dimension is one of the root's too and does not fit it.
    """
    document = read_root(storage)
    if document is None:
        document = group_document(_PROVISIONAL, {})
    others = {
        path: node
        for path, node in nodes_of(storage, document).items()
        if is_supplement(path) and path != group and not path.startswith(f"{group}/")
    }
    return merged(storage, document, {**others, **nodes})


def merged(storage: Storage, document: Mapping[str, Any], nodes: Mapping[str, Any]) -> bytes:
    """Render a root document with these nodes of supplements in the place of those that it has.

    Raises
    ------
    SchemaError
        A dimension is one of the root's too and does not fit it: xarray could not open both as one tree.
    """
    metadata = {path: node for path, node in nodes_of(storage, document).items() if not is_supplement(path)}
    _require_aligned(metadata, nodes)
    if not any(path.startswith(f"{EXPERIMENTS_GROUP}/") for path in nodes):
        nodes = {path: node for path, node in nodes.items() if path != EXPERIMENTS_GROUP}
    return render(group_document(document["attributes"], {**metadata, **nodes}))


def nodes_of(storage: Storage, document: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the metadata that a root document consolidates, by path.

    Raises
    ------
    IntegrityError
        They are none.
    """
    if document is None:
        return {}
    try:
        metadata = document["consolidated_metadata"]["metadata"]
        if not isinstance(metadata, dict) or not all(isinstance(node, dict) for node in metadata.values()):
            raise TypeError("its consolidated metadata are no mapping of documents")
    except (KeyError, TypeError) as error:
        raise _damaged(storage, error) from error
    return metadata


def is_supplement(path: str) -> bool:
    """Whether a node lies in a supplement."""
    return path.split("/")[0] in (TRAINING_GROUP, EXPERIMENTS_GROUP)


def _require_aligned(metadata: Mapping[str, Any], nodes: Mapping[str, Any]) -> None:
    """Check that children share the dimensions of the root, as xarray wants it of a tree."""
    sizes = {dim: size for path, node in metadata.items() if "/" not in path for dim, size in _sizes(node)}
    for path, node in nodes.items():
        for dim, size in _sizes(node):
            if dim == CHECKPOINT or sizes.get(dim, size) != size:
                raise SchemaError(
                    f"Dimension {dim!r} of {path} has {size} entries and is a dimension of the store's root too, "
                    f"which has {sizes.get(dim, 'as many as there are checkpoints')}: give it a name of its own."
                )


def _sizes(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    dims, shape = node.get("dimension_names"), node.get("shape")
    if isinstance(dims, list) and isinstance(shape, list):
        yield from ((dim, size) for dim, size in zip(dims, shape, strict=False) if isinstance(dim, str))


def _damaged(storage: Storage, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{storage.path}/zarr.json is damaged ({error}): restore it from a copy of the store.", ROOT_DOCUMENT
    )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
