"""Fault injection: storages that die or run full at a chosen operation, and damage done to files.

Use them to test your own pipelines on top of a store::

    storage = FaultyStorage(path, at=17, fault=kill)
    capture.capture(model, data, store=storage)          # the process ends at the 17th storage operation
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from ndt_store.errors import StorageError
from ndt_store.storage import Buffer, LocalStorage, Lock, Sink

__all__ = ["DAMAGES", "FaultyStorage", "data_files", "delete", "flip_bit", "kill", "no_room", "truncate"]


def kill(operation: str) -> None:  # noqa: ARG001 - one signature for every fault
    """End this process as a power cut would: no exception, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_room(operation: str) -> None:
    """Fail as a full disk does."""
    raise StorageError(f"The file system refused while {operation}: {os.strerror(errno.ENOSPC)}.")


class FaultyStorage(LocalStorage):
    """A local storage that runs `fault` just before its `at`-th operation that changes something.

    Parameters
    ----------
    root : Path
        The store's directory.
    at : int
        Counted from 1; 0 never faults.
    fault : callable
        Called with what was about to happen; `kill`, `no_room`, or your own.
    """

    def __init__(self, root: Path, at: int, fault: Callable[[str], None] = kill) -> None:
        super().__init__(root)
        self._turns = _Turns(at, fault)
        self._count = self._turns.count

    @property
    def at(self) -> int:
        """Which operation faults next."""
        return self._turns.at

    @at.setter
    def at(self, operation: int) -> None:
        self._turns.at = operation

    @property
    def n_operations(self) -> int:
        """Operations so far, of this storage and of those for other writers that it gave."""
        return self._turns.n_operations

    def write(self, key: str, buffers: Sequence[Buffer], *, durable: bool = True) -> None:
        """Write, unless it is this operation's turn to fail."""
        self._count(f"writing {key}")
        super().write(key, buffers, durable=durable)

    def delete(self, key: str) -> None:
        """Delete, unless it is this operation's turn to fail."""
        self._count(f"deleting {key}")
        super().delete(key)

    def sync(self) -> None:
        """Sync, unless it is this operation's turn to fail."""
        self._count("syncing directories")
        super().sync()

    @contextlib.contextmanager
    def gather(self) -> Iterator[Sink]:
        """Gather; every write and sync of the sink has its turn to fail."""
        with super().gather() as sink:
            yield _FaultySink(sink, self._count)

    def lock(self, *, wait: bool = False) -> Lock:
        """Lock, unless it is this operation's turn to fail."""
        self._count("locking")
        return super().lock(wait=wait)

    def for_writer(self, name: str) -> FaultyStorage:
        """Return a storage that counts together with this one."""
        other = FaultyStorage(self.root, 0)
        other._writer, other._turns, other._count = name, self._turns, self._turns.count
        return other


class _Turns:
    """Counts operations, and runs the fault when its turn comes."""

    def __init__(self, at: int, fault: Callable[[str], None]) -> None:
        self.at = at
        self.fault = fault
        self.n_operations = 0
        self._guard = threading.Lock()

    def count(self, operation: str) -> None:
        with self._guard:
            self.n_operations += 1
            due = self.n_operations == self.at
        if due:
            self.fault(operation)


class _FaultySink:
    """A sink that counts what it is asked for."""

    def __init__(self, sink: Sink, count: Callable[[str], None]) -> None:
        self._sink = sink
        self._count = count

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        self._count(f"writing {key}")
        self._sink.write(key, buffers)

    def sync(self) -> None:
        self._count("syncing directories")
        self._sink.sync()


def data_files(root: Path) -> Iterator[Path]:
    """Every file of a store, sorted."""
    return iter(sorted(path for path in root.rglob("*") if path.is_file()))


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Flip one random bit of a file."""
    data = bytearray(path.read_bytes())
    bit = int(rng.integers(len(data) * 8))
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def truncate(path: Path, rng: np.random.Generator) -> None:
    """Cut a file short at a random place."""
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def delete(path: Path, rng: np.random.Generator) -> None:  # noqa: ARG001 - one signature for every damage
    """Remove a file."""
    path.unlink()


DAMAGES: Final = (flip_bit, truncate, delete)
