"""Draw time against size from ``results.json``; `python -m benchmarks.figure` draws it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.bench_size import FIGURE_PREFIX

__all__ = ["draw", "series"]

HERE: Final = Path(__file__).parent
# Okabe and Ito's colours, told apart by every kind of colour vision; markers tell them apart in grey.
STYLES: Final[Mapping[str, tuple[str, str, str]]] = {
    "xarray + dask, default zarr store": ("#D55E00", "s", "xarray + dask"),
    "running the model again": ("#CC79A7", "^", "running the model again"),
    "numpy.memmap + numpy": ("#E69F00", "D", "numpy.memmap"),
    "scan": ("#0072B2", "o", "this software, scan"),
    "view": ("#009E73", "v", "this software, view"),
}

Point = tuple[int, float, float, float]
"""Examples; median, least and most seconds."""


def series(results: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Collect the points of each line, by examples."""
    found: dict[str, dict[int, Point]] = {}
    for row in results["sections"]["size"]["rows"]:
        if not row["what"].startswith(FIGURE_PREFIX):
            continue
        mine = row["what"].removeprefix(f"{FIGURE_PREFIX}, ")
        for name, seconds in ((mine, row["ours"]), (row["against"], row["baseline"])):
            times = row["times"][f"ours, {mine}" if name == mine else name]
            found.setdefault(name, {})[row["n_examples"]] = (row["n_examples"], seconds, min(times), max(times))
    return {name: sorted(points.values()) for name, points in found.items()}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the figure as PNG."""
    lines = series(results)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        # The legend runs as the lines end, from slow to fast.
        for name in sorted(lines, key=lambda name: -lines[name][-1][1]):
            colour, marker, label = STYLES[name]
            n, median, low, high = (list(column) for column in zip(*lines[name], strict=True))
            axes.plot(n, median, color=colour, marker=marker, markersize=5, linewidth=1.5, label=label)
            axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("examples")
        axes.set_ylabel("seconds")
        axes.set_title("All per-unit moments of two ReLU layers of cnn_deep, warm cache", loc="left", fontsize=9)
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(path)


if __name__ == "__main__":
    draw(json.loads((HERE / "results.json").read_text()), HERE / "time_against_size.png")
