"""Files that are written beside each other, become durable together, and are seen only then.

Creating a store means some dozens of small files and the inputs. Waiting for the disk after each would take longer than
a small capture: so a few threads write and sync temporaries while the caller goes on, and `sync` renames all of them
once the last one is safe.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ndt_store.folders import Folders
from ndt_store.rawio import Buffer, as_bytes, storage_error, write_file

__all__ = ["Gathering"]

N_THREADS: Final = 4


class Gathering:
    """Files of one caller on their way; at most `N_THREADS` of them are held in memory.

    Parameters
    ----------
    root : Path
        The storage's directory.
    folders : Folders
        Those of the storage.
    new_temporary : callable
        Returns a place for a file that is not there yet.
    """

    def __init__(self, root: Path, folders: Folders, new_temporary: Callable[[], Path]) -> None:
        self._root = root
        self._folders = folders
        self._new_temporary = new_temporary
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="ndt-gather")
        self._room = threading.BoundedSemaphore(N_THREADS)
        self._files: list[tuple[Path, Path, Future[None]]] = []

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Begin to write a file; the buffers must not change before `sync` returns."""
        target, temporary = self._root / key, self._new_temporary()
        with _refusals(f"writing {target}"):
            self._folders.make(temporary.parent)
        self._room.acquire()
        self._files.append((temporary, target, self._pool.submit(self._write, temporary, as_bytes(buffers))))

    def sync(self) -> None:
        """Wait until every file is durable, and put all into place in order.

        Raises
        ------
        StorageError
            Of the first file that could not be written. Nothing has been put into place then.
        """
        for _, target, written in self._files:
            with _refusals(f"writing {target}"):
                written.result()
        for temporary, target, _ in self._files:
            with _refusals(f"writing {target}"):
                self._folders.make(target.parent)
                temporary.replace(target)
            self._folders.changed(target.parent)
        self._files.clear()
        with _refusals(f"syncing folders of {self._root}"):
            self._folders.sync()

    def close(self) -> None:
        """Stop, and remove what was never put into place."""
        self._pool.shutdown(wait=True)
        for temporary, _, _ in self._files:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _write(self, temporary: Path, buffers: Sequence[memoryview]) -> None:
        try:
            write_file(temporary, buffers, durable=True)
        finally:
            self._room.release()


@contextlib.contextmanager
def _refusals(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, doing) from error
