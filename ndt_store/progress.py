"""Progress of long work, on stderr, so that results on stdout can be piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(description: str, *, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr; yields a function of (done, total).

    Where stderr is not a terminal nothing is drawn, and one line says when the work is done.
    """
    if not show:
        yield lambda done, total: None  # noqa: ARG005
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
    if not console.is_terminal:
        print(f"{description}: done", file=sys.stderr)  # noqa: T201 - stderr is where progress goes
