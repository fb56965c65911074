"""Figure of interventions: what they cost at jumps and at controls, with intervals over seeds, and how that goes on."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, Final

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ndt_query.inputs import one_of
from ndt_query.interventions import MEASURES
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, plain, styled
from ndt_store.dims import LAYER
from ndt_store.errors import DimensionError

__all__ = ["interventions"]

COLOURS: Final = {"jump": OKABE_ITO[1], "control": OKABE_ITO[0], "difference": OKABE_ITO[6]}
MARKERS: Final = {"jump": "o", "control": "s", "difference": "D"}
LABELS: Final = {"jump": "at jumps", "control": "at controls", "difference": "difference"}
DODGE: Final = 0.2
FEW_LAYERS: Final = 4
MANY_LAYERS: Final = 12
N_SEEDS_SHOWN: Final = 20


@styled
def interventions(result: xr.Dataset, *, measure: str = "participation_ratio") -> Figure:
    """Draw what interventions cost at jumps, at controls, and the difference.

    Parameters
    ----------
    result : Dataset
        From `ndt_query.intervention_effects`.
    measure : {"participation_ratio", "stable_rank"}
        Which measure of dimension.

    Returns
    -------
    Figure
        Double column; everything is normal - arm. Above: final accuracy and area under validation accuracy, for each
        arm; bars are intervals over seeds, faint dots are seeds. Middle: validation accuracy from the moment on, with
        pointwise intervals. Below: mean dimension of each layer from the moment on.

    Raises
    ------
    DimensionError
        The result is another one.
    """
    one_of("measure", measure, MEASURES)
    if "accuracy_area" not in result or not {"role", "arm", "since"} <= set(result.dims):
        raise DimensionError("The result has no accuracy_area over role and arm: pass that of intervention_effects.")
    shown = [str(role) for role in result["role"].values if result["n_seeds"].sel(role=role) > 0]
    arms = [str(arm) for arm in result["arm"].values]
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.6), layout="constrained")
    n_columns = max(2, len(arms))
    grid = figure.add_gridspec(3, 2 * n_columns, height_ratios=[1, 1, 1.1])
    for column, (name, label) in enumerate(
        (("final_accuracy", "final accuracy lost"), ("accuracy_area", "area lost (steps)"))
    ):
        axes = figure.add_subplot(grid[0, n_columns * column : n_columns * (column + 1)])
        _effects(axes, result, name, "arm", shown)
        axes.set_ylabel(label)
    curves: Any = None
    layers: Any = None
    for column, arm in enumerate(arms):
        one = result.sel(arm=arm)
        place = slice(2 * column, 2 * column + 2)
        curves = figure.add_subplot(grid[1, place], sharey=curves)
        for role in shown[:2]:
            _curve(curves, one.sel(role=role), "running_validation_accuracy", role)
        curves.axhline(0, color="#444444", linewidth=0.6)
        curves.set_title(plain(arm))
        curves.set_xlabel("steps since the moment")
        layers = figure.add_subplot(grid[2, place], sharey=layers)
        _effects(layers, one, measure, LAYER, shown)
        layers.set_title(plain(arm))
        for axes, text in ((curves, "validation accuracy lost"), (layers, f"{measure.replace('_', ' ')} lost")):
            axes.set_ylabel(text if column == 0 else "")
            axes.tick_params(labelleft=column == 0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handletextpad=0.3)
    said = f"{result.attrs.get('seeds', '')}; over {result.attrs.get('window', 0)} steps from each moment"
    figure.supxlabel(plain(said, 200), fontsize=6.5, color="#666666")
    return figure


def _effects(axes: Axes, result: xr.Dataset, name: str, along: str, roles: list[str]) -> None:
    """Draw estimates along a dimension of names, side by side for each role, with intervals and seeds."""
    names = [str(one) for one in result[along].values]
    places = np.arange(len(names))
    for n, role in enumerate(roles):
        one = result.sel(role=role)
        at = places + DODGE * (n - (len(roles) - 1) / 2)
        middle = one[name].values
        reach = np.abs(np.stack([middle - one[f"{name}_low"].values, one[f"{name}_high"].values - middle]))
        seeds = one[f"{name}_by_seed"].transpose("seed", along).values
        if len(seeds) <= N_SEEDS_SHOWN:
            axes.plot(np.broadcast_to(at + DODGE / 3, seeds.shape), seeds, ".", color=COLOURS[role], alpha=0.45,
                      markersize=3, markeredgewidth=0)  # fmt: skip
        axes.errorbar(at, middle, np.nan_to_num(reach), fmt=MARKERS[role], color=COLOURS[role], capsize=2,
                      elinewidth=1, markersize=3.5, label=LABELS[role])  # fmt: skip
    axes.axhline(0, color="#444444", linewidth=0.6)
    common = _common_beginning(names)
    axes.set_xticks(places, [plain(one.removeprefix(common), 16) for one in names])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    if common:
        axes.set_xlabel(plain(common, 40))
    if len(names) > FEW_LAYERS:
        for label in axes.get_xticklabels():
            label.set(rotation=45, ha="right", rotation_mode="anchor", fontsize=6 if len(names) <= MANY_LAYERS else 4.5)


def _common_beginning(names: list[str]) -> str:
    """Return what all names begin with, up to a dot."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    same = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return "".join(f"{part}." for part in same) if len(names) > 1 else ""


def _curve(axes: Axes, one: xr.Dataset, name: str, role: str) -> None:
    since = one["since"].values
    low, high = one[f"{name}_low"].values, one[f"{name}_high"].values
    axes.fill_between(since, low, high, color=COLOURS[role], alpha=0.18, linewidth=0)
    axes.plot(since, one[name], color=COLOURS[role], label=LABELS[role])
    axes.margins(x=0.02)
