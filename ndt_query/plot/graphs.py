"""Figure of the graph of composed units: layers as columns, units as dots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ndt_query.inputs import require_count
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, plain, styled
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import DimensionError

__all__ = ["composition_graph"]

GREY: Final = "#666666"
SIGNS: Final = {1: (OKABE_ITO[0], "positive"), -1: (OKABE_ITO[1], "negative")}
LABEL_BOX: Final = {"boxstyle": "square,pad=0.08", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
LONGEST_COLUMN: Final = 24
"""Units of one layer whose labels stand apart in a column."""


@styled
def composition_graph(graph: xr.Dataset, *, most: int = 60) -> Figure:
    """Draw which late units are composed of which early ones: layers as columns, units as dots.

    Parameters
    ----------
    graph : Dataset (edge,)
        From `ndt_query.composition_graph`.
    most : int
        Edges to draw: those of the largest share, as many of each pair of layers. The title says how many are left out.

    Returns
    -------
    Figure
        Edges in blue have a positive weight and those in orange a negative one, wide ones a large one. Only units with
        an edge that is drawn have a dot, in the order that makes edges cross least, about, with their label.

    Raises
    ------
    DimensionError
        The graph is another result.
    """
    if "early_unit" not in graph or graph["early_unit"].dims != ("edge",):
        raise DimensionError("The graph has no early_unit over edge: pass that of composition_graph.")
    require_count("most", most, 1)
    drawn = _largest(graph, most)
    edges = [
        ((early, int(a)), (late, int(b)), float(weight))
        for early, a, late, b, weight in zip(
            *(drawn[name].values for name in ("early_layer", "early_unit", "late_layer", "late_unit", "weight")),
            strict=True,
        )
    ]
    units: dict[str, int] = json.loads(graph.attrs["layers"])
    places = _places(list(units), edges)
    tallest = max((sum(layer == name for layer, _ in places) for name in units), default=0)
    width = min(DOUBLE_COLUMN, 1.2 + 1.5 * len(units))
    figure = Figure(figsize=(width, max(2.2, 0.7 + 0.13 * tallest)), layout="constrained")
    axes = figure.add_subplot()
    heaviest = max((abs(weight) for *_, weight in edges), default=1.0)
    for early, late, weight in sorted(edges, key=lambda edge: abs(edge[2])):
        colour = SIGNS[1 if weight > 0 else -1][0]
        axes.plot(*zip(places[early], places[late], strict=True), color=colour, alpha=0.65, solid_capstyle="round",
                  linewidth=0.4 + 2.6 * abs(weight) / heaviest, zorder=1)  # fmt: skip
    small = tallest > LONGEST_COLUMN
    for (_, unit), (x, y) in places.items():
        last = x == len(units) - 1
        axes.plot(x, y, "o", color="#222222", markersize=2.2 if small else 3.2, zorder=2)
        axes.annotate(str(unit), (x, y), (4 if last else -4, 0), textcoords="offset points", va="center",
                      ha="left" if last else "right", fontsize=5 if small else 6, color="#222222", zorder=3,
                      bbox=LABEL_BOX)  # fmt: skip
    _frame(axes, units, places, _title(graph, len(edges)))
    handles = [Line2D([], [], color=colour, linewidth=1.6, label=name) for colour, name in SIGNS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=f"weight, widest {heaviest:.2g}",
                  title_fontsize=7)  # fmt: skip
    return figure


def _largest(graph: xr.Dataset, most: int) -> xr.Dataset:
    """Edges of the largest share, as many of each pair of layers as of the others where there are so many."""
    share = graph["share"].values
    pairs = np.stack([graph["early_layer"].values.astype(str), graph["late_layer"].values.astype(str)], axis=1)
    _, pair_of = np.unique(pairs, axis=0, return_inverse=True)
    rank = np.empty(len(share), np.int64)
    for pair in range(int(pair_of.max(initial=-1)) + 1):
        mine = np.flatnonzero(pair_of == pair)
        rank[mine[np.argsort(-share[mine], kind="stable")]] = np.arange(len(mine))
    return graph.isel(edge=np.sort(np.lexsort((-share, rank))[:most]))


def _places(layers: list[str], edges: list[tuple[Any, Any, float]]) -> dict[tuple[str, int], tuple[float, float]]:
    """Columns of units, each ordered by the mean height of its neighbours, a few times from left to right and back."""
    nodes = sorted({node for early, late, _ in edges for node in (early, late)})
    columns = {layer: [node for node in nodes if node[0] == layer] for layer in layers}
    neighbours: dict[Any, list[Any]] = {node: [] for node in nodes}
    for early, late, _ in edges:
        neighbours[early].append(late)
        neighbours[late].append(early)
    heights = {node: height for column in columns.values() for node, height in _spread(column).items()}
    for sweep in range(8):
        for layer in layers if sweep % 2 == 0 else layers[::-1]:
            wanted = {node: np.mean([heights[other] for other in neighbours[node]]) for node in columns[layer]}
            columns[layer] = sorted(columns[layer], key=wanted.__getitem__, reverse=True)
            heights |= _spread(columns[layer])
    return {node: (float(layers.index(node[0])), heights[node]) for node in nodes}


def _spread(column: list[Any]) -> dict[Any, float]:
    return {node: 1 - (place + 0.5) / len(column) for place, node in enumerate(column)}


def _title(graph: xr.Dataset, n_drawn: int) -> str:
    n = graph.sizes["edge"]
    if n == 0:
        return "no unit is composed"
    step = f"step {graph.attrs[CHECKPOINT]:,}: ".replace(",", "\u2009") if CHECKPOINT in graph.attrs else ""
    left_out = f"the {n_drawn} edges of the largest share of each pair; {n - n_drawn} more are left out"
    return step + (f"all {n} edges" if n_drawn == n else left_out)


def _frame(axes: Axes, units: Mapping[str, int], places: Mapping[Any, Any], title: str) -> None:
    drawn = {name: sum(layer == name for layer, _ in places) for name in units}
    names = [f"{plain(name, 16)}\n{drawn[name]} of {n} units" for name, n in units.items()]
    axes.set_xticks(range(len(units)), names)
    axes.set_xlim(-0.25, len(units) - 0.75)
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, color=GREY, fontsize=7)
