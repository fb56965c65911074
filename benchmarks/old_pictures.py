"""The figure of old mistakes: what each of them makes of data whose truth is known."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from benchmarks.old_cases import STEPS, Found, exponential, found_here, old_hits, white_noise
from ndt_query.plot.style import DOUBLE_COLUMN, OKABE_ITO, styled

__all__ = ["draw"]

HERE, OLD = OKABE_ITO[:2]
GREY = "#8a8a8a"
SHOWN = 0
"""Which series is shown: the first."""


@styled
def draw(found: Found) -> Figure:
    """Draw a panel for each mistake; blue is what is found here, orange what the old way says.

    Parameters
    ----------
    found : Found
        From `old_cases.gathered`.

    Returns
    -------
    Figure
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 6.3), layout="constrained")
    grid = figure.add_gridspec(3, 3)
    panels = [figure.add_subplot(grid[place // 3, place % 3]) for place in range(9)]
    _ranks(panels[0], found)
    _off_centre(panels[1], found)
    _false_jumps(panels[2], "white noise", white_noise(SHOWN), "c  z > 2, white noise")
    _false_jumps(panels[3], "exponential", exponential(SHOWN), "d  z > 2, smooth curve")
    _counts(panels[4], found)
    _phases(panels[5], found)
    _two_histograms(panels[6], found.probes.old, found.probes.ours, "g  R2 of noise from noise", "R2", "targets")
    _maps(panels[7], found)
    alike = found.similarities
    _two_histograms(panels[8], alike.old, alike.ours, "i  CKA of independent data", "CKA", "pairs")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _ranks(axes: Axes, found: Found) -> None:
    two = found.ranks
    axes.plot([1, two.truth.max()], [1, two.truth.max()], color=GREY, linewidth=0.8, label="truth")
    axes.plot(two.truth, two.old, "s-", color=OLD, label="the old way")
    axes.plot(two.truth, two.ours, "o", color=HERE, label="here")
    axes.set(title="a  stable rank", xlabel="of the distribution", ylabel="as computed")


def _off_centre(axes: Axes, found: Found) -> None:
    two = found.off_centre
    axes.plot(two.truth, two.old, "s-", color=OLD)
    axes.plot(two.truth, two.ours, "o-", color=HERE)
    axes.set_ylim(0, None)
    axes.set(title="b  stable rank, mean left in", xlabel="mean of the same noise", ylabel="as computed")


def _false_jumps(axes: Axes, kind: str, series: NDArray[np.float64], title: str) -> None:
    hits, here = STEPS[old_hits("global", kind, SHOWN)], STEPS[list(found_here(kind, SHOWN))]
    axes.plot(STEPS, series, color=GREY, linewidth=0.6)
    for steps, colour in ((hits, OLD), (here, HERE)):
        for step in steps:
            axes.axvline(step, color=colour, linewidth=0.8, alpha=0.8)
    axes.set_title(f"{title}: {len(hits)}, here {len(here)}")
    axes.set(xlabel="training step", ylabel="series")
    if kind == "exponential":
        axes.set_xlim(-10, 600)


def _counts(axes: Axes, found: Found) -> None:
    counts = np.arange(int(found.trailing.old.max()) + 1)
    for offset, side, colour in ((-0.2, found.trailing.old, OLD), (0.2, found.trailing.ours, HERE)):
        axes.bar(counts + offset, [np.mean(side == count) for count in counts], width=0.4, color=colour)
    axes.set_xticks(counts)
    axes.set(title="e  z > 3 in a window, white noise", xlabel="jumps in a series", ylabel="share of series")


def _phases(axes: Axes, found: Found) -> None:
    two = found.phases
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    axes.plot(two.truth, two.old, "s", color=OLD)
    axes.plot(two.truth, two.ours, "o", color=HERE)
    axes.set(title="f  an index taken for a step", xlabel="share of training, truly", ylabel="as reported")


def _two_histograms(
    axes: Axes, old: NDArray[np.float64], here: NDArray[np.float64], title: str, name: str, what: str
) -> None:
    both = np.concatenate([old, here])
    edges = np.linspace(min(both.min(), 0.0) - 0.02, max(both.max(), 0.0) + 0.02, 40)
    axes.hist(old, edges, color=OLD)
    axes.hist(here, edges, color=HERE)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(title=title, xlabel=name, ylabel=what)


def _maps(axes: Axes, found: Found) -> None:
    size, names = found.cams.before.shape[-1], ("before", "after", "old", "here")
    # One picture, so that the panel keeps its place among the others.
    pitch = size + 2
    picture = np.full((2 * pitch - 2, 4 * pitch - 2), np.nan)
    for column, maps in enumerate(found.cams):
        for row, image in enumerate(maps):
            picture[row * pitch : row * pitch + size, column * pitch : column * pitch + size] = image
    limit = np.nanmax(np.abs(picture))
    axes.imshow(picture, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for row in range(2):
        for column in range(4):
            corner = (column * pitch - 0.5, row * pitch - 0.5)
            axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor="#444444", linewidth=0.6, clip_on=False))
    middle = (size - 1) / 2
    axes.set_xticks([column * pitch + middle for column in range(4)], names)
    axes.set_yticks([middle, pitch + middle], ["one\ncomes up", "both\ngrow"])
    for label, colour in zip(axes.get_xticklabels(), ("#444444", "#444444", OLD, HERE), strict=True):
        label.set_color(colour)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set(title="h  Grad-CAM and its change")
