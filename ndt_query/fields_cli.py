"""The command `ndt fields`: sizes and widths of receptive fields, from the experiment that a store holds."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import rich_click as click

from ndt_store.cliparts import emit, format_option, store_argument, tell
from ndt_store.dims import LAYER, STEP
from ndt_store.reader import open_store

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["fields"]


@click.command()
@store_argument
@click.option("--figure", type=click.Path(dir_okay=False), help="Also draw it into this file: .png, .svg or .pdf.")
@format_option
def fields(store: str, figure: str | None, output_format: str) -> None:
    """Tabulate receptive fields: size and stride by theory, width of the effective field, mean over units.

    Needs the experiment that `ndt receptive-fields` makes. Lengths are in input pixels; low and high are 95% intervals
    over examples; ratio is width over size.
    """
    from ndt_query.receptive import receptive_field

    result = receptive_field(open_store(store))
    emit(_rows(result), output_format)
    tell(f"{store}: {result.attrs['n_examples']} examples in {result.attrs['n_groups']} groups.")
    for name, reason in zip(result[LAYER].values, result["reason"].values, strict=True):
        if reason:
            tell(f"{name}: {reason}.")
    if figure is not None:
        from ndt_query.plot import receptive_fields, save

        tell(f"{save(receptive_fields(result), figure)}: figure.")


def _rows(result: xr.Dataset) -> list[dict[str, Any]]:
    found = []
    for layer, axis, step in product(result[LAYER].values, result["axis"].values, result[STEP].values.tolist()):
        one = result.sel({LAYER: layer, "axis": axis, STEP: step})
        found.append(
            {
                "layer": layer,
                "axis": axis,
                "step": step,
                "size": one["size"].item(),
                "stride": one["stride"].item(),
                "width": one["layer_width"].item(),
                "low": one["layer_width_low"].item(),
                "high": one["layer_width_high"].item(),
                "ratio": one["layer_ratio"].item(),
                "n_units": one["n_units"].item(),
            }
        )
    return found
