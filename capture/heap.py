"""Keep the memory that passes on a CPU let go, so that the next batch need not fault it in again.

The C library gives large blocks back to the system the moment they are freed. A network frees and takes gigabytes a
second, and every page comes back as a page fault that zeroes it: a quarter of ResNet-18's forward pass, a third of a
light network's. While a capture or a training runs, the library is asked to keep what is freed, which is at most what
the passes held at their peak; afterwards it gets its limits back and what it kept goes to the system.

Only glibc is asked, and only where the user has not tuned it by environment variables. Values do not change.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["freed_memory_kept"]

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MAX: Final = -4
"""What `mallopt` of glibc can be told; numbers from its malloc.h."""

_LARGEST: Final = (1 << 31) - 1
_DEFAULT_MMAP_MAX: Final = 1 << 16
_DYNAMIC_NBYTES: Final = 32 << 20
"""Where the mmap threshold of glibc ends up by itself once a block of that size was freed, as any network does."""

_TUNED_BY: Final = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

_guard = threading.Lock()
_n_inside = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep freed memory inside this context; nested and concurrent uses count as one.

    Does nothing with other C libraries, or where the environment tunes glibc's allocator.
    """
    global _n_inside
    library = _tunable()
    if library is None:
        yield
        return
    with _guard:
        _n_inside += 1
        if _n_inside == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        with _guard:
            _n_inside -= 1
            if _n_inside == 0:
                # Setting either threshold ends their adjustment by glibc, so they get the values that it leads to.
                library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
                library.mallopt(_MMAP_THRESHOLD, _DYNAMIC_NBYTES)
                library.mallopt(_TRIM_THRESHOLD, 2 * _DYNAMIC_NBYTES)
                library.malloc_trim(0)


def _tunable() -> Any:
    """Return the C library where it is glibc as its makers configured it, else None."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _TUNED_BY):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
