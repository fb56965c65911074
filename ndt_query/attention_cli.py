"""The command `ndt attention`: what the heads of a store look like, in numbers and as figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell, with_reach
from ndt_store.dims import CHECKPOINT, HEAD, LAYER
from ndt_store.reader import open_store
from ndt_store.selection import Selection

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["attention"]


@click.command()
@store_argument
@selection_options("layer", "checkpoint", "example", "label")
@click.option("--patterns", type=click.Path(dir_okay=False), help="Draw mean patterns: a .png, .svg or .pdf file.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw the measures over training: likewise.")
@format_option
def attention(store: str, selection: Selection, patterns: str | None, figure: str | None, output_format: str) -> None:
    """Measure attention: entropy, sparsity and distance of each head.

    How far heads differ from each other, and flow through the layers, is in `ndt transformer`. Works on attention
    patterns and on the summaries that a capture kept in their place; what needs patterns is left out then. Entropy runs
    from 0, one key, to 1, all alike; low and high are 95% intervals over examples.
    """
    from ndt_query.attention import attention_distance, attention_entropy, attention_sparsity, mean_pattern

    for path in (patterns, figure):
        if path is not None:
            require_picture(path)
    chosen = _layers(open_store(store), selection)
    found = attention_entropy(chosen).merge(attention_sparsity(chosen)).merge(attention_distance(chosen)).compute()
    rows = _rows(found, {name: one.sizes[HEAD] for name, one in chosen.items()})
    emit([with_reach(row, ["entropy"]) for row in rows] if output_format == "table" else rows, output_format)
    if figure is not None:
        from ndt_query.plot import attention_measures, save

        tell(f"{save(attention_measures(found), figure)}: figure.")
    if patterns is not None:
        from ndt_query.plot import attention_patterns, save

        tell(f"{save(attention_patterns(mean_pattern(chosen).compute()), patterns)}: figure.")


def _layers(store: Any, selection: Selection) -> dict[str, xr.Dataset]:
    """Return the selected layers that hold attention, at what is selected of the rest."""
    from ndt_query.attention_data import attention_layers
    from ndt_store.errors import NotFoundError

    held = {name for name, _ in attention_layers(store)}
    names = [name for name in selection.layers(store) if name in held]
    if not names:
        raise NotFoundError(
            f"{store.path} holds attention of {', '.join(sorted(held))}, and none of these is selected."
        )
    return {name: selection.apply(store[name]) for name in names}


def _rows(found: xr.Dataset, n_heads: Mapping[str, int]) -> list[dict[str, Any]]:
    rows = []
    for layer in found[LAYER].values:
        for step in found[CHECKPOINT].values:
            one = found.sel({LAYER: layer, CHECKPOINT: step})
            for place in range(n_heads[str(layer)]):
                head = one.isel({HEAD: place})
                row = {"layer": str(layer), "checkpoint": int(step), "head": int(head[HEAD]) if HEAD in head else place}
                for name in ("entropy", "entropy_low", "entropy_high", "hoyer", "gini", "share", "distance"):
                    row[name] = float(head[name])
                rows.append(row)
    return rows
