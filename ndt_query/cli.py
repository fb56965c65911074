"""The commands that ask a store: summary, top, report. Each parses, delegates and prints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import rich_click as click

from ndt_store.cliparts import (
    emit,
    explain_option,
    format_option,
    selection_options,
    store_argument,
    tell,
    with_reach,
)
from ndt_store.errors import NotFoundError
from ndt_store.progress import progress_bar
from ndt_store.reader import Store, open_store
from ndt_store.selection import Selection, unit_layers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["at_last", "find", "report", "summary", "top", "with_activations"]

UNITS_SHOWN = 10


@click.command()
@store_argument
@selection_options()
@explain_option
@format_option
def summary(store: str, selection: Selection, explain: bool, output_format: str) -> None:
    """Tabulate every checkpoint and layer: units, dead ones, activity, dimensionality.

    After ± stands the reach of the 95% interval over examples; json and csv have its ends.
    """
    from ndt_query.summary import DIMENSIONS
    from ndt_query.summary import summary as summarise

    opened = open_store(store)
    rows: list[dict[str, Any]] = []
    layers = with_activations(opened, selection)
    with progress_bar("summarising") as advance:
        for done, layer in enumerate(layers, 1):
            asked = summarise(selection.apply(opened[layer]), explain=explain)
            _explain(asked)
            found = asked.compute()
            rows += [{"layer": layer, **row} for row in _rows(found)]
            advance(done, len(layers))
    emit([with_reach(row, DIMENSIONS) for row in rows] if output_format == "table" else rows, output_format)


@click.command()
@store_argument
@selection_options()
@click.option("--unit", "units", type=int, multiple=True, help="Only this unit; may be given several times.")
@click.option("-k", default=20, show_default=True, type=click.IntRange(min=1), help="Examples a unit.")
@explain_option
@format_option
def top(store: str, selection: Selection, units: tuple[int, ...], k: int, explain: bool, output_format: str) -> None:
    """List the examples that drive each unit most, exactly; ties go to the smaller example.

    Without --checkpoint the last one is asked; without --unit the first 10 units of each layer are listed.
    """
    from ndt_query.ranking import top_examples

    opened = open_store(store)
    labels = dict(zip(opened.examples.tolist(), opened.labels.tolist(), strict=True))
    selection = at_last(opened, selection)
    layers = with_activations(opened, selection)
    rows: list[dict[str, Any]] = []
    n_left_out = 0
    with progress_bar("ranking") as advance:
        for done, layer in enumerate(layers, 1):
            data = selection.apply(opened[layer])
            if units:
                data = data.isel(unit=_positions(units, data))
            else:
                n_left_out += max(0, data.sizes["unit"] - UNITS_SHOWN)
                data = data.isel(unit=slice(UNITS_SHOWN))
            asked = top_examples(data["activations"], k=k, explain=explain)
            _explain(asked)
            found = asked.compute()
            rows += [{"layer": layer, **row, "label": labels[row["example"]]} for row in _rows(found)]
            advance(done, len(layers))
    emit(rows, output_format)
    if n_left_out:
        tell(f"{n_left_out} more units are not listed: name them with --unit.")


@click.command()
@store_argument
@selection_options()
@click.option("--unit", "units", type=int, multiple=True, help="Only this unit; may be given several times.")
@click.option("--above", "threshold", type=float, required=True, help="List examples with a larger value than this.")
@click.option(
    "--limit",
    default=10_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="The most to list, of all layers together; more are refused.",
)
@explain_option
@format_option
def find(
    store: str,
    selection: Selection,
    units: tuple[int, ...],
    threshold: float,
    limit: int,
    explain: bool,
    output_format: str,
) -> None:
    """Find every example in which a unit exceeds a threshold.

    Rows are ordered by layer, checkpoint and unit, and within one unit at one checkpoint largest first.
    Without --checkpoint the last one is asked.
    """
    from ndt_query.filters import HitLimit, hits_above

    opened = open_store(store)
    labels = dict(zip(opened.examples.tolist(), opened.labels.tolist(), strict=True))
    selection = at_last(opened, selection)
    rows: list[dict[str, Any]] = []
    layers = with_activations(opened, selection)
    columns = ["layer", "checkpoint", "unit", "example", "value"]
    allowed = HitLimit(limit, "--limit")
    with progress_bar("searching") as advance:
        for done, layer in enumerate(layers, 1):
            data = selection.apply(opened[layer])
            data = data.isel(unit=_positions(units, data)) if units else data
            found = hits_above(data["activations"], threshold, allowed, explain=explain)
            _explain(found)
            rows += [
                {"layer": layer, **row, "label": labels[row["example"]]}
                for row in found.to_dataframe().to_dict("records")
            ]
            advance(done, len(layers))
    emit(rows, output_format, columns=list(rows[0]) if rows else columns)


@click.command()
@store_argument
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the page; default STORE-report.")
@click.option(
    "--study/--no-study", default=True, show_default=True, help="Study the kind of network it is: so far, a CNN."
)
def report(store: str, out: str | None, study: bool) -> None:
    """Write one self-contained HTML page about a store, with figures.

    Where the store holds a CNN, the page has what `ndt cnn` says of it, and its figures and numbers lie in cnn/ beside.
    """
    from ndt_query.report import report as write

    opened = open_store(store)
    folder = out or f"{store.rstrip('/').removesuffix('.zarr')}-report"
    with progress_bar("reporting") as advance:
        page = write(opened, folder, study=study, progress=advance)
    tell("open this page in a browser:")
    click.echo(page)


def at_last(store: Store, selection: Selection) -> Selection:
    """Select the last checkpoint where none is selected."""
    if selection.checkpoint is None and len(store.checkpoints):
        return replace(selection, checkpoint=str(store.checkpoints[-1]))
    return selection


def _positions(units: tuple[int, ...], data: xr.Dataset) -> Any:
    from ndt_store.selection import pick

    return pick(",".join(str(unit) for unit in units), data["unit"].values, "unit")


def _explain(answer: xr.Dataset) -> None:
    if "explain" in answer.attrs:
        tell(answer.attrs["explain"])


def with_activations(store: Store, selection: Selection) -> list[str]:
    """Return the selected layers that have activations.

    Raises
    ------
    NotFoundError
        There is none, or no committed checkpoint.
    """
    if not len(store.checkpoints):
        raise NotFoundError(f"{store.path} has no committed checkpoint yet: run its capture again to go on with it.")
    chosen = selection.layers(store)
    able = unit_layers(store)
    found = [layer for layer in chosen if layer in able]
    if not found:
        raise NotFoundError(f"{store.path} holds no activations of {', '.join(chosen)}: choose another layer.")
    return found


def _rows(dataset: xr.Dataset) -> list[dict[str, Any]]:
    """One row for each combination of labels, plain Python values."""
    frame = dataset.to_dataframe().reset_index()
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
