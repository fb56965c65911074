"""The command `ndt effects`: what interventions cost, from the experiment that a store holds."""

from __future__ import annotations

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, store_argument, tell
from ndt_store.reader import open_store

__all__ = ["effects"]


@click.command()
@store_argument
@click.option("--figure", type=click.Path(dir_okay=False), help="Also draw it into this file: .png, .svg or .pdf.")
@format_option
def effects(store: str, figure: str | None, output_format: str) -> None:
    """Tabulate what interventions cost at jumps, at controls, and the difference, each normal - arm.

    Needs the experiment that `ndt intervene` makes. low and high are 95% intervals over seeds; p_value is two-sided,
    from swapping signs within seeds.
    """
    from ndt_query.interventions import effect_rows, intervention_effects

    if figure is not None:
        require_picture(figure)
    result = intervention_effects(open_store(store))
    emit(effect_rows(result), output_format)
    tell(f"{store}: {result.attrs['seeds']}; area and dimensions over {result.attrs['window']} steps from each moment.")
    if figure is not None:
        from ndt_query.plot import interventions, save

        tell(f"{save(interventions(result), figure)}: figure.")
