"""The commands about units: a list of them, and everything about one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell
from ndt_store.errors import NotFoundError
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store
from ndt_store.selection import Selection

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["types", "unit", "units"]

COLUMNS: Final = (
    "dead", "firing_rate", "mean", "max", "selectivity_index", "auroc", "preferred_class", "p_value", "q_value",
)  # fmt: skip


@click.command()
@store_argument
@selection_options("layer", "checkpoint", "example")
@click.option("--by", default="auroc", show_default=True, help="What to rank by, such as auroc, firing_rate, mean.")
@click.option("--ascending", is_flag=True, help="Smallest first.")
@click.option("-n", "n_units", default=20, show_default=True, type=click.IntRange(min=1), help="Units of each layer.")
@click.option("--min-rate", "least_rate", type=click.FloatRange(0, 1), default=0.0,
              help="Only units that fire in such a fraction of examples.")  # fmt: skip
@click.option("--max-q", type=float, help="Only units that are selective at this false discovery rate.")
@click.option("--class", "preferred", type=int, help="Only units that prefer this class.")
@format_option
def units(
    store: str,
    selection: Selection,
    by: str,
    ascending: bool,
    n_units: int,
    least_rate: float,
    max_q: float | None,
    preferred: int | None,
    output_format: str,
) -> None:
    """Rank the units of each layer, and filter them. Without --checkpoint the last one is asked.

    q values are over all units of a layer, whatever is filtered.
    """
    from ndt_query.cli import at_last, with_activations
    from ndt_query.units import rank_units, unit_table

    opened = open_store(store)
    selection = at_last(opened, selection)
    layers = with_activations(opened, selection)
    if preferred is not None and preferred not in opened.labels:
        held = ", ".join(map(str, np.unique(opened.labels)))
        raise NotFoundError(f"{store} has no class {preferred}: its examples are of classes {held}.")
    rows: list[dict[str, Any]] = []
    with progress_bar("ranking") as advance:
        for done, layer in enumerate(layers, 1):
            table = unit_table(selection.apply(opened[layer])).compute()
            for place in range(table.sizes["checkpoint"]):
                one = table.isel(checkpoint=place)
                chosen = rank_units(
                    one, by, n=n_units, ascending=ascending, least_rate=least_rate, max_q=max_q, preferred=preferred
                )
                step = int(one["checkpoint"])
                shown = list(dict.fromkeys((*COLUMNS, by)))
                for row in chosen[shown].reset_coords(drop=True).to_dataframe().reset_index().to_dict("records"):
                    rows.append({"layer": layer, "checkpoint": step, **{str(name): row[name] for name in row}})
            advance(done, len(layers))
    emit(rows, output_format, columns=list(rows[0]) if rows else ["layer", "checkpoint", "unit", *COLUMNS])


@click.command()
@store_argument
@click.option("--layer", required=True, help="Name of the layer.")
@click.option("--unit", "number", type=int, required=True, help="Label of the unit.")
@click.option("--checkpoint", type=int, help="Training step to look at closely; the last one without it.")
@click.option("-k", default=9, show_default=True, type=click.IntRange(min=1), help="Examples that drive it most.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@click.option("--page", type=click.Path(dir_okay=False), help="Write a page about it too: an .html file.")
@format_option
def unit(
    store: str,
    layer: str,
    number: int,
    checkpoint: int | None,
    k: int,
    figure: str | None,
    page: str | None,
    output_format: str,
) -> None:
    """Say everything about one unit: what drives it most, how it fires, which class it prefers, what it sees."""
    from ndt_query.profile import unit_profile

    if figure is not None:
        require_picture(figure)
    profile = unit_profile(open_store(store), layer, number, checkpoint=checkpoint, k=k)
    emit(_facts(profile), output_format)
    if figure is not None:
        from ndt_query.plot import save
        from ndt_query.plot import unit_profile as draw

        tell(f"wrote {save(draw(profile), figure)}")
    if page is not None:
        tell(f"wrote {_page(profile, page)}")


@click.command()
@store_argument
@selection_options("layer", "checkpoint")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@format_option
def types(store: str, selection: Selection, figure: str | None, output_format: str) -> None:
    """Count what kinds of things drive the units of conv layers, by a stated rule, against the first checkpoint.

    The rule is that of ndt_query.TypeRule. excess is the share less that of the first checkpoint asked about: let that
    be the untrained network, of which the rule says something too.
    """
    from ndt_query.cli import with_activations
    from ndt_query.unit_types import type_shares, unit_types

    if figure is not None:
        require_picture(figure)
    opened = open_store(store)
    layers = [name for name in with_activations(opened, selection) if {"y", "x"} <= set(opened[name].dims)]
    if not layers:
        raise NotFoundError(f"{store} has no such layer with positions y and x: types are of conv layers.")
    shares: dict[str, xr.Dataset] = {}
    with progress_bar("looking at units") as advance:
        for done, layer in enumerate(layers, 1):
            steps = selection.apply(opened[layer])["checkpoint"].values.tolist()
            shares[layer] = type_shares(unit_types(opened, layer, checkpoints=steps))
            advance(done, len(layers))
    rows = [
        {"layer": layer, **{str(name): value for name, value in row.items()}}
        for layer, part in shares.items()
        for row in part.to_dataframe().reset_index().to_dict("records")
    ]
    emit(rows, output_format)
    if figure is not None:
        from ndt_query.plot import save
        from ndt_query.plot import unit_types as draw

        tell(f"wrote {save(draw(shares), figure)}")


def _facts(profile: xr.Dataset) -> list[dict[str, Any]]:
    at = profile.sel(checkpoint=profile["at"].item())
    facts: list[tuple[str, Any]] = [(name, profile[name].item()) for name in ("layer", "unit", "at")]
    facts += [(name, at[name].item()) for name in ("firing_rate", "mean", "std", "max", "active_fraction")]
    facts += [(name, profile[name].item()) for name in ("preferred_class", "selectivity_index", "auroc", "p_value")]
    for name in ("field_size", "field_width"):
        if name in profile:
            facts.append((f"{name} (pixels)", " x ".join(f"{one:.3g}" for one in profile[name].values)))
    places = [str(name) for name in ("y", "x", "token") if name in profile]
    for rank in range(profile.sizes["rank"]):
        one = profile.isel(rank=rank)
        where = ", ".join(f"{name} {one[name].item()}" for name in places)
        text = f"{one['value'].item():.4g}: example {one['example'].item()}, label {one['label'].item()}"
        facts.append((f"top {rank}", f"{text}, {where}" if where else text))
    return [
        {"what": name, "value": f"{value:.4g}" if isinstance(value, float) else str(value)} for name, value in facts
    ]


def _page(profile: xr.Dataset, path: str) -> Path:
    from ndt_query.pages import figure_source, render, write_page
    from ndt_query.plot import unit_profile as draw

    title = f"{profile['layer'].item()}, unit {profile['unit'].item()}"
    facts = [(row["what"], row["value"]) for row in _facts(profile)]
    page = render("unit.html.j2", title, facts=facts, figure=figure_source("unit", draw(profile)))
    return write_page(page, Path(path), "The page")
