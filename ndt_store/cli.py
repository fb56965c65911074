"""The `ndt` command: what needs a store and nothing more, and the door for the other packages' commands.

Packages add commands through the entry-point group ``ndt.commands``; each is imported when it is called, so that
``ndt info`` never pays for torch or matplotlib.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any

import rich_click as click
from click.exceptions import Exit

from ndt_store.cliparts import (
    EXIT_DAMAGED,
    EXIT_EXPECTED,
    beside,
    emit,
    exit_code,
    format_option,
    in_turn,
    selection_options,
    store_argument,
    tell,
)
from ndt_store.errors import NdtError
from ndt_store.layout import forecast
from ndt_store.nbytes import human_nbytes
from ndt_store.progress import progress_bar
from ndt_store.reader import Store, open_store
from ndt_store.schema import FORMAT_VERSION, layer_path
from ndt_store.selection import Selection, pick
from ndt_store.views.shelf import ViewWarning

__all__ = ["cli", "main"]

CAPTURE_MODULES = ("pydantic", "safetensors", "torch", "torchvision")


class LazyGroup(click.RichGroup):
    """A command group whose further members are entry points, imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of own and added commands."""
        return sorted({*super().list_commands(ctx), *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return an own command, or import an added one."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _added():
            return own
        command: click.Command = _added()[cmd_name].load()
        return command


def _added() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="ndt.commands")}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("ndt-activations"), prog_name="ndt")
@click.option("--debug", is_flag=True, help="Show the traceback of an expected error.")
def cli(debug: bool) -> None:
    """Capture what happens inside a neural network once, query it anywhere.

    Exit codes: 0 good, 1 the store is damaged or incomplete, 2 wrong usage, 3 anything else that was expected.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run `ndt` and exit; an expected error becomes one sentence on stderr and an exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with warnings.catch_warnings():
            # What we warn of is one sentence, like an error; others' warnings are as the user set them.
            warnings.simplefilter("always", ViewWarning)
            warnings.showwarning = _in_one_line(warnings.showwarning)
            result = cli.main(given, prog_name="ndt", standalone_mode=False)
    except NdtError as error:
        if "--debug" in given:
            traceback.print_exc()
        tell(f"ndt: {error}")
        sys.exit(exit_code(error))
    except ModuleNotFoundError as error:
        if error.name not in CAPTURE_MODULES:
            raise
        install = "pip install '.[capture]' in a clone of ndt-activations"
        tell(f"ndt: this command runs a model and needs {error.name}: {install}.")
        sys.exit(EXIT_EXPECTED)
    except Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in given:
            traceback.print_exc()
        tell(f"ndt: The system refused ({error}): make room where the output goes, or mend permissions, and try again.")
        sys.exit(EXIT_EXPECTED)
    except (click.Abort, KeyboardInterrupt):
        tell("ndt: interrupted; what is committed is safe, and the same command resumes.")
        sys.exit(EXIT_EXPECTED)
    sys.exit(result if isinstance(result, int) else 0)


def _in_one_line(others: Callable[..., None]) -> Callable[..., None]:
    """Show our warnings as a sentence on stderr, and leave those of other packages to `others`."""

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, ViewWarning):
            tell(f"ndt: {message}")
        else:
            others(message, category, *where)

    return show


@cli.command()
@store_argument
@format_option
def info(store: str, output_format: str) -> None:
    """Say what a store is: model, data, checkpoints, layers, size."""
    opened = open_store(store)
    emit([{"what": key, "value": value} for key, value in _facts(opened).items()], output_format)


def _facts(store: Store) -> dict[str, Any]:
    steps = store.checkpoints
    planned = store.schema.checkpoints
    stored = sum(
        entry.nbytes
        for step in (None, *store.catalogue.committed)
        for array in store.catalogue.record(step).arrays.values()
        for entry in array.blocks
    )
    raw = sum(forecast(store.schema.with_checkpoints(store.catalogue.committed)).values())
    identity = store.provenance.get("identity", {})
    return {
        "store": store.path,
        "format version": FORMAT_VERSION,
        **{key.replace("_", " "): _named(value) for key, value in identity.items() if value is not None},
        "checkpoints": f"{len(steps)} of {len(planned)} committed"
        + (f", {steps[0]} to {steps[-1]}" if len(steps) else ""),
        "examples": str(len(store.examples)),
        "layers": f"{len(store.layers)}: {', '.join(store.layers)}",
        **beside(store),
        "size": f"{human_nbytes(stored)} on disk, {human_nbytes(raw)} uncompressed",
        "complete": "yes" if store.is_complete else "no; run the same capture again to finish it",
    }


def _named(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("name", f"{len(value)} entries"))
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)


