"""The command `ndt effects`: what interventions cost, from the experiment that a store holds."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from ndt_store.cliparts import emit, format_option, store_argument, tell
from ndt_store.dims import LAYER
from ndt_store.reader import open_store

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["effects"]

QUANTITIES: Final = ("final_accuracy", "accuracy_area", "participation_ratio", "stable_rank")


@click.command()
@store_argument
@click.option("--figure", type=click.Path(dir_okay=False), help="Also draw it into this file: .png, .svg or .pdf.")
@format_option
def effects(store: str, figure: str | None, output_format: str) -> None:
    """Tabulate what interventions cost at jumps, at controls, and the difference, each normal - arm.

    Needs the experiment that `ndt intervene` makes. low and high are 95% intervals over seeds; p_value is two-sided,
    from swapping signs within seeds.
    """
    from ndt_query.interventions import intervention_effects

    result = intervention_effects(open_store(store))
    emit([row for name in QUANTITIES for row in _rows(result, name)], output_format)
    tell(f"{store}: {result.attrs['seeds']}.")
    if figure is not None:
        from ndt_query.plot import interventions, save

        tell(f"{save(interventions(result), figure)}: figure.")


def _rows(result: xr.Dataset, name: str) -> list[dict[str, Any]]:
    of_layers = LAYER in result[name].dims
    found = []
    for layer, arm, role in product(
        result[LAYER].values.tolist() if of_layers else [""],
        result["arm"].values.tolist(),
        result["role"].values.tolist(),
    ):
        one = result.sel(arm=arm, role=role, **({LAYER: layer} if of_layers else {}))
        found.append(
            {
                "quantity": name,
                "layer": layer,
                "arm": arm,
                "role": role,
                "effect": one[name].item(),
                "low": one[f"{name}_low"].item(),
                "high": one[f"{name}_high"].item(),
                "p_value": one[f"{name}_p_value"].item(),
                "n_seeds": one["n_seeds"].item(),
            }
        )
    return found
