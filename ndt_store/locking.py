"""A writer's lock on a local directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ndt_store.errors import StoreLockedError

__all__ = ["FileLock"]


class FileLock:
    """An advisory lock on a file that names its holder.

    The kernel drops the lock when the process ends, however it ends, so that a killed writer never has to be
    declared dead. The file's text is there for people.

    Parameters
    ----------
    path : Path
        The file.
    what : str
        What it guards, for the message.
    wait : bool
        Wait until the holder lets go, for what is held for milliseconds.

    Raises
    ------
    StoreLockedError
        Another writer holds it, and `wait` is false.
    """

    def __init__(self, path: Path, what: str, *, wait: bool = False) -> None:
        self._path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                told = os.read(self._descriptor, 4096)
                os.close(self._descriptor)
                raise _locked(what, told) from None
            except BaseException:
                os.close(self._descriptor)
                raise
            # The holder before us removes the file when it lets go: a lock on a removed file guards nothing.
            if self._is_current():
                break
            os.close(self._descriptor)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "started": started}).encode()
        # The text is for people; the kernel's lock holds without it, also on a full disk.
        with contextlib.suppress(OSError):
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, holder, 0)

    def _is_current(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let the next writer in."""
        if self._is_current():
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _locked(what: str, holder: bytes) -> StoreLockedError:
    try:
        who: dict[str, Any] = json.loads(holder)
        name = f"process {who['pid']} on {who['host']} (or a child of it) since {who['started']}"
    except (ValueError, KeyError, TypeError):
        name = "another process that has not yet said who it is"
    return StoreLockedError(
        f"{what} is being written by {name}: wait until it ends, or stop it and run the same command again."
    )
