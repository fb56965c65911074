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

__all__ = ["ROOT_WRITER", "changing_root", "has_store", "is_provisional", "read_root", "shown_nodes", "with_nodes"]

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
    try:
        document = json.loads(storage.read(ROOT_DOCUMENT, MAX_ROOT_NBYTES), parse_constant=_refuse)
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


def shown_nodes(storage: Storage) -> dict[str, Any]:
    """Return the metadata of supplements in the root as it is, by path; call it while `changing_root`."""
    return {p: node for p, node in _metadata(storage, read_root(storage)).items() if _is_supplement(p)}


def with_nodes(storage: Storage, root: bytes | None, nodes: Mapping[str, Any]) -> bytes:
    """Return a root document with these nodes of supplements and no others.

    Parameters
    ----------
    storage : Storage
        Where the store lies.
    root : bytes or None
        The document as the schema gives it, or None for the one that is there; a provisional one where there is none.
    nodes : mapping of str to document
        By path.

    Raises
    ------
    SchemaError
        A dimension of theirs is one of the root's too and does not fit it: no reader could open both as one tree.
    """
    if root is not None and not nodes:
        return root
    document = read_root(storage) if root is None else json.loads(root)
    metadata = {path: node for path, node in _metadata(storage, document).items() if not _is_supplement(path)}
    _require_aligned(metadata, nodes)
    attributes = _PROVISIONAL if document is None else document["attributes"]
    return render(group_document(attributes, {**metadata, **nodes}))


def _metadata(storage: Storage, document: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if document is None:
        return {}
    try:
        metadata = document["consolidated_metadata"]["metadata"]
        if not isinstance(metadata, dict):
            raise TypeError("its consolidated metadata are no mapping")
    except (KeyError, TypeError) as error:
        raise _damaged(storage, error) from error
    return metadata


def _is_supplement(path: str) -> bool:
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


def _sizes(node: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    return zip(node.get("dimension_names", ()), node.get("shape", ()), strict=False)


def _damaged(storage: Storage, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"{storage.path}/zarr.json is damaged ({error}): restore it from a copy of the store.", ROOT_DOCUMENT
    )


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")
