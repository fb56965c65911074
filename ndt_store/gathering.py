"""Files that are written beside each other, become durable together, and are seen only then.

Creating a store means some dozens of small files and the inputs. Waiting for the disk after each would take longer than
a small capture: so a few threads write and sync temporaries while the caller goes on, and `settle` renames all of them
once the last one is safe.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from ndt_store.rawio import write_file

__all__ = ["Gathering"]

N_THREADS: Final = 4


class Gathering:
    """Files on their way; at most `N_THREADS` of them are held in memory."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="ndt-gather")
        self._room = threading.BoundedSemaphore(N_THREADS)
        self._files: list[tuple[Path, Path, Future[None]]] = []

    def add(self, temporary: Path, target: Path, buffers: Sequence[memoryview]) -> None:
        """Begin to write a file; the buffers must not change before `settle` returns."""
        self._room.acquire()
        self._files.append((temporary, target, self._pool.submit(self._write, temporary, buffers)))

    def settle(self, make_folder: Callable[[Path], None]) -> list[Path]:
        """Wait until every file is durable, put all into place in order, and return where.

        Raises
        ------
        OSError
            Of the first file that could not be written; its ``filename`` is the target. Nothing has been put into
            place then, and the files stay as they are.
        """
        for _, target, written in self._files:
            try:
                written.result()
            except OSError as error:
                error.filename = str(target)
                raise
        for temporary, target, _ in self._files:
            make_folder(target.parent)
            temporary.replace(target)
        targets = [target for _, target, _ in self._files]
        self._files.clear()
        return targets

    def close(self) -> None:
        """Stop, and remove what was never settled."""
        self._pool.shutdown(wait=True)
        for temporary, _, _ in self._files:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _write(self, temporary: Path, buffers: Sequence[memoryview]) -> None:
        try:
            write_file(temporary, buffers, durable=True)
        finally:
            self._room.release()
