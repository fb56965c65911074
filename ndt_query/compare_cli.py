"""The command that compares runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import rich_click as click

from ndt_store.cliparts import emit, format_option, require_picture, tell
from ndt_store.progress import progress_bar
from ndt_store.views.spectrum import MEASURES

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare"]

SHOWN: Final = {
    "final_accuracy": "accuracy",
    "n_jumps": "jumps",
    "dimension_final": "dimension",
    "growth_r2": "growth_r2",
    "separability_accuracy": "linear_accuracy",
    "separability_silhouette": "silhouette",
    "area": "area",
}
"""Names in the table by those of `compare_runs`."""

ALIGNED: Final = ("step", "examples", "loss")
ENDS: Final = ("", "_low", "_high")


@click.command()
@click.argument("stores", nargs=-1, required=True, metavar="STORE STORE...", type=click.Path())
@click.option("--by", type=click.Choice(ALIGNED), default="step", show_default=True,
              help="What trajectories are aligned by.")  # fmt: skip
@click.option("--layer", help="Whose dimension and separability; by default the last before the class scores.")
@click.option("--measure", type=click.Choice(MEASURES), default="participation_ratio", show_default=True,
              help="Of dimension.")  # fmt: skip
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw it too: a .png, .svg or .pdf file.")
@click.option("--out", type=click.Path(file_okay=False), help="Write a page about it into this folder, with figures.")
@format_option
def compare(
    stores: tuple[str, ...],
    by: Any,
    layer: str | None,
    measure: str,
    figure: str | None,
    out: str | None,
    output_format: str,
) -> None:
    """Compare runs: accuracy, jumps, dimension, separability, and the examples that learning took.

    A row for each run, and one for each group of runs of one recipe: the mean, and after ± the reach of its 95%
    interval over runs. examples_50 is how many examples were seen when half of the final accuracy was reached. In JSON
    and CSV limits have columns of their own, and each row says how many runs it is of, and of which layer, checkpoint,
    data and measurements where these are the same in all of them.
    """
    from ndt_query.compare import compare_groups, compare_runs, differing, each_run

    if figure is not None:
        require_picture(figure)
    if out is not None:
        from ndt_query.comparison_page import require_comparison_folder

        require_comparison_folder(out)
    with progress_bar("comparing") as advance:
        found = compare_runs(stores, by=by, layer=layer, measure=measure, progress=advance)
    groups = compare_groups(found)
    in_table = output_format == "table"
    rows = [_row(found, "run", place, found.isel(run=[place]), in_table) for place in range(found.sizes["run"])]
    for place, group in enumerate(groups["group"].values):
        rows.append(_row(groups, "group", place, found.isel(run=found["group"].values == group), in_table))
    emit(rows, output_format)
    tell(f"layer compared: {each_run(found, 'layer')}")
    for sentence in differing(found):
        tell(sentence)
    if figure is not None:
        from ndt_query.plot import compare_runs as draw
        from ndt_query.plot import save

        tell(f"wrote {save(draw(found), figure)}")
    if out is not None:
        from ndt_query.comparison_page import comparison_page, smooth_pairs

        tell(f"wrote {comparison_page(found, out, smooth=smooth_pairs(stores, found))}")


def _row(found: xr.Dataset, dim: str, place: int, runs: xr.Dataset, in_table: bool) -> dict[str, Any]:
    one = found.isel({dim: place})
    of_group = dim == "group"
    row: dict[str, Any] = {
        "run": f"mean of {int(one['n_runs'])}" if of_group else str(one["run"].item()),
        "group": str(one["group"].item()),
    }
    if not in_table:
        from ndt_query.compare import COORDS

        row["n_runs"] = runs.sizes["run"]
        for name in ("layer", *COORDS):
            same = set(runs[name].values.tolist())
            row[name] = same.pop() if len(same) == 1 else None
    numbers = [(label, [one[f"{name}{end}"] for end in ENDS if of_group or not end]) for name, label in SHOWN.items()]
    for n, fraction in enumerate(one["fraction"].values):
        ends = [one[f"examples_to{end}"][n] for end in ENDS if of_group or not end]
        numbers.append((f"examples_{fraction * 100:.0f}", ends))
    for label, values in numbers:
        told = [float(value) for value in values]
        if in_table:
            row[label] = _with_reach(told[0], told[-1])
        else:
            # A run has no limits over runs.
            row |= dict(
                zip((f"{label}{end}" for end in ENDS), [*told, *[math.nan] * (len(ENDS) - len(told))], strict=True)
            )
    return row


def _with_reach(value: float, high: float) -> str:
    reach = high - value
    said = [f"{one:.0f}" if abs(one) >= 1000 else f"{one:.3g}" for one in (value, reach)]
    return " ± ".join(said) if reach > 0 else said[0]
