"""`python -m benchmarks.cnn_cascade`: run the study of cnn_deep with several seeds, and put its numbers into the docs.

Each seed is one `ndt run cnn_deep` (resumable; needs Fashion-MNIST in ``NDT_DATA_DIR``); the tables are made of the
numbers that its report left beside its page, ``cnn/study.zarr``. With ``--quick`` the demo is run, and nothing is kept.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.__main__ import machine
from benchmarks.quote import put_between
from ndt_store import open_store

__all__ = ["BEGIN", "END", "Run", "main", "ran", "tables"]

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
class Run:
    """What one seed left: the report's numbers, and the receptive fields of its layers."""

    seed: int
    study: xr.DataTree
    fields: dict[str, xr.Dataset]
    report: Path


def ran(recipe: str, seed: int, folder: Path) -> Run:
    """Run the recipe as its user would, and open what its report left."""
    store, report = folder / f"{recipe}-seed{seed}.zarr", folder / f"{recipe}-seed{seed}-report"
    weights = store.with_name(f"{store.stem}-checkpoints")
    command = [sys.executable, "-m", "ndt_store", "run", recipe, "--seed", str(seed)]
    command += ["--store", str(store), "--checkpoints", str(weights), "--out", str(report)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    study = xr.open_datatree(report / "cnn" / "study.zarr", engine="zarr", consolidated=False).load()
    opened = open_store(store)
    return Run(seed, study, {layer: nq.receptive_field(opened, layer) for layer in _ordered(study, "types")}, report)


def _ordered(study: xr.DataTree, part: str) -> list[str]:
    """Names below a part of the study, in order of depth; a stored tree gives them in any order."""
    depth = {str(layer): place for place, layer in enumerate(study["emergence"]["layer"].values)}
    return sorted(study[part].children, key=lambda name: depth[name.partition("--")[0]])


def tables(runs: Sequence[Run]) -> str:
    """Return the tables as Markdown, a column for each seed."""
    steps = [runs[0].study["emergence"]["checkpoint"].values[end] for end in ENDS]
    heads = "".join(f" seed {run.seed} |" for run in runs)
    rule = "---|" * len(runs)
    said = f"step {steps[0]} to {steps[1]}"

    def part(title: str, labels: Sequence[str], rows: Iterator[tuple[Sequence[str], Callable[[Run], str]]]) -> str:
        lines = [f"**{title}**", "", f"| {' | '.join(labels)} |{heads}", "|" + "---|" * len(labels) + rule]
        lines += [f"| {' | '.join(keys)} | {' | '.join(cell(run) for run in runs)} |" for keys, cell in rows]
        return "\n".join(lines)

    return "\n\n".join(
        [
            part(
                f"Accuracy on the probe set, {said}",
                [
                    "",
                ],
                iter([([""], _accuracy)]),
            ),
            part(f"Units that tell a class (AUROC of 0.9 or more, q < 5%), {said}", ["layer"], _emergence(runs)),
            part("Half of that rise happened between steps", ["layer"], _halves(runs)),
            part(f"Kinds of units by the stated rule, {said}", ["layer", "kind"], _kinds(runs)),
            part("Dead units that wake up, of those dead before", ["layer", "between steps"], _waking(runs)),
            part(f"Units composed of earlier ones (held-out R2 > 0.7), {said}", ["layers"], _composed(runs)),
            part(f"Width of what units use, of the theoretical field, pixels, {said}", ["layer"], _widths(runs)),
        ]
    )


def _accuracy(run: Run) -> str:
    found = run.study["performance"]["accuracy"].values
    return f"{found[0]:.1%} to {found[-1]:.1%}"


Rows = Iterator[tuple[Sequence[str], Callable[[Run], str]]]


def _emergence(runs: Sequence[Run]) -> Rows:
    for layer in runs[0].study["emergence"]["layer"].values:

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["emergence"].to_dataset().sel(layer=layer)
            return " to ".join(
                f"{one['share'][end]:.0%} ({one['share_low'][end]:.0%}, {one['share_high'][end]:.0%})" for end in ENDS
            )

        yield [str(layer)], cell


def _halves(runs: Sequence[Run]) -> Rows:
    for layer in runs[0].study["emergence"]["layer"].values:

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["emergence"].to_dataset().sel(layer=layer)
            return "no rise beyond doubt" if one["half"].isnull() else f"{one['half_after']:.0f} and {one['half']:.0f}"

        yield [str(layer)], cell


def _kinds(runs: Sequence[Run]) -> Rows:
    for layer in _ordered(runs[0].study, "types"):
        for kind in runs[0].study["types"][layer]["type"].values:

            def cell(run: Run, layer: str = layer, kind: str = kind) -> str:
                share = run.study["types"][layer]["share"].sel(type=kind).values
                return f"{share[0]:.0%} to {share[-1]:.0%}"

            if any(run.study["types"][layer]["share"].sel(type=kind).any() for run in runs):
                yield [layer, str(kind)], cell


def _waking(runs: Sequence[Run]) -> Rows:
    # About jumps, where there are some, seeds have moments of their own; those that span training are the same.
    moments = {
        (int(before), int(after))
        for run in runs
        for before, after in zip(run.study["waking"]["before"].values, run.study["waking"]["after"].values, strict=True)
    }
    for layer in runs[0].study["waking"]["layer"].values:
        for before, after in sorted(moments):

            def cell(run: Run, layer: str = layer, pair: tuple[int, int] = (before, after)) -> str:
                found = run.study["waking"].to_dataset().sel(layer=layer)
                at = np.flatnonzero((found["before"].values == pair[0]) & (found["after"].values == pair[1]))
                return f"{int(found['woken'][at[0]])} of {int(found['dead_before'][at[0]])}" if len(at) else ""

            if any(cell(run) not in ("", "0 of 0") for run in runs):
                yield [str(layer), f"{before} and {after}"], cell


def _composed(runs: Sequence[Run]) -> Rows:
    for name in _ordered(runs[0].study, "composition"):

        def cell(run: Run, name: str = name) -> str:
            one = run.study["composition"][name]
            made, varying = (part.sum("unit").values for part in (one["composed"], one["r2"].notnull()))
            return " to ".join(f"{made[end]} of {varying[end]}" for end in ENDS)

        yield [" to ".join(name.split("--"))], cell


def _widths(runs: Sequence[Run]) -> Rows:
    for layer in runs[0].fields:

        def cell(run: Run, layer: str = layer) -> str:
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
        runs = [ran(recipe, seed, folder) for seed in given.seeds]
        text = tables(runs)
        print(text)
        if not given.quick:
            where = "{cpu}, {cores} cores, {day}".format(**machine())
            put_between(PAGE, BEGIN, END, "\n".join([BEGIN, "", text, "", f"Made on {where}.", "", END]))
            for name in PICTURED:
                shutil.copy(runs[0].report / "cnn" / f"{name}.png", PICTURES / f"{RECIPE}-{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
