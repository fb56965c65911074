"""Emptying the page cache of some files, without privileges, and seeing whether it worked."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["can_drop", "drop", "files_below", "resident_share"]

RESIDENT_AT_MOST: Final = 0.01
"""Share of a candidate's pages that may still be in memory when a run counts as cold."""


def files_below(*places: Path) -> list[Path]:
    """List the files at or below some places."""
    found: list[Path] = []
    for place in places:
        found += [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    return found


def drop(files: Sequence[Path]) -> None:
    """Write files back and remove their pages from the page cache; needs no privilege.

    Raises
    ------
    RuntimeError
        Pages stayed: the files lie in memory (tmpfs), or something still maps them.
    """
    # A memory map that is only garbage by now still pins its pages.
    gc.collect()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left = resident_share(files)
    if left > RESIDENT_AT_MOST:
        raise RuntimeError(
            f"{left:.0%} of {len(files)} files stayed in the page cache, so that a run would not be cold: put "
            "NDT_BENCH_DIR on a disk, and close what maps the files."
        )


def can_drop(folder: Path) -> bool:
    """Whether files in this folder can be removed from the page cache; not so in tmpfs."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        file.flush()
        try:
            drop([Path(file.name)])
        except RuntimeError:
            return False
    return True


def resident_share(files: Sequence[Path]) -> float:
    """Return the share of the files' pages that the page cache holds, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    n_pages = n_resident = 0
    for file in files:
        nbytes = file.stat().st_size
        if nbytes == 0:
            continue
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), nbytes, prot=mmap.PROT_READ) as mapped:
            view = np.frombuffer(mapped, np.uint8)
            pages = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
            failed = libc.mincore(view.ctypes.data, nbytes, pages.ctypes.data)
            del view
        if failed:
            raise OSError(ctypes.get_errno(), f"mincore failed on {file}")
        n_pages += len(pages)
        n_resident += int(np.count_nonzero(pages & 1))
    return n_resident / n_pages if n_pages else 0.0
