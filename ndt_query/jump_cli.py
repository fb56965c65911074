"""The command that finds jumps in what was tracked while training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell
from ndt_store.dims import LAYER, STEP
from ndt_store.errors import NotFoundError
from ndt_store.reader import open_training
from ndt_store.selection import Selection, matching

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["jumps"]

COLUMNS: Final = ("step", "low", "high", "size", "size_error", "size_in_noise", "phase", "p_value", "q_value")


@click.command()
@store_argument
@selection_options("layer")
@click.option(
    "--measure", default="participation_ratio", show_default=True, help="What was tracked: a measure, a loss."
)
@click.option("--alpha", default=0.05, show_default=True, help="False discovery rate over all layers.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw the trajectories too: a .png, .svg or .pdf file.")
@format_option
def jumps(store: str, selection: Selection, measure: str, alpha: float, figure: str | None, output_format: str) -> None:
    """Find jumps in what was tracked while training: changes within one or two measurements that are not noise.

    A row for each jump: the step of the first measurement after it, the 95% interval of that step, size with standard
    error and in standard deviations of the noise, phase of training, p value, and q value over all layers.
    """
    from ndt_query.jump_moments import characterise_jumps
    from ndt_query.jumps import detect_jumps

    if figure is not None:
        require_picture(figure)
    training = _selected(open_training(store), selection.layer, store)
    found = detect_jumps(_from_first(training, measure), alpha=alpha, measure=measure)
    found["phase"] = characterise_jumps(found)["phase"]
    columns = [LAYER, *COLUMNS] if LAYER in found else list(COLUMNS)
    rows = found[columns].to_dataframe().to_dict("records")
    if rows or output_format != "table":
        emit([{str(name): value for name, value in row.items()} for row in rows], output_format, columns=columns)
    if not rows:
        say: Any = click.echo if output_format == "table" else tell
        say(_none(found, measure, alpha))
    if figure is not None:
        from ndt_query import plot

        tell(f"wrote {plot.save(plot.trajectories(found, training), figure)}")


def _selected(training: xr.Dataset, pattern: str | None, store: str) -> xr.Dataset:
    if pattern is None or LAYER not in training.dims:
        return training
    names = [str(name) for name in training[LAYER].values]
    chosen = matching(names, pattern)
    if not chosen:
        raise NotFoundError(f"{store} tracked no layer like {pattern!r}: it tracked {', '.join(names)}.")
    return training.sel({LAYER: chosen})


def _from_first(training: xr.Dataset, measure: str) -> xr.Dataset:
    """Leave out the measurements before the first one of the measure: a training batch has no loss at step 0."""
    if measure not in training or STEP not in training[measure].dims:
        return training
    made = training[measure].notnull().any([dim for dim in training[measure].dims if dim != STEP]).values
    if made.all() or not made.any():
        return training
    first = int(np.argmax(made))
    if first:
        tell(f"{measure} begins at step {int(training[STEP].values[first])}.")
    return training.isel({STEP: slice(first, None)})


def _none(found: xr.Dataset, measure: str, alpha: float) -> str:
    from ndt_query.jump_moments import nearest_miss

    miss = nearest_miss(found)
    if not miss:
        return f"{measure} never changes: no jumps."
    return f"No jumps of {measure} at a false discovery rate of {alpha:g}: {miss}."
