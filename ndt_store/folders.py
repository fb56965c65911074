"""The folders of a storage: which exist, and whose entries a power cut could still take away."""

from __future__ import annotations

import threading
from pathlib import Path

from ndt_store.rawio import sync_folders

__all__ = ["Folders"]


class Folders:
    """Folders that one storage made or changed; any thread may use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._made: set[Path] = set()
        self._unsynced: set[Path] = set()

    def make(self, folder: Path) -> None:
        """Make a folder and those above it, unless this storage knows that it is there.

        Raises
        ------
        OSError
            The file system refuses.
        """
        if folder in self._made:
            return
        new = True
        try:
            folder.mkdir()
        except FileNotFoundError:
            self.make(folder.parent)
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            if not folder.is_dir():
                raise
            new = False
        with self._guard:
            self._made.add(folder)
            if new:
                self._unsynced.add(folder.parent)

    def changed(self, folder: Path) -> None:
        """Note that entries of a folder have to be synced."""
        with self._guard:
            self._unsynced.add(folder)

    def forget(self, gone: Path) -> None:
        """Note that a folder and those below it may not be there any more."""
        with self._guard:
            self._made = {folder for folder in self._made if gone != folder and gone not in folder.parents}

    def sync(self) -> None:
        """Make every entry so far survive a power cut.

        Raises
        ------
        OSError
            The file system refuses; the next call tries the same folders again.
        """
        with self._guard:
            folders, self._unsynced = self._unsynced, set()
        try:
            sync_folders(folders)
        except OSError:
            with self._guard:
                self._unsynced |= folders
            raise
