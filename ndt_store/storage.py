"""The one place that touches a file system.

`Storage` is everything the rest of the package asks of the medium: read a key, write a key so that it is there whole
or not at all, list, delete, make durable, and hold a lock. `LocalStorage` answers with POSIX files. An object store
is another small class with the same methods; `open_storage` is where a path becomes one of them.

A write goes to ``tmp/``, is synced, and is renamed into place. The rename itself becomes durable when `sync` has
synced the directories concerned, which the writer does before it publishes a commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from ndt_store.errors import InvalidInputError, StorageError, StoreLockedError

__all__ = ["LocalStorage", "Lock", "Storage", "open_storage"]

LOCK_KEY: Final = "lock"
TEMPORARY: Final = "tmp"

Buffer = bytes | bytearray | memoryview


class Lock(Protocol):
    """A lock that is held until released, or until its process ends."""

    def release(self) -> None:
        """Let the next writer in."""


class Storage(Protocol):
    """What the format needs of a medium. Keys are relative, with forward slashes."""

    @property
    def path(self) -> str:
        """The place as the user named it."""

    def exists(self, key: str = "") -> bool:
        """Whether the key, or without one the place itself, is there."""

    def size(self, key: str) -> int | None:
        """Bytes at `key`, None where there is nothing."""

    def read(self, key: str) -> bytes:
        """All bytes at `key`; FileNotFoundError where there is nothing."""

    def read_into(self, key: str, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from the start of `key` and return the number of bytes read."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys below a prefix, in no particular order."""

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Put the joined buffers at `key`, whole or not at all."""

    def delete(self, key: str) -> None:
        """Remove a key or a whole prefix; nothing there is no error."""

    def sync(self) -> None:
        """Make every write and deletion so far survive a power cut."""

    def lock(self) -> Lock:
        """Take the writer's lock or raise `StoreLockedError`, naming the holder."""


def open_storage(location: str | os.PathLike[str] | Storage) -> Storage:
    """Turn what a user calls a path into a storage.

    Raises
    ------
    InvalidInputError
        For URLs: object stores are not supported yet.
    """
    if not isinstance(location, str | os.PathLike):
        return location
    text = os.fspath(location)
    if "://" in text:
        raise InvalidInputError(
            f"{text} is a URL, and this version reads and writes local directories only: copy the store to a disk "
            "and give its path."
        )
    return LocalStorage(Path(text))


class LocalStorage:
    """A directory on a POSIX file system.

    Parameters
    ----------
    root : Path
        The store's directory; it is made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._counter = itertools.count()
        self._guard = threading.Lock()
        self._made: set[Path] = set()
        self._unsynced: set[Path] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process may stand in another folder.
        return type(self), (self.root.absolute(),)

    @property
    def path(self) -> str:
        return str(self.root)

    def exists(self, key: str = "") -> bool:
        return (self.root / key).exists()

    def size(self, key: str) -> int | None:
        try:
            return (self.root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def read_into(self, key: str, buffers: Sequence[memoryview]) -> int:
        descriptor = os.open(self.root / key, os.O_RDONLY)
        try:
            return _read_fully(descriptor, list(buffers))
        finally:
            os.close(descriptor)

    def list(self, prefix: str = "") -> Iterator[str]:
        for folder, _, files in os.walk(self.root / prefix):
            relative = Path(folder).relative_to(self.root)
            yield from ((relative / name).as_posix() for name in files)

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        target = self.root / key
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{next(self._counter)}"
        try:
            self._make(temporary.parent)
            self._make(target.parent)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _write_fully(descriptor, [memoryview(b).cast("B") for b in buffers])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise _storage_error(error, f"writing {target}") from error
        with self._guard:
            self._unsynced.add(target.parent)

    def delete(self, key: str) -> None:
        target = self.root / key
        try:
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(error, f"deleting {target}") from error
        with self._guard:
            self._unsynced.add(target.parent)
            self._made = {folder for folder in self._made if target != folder and target not in folder.parents}

    def sync(self) -> None:
        with self._guard:
            folders, self._unsynced = self._unsynced, set()
        for folder in sorted(folders):
            if folder.is_dir():
                try:
                    _sync_directory(folder)
                except OSError as error:
                    raise _storage_error(error, f"syncing {folder}") from error

    def lock(self) -> Lock:
        try:
            self._make(self.root)
            return _FileLock(self.root / LOCK_KEY)
        except OSError as error:
            raise _storage_error(error, f"locking {self.root}") from error

    def _make(self, folder: Path) -> None:
        if folder in self._made:
            return
        missing = [folder, *folder.parents]
        missing = missing[: next((n for n, path in enumerate(missing) if path.is_dir()), len(missing))]
        folder.mkdir(parents=True, exist_ok=True)
        with self._guard:
            self._made.add(folder)
            self._unsynced.update(path.parent for path in missing)


class _FileLock:
    """An advisory lock on a file that names its holder.

    The kernel drops the lock when the process ends, however it ends, so that a killed writer never has to be
    declared dead. The file's text is there for people.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 4096)
                os.close(self._descriptor)
                raise _locked(path, holder) from None
            # The holder before us removes the file when it lets go: a lock on a removed file guards nothing.
            if self._is_current():
                break
            os.close(self._descriptor)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        os.truncate(self._descriptor, 0)
        os.pwrite(
            self._descriptor,
            json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}).encode(),
            0,
        )

    def _is_current(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _locked(path: Path, holder: bytes) -> StoreLockedError:
    try:
        who: dict[str, Any] = json.loads(holder)
        name = f"process {who['pid']} on {who['host']} since {who['started']}"
    except (ValueError, KeyError, TypeError):
        name = "another process that has not yet said who it is"
    return StoreLockedError(
        f"The store {path.parent} is being written by {name}: wait until it ends, or stop it and run the same "
        "command again."
    )


def _storage_error(error: OSError, doing: str) -> StorageError:
    return StorageError(
        f"The file system refused while {doing}: {error.strerror or error}; nothing committed is lost, so make room "
        "or mend permissions and run the same command again to resume."
    )


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_fully(descriptor: int, pending: list[memoryview]) -> None:
    while pending:
        written = os.writev(descriptor, pending)
        while pending and written >= pending[0].nbytes:
            written -= pending.pop(0).nbytes
        if pending:
            pending[0] = pending[0][written:]


def _read_fully(descriptor: int, pending: list[memoryview]) -> int:
    total = 0
    while pending:
        count = os.readv(descriptor, pending)
        if count == 0:
            break
        total += count
        while pending and count >= pending[0].nbytes:
            count -= pending.pop(0).nbytes
        if pending:
            pending[0] = pending[0][count:]
    return total
