"""The one place that touches a file system.

`Storage` is everything the rest of the package asks of the medium: read a key, write a key so that it is there whole
or not at all, list, delete, make durable, and hold a lock. `LocalStorage` answers with POSIX files. An object store
is another small class with the same methods; `open_storage` is where a path becomes one of them.

A write goes to ``tmp/``, is synced, and is renamed into place. The rename itself becomes durable when `sync` has
synced the directories concerned, which the writer does before it publishes a commit. Blocks go past the page cache
where the file system allows it (`ndt_store.rawio`), and many small files become durable together (`gather`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from ndt_store.errors import InvalidInputError, StorageError
from ndt_store.gathering import Gathering
from ndt_store.locking import FileLock
from ndt_store.rawio import read_all, sync_folders, write_file

__all__ = ["LocalStorage", "Lock", "Storage", "open_storage"]

LOCK_KEY: Final = "lock"
TEMPORARY: Final = "tmp"

READ_ADVICE: Final = "mend the permissions or the disk and try again"
WRITE_ADVICE: Final = (
    "nothing committed is lost, so make room or mend permissions and run the same command again to resume"
)

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
        """Bytes at `key`, None where there is nothing that could be read."""

    def stamp(self, key: str) -> str:
        """Something that changes whenever `key` is written anew, "" where there is nothing."""

    def read(self, key: str, limit: int) -> bytes:
        """All bytes at `key`, but at most `limit`; FileNotFoundError where there is nothing."""

    def read_into(self, key: str, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers from the start of `key` and return the number of bytes read."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys below a prefix, in no particular order."""

    def write(self, key: str, buffers: Sequence[Buffer], *, durable: bool = True) -> None:
        """Put the joined buffers at `key`, whole or not at all; what is not durable may be lost in a power cut."""

    def delete(self, key: str) -> None:
        """Remove a key or a whole prefix; nothing there is no error."""

    def sync(self) -> None:
        """Make every write and deletion so far survive a power cut."""

    def gather(self) -> AbstractContextManager[None]:
        """Let durable writes wait for the next `sync`, which shows all of them in order; what is left is dropped.

        Until then the buffers of a write must not change, and its errors wait for the `sync` too.
        """

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
    return LocalStorage(text)


class LocalStorage:
    """A directory on a POSIX file system.

    Parameters
    ----------
    root : path
        The store's directory; it is made by the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._named = os.fspath(root)
        # A relative path would follow the process when it changes its folder.
        self.root = Path(root).absolute()
        self._token = secrets.token_hex(4)
        self._counter = itertools.count()
        self._guard = threading.Lock()
        self._made: set[Path] = set()
        self._unsynced: set[Path] = set()
        self._gathering: Gathering | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root,)

    @property
    def path(self) -> str:
        return self._named

    def exists(self, key: str = "") -> bool:
        return self._stat(key) is not None

    def size(self, key: str) -> int | None:
        found = self._stat(key)
        return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None

    def stamp(self, key: str) -> str:
        found = self._stat(key)
        return "" if found is None else f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"

    def read(self, key: str, limit: int) -> bytes:
        descriptor = self._open(key)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit)

    def read_into(self, key: str, buffers: Sequence[memoryview]) -> int:
        descriptor = self._open(key)
        try:
            return read_all(descriptor, list(buffers))
        finally:
            os.close(descriptor)

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            return (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _storage_error(error, f"looking at {self.root / key}", READ_ADVICE) from error

    def _open(self, key: str) -> int:
        # Without O_NONBLOCK a pipe in the place of a file would be waited for, for ever.
        try:
            descriptor = os.open(self.root / key, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", key) from None
        except OSError as error:
            raise _storage_error(error, f"reading {self.root / key}", READ_ADVICE) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "it is no regular file", key)
        return descriptor

    def list(self, prefix: str = "") -> Iterator[str]:
        # A listing that fails is not an empty one: what is committed would be taken for missing.
        for folder, _, files in os.walk(self.root / prefix, onerror=self._listing_failed):
            relative = Path(folder).relative_to(self.root)
            yield from ((relative / name).as_posix() for name in files)

    def _listing_failed(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise _storage_error(error, f"listing {error.filename}", READ_ADVICE) from error

    def write(self, key: str, buffers: Sequence[Buffer], *, durable: bool = True) -> None:
        target = self.root / key
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{self._token}-{next(self._counter)}"
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        try:
            self._make(temporary.parent)
            if durable and self._gathering is not None:
                self._gathering.add(temporary, target, views)
                return
            self._make(target.parent)
            write_file(temporary, views, durable=durable)
            temporary.replace(target)
        except OSError as error:
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

    @contextlib.contextmanager
    def gather(self) -> Iterator[None]:
        gathering = self._gathering = Gathering()
        try:
            yield
        finally:
            self._gathering = None
            gathering.close()

    def sync(self) -> None:
        if self._gathering is not None:
            try:
                settled = self._gathering.settle(self._make)
            except OSError as error:
                raise _storage_error(error, f"writing {error.filename}") from error
            with self._guard:
                self._unsynced.update(target.parent for target in settled)
        with self._guard:
            folders, self._unsynced = self._unsynced, set()
        try:
            sync_folders(folders)
        except OSError as error:
            with self._guard:
                self._unsynced |= folders
            raise _storage_error(error, f"syncing folders of {self.root}") from error

    def lock(self) -> Lock:
        try:
            self._make(self.root)
            return FileLock(self.root / LOCK_KEY)
        except OSError as error:
            raise _storage_error(error, f"locking {self.root}") from error

    def _make(self, folder: Path) -> None:
        if folder in self._made:
            return
        new = True
        try:
            folder.mkdir()
        except FileNotFoundError:
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            new = False
        with self._guard:
            self._made.add(folder)
            if new:
                self._unsynced.add(folder.parent)


def _storage_error(error: OSError, doing: str, advice: str = WRITE_ADVICE) -> StorageError:
    return StorageError(f"The file system refused while {doing}: {error.strerror or error}; {advice}.")
