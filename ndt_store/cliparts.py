"""Parts that every command shares: options defined once, tables, and what an error becomes.

Results go to stdout, progress and messages to stderr. Exit codes: 0 good, 1 the store is damaged or incomplete, 2 wrong
usage, 3 anything else that was expected to go wrong at times.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import rich_click as click

from ndt_store.dims import EXPERIMENTS_GROUP, PARAMETER, PARAMETERS_GROUP, TRAINING_GROUP
from ndt_store.errors import IncompleteStoreError, IntegrityError, InvalidInputError, NdtError, NotFoundError
from ndt_store.reader import Store
from ndt_store.selection import Selection
from ndt_store.supplement_data import read_series

__all__ = [
    "EXIT_DAMAGED",
    "EXIT_EXPECTED",
    "EXIT_USAGE",
    "beside",
    "emit",
    "exit_code",
    "explain_option",
    "format_option",
    "in_turn",
    "require_folder",
    "require_picture",
    "selection_options",
    "store_argument",
    "tell",
    "with_reach",
]

EXIT_DAMAGED: Final = 1
EXIT_USAGE: Final = 2
EXIT_EXPECTED: Final = 3

F = TypeVar("F", bound=Callable[..., Any])

store_argument = click.argument("store", metavar="STORE", type=click.Path())
format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How to print the result.",
)


explain_option = click.option("--explain", is_flag=True, help="Say on stderr where each answer comes from.")


_SELECTORS: Final = {
    "layer": ("GLOB", "Only layers whose name matches."),
    "checkpoint": ("100:700", "Only these training steps, ends included."),
    "example": ("0:50", "Only these dataset indices, ends included."),
    "label": ("3", "Only examples of these classes."),
}


def selection_options(*names: str) -> Callable[[F], F]:
    """Add selectors, by default all of them; the command gets one `Selection` named `selection`."""
    chosen = names or tuple(_SELECTORS)

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def gather(**values: Any) -> Any:
            return command(selection=Selection(**{name: values.pop(name) for name in chosen}), **values)

        wrapped: Any = gather
        for name in reversed(chosen):
            example, what = _SELECTORS[name]
            wrapped = click.option(f"--{name}", metavar=example, default=None, help=what)(wrapped)
        return wrapped  # type: ignore[no-any-return]

    return decorate


PICTURES: Final = (".png", ".svg", ".pdf")


def require_picture(path: str) -> None:
    """Raise unless a figure can be written to a path, before anything is computed for it."""
    target = Path(path)
    if target.suffix.lower() not in PICTURES:
        raise InvalidInputError(f"{path!r} is no picture: end the name in {', '.join(PICTURES)}.")
    require_folder(path)


def require_folder(path: str) -> None:
    """Raise unless the folder that a file will be written into is there, before anything is computed for it."""
    if not Path(path).parent.is_dir():
        raise InvalidInputError(f"{path!r} lies in no folder that is there: make {Path(path).parent} first.")


def exit_code(error: NdtError) -> int:
    """Exit code for an expected error."""
    if isinstance(error, IntegrityError | IncompleteStoreError):
        return EXIT_DAMAGED
    if isinstance(error, InvalidInputError | NotFoundError):
        return EXIT_USAGE
    return EXIT_EXPECTED


def tell(message: str) -> None:
    """Say something on stderr."""
    click.echo(_printable(message), err=True)


def _printable(text: str) -> str:
    """Replace control characters: a store's names must not steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def beside(store: Store) -> dict[str, str]:
    """Say what lies beside the cubes of a store, in words; empty where there is nothing."""
    said = {}
    named = store.schema.find(f"{PARAMETERS_GROUP}/{PARAMETER}")
    if named is not None:
        said[PARAMETERS_GROUP] = f"gradients of {named.sizes[0]}"
    if TRAINING_GROUP in store.catalogue.supplements:
        record, arrays = read_series(store.catalogue.storage, TRAINING_GROUP)
        steps = arrays[f"{TRAINING_GROUP}/{record.dim}"]
        said[TRAINING_GROUP] = f"{len(steps)} rows" + (
            f", {record.dim} {steps[0]} to {steps[-1]}" if len(steps) else ""
        )
    if store.experiments:
        said[EXPERIMENTS_GROUP] = ", ".join(store.experiments)
    return said


def in_turn(ctx: click.Context, commands: Iterable[Sequence[str]]) -> None:
    """Call other commands of the same program, each a name and its arguments, until one of them exits or raises.

    Each is asked for when those before it are done, so that a generator can go by what they left.
    """
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    for name, *arguments in commands:
        command = group.get_command(ctx, name)
        assert command is not None, name
        with command.make_context(name, list(arguments), parent=ctx) as step:
            command.invoke(step)


def emit(
    rows: Sequence[Mapping[str, Any]], output_format: str, *, title: str = "", columns: Sequence[str] | None = None
) -> None:
    """Print rows of one shape as a table, as JSON (a list of objects) or as CSV.

    NaN, which JSON does not know, becomes null there.
    """
    names = list(columns or (rows[0] if rows else ()))
    if output_format == "json":
        plain = [{name: _jsonable(row.get(name)) for name in names} for row in rows]
        click.echo(json.dumps(plain, indent=1, ensure_ascii=False))
    elif output_format == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([row.get(name, "") for name in names] for row in rows)
        click.echo(text.getvalue(), nl=False)
    else:
        _table(rows, names, title)


def with_reach(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Put the reach of an interval beside its estimate, which a reader of a table takes in together."""
    shown = {name: value for name, value in row.items() if not name.endswith(("_low", "_high"))}
    for name in names:
        if row.get(name) is None:
            continue
        reach = row[f"{name}_high"] - row[name]
        shown[name] = row[name] if math.isnan(reach) else f"{row[name]:.4g} ± {reach:.2g}"
    return shown


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*(), title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        numeric = all(isinstance(row.get(name), int | float) or row.get(name) is None for row in rows)
        table.add_column(name, justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_printable(_cell(row.get(name)))) for name in names))
    # A pipe has no width of its own; a table cut to 80 columns would lose figures.
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.4g}"
    return str(value)  # digits as they are: what a table prints can be pasted into a selector


def _jsonable(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
