"""`python -m benchmarks.run_comparison`: the study's three runs compared, with several seeds each, for the docs.

All of it is one `ndt study` (resumable; needs MNIST and Fashion-MNIST in ``NDT_DATA_DIR``). The tables are made of the
numbers that it left, ``comparison.zarr``, of the studies beside the reports, and of the gradients that were tracked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.seeds import keep
from ndt_query.comparison_page import group_rows, pair_rows
from ndt_store import open_store

__all__ = ["BEGIN", "END", "main", "tables"]

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "run-comparison.md"
PICTURES: Final = PAGE.parent / "figures"
PICTURED: Final = {"runs": "comparison", "smoothness": "comparison-smoothness"}
BEGIN: Final = "<!-- comparison: written by `python -m benchmarks.run_comparison` -->"
END: Final = "<!-- end of comparison -->"
NUMBERS: Final = "comparison.zarr"
SMOOTH: Final = "mlp_narrow"


def tables(folder: Path) -> str:
    """Return the tables as Markdown, of what `ndt study` left in a folder."""
    found = xr.open_datatree(folder / NUMBERS, engine="zarr", consolidated=False).load()
    groups, runs = found["groups"].to_dataset(), found["runs"].to_dataset()
    parts = [
        ("Groups: mean over seeds, with 95% interval", _groups(groups)),
        ("Jumps of dimension and norms of gradients that stand out", _events(folder, runs)),
        ("Variance of the derivatives of dimension, one group over another", _pairs(found)),
        (f"Did classes come apart gradually in {SMOOTH}, last layer", _transitions(folder, runs)),
    ]
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(_lines(rows)) for title, rows in parts)


def _lines(rows: Iterator[Sequence[str]]) -> Iterator[str]:
    head = next(rows)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _joined(said: tuple[str, str]) -> str:
    value, limits = said
    return f"{value} ({limits})" if limits else value


def _groups(groups: xr.Dataset) -> Iterator[Sequence[str]]:
    yield ["what", *(str(name) for name in groups["group"].values)]
    for row in group_rows(groups):
        yield [row["what"], *(_joined(one) for one in row["said"])]


def _events(folder: Path, runs: xr.Dataset) -> Iterator[Sequence[str]]:
    yield ["run", "layers", "jumps", "anomalies", "jumps with an anomaly in ten measurements before", "by chance", "p"]
    for name in runs["run"].values:
        one = runs.sel(run=name)
        found = nq.gradient_anomalies(open_store(folder / f"{name}.zarr"))
        told = [float(found[key]) for key in ("warned_by_chance", "warning_p_value")]
        said = ["", ""] if np.isnan(told[0]) else [f"{told[0]:.2g}", f"{told[1]:.2g}"]
        jumps = [f"{float(one[key]):.0f}" for key in ("n_tracked_layers", "n_jumps")]
        yield [str(name), *jumps, str(found.sizes["anomaly"]), str(int(found["n_warned"])), *said]


def _pairs(found: xr.DataTree) -> Iterator[Sequence[str]]:
    yield ["groups", "by seed", "mean, with 95% interval over seeds"]
    if "smoothness" not in found.children:
        return
    for row in pair_rows(found["smoothness"].to_dataset()):
        yield [row["groups"], row["ratios"], _joined(row["mean"])]


def _transitions(folder: Path, runs: xr.Dataset) -> Iterator[Sequence[str]]:
    yield ["run", "measure", "change", "p of suddenness", "half done by step"]
    for name in runs["run"].values[runs["group"].values == SMOOTH]:
        report = folder / f"{name}-report" / "mlp" / "study.zarr"
        if not report.is_dir():
            continue
        told = xr.open_datatree(report, engine="zarr", consolidated=False)["transition"].to_dataset().load()
        for measure in told["measure"].values:
            one = told.sel(measure=measure)
            half = float(one["half_step"])
            said = "" if np.isnan(half) else f"{half:.0f}"
            yield [str(name), str(measure), str(one["change"].item()), f"{float(one['p_value']):.2g}", said]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_comparison", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="where runs are kept")
    given = parser.parse_args(arguments)
    command = [sys.executable, "-m", "ndt_store", "study", "--seeds", str(given.seeds), "--out", str(given.folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    text = tables(given.folder)
    print(text)
    pictures = {given.folder / f"{one}.png": PICTURES / f"{name}.png" for one, name in PICTURED.items()}
    keep(PAGE, (BEGIN, END), text, pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
