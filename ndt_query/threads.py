"""One BLAS thread for each dask thread, set when a computation starts and given back when it ends.

Tasks that each start as many BLAS threads as there are cores slow one another down severalfold. Changing the limit
inside a task is a race, because it is one for the whole process; so it is set by a dask callback before the first task
of a computation that holds our tasks, and restored after the last. Other computations are left alone. Workers of
``dask.distributed`` set their own limit when they start.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from dask.callbacks import Callback
from threadpoolctl import ThreadpoolController

__all__ = ["TASK_PREFIX", "install"]

TASK_PREFIX: Final = "ndt-reduce-"
"""Start of the name of every task that reduces activations."""


class _OneBlasThread(Callback):
    """Counts the computations under way, so that the last one to end restores what the first one found."""

    def __init__(self) -> None:
        super().__init__(start=self._begin, finish=self._end)  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._running = 0
        self._libraries: tuple[int, Any] = (0, None)
        self._limiter: Any = None

    def _begin(self, graph: Mapping[Any, Any]) -> None:
        if not _is_ours(graph):
            return
        with self._lock:
            if self._running == 0:
                self._limiter = self._controller().limit(limits=1)
            self._running += 1

    def _controller(self) -> Any:
        # Looking for libraries takes as long as reading 10 MB, and they come with Python modules.
        if self._libraries[0] != len(sys.modules):
            self._libraries = (len(sys.modules), ThreadpoolController())
        return self._libraries[1]

    def _end(self, graph: Mapping[Any, Any], _state: Any, _failed: bool) -> None:
        if not _is_ours(graph):
            return
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._limiter.restore_original_limits()
                self._limiter = None


def _is_ours(graph: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, tuple) and str(key[0]).startswith(TASK_PREFIX) for key in graph)


_callback = _OneBlasThread()


def install() -> None:
    """Watch computations of dask's local schedulers from now on; calling it again changes nothing."""
    if getattr(_callback, "_callback", None) not in Callback.active:
        _callback.register()