@cli.command()
@store_argument
@selection_options("layer", "checkpoint")
@format_option
def ls(store: str, selection: Selection, output_format: str) -> None:
    """List layers and kinds: shape, blocks, bytes, what is not finite."""
    opened = open_store(store)
    steps = opened.checkpoints
    chosen = [int(step) for step in steps[pick(selection.checkpoint, steps, "checkpoint")]]
    raw = forecast(opened.schema.with_checkpoints(tuple(chosen)))
    rows = []
    for layer in selection.layers(opened):
        for kind in opened.schema.kinds(layer):
            spec = opened.schema.find(layer_path(layer, kind))
            assert spec is not None
            entries = [opened.catalogue.record(step).arrays[spec.path] for step in chosen]
            stored = sum(block.nbytes for entry in entries for block in entry.blocks)
            rows.append(
                {
                    "layer": layer,
                    "kind": kind,
                    "dims": ", ".join(spec.dims),
                    "shape": " x ".join(str(n) for n in (len(chosen), *spec.sizes)),
                    "dtype": spec.dtype,
                    "codec": spec.codec,
                    "blocks": sum(len(entry.blocks) for entry in entries),
                    "bytes": stored,
                    "ratio": round(raw[spec.path] / stored, 3) if stored else None,
                    "nan": sum(entry.nan for entry in entries),
                    "inf": sum(entry.inf for entry in entries),
                }
            )
    emit(rows, output_format)
    if said := beside(opened):
        tell("Beside the layers: " + "; ".join(f"{group}: {what}" for group, what in said.items()) + ".")


@cli.command()
@store_argument
@click.option("--read-data", is_flag=True, help="Also read, checksum and decode every block.")
@format_option
def verify(store: str, read_data: bool, output_format: str) -> None:
    """Check that a store is whole; exit code 1 if it is damaged or incomplete."""
    from ndt_store.verify import verify as check

    with progress_bar("verifying") as advance:
        report = check(open_store(store), read_data=read_data, progress=advance)
    columns = ("severity", "array", "block", "message")
    if report.findings or output_format != "table":
        emit([{name: getattr(f, name) for name in columns} for f in report.findings], output_format, columns=columns)
    looked = "read and checked" if read_data else "measured"
    say = click.echo if output_format == "table" else tell
    say(
        f"{report.path}: {report.n_documents} documents, {report.n_commits} commits, "
        + (f"{report.n_supplements} beside the cubes, " if report.n_supplements else "")
        + f"{report.n_blocks} blocks "
        f"({human_nbytes(report.nbytes)}) {looked}; "
        + (f"{len(report.findings)} findings." if report.findings else "everything is as committed.")
    )
    if not report.ok:
        sys.exit(EXIT_DAMAGED)


@cli.command()
@store_argument
@selection_options("layer", "checkpoint")
@click.option(
    "--gram",
    type=click.Choice(["flatten", "mean", "samples"]),
    multiple=True,
    help="Also statistics of second order, by what becomes of positions; may be given several times.",
)
@click.option("--force", is_flag=True, help="Make views again that are there and good.")
def index(store: str, selection: Selection, gram: tuple[str, ...], force: bool) -> None:
    """Make the views that are missing, stale or damaged: moments, zone maps, rankings.

    A capture makes them while it writes; this is for stores from elsewhere, or after an interrupted capture. Gram views
    (--gram), from which dimensions are answered, are made here or by the first question that needs them.
    """
    from ndt_store.views.indexing import index_store

    opened = open_store(store)
    steps = opened.checkpoints
    chosen = [int(step) for step in steps[pick(selection.checkpoint, steps, "checkpoint")]]
    with progress_bar("indexing") as advance:
        report = index_store(
            opened, layers=selection.layers(opened), checkpoints=chosen, gram=gram, force=force, progress=advance
        )
    click.echo(
        f"{opened.path}: views of {report.n_made} arrays and checkpoints made, {report.n_present} were there; "
        f"{human_nbytes(report.nbytes)} of views beside {human_nbytes(report.array_nbytes)} of arrays."
    )
    if report.n_too_large:
        tell(f"{report.n_too_large} Gram views are not kept: they would be large beside their arrays.")


@cli.command()
@click.option("--out", default="runs", show_default=True, type=click.Path(file_okay=False), help="Where results go.")
@click.pass_context
def demo(ctx: click.Context, out: str) -> None:
    """Train, capture, verify, find jumps in, summarise and report a small CNN on images that come with the package.

    Takes a few minutes the first time; what is done already is not done again.
    """
    store, weights, page = f"{out}/demo.zarr", f"{out}/demo-checkpoints", f"{out}/demo-report"
    commands = [
        ("train", "demo", "--checkpoints", weights, "--store", store),
        ("capture", "demo", "--checkpoints", weights, "--store", store),
        ("verify", store, "--read-data"),
        ("jumps", store),
        ("summary", store),
        ("report", store, "--out", page),
    ]
    in_turn(ctx, commands)
