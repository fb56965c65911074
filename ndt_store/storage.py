"""The one place that touches a file system.

`Storage` is everything the rest of the package asks of the medium: read a key, write a key so that it is there whole
or not at all, list, delete, make durable, and hold a lock. `LocalStorage` answers with POSIX files. An object store
is another small class with the same methods; `open_storage` is where a path becomes one of them.

A write goes to ``tmp/``, is synced, and is renamed into place. The rename itself becomes durable when `sync` has
synced the directories concerned, which the writer does before it publishes a commit. Blocks go past the page cache
where the file system allows it (`ndt_store.rawio`), and many small files become durable together (`gather`).

What need not last is derived from the rest, and readers write it too, without the lock. Its temporaries lie apart, in
``tmp/`` of its own first folder, so that neither a reader's write nor the sweep of a writer gets into the other's way.
Writers of different parts of one place (`Storage.for_writer`) have locks and temporaries of their own likewise.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from ndt_store.errors import InvalidInputError
from ndt_store.folders import Folders
from ndt_store.gathering import Gathering
from ndt_store.locking import FileLock
from ndt_store.rawio import READ_ADVICE, Buffer, as_bytes, read_all, remove_tree, storage_error, write_file

__all__ = ["Buffer", "LocalStorage", "Lock", "Sink", "Storage", "of_writer", "open_storage"]

LOCK_KEY: Final = "lock"
TEMPORARY: Final = "tmp"


class Lock(Protocol):
    """A lock that is held until released, or until its process ends."""

    def release(self) -> None:
        """Let the next writer in."""


class Sink(Protocol):
    """What takes files."""

    def write(self, key: str, buffers: Sequence[Buffer]) -> None:
        """Put the joined buffers at `key`, whole or not at all."""

    def sync(self) -> None:
        """Make every write so far survive a power cut."""


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
        """Put the joined buffers at `key`, whole or not at all.

        What is not durable may be lost in a power cut, and whoever may write can write it at any time without the lock,
        but only where no link leads out of the place.
        """

    def delete(self, key: str) -> None:
        """Remove a key or a whole prefix; nothing there is no error, and what others add meanwhile may stay."""

    def sync(self) -> None:
        """Make every write and deletion so far survive a power cut."""

    def gather(self) -> AbstractContextManager[Sink]:
        """Return a sink whose writes wait for its `sync`, which shows all of them in order; what is left is dropped.

        Until then the buffers of a write must not change, and its errors wait for the `sync` too. Writes to the
        storage itself, from whichever thread, are as ever.
        """

    def lock(self, *, wait: bool = False) -> Lock:
        """Take the writer's lock; where another has it, wait for it or raise `StoreLockedError`, naming the holder."""

    def for_writer(self, name: str) -> Storage:
        """Return the same place for a writer of another part of it, with a lock and temporaries of its own."""


def of_writer(key: str, name: str) -> str:
    """Return the key of a writer's own lock or temporaries; the store's writer has no name."""
    return f"{key}-{name}" if name else key


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
        self._writer = ""
        self._token = secrets.token_hex(4)
        self._counter = itertools.count()
        self._folders = Folders()

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
            raise storage_error(error, f"looking at {self.root / key}", READ_ADVICE) from error

    def _open(self, key: str) -> int:
        # Without O_NONBLOCK a pipe in the place of a file would be waited for, for ever.
        try:
            descriptor = os.open(self.root / key, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "there is no such file", key) from None
        except OSError as error:
            raise storage_error(error, f"reading {self.root / key}", READ_ADVICE) from error
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
            raise storage_error(error, f"listing {error.filename}", READ_ADVICE) from error

    def write(self, key: str, buffers: Sequence[Buffer], *, durable: bool = True) -> None:
        target = self.root / key
        try:
            if durable:
                self._put(self._temporary(), target, buffers, durable=True)
                self._folders.changed(target.parent)
            else:
                self._put_unlocked(target, buffers)
        except OSError as error:
            raise storage_error(error, f"writing {target}") from error

    def _put_unlocked(self, target: Path, buffers: Sequence[Buffer]) -> None:
        temporary = self._temporary(*target.relative_to(self.root).parts[:-1][:1])
        self._require_no_link(temporary.parent)
        self._require_no_link(target.parent)
        self.root.stat()  # a store that was removed does not come back as a folder of derived files
        try:
            self._put(temporary, target, buffers, durable=False)
        except FileNotFoundError:
            # Somebody has swept what this storage remembers to have made, or is writing.
            self._folders.forget(self.root)
            self._put(temporary, target, buffers, durable=False)

    def _require_no_link(self, folder: Path) -> None:
        # Whoever reads a store from a stranger must not write where the stranger's links lead.
        for part in (folder, *folder.parents):
            if part == self.root:
                return
            if part.is_symlink():
                raise OSError(errno.ELOOP, f"{part} is a link, and nothing is written through links")

    def _put(self, temporary: Path, target: Path, buffers: Sequence[Buffer], *, durable: bool) -> None:
        self._folders.make(temporary.parent)
        self._folders.make(target.parent)
        write_file(temporary, as_bytes(buffers), durable=durable)
        try:
            temporary.replace(target)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def delete(self, key: str) -> None:
        target = self.root / key
        try:
            if target.is_dir() and not target.is_symlink():
                remove_tree(target)
            else:
                target.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(error, f"deleting {target}") from error
        self._folders.changed(target.parent)
        self._folders.forget(target)

    @contextlib.contextmanager
    def gather(self) -> Iterator[Sink]:
        with contextlib.closing(Gathering(self.root, self._folders, self._temporary)) as gathering:
            yield gathering

    def sync(self) -> None:
        try:
            self._folders.sync()
        except OSError as error:
            raise storage_error(error, f"syncing folders of {self.root}") from error

    def lock(self, *, wait: bool = False) -> Lock:
        try:
            self._folders.make(self.root)
            what = f"{self._writer}/ of {self.root}" if self._writer else f"The store {self.root}"
            return FileLock(self.root / of_writer(LOCK_KEY, self._writer), what, wait=wait)
        except OSError as error:
            raise storage_error(error, f"locking {self.root}") from error

    def for_writer(self, name: str) -> LocalStorage:
        other = LocalStorage(self._named)
        other.root, other._writer = self.root, name
        return other

    def _temporary(self, *folder: str) -> Path:
        name = f"{os.getpid()}-{self._token}-{next(self._counter)}"
        return self.root.joinpath(*folder, of_writer(TEMPORARY, self._writer)) / name
