"""Bytes: how much memory this process may have, and how people read a number of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["human_nbytes", "memory_nbytes"]


def human_nbytes(nbytes: float) -> str:
    """Bytes with a decimal unit, for people: 1,500,000 is 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


@functools.cache
def memory_nbytes(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of the machine, or of the tightest control group around this process if that is less.

    Parameters
    ----------
    membership, mount : Path
        Where Linux says which control groups the process is in, and where they are.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _limit_files(membership, mount):
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):
            continue  # not there, or "max"
    return min(limits)


def _limit_files(membership: Path, mount: Path) -> Iterator[Path]:
    """Yield the files that may hold a limit: of the process's group and every group around it, versions 2 and 1."""
    yield mount / "memory.max"
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = mount / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        while group != base:
            yield group / name
            group = group.parent
        yield base / name
