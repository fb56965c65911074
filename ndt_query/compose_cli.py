"""The command `ndt compose`: which units of late layers are linear compositions of units of early ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rich_click as click

from ndt_store.cliparts import (
    emit,
    format_option,
    require_folder,
    require_picture,
    selection_options,
    store_argument,
    tell,
)
from ndt_store.dims import CHECKPOINT, UNIT
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store
from ndt_store.selection import Selection, pick, unit_layers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compose"]

CONTRIBUTORS: Final = 3
COLUMNS: Final = ("early", "late", "checkpoint", "unit", "r2", "r2_low", "r2_high", "null_95", "q_value", "composed",
                  "contributors")  # fmt: skip


@click.command()
@store_argument
@click.option("--early", multiple=True, metavar="LAYER", help="Early layer; may be given several times.")
@click.option("--late", multiple=True, metavar="LAYER", help="Late layer of the --early at the same place.")
@selection_options("checkpoint")
@click.option("--top", default=10, show_default=True, type=click.IntRange(min=1), help="Units to list of each pair.")
@click.option("--threshold", default=0.7, show_default=True, help="A composed unit has a larger R2.")
@click.option("--shuffles", default=50, show_default=True, help="Shuffles of examples for the null.")
@click.option("--graphml", type=click.Path(dir_okay=False), help="Write the graph of composed units into this file.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw R2 against its null: a .png, .svg or .pdf file.")
@format_option
def compose(
    store: str,
    early: tuple[str, ...],
    late: tuple[str, ...],
    selection: Selection,
    top: int,
    threshold: float,
    shuffles: int,
    graphml: str | None,
    figure: str | None,
    output_format: str,
) -> None:
    """List which units of a late layer are linear compositions of the units of an early one, by held-out R2.

    Without layers every two neighbours are asked; without --checkpoint the last one. low and high are 95% intervals
    over examples, null_95 what 95% of shuffled examples stay below; contributors are early units with their
    standardised coefficients.
    """
    from ndt_query.graphml import write_graphml
    from ndt_query.graphs import compose_pairs, composition_graph

    if figure is not None:
        require_picture(figure)
    if graphml is not None:
        require_folder(graphml)
    opened = open_store(store)
    layers = unit_layers(opened)
    pairs = _pairs(early, late, layers, store)
    steps = _steps(selection.checkpoint, opened.checkpoints, store)
    if graphml is not None and len(steps) > 1:
        raise InvalidInputError(f"--graphml holds the graph of one checkpoint and {len(steps)} are chosen: choose one.")
    results: dict[tuple[str, str], xr.Dataset] = {}
    rows: list[dict[str, Any]] = []
    with progress_bar("composing") as advance:
        for done, pair in enumerate(pairs, 1):
            arrays = {name: opened[name].sel({CHECKPOINT: steps}) for name in pair}
            results |= compose_pairs(arrays, [pair], threshold=threshold, n_permutations=shuffles)
            advance(done, len(pairs))
    for (pair, result), step in product(results.items(), steps):
        rows += _rows(pair, result.sel({CHECKPOINT: step}), int(step), top)
    emit(rows, output_format, columns=COLUMNS)
    for (pair, result), step in product(results.items(), steps):
        tell(_summary(pair, result.sel({CHECKPOINT: step}), int(step), threshold))
    if graphml is not None:
        tell(f"wrote {write_graphml(composition_graph(results), graphml)}")
    if figure is not None:
        from ndt_query import plot

        shown = results if len(steps) > 1 else {pair: one.isel({CHECKPOINT: 0}) for pair, one in results.items()}
        tell(f"wrote {plot.save(plot.composition(shown), figure)}")


def _pairs(early: Sequence[str], late: Sequence[str], layers: Sequence[str], store: str) -> list[tuple[str, str]]:
    for name in (*early, *late):
        if name not in layers:
            raise NotFoundError(f"{store} holds no activations of a layer {name!r}: it has {', '.join(layers)}.")
    if not early and not late:
        if len(layers) < 2:
            raise NotFoundError(f"{store} holds activations of {len(layers)} layers: a pair needs two.")
        return list(pairwise(layers))
    if len(early) != len(late):
        raise InvalidInputError(
            f"There are {len(early)} --early and {len(late)} --late: give one of each for every pair of layers."
        )
    return list(zip(early, late, strict=True))


def _steps(wanted: str | None, held: Any, store: str) -> Any:
    if not len(held):
        raise NotFoundError(f"{store} has no committed checkpoint yet: run its capture again to go on with it.")
    return held[-1:] if wanted is None else held[pick(wanted, held, CHECKPOINT)]


def _rows(pair: tuple[str, str], result: xr.Dataset, step: int, top: int) -> list[dict[str, Any]]:
    r2 = result["r2"].values
    order = np.argsort(-np.where(np.isnan(r2), -np.inf, r2), kind="stable")[:top]
    null = _null_95(result)
    rows = []
    for place in order:
        one = result.isel({UNIT: int(place)})
        parts = zip(one["early_unit"].values[:CONTRIBUTORS], one["coefficient"].values[:CONTRIBUTORS], strict=True)
        row = {name: one[name].item() for name in ("unit", "r2", "r2_low", "r2_high", "q_value", "composed")}
        row |= {"early": pair[0], "late": pair[1], "checkpoint": step, "null_95": null}
        row["contributors"] = ", ".join(f"{unit} ({weight:.2f})" for unit, weight in parts if unit >= 0)
        rows.append(row)
    return rows


def _null_95(result: xr.Dataset) -> float:
    null = result["null_r2"].values
    known = null[np.isfinite(null)]
    return float(np.quantile(known, 0.95)) if known.size else float("nan")


def _summary(pair: tuple[str, str], result: xr.Dataset, step: int, threshold: float) -> str:
    from ndt_query.inference import clopper_pearson

    r2 = result["r2"].values
    varying, composed = int(np.isfinite(r2).sum()), int(result["composed"].sum())
    where = f"{pair[1]} from {pair[0]} at step {step}"
    if not varying:
        return f"{where}: no unit has an R2, because none varies or there are NaN."
    low, high = clopper_pearson(composed, varying)
    return (
        f"{where}: {composed} of {varying} units that vary are composed, R2 above {threshold:g} and above the null "
        f"({composed / varying:.0%}, {float(low):.0%} to {float(high):.0%}); median R2 {np.nanmedian(r2):.2g}, "
        f"of shuffled examples at most {np.nanmax(result['null_r2'].values):.2g}."
    )
