"""The commands about geometry over training: subspaces, disentangle, dimensionality."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import rich_click as click

from ndt_query.cli import with_activations
from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell, with_reach
from ndt_store.errors import InvalidInputError
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store
from ndt_store.selection import Selection
from ndt_store.views.spectrum import MEASURES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["dimensionality", "disentangle", "subspaces"]

F = TypeVar("F", bound=Callable[..., Any])
DIMENSIONS: Final = (*MEASURES, "participation_ratio_corrected")
APART: Final = ("accuracy", "silhouette")
SHOWN: Final = (
    "accuracy", "accuracy_low", "accuracy_high", "control", "training_accuracy", "silhouette", "silhouette_low",
    "silhouette_high", "separation", "class_dimension", "intrinsic_dimension", "n_distinct",
)  # fmt: skip
positions_option = click.option(
    "--positions",
    type=click.Choice(["mean", "flatten"]),
    default="mean",
    show_default=True,
    help="What becomes of positions of a map or tokens: their mean, or features of the example.",
)


def figure_option(what: str, name: str = "figure") -> Callable[[F], F]:
    """Add an option for a file to draw into."""
    return click.option(f"--{name}", type=click.Path(dir_okay=False), help=f"Draw {what}: a .png, .svg or .pdf file.")


@click.command()
@store_argument
@selection_options("layer", "checkpoint")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Components of each subspace.")
@positions_option
@figure_option("drift and smoothness")
@figure_option("the overlap of all pairs of checkpoints", "overlap")
@format_option
def subspaces(
    store: str,
    selection: Selection,
    k: int,
    positions: str,
    figure: str | None,
    overlap: str | None,
    output_format: str,
) -> None:
    """Tabulate how far the subspace of each layer turns from checkpoint to checkpoint, and whether it does so smoothly.

    A row for each layer and pair of neighbouring checkpoints: the overlap of the subspaces of the first k components,
    the drift, one less the overlap, and the overlap of random subspaces, chance. smoothness and its p value are of the
    layer, over all of its checkpoints: a small p says that one turn is larger than the others explain.
    """
    from ndt_query.subspaces import subspace_drift, subspace_overlap

    _require_pictures(figure, overlap)
    found = _asked(store, selection, lambda one: subspace_drift(one, k, positions=positions), "turning")
    rows = [
        {
            "layer": layer,
            **{name: int(part[name].values[place]) for name in ("before", "after")},
            **{name: float(part[name].values[place]) for name in ("overlap", "drift")},
            **{name: float(part[name]) for name in ("chance", "smoothness", "p_value")},
        }
        for layer, part in found.items()
        for place in range(part.sizes["transition"])
    ]
    emit(rows, output_format)
    if figure is not None:
        from ndt_query.plot import subspace_drift as draw

        _drawn(draw(found), figure)
    if overlap is not None:
        from ndt_query.plot import subspace_overlap as draw_pairs

        pairs = _asked(store, selection, lambda one: subspace_overlap(one, k, positions=positions), "overlapping")
        _drawn(draw_pairs(pairs), overlap)


@click.command()
@store_argument
@selection_options("layer", "checkpoint")
@positions_option
@figure_option("all of it over checkpoints")
@format_option
def disentangle(store: str, selection: Selection, positions: str, figure: str | None, output_format: str) -> None:
    """Tabulate how far classes have come apart in each layer at each checkpoint.

    Accuracy of a linear machine on held-out examples, that of shuffled labels (control) and of its own examples
    (training), silhouette, scatter between over within classes (separation), components that hold 95% of the variance
    of a class (mean over classes), intrinsic dimension (TwoNN) of n_distinct examples. After ± stands the reach of the
    95% interval; json and csv have its ends.
    """
    from ndt_query.disentanglement import disentanglement

    _require_pictures(figure)
    found = _asked(store, selection, lambda one: disentanglement(one, positions=positions), "disentangling")
    rows = []
    for layer, part in found.items():
        table = part.assign(class_dimension=part["class_dimension"].mean("class"))[list(SHOWN)].to_dataframe()
        rows += _rows(layer, table.reset_index(), SHOWN)
    emit([with_reach(row, APART) for row in rows] if output_format == "table" else rows, output_format)
    if figure is not None:
        from ndt_query.plot import disentanglement as draw

        _drawn(draw(found), figure)


@click.command()
@store_argument
@selection_options("layer", "checkpoint")
@click.option("--measure", type=click.Choice(DIMENSIONS), help="Only this measure; by default all.")
@click.option(
    "--positions",
    type=click.Choice(["mean", "flatten", "samples"]),
    default="mean",
    show_default=True,
    help="What becomes of positions of a map or tokens: their mean, features of the example, or samples of their own.",
)
@figure_option("the measure over checkpoints, by default the participation ratio")
@format_option
def dimensionality(
    store: str, selection: Selection, measure: str | None, positions: str, figure: str | None, output_format: str
) -> None:
    """Tabulate the dimension of each layer at each checkpoint.

    After ± stands the reach of the 95% jackknife interval over examples; json and csv have its ends.
    """
    from ndt_query.geometry import dimensionality as measured

    _require_pictures(figure)
    found = _asked(store, selection, lambda one: measured(one, positions=positions), "measuring")
    chosen = DIMENSIONS if measure is None else (measure,)
    names = [*(f"{name}{end}" for name in chosen for end in ("", "_low", "_high")), "n_samples", "n_features"]
    rows = [
        row for layer, part in found.items() for row in _rows(layer, part[names].to_dataframe().reset_index(), names)
    ]
    emit([with_reach(row, chosen) for row in rows] if output_format == "table" else rows, output_format)
    if figure is not None:
        import xarray as xr

        from ndt_query.plot import dimensionality as draw

        whole = xr.concat(
            list(found.values()), xr.Variable("layer", list(found)), combine_attrs="override", join="exact"
        )
        _drawn(draw(whole, measure=measure or "participation_ratio"), figure)


def _asked(
    store: str, selection: Selection, ask: Callable[[xr.DataArray], xr.Dataset], doing: str
) -> dict[str, xr.Dataset]:
    """Ask about each selected layer in turn, with progress."""
    opened = open_store(store)
    layers = with_activations(opened, selection)
    found = {}
    with progress_bar(doing) as advance:
        for done, layer in enumerate(layers, 1):
            try:
                found[layer] = ask(_with_checkpoints(selection.apply(opened[layer])["activations"])).compute()
            except InvalidInputError as error:
                raise InvalidInputError(f"Layer {layer}: {error}") from error
            advance(done, len(layers))
    return found


def _with_checkpoints(acts: xr.DataArray) -> xr.DataArray:
    return acts if "checkpoint" in acts.dims else acts.expand_dims("checkpoint")


def _rows(layer: str, table: Any, names: Any) -> list[dict[str, Any]]:
    kept = table[["checkpoint", *names]].to_dict("records")
    return [{"layer": layer, **{str(name): value for name, value in row.items()}} for row in kept]


def _require_pictures(*paths: str | None) -> None:
    for path in paths:
        if path is not None:
            require_picture(path)


def _drawn(figure: Figure, path: str) -> None:
    from ndt_query.plot import save

    tell(f"wrote {save(figure, path)}")
