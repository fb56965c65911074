"""`python -m benchmarks.cnn_cascade`: run the study of cnn_deep with several seeds, and put its numbers into the docs.

Each seed is one `ndt run cnn_deep` (resumable; needs Fashion-MNIST in ``NDT_DATA_DIR``); the tables are made of the
numbers that its report left beside its page, ``cnn/study.zarr``. With ``--quick`` the demo is run, and nothing is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.seeds import Run, ends, keep, ran, table
from ndt_store import open_store

__all__ = ["BEGIN", "END", "CnnRun", "main", "tables"]

RECIPE: Final = "cnn_deep"
QUICK_RECIPE: Final = "demo"
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "cnn-cascade.md"
PICTURES: Final = PAGE.parent / "figures"
PICTURED: Final = ("hierarchy", "emergence", "composition", "waking")
BEGIN: Final = "<!-- cascade: written by `python -m benchmarks.cnn_cascade` -->"
END: Final = "<!-- end of cascade -->"
ENDS: Final = (0, -1)


@dataclass(frozen=True)
class CnnRun(Run):
    """What one seed left, with the receptive fields of its layers."""

    fields: dict[str, xr.Dataset]


Rows = Iterator[tuple[Sequence[str], Callable[[CnnRun], str]]]


def cnn_ran(recipe: str, seed: int, folder: Path) -> CnnRun:
    """Run the recipe, and open what its report and its store hold."""
    run = ran(recipe, "cnn", seed, folder)
    opened = open_store(run.store)
    fields = {layer: nq.receptive_field(opened, layer) for layer in _ordered(run.study, "types")}
    return CnnRun(run.seed, run.study, run.store, run.report, fields)


def _ordered(study: xr.DataTree, part: str) -> list[str]:
    """Names below a part of the study, in order of depth; a stored tree gives them in any order."""
    depth = {str(layer): place for place, layer in enumerate(study["emergence"]["layer"].values)}
    return sorted(study[part].children, key=lambda name: depth[name.partition("--")[0]])


def tables(runs: Sequence[CnnRun]) -> str:
    """Return the tables as Markdown, a column for each seed."""
    steps = [runs[0].study["emergence"]["checkpoint"].values[end] for end in ENDS]
    said = f"step {steps[0]} to {steps[1]}"
    accuracy: Rows = iter([([""], ends)])
    parts: list[tuple[str, list[str], Rows]] = [
        (f"Accuracy on the probe set, {said}", [""], accuracy),
        (f"Units that tell a class (held-out AUROC of 0.9 or more, q < 5%), {said}", ["layer"], _emergence(runs)),
        ("Half of that rise happened between steps", ["layer"], _halves(runs)),
        (f"Kinds of units by the stated rule, {said}", ["layer", "kind"], _kinds(runs)),
        ("Dead units that wake up, of those dead before", ["layer", "between steps"], _waking(runs)),
        (f"Units composed of earlier ones (held-out R2 > 0.7), {said}", ["layers"], _composed(runs)),
        (f"Width of what units use, of the theoretical field, pixels, {said}", ["layer"], _widths(runs)),
    ]
    return "\n\n".join(table(*part, runs) for part in parts)


def _emergence(runs: Sequence[CnnRun]) -> Rows:
    for layer in runs[0].study["emergence"]["layer"].values:

        def cell(run: CnnRun, layer: str = layer) -> str:
            one = run.study["emergence"].to_dataset().sel(layer=layer)
            return " to ".join(
                f"{one['share'][end]:.0%} ({one['share_low'][end]:.0%}, {one['share_high'][end]:.0%})" for end in ENDS
            )

        yield [str(layer)], cell


def _halves(runs: Sequence[CnnRun]) -> Rows:
    for layer in runs[0].study["emergence"]["layer"].values:

        def cell(run: CnnRun, layer: str = layer) -> str:
            one = run.study["emergence"].to_dataset().sel(layer=layer)
            return "limits overlap" if one["half"].isnull() else f"{one['half_after']:.0f} and {one['half']:.0f}"

        yield [str(layer)], cell


def _kinds(runs: Sequence[CnnRun]) -> Rows:
    for layer in _ordered(runs[0].study, "types"):
        for kind in runs[0].study["types"][layer]["type"].values:

            def cell(run: CnnRun, layer: str = layer, kind: str = kind) -> str:
                share = run.study["types"][layer]["share"].sel(type=kind).values
                return f"{share[0]:.0%} to {share[-1]:.0%}"

            if any(run.study["types"][layer]["share"].sel(type=kind).any() for run in runs):
                yield [layer, str(kind)], cell


def _waking(runs: Sequence[CnnRun]) -> Rows:
    # About jumps, where there are some, seeds have moments of their own; those that span training are the same.
    moments = {
        (int(before), int(after))
        for run in runs
        for before, after in zip(run.study["waking"]["before"].values, run.study["waking"]["after"].values, strict=True)
    }
    for layer in runs[0].study["waking"]["layer"].values:
        for before, after in sorted(moments):

            def cell(run: CnnRun, layer: str = layer, pair: tuple[int, int] = (before, after)) -> str:
                found = run.study["waking"].to_dataset().sel(layer=layer)
                at = np.flatnonzero((found["before"].values == pair[0]) & (found["after"].values == pair[1]))
                return f"{int(found['woken'][at[0]])} of {int(found['dead_before'][at[0]])}" if len(at) else ""

            if any(cell(run) not in ("", "0 of 0") for run in runs):
                yield [str(layer), f"{before} and {after}"], cell


def _composed(runs: Sequence[CnnRun]) -> Rows:
    for name in _ordered(runs[0].study, "composition"):

        def cell(run: CnnRun, name: str = name) -> str:
            one = run.study["composition"][name]
            made, varying = (part.sum("unit").values for part in (one["composed"], one["r2"].notnull()))
            return " to ".join(f"{made[end]} of {varying[end]}" for end in ENDS)

        yield [" to ".join(name.split("--"))], cell


def _widths(runs: Sequence[CnnRun]) -> Rows:
    for layer in runs[0].fields:

        def cell(run: CnnRun, layer: str = layer) -> str:
            one = run.fields[layer]
            width = one["layer_width"].mean("axis").values
            return f"{width[0]:.1f} to {width[-1]:.1f} of {float(one['size'].mean()):.0f}"

        yield [layer], cell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and keep those that are not quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn_cascade", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/cnn-cascade"), help="where runs are kept")
    parser.add_argument("--quick", action="store_true", help="the demo instead of the full run; nothing is kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        recipe, folder = (QUICK_RECIPE, Path(temporary)) if given.quick else (RECIPE, given.folder)
        runs = [cnn_ran(recipe, seed, folder) for seed in given.seeds]
        text = tables(runs)
        print(text)
        if not given.quick:
            drawn = runs[0].report / "cnn"
            pictures = {drawn / f"{name}.png": PICTURES / f"{RECIPE}-{name}.png" for name in PICTURED}
            keep(PAGE, (BEGIN, END), text, pictures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
