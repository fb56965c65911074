"""The command about gradients: how they flow through the network, and when their norm stood out while training."""

from __future__ import annotations

from typing import Any, Final

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell
from ndt_store.dims import PARAMETERS_GROUP, TRAINING_GROUP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store, open_store
from ndt_store.selection import Selection

__all__ = ["gradients"]

FLOW: Final = ("module_rms", "flow_ratio")
FOUND: Final = ("first_step", "last_step", "factor", "anomaly_q_value")
WINDOW: Final = 10


@click.command()
@store_argument
@selection_options("checkpoint")
@click.option("--anomalies", is_flag=True, help="List measurements at which the norm stood out while training.")
@click.option("--window", type=click.IntRange(min=1),
              help="Measurements before a jump in which an anomaly is a warning of it: 10 without it.")  # fmt: skip
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@format_option
def gradients(
    store: str, selection: Selection, anomalies: bool, window: int | None, figure: str | None, output_format: str
) -> None:
    """Tabulate gradients of the loss by module and checkpoint, or the anomalies of their norm while training.

    module_rms is their root mean square, flow_ratio that over the same of the last module. Gradients by module need a
    store with the kind parameters, anomalies a training that was tracked.
    """
    if figure is not None:
        require_picture(figure)
    if anomalies and selection != Selection():
        raise InvalidInputError("--anomalies are of the whole training: leave out --checkpoint.")
    if window is not None and not anomalies:
        raise InvalidInputError("--window is about anomalies: give --anomalies too.")
    opened = open_store(store)
    if anomalies:
        _anomalies(opened, window or WINDOW, figure, output_format)
        return
    from ndt_query.gradients import gradient_flow

    if PARAMETERS_GROUP not in opened.schema.group_paths():
        tracked = TRAINING_GROUP in opened.catalogue.supplements
        hint = "; ask for --anomalies, which its training has" if tracked else ""
        raise NotFoundError(f"{store} holds no gradients of parameters: capture the kind 'parameters'{hint}.")
    found = gradient_flow(opened.parameters)
    found = selection.apply(found)
    table = found[list(FLOW)].to_dataframe().reset_index()
    emit([{str(name): row[name] for name in row} for row in table.to_dict("records")], output_format)
    if figure is not None:
        from ndt_query.plot import gradient_flow as draw
        from ndt_query.plot import save

        tell(f"wrote {save(draw(found), figure)}")


def _anomalies(store: Store, window: int, figure: str | None, output_format: str) -> None:
    from ndt_query.anomalies import gradient_anomalies

    try:
        found = gradient_anomalies(store, window=window)
    except (DimensionError, InvalidInputError) as error:
        raise type(error)(f"{store.path}: {error}") from error
    rows: list[dict[str, Any]] = [
        {name: found[name].values[place].item() for name in FOUND} for place in range(found.sizes["anomaly"])
    ]
    emit(rows, output_format, columns=list(FOUND))
    said = f"{len(rows)} anomalies and {found.sizes['jump']} jumps in {found.sizes['step']} measurements"
    if rows and found.sizes["jump"]:
        said += (
            f"; {int(found['n_warned'])} jumps have one within {window} measurements before, "
            f"{float(found['warned_by_chance']):.2g} with shuffled timing, p {float(found['warning_p_value']):.2g}"
        )
    tell(f"{said}.")
    if figure is not None:
        from ndt_query.plot import gradient_anomalies as draw
        from ndt_query.plot import save

        tell(f"wrote {save(draw(found), figure)}")
