"""Small files that appear whole or not at all, and stay through a power cut."""

from __future__ import annotations

import os
from pathlib import Path

from ndt_store.errors import StorageError

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` atomically and durably: temporary name, fsync, rename, fsync of the folder.

    Raises
    ------
    StorageError
        The file system refuses; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path} ({error}), {len(content)} bytes; make room or mend the permissions, then repeat."
        ) from error
