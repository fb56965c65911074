"""The command about units that wake up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from ndt_query.cam_cli import pair_option
from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell
from ndt_store.reader import open_store
from ndt_store.selection import Selection

if TYPE_CHECKING:
    from ndt_query.moments import Pairs

__all__ = ["waking"]

COUNTED: Final = ("woken", "dead_before", "share", "share_low", "share_high")
LISTED: Final = (
    "layer_of", "unit", "rate_after", "preferred_class", "selectivity_index", "auroc", "p_value", "q_value",
)  # fmt: skip


@click.command()
@store_argument
@selection_options("layer")
@pair_option("By default those about the jumps and controls of the tracked training, else five that span training.")
@click.option("--min-rate", default=0.01, show_default=True, help="A woken unit fires in more examples than this.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@click.option("--list", "listed", is_flag=True, help="List the woken units instead of counting them.")
@format_option
def waking(
    store: str,
    selection: Selection,
    pairs: tuple[tuple[int, int], ...] | None,
    min_rate: float,
    figure: str | None,
    listed: bool,
    output_format: str,
) -> None:
    """Count units that are dead before and fire after, or list them with what they respond to."""
    from ndt_query.cli import with_activations
    from ndt_query.moments import default_pairs
    from ndt_query.waking import waking_units

    if figure is not None:
        require_picture(figure)
    opened = open_store(store)
    layers = with_activations(opened, selection)
    asked: Pairs | None = pairs
    if asked is None:
        asked, said = default_pairs(opened)
        tell(said)
    result = waking_units({layer: opened[layer].activations for layer in layers}, asked, min_rate=min_rate)
    if listed:
        there = [name for name in LISTED if name in result]
        moments = result["moment_of"].values
        rows: list[dict[str, Any]] = [
            {"after": int(result["after"].values[moment]), **{name: result[name].values[n].item() for name in there}}
            for n, moment in enumerate(moments)
        ]
        emit(rows, output_format, columns=list(rows[0]) if rows else ["after", *LISTED])
    else:
        table = result[list(COUNTED)].to_dataframe().reset_index("layer")
        counted = table[["role", "before", "after", "layer", *COUNTED]]
        emit([{str(name): value for name, value in row.items()} for row in counted.to_dict("records")], output_format)
    if figure is not None:
        from ndt_query.plot import save
        from ndt_query.plot import waking_units as draw

        tell(f"wrote {save(draw(result), figure)}")
