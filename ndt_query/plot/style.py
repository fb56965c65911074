"""The one style of all figures: journal column widths, colours that colour-blind readers tell apart, no global state.

Figures are made without pyplot, inside `styled`, so that nothing is left behind in the caller's matplotlib.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from ndt_store.dims import CHECKPOINT, LAYER
from ndt_store.errors import DimensionError

__all__ = [
    "DOUBLE_COLUMN",
    "OKABE_ITO",
    "SINGLE_COLUMN",
    "interval_band",
    "layer_colours",
    "plain",
    "results_by_layer",
    "save",
    "styled",
    "tail",
]

Result: TypeAlias = xr.Dataset | xr.DataTree | Mapping[str, xr.Dataset]
P = ParamSpec("P")
R = TypeVar("R")

SINGLE_COLUMN: Final = 3.5
"""Inches."""

DOUBLE_COLUMN: Final = 7.2
"""Inches."""

FEW_STEPS: Final = 12
DIGIT: Final = 0.062
"""Inches of one digit of a tick's label."""

LABEL_GAP: Final = 0.06
"""Inches between two labels, at least."""

OKABE_ITO: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito 2008, without the yellow that fades on white."""

STYLE: Final[Mapping[str, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=OKABE_ITO),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "figure.dpi": 150,
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,
    "savefig.dpi": 300,
    "svg.fonttype": "path",
    "svg.hashsalt": "ndt",
    "text.usetex": False,
    "xtick.color": "#444444",
    "xtick.labelsize": 7,
    "ytick.color": "#444444",
    "ytick.labelsize": 7,
}
MOST_NAMED: Final = 12
"""Names that a legend beside a panel of usual height has room for."""


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with the style and matplotlib's defaults otherwise, whatever the caller has set."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            parameters: Any = mpl.rcParams
            parameters.update(STYLE)
            return function(*args, **kwargs)

    return run


@styled
def save(figure: Figure, path: str | Path, **options: Any) -> Path:
    """Write a figure in the style, in the format of the file's name; equal figures give equal SVG files.

    Parameters
    ----------
    figure : Figure
        From any function of `ndt_query.plot`.
    path : str or Path
        Where; the suffix chooses among PNG, SVG and PDF.
    **options
        Passed on to ``Figure.savefig``.

    Returns
    -------
    Path
        Where it lies.
    """
    target = Path(path)
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(target.suffix)
    settings: dict[str, Any] = ({"metadata": undated} if undated else {}) | options
    figure.savefig(target, **settings)
    return target


def results_by_layer(result: Result) -> dict[str, xr.Dataset]:
    """Split a result into one Dataset a layer, each with a ``checkpoint`` dimension.

    Raises
    ------
    DimensionError
        The result has no checkpoints to draw over.
    """
    if isinstance(result, xr.DataTree):
        parts = {node.relative_to(result): node.to_dataset() for node in result.descendants if node.has_data}
    elif not isinstance(result, xr.Dataset):
        parts = dict(result)
    elif LAYER in result.dims:
        parts = {str(name): result.sel({LAYER: name}) for name in result[LAYER].values}
    else:
        parts = {str(result.attrs.get("layer", "layer")): result}
    for name, part in parts.items():
        if CHECKPOINT not in part.dims:
            raise DimensionError(f"The result of {name} has no dimension checkpoint: draw one that spans training.")
    return {name: part.compute() for name, part in parts.items()}


def plain(text: str, longest: int = 60) -> str:
    """Make text from a store safe to draw: no mathematics, nothing that a legend would hide, no endless names."""
    shown = text if len(text) <= longest else text[: longest - 1] + "\u2026"
    # matplotlib leaves labels with a leading underscore out of legends.
    return ("\u200a" if shown.startswith("_") else "") + shown.replace("$", r"\$")


def tail(text: str, longest: int) -> str:
    """Make the name of a layer safe to draw as `plain` does; of a long one the end is kept, which tells it apart."""
    return plain(text if len(text) <= longest else "\u2026" + text[1 - longest :], longest)


def interval_band(axes: Axes, steps: Any, low: Any, high: Any, *, color: Any, alpha: float = 0.18) -> None:
    """Shade between limits over training; at a single checkpoint, where there is nothing between, draw a bar."""
    if len(steps) > 1:
        axes.fill_between(steps, low, high, color=color, alpha=alpha, linewidth=0)
    else:
        axes.vlines(steps, low, high, color=color, alpha=0.6, linewidth=1.5)


def percent_axis(axes: Axes) -> None:
    """Make the y axis one of percentages, with ticks at round ones."""
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}%"))


def layer_colours(names: list[str]) -> dict[str, Any]:
    """Give few layers distinct colours, and many layers a scale from the first to the last."""
    if len(names) <= len(OKABE_ITO):
        return dict(zip(names, OKABE_ITO, strict=False))
    scale = mpl.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    return dict(zip(names, scale, strict=True))


def step_axis(axes: Axes, steps: NDArray[Any], width: float, label: bool = True, linear: bool = False) -> None:
    """Make the x axis one of training steps: logarithmic where they span two decades, with zero shown all the same.

    Parameters
    ----------
    axes : Axes
        What is drawn on.
    steps : ndarray (checkpoint,)
        Captured steps. Ticks are at these where they are few, else at round steps, and always at the last; those whose
        labels would touch are left out.
    width : float
        Of the axes, in inches, about.
    label : bool
        Whether to name the axis.
    linear : bool
        Whether to leave it linear whatever they span.
    """
    positive = steps[steps > 0]
    logarithmic = not linear and positive.size > 0 and positive.max() >= 100 * positive.min()
    if logarithmic:
        axes.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
    axes.margins(x=0.02)
    if len(steps) <= FEW_STEPS:
        wanted = np.asarray(steps, dtype=np.float64)
    elif logarithmic:
        decades = 10.0 ** np.arange(math.ceil(math.log10(positive.min())), math.log10(positive.max()) + 1)
        wanted = np.concatenate([[0.0], decades])
    else:
        wanted = np.asarray(MaxNLocator(max(2, int(width / 0.6)), integer=True).tick_values(steps.min(), steps.max()))
    axes.xaxis.set_major_locator(FixedLocator(_apart(axes, wanted, steps, width)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: _step_text(step)))
    if label:
        axes.set_xlabel("training step")


def _step_text(step: float) -> str:
    return f"{step:,.0f}".replace(",", "\u2009")


def _apart(axes: Axes, wanted: NDArray[np.float64], steps: NDArray[Any], width: float) -> list[float]:
    """Leave out ticks whose labels would touch; the last step goes first, then from the first on."""
    first, last = float(steps.min()), float(steps.max())
    inside = sorted({float(tick) for tick in wanted if first <= tick <= last} | {last})
    scaled = axes.xaxis.get_transform().transform(np.array([first, last, *inside]))
    inches = (scaled[2:] - scaled[0]) / ((scaled[1] - scaled[0]) or 1.0) * width
    kept = [len(inside) - 1]
    for place in range(len(inside) - 1):
        reach = [(len(_step_text(inside[place])) + len(_step_text(inside[other]))) / 2 for other in kept]
        clear = [abs(inches[place] - inches[other]) for other in kept]
        if all(gap >= DIGIT * chars + LABEL_GAP for gap, chars in zip(clear, reach, strict=True)):
            kept.append(place)
    return sorted(inside[place] for place in kept)


def layer_legend(figure: Figure, axes: Axes) -> None:
    """Put the names of layers beside the axes, in the order of layers; of many, some along their scale of colours."""
    handles, labels = axes.get_legend_handles_labels()
    n = len(labels)
    some = range(n) if n <= MOST_NAMED else np.linspace(0, n - 1, MOST_NAMED).round().astype(int)
    if n > 1:
        figure.legend(
            [handles[place] for place in some],
            [labels[place] for place in some],
            loc="outside right upper",
            handlelength=1.4,
            borderaxespad=0.2,
            title=None if len(some) == n else f"{len(some)} of {n}",
            alignment="left",
        )
