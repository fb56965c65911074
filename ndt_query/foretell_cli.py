"""The command `ndt foretell`: whether early training tells which heads will specialise."""

from __future__ import annotations

import math
from typing import Any

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, tell
from ndt_store.errors import InvalidInputError
from ndt_store.reader import open_store

__all__ = ["foretell"]


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path())
@click.option("--early", type=int, required=True, help="Checkpoint to predict from.")
@click.option("--late", type=int, help="Checkpoint to predict; the last by default.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@format_option
def foretell(stores: tuple[str, ...], early: int, late: int | None, figure: str | None, output_format: str) -> None:
    """Predict how specialised each head of STORES is late in training from what it is like early, held out.

    STORES are trainings of one architecture, such as several seeds. layer_r2 is what the layer alone tells; p is about
    what early training says beyond it.
    """
    from ndt_query.prediction import predict_specialisation

    if figure is not None:
        require_picture(figure)
    twice = next((store for store in stores if stores.count(store) > 1), None)
    if twice is not None:
        raise InvalidInputError(f"{twice} is given twice: name each training once.")
    found = predict_specialisation({store: open_store(store) for store in stores}, early, late)
    rows: list[dict[str, Any]] = []
    for scheme in found["scheme"].values:
        one = found.sel(scheme=scheme)
        if math.isnan(float(one["r2"])):
            tell("Runs are not held out: there is one alone.")
            continue
        names = ("r2", "layer_r2", "null_95", "p_value")
        rows.append(
            {"held_out": str(scheme), "heads": found.sizes["member"], **{name: float(one[name]) for name in names}}
        )
    emit(rows, output_format)
    if figure is not None:
        from ndt_query.plot import predicted_specialisation, save

        tell(f"{save(predicted_specialisation(found), figure)}: figure.")
