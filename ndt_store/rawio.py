"""Files of a local disk: written past the page cache, read into buffers, synced.

A capture writes more than the cache should hold, and copying it there costs processor time that the model needs: 0.3 to
2 s a GB, most of it for pages that were never touched before, against 0.05 s without the copy. So the part of a large
file that has the alignment which the kernel asks for is written with ``O_DIRECT``, straight from the caller's memory
or, where that is not aligned itself, through a small buffer that the thread keeps. The rest of the file, a file system
that knows no ``O_DIRECT``, and one that refuses it half-way take the ordinary path.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from ndt_store.errors import StorageError

__all__ = [
    "ALIGNMENT",
    "DIRECT_NBYTES",
    "READ_ADVICE",
    "STAGING_NBYTES",
    "Buffer",
    "as_bytes",
    "create_file",
    "read_all",
    "remove_tree",
    "storage_error",
    "sync_folders",
    "write_all",
    "write_file",
]

DIRECT_NBYTES: Final = 1 << 20
"""Smallest file that is written past the cache; waiting for the disk costs more than copying less."""

ALIGNMENT: Final = 4096
"""Of memory, offset and length: a multiple of every logical block size in use."""

STAGING_NBYTES: Final = 2 << 20
"""Buffer of each thread for data that are not aligned."""

READ_ADVICE: Final = "mend the permissions or the disk and try again"
WRITE_ADVICE: Final = (
    "nothing committed is lost, so make room or mend permissions and run the same command again to resume"
)

Buffer = bytes | bytearray | memoryview

_MOST_BUFFERS: Final = 1024
"""What one call of the kernel takes; POSIX calls it IOV_MAX."""

_DIRECT: Final[int] = getattr(os, "O_DIRECT", 0)
_STAGING: Final = threading.local()


def storage_error(error: OSError, doing: str, advice: str = WRITE_ADVICE) -> StorageError:
    """Return the sentence for what a file system refused."""
    return StorageError(f"The file system refused while {doing}: {error.strerror or error}; {advice}.")


def as_bytes(buffers: Sequence[Buffer]) -> list[memoryview]:
    """Return the same memory as bytes."""
    return [memoryview(buffer).cast("B") for buffer in buffers]


def create_file(path: Path, nbytes: int) -> int:
    """Create a file that is about to take `nbytes` and return its descriptor.

    Raises
    ------
    OSError
        It is there already, or the file system refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    if _DIRECT and nbytes >= DIRECT_NBYTES:
        try:
            return os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Linux makes the file before the file system says that it cannot open it like this.
            path.unlink(missing_ok=True)
    return os.open(path, flags, 0o666)


def write_all(descriptor: int, buffers: Sequence[memoryview]) -> None:
    """Write the joined buffers, each of bytes, from the beginning of a file that `create_file` made.

    Raises
    ------
    OSError
        The file system refuses.
    """
    pending = [buffer for buffer in buffers if buffer.nbytes]
    if _DIRECT and fcntl.fcntl(descriptor, fcntl.F_GETFL) & _DIRECT:
        _write_direct(descriptor, pending)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~_DIRECT)
    while pending:
        _drop(pending, os.writev(descriptor, pending[:_MOST_BUFFERS]))


def write_file(path: Path, buffers: Sequence[memoryview], *, durable: bool) -> None:
    """Create a file that holds the joined buffers, each of bytes; there is none when this raises.

    Raises
    ------
    OSError
        The file system refuses.
    """
    descriptor = create_file(path, sum(buffer.nbytes for buffer in buffers))
    try:
        try:
            write_all(descriptor, buffers)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def remove_tree(folder: Path) -> None:
    """Remove a folder and what is in it; a link is removed, never followed.

    Others may add to the folder and take from it meanwhile. What they added stays, and the folder with it.

    Raises
    ------
    OSError
        The file system refuses.
    """
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False, onerror=_unless_gone):
        for name in files:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=descriptor)
        for name in folders:
            try:
                _remove_folder(name, descriptor)
            except NotADirectoryError:
                os.unlink(name, dir_fd=descriptor)  # a link to a folder
    _remove_folder(folder)


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _remove_folder(folder: Path | str, descriptor: int | None = None) -> None:
    try:
        os.rmdir(folder, dir_fd=descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def read_all(descriptor: int, buffers: Sequence[memoryview]) -> int:
    """Fill the buffers from where the descriptor stands, and return the number of bytes that there were."""
    pending, total = list(buffers), 0
    while pending:
        count = os.readv(descriptor, pending[:_MOST_BUFFERS])
        if count == 0:
            break
        total += count
        _drop(pending, count)
    return total


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the entries of folders durable; what is no folder any more is passed over.

    One after the other: the first of them makes the journal write what the others wait for.

    Raises
    ------
    OSError
        The file system refuses.
    """
    for folder in folders:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_direct(descriptor: int, pending: list[memoryview]) -> None:
    """Write whole aligned pieces for as long as there are any and the file system takes them."""
    while sum(buffer.nbytes for buffer in pending) >= ALIGNMENT:
        piece = pending[0]
        if _address(piece) % ALIGNMENT or piece.nbytes < ALIGNMENT:
            piece = _staged(pending)
        piece = piece[: piece.nbytes - piece.nbytes % ALIGNMENT]
        try:
            written = os.write(descriptor, piece)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            raise
        _drop(pending, written)
        if written % ALIGNMENT:
            return


def _staged(pending: Sequence[memoryview]) -> memoryview:
    buffer: mmap.mmap | None = getattr(_STAGING, "buffer", None)
    if buffer is None:
        buffer = _STAGING.buffer = mmap.mmap(-1, STAGING_NBYTES)
    staging, filled = memoryview(buffer), 0
    for part in pending:
        taken = part[: STAGING_NBYTES - filled]
        # Through numpy, whose copy lets other threads run.
        np.frombuffer(staging, np.uint8)[filled : filled + taken.nbytes] = np.frombuffer(taken, np.uint8)
        filled += taken.nbytes
    return staging[:filled]


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def _drop(pending: list[memoryview], count: int) -> None:
    """Remove what was read or written from the front."""
    while pending and count >= pending[0].nbytes:
        count -= pending.pop(0).nbytes
    if pending:
        pending[0] = pending[0][count:]
