"""Several seeds of a recipe, run as their user would run them, and tables with a column for each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import xarray as xr
from PIL import Image

from benchmarks.__main__ import machine
from benchmarks.quote import put_between

__all__ = ["Run", "ends", "keep", "ran", "table"]


@dataclass(frozen=True)
class Run:
    """What one seed left.

    Parameters
    ----------
    seed : int
    study : DataTree
        The numbers of its report.
    store, report : Path
        Where they lie.
    """

    seed: int
    study: xr.DataTree
    store: Path
    report: Path


R = TypeVar("R", bound=Run)


def ran(recipe: str, kind: str, seed: int, folder: Path) -> Run:
    """Run a recipe by `ndt run`, and open the study of a kind that its report left."""
    store, report = folder / f"{recipe}-seed{seed}.zarr", folder / f"{recipe}-seed{seed}-report"
    command = [sys.executable, "-m", "ndt_store", "run", recipe, "--seed", str(seed), "--store", str(store)]
    command += ["--checkpoints", str(store.with_name(f"{store.stem}-checkpoints")), "--out", str(report)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    study = xr.open_datatree(report / kind / "study.zarr", engine="zarr", consolidated=False).load()
    return Run(seed, study, store, report)


def table(
    title: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Callable[[R], str]]], runs: Sequence[R]
) -> str:
    """Return a table as Markdown: rows are labels and what to say of each run."""
    heads = [*labels, *(f"seed {run.seed}" for run in runs)]
    lines = [f"**{title}**", "", f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join([*keys, *(cell(run) for run in runs)])} |" for keys, cell in rows]
    return "\n".join(lines)


def ends(run: Run) -> str:
    """Accuracy of a run at its first and last moment."""
    found = run.study["performance"]["accuracy"].values
    return f"{found[0]:.1%} to {found[-1]:.1%}"


def keep(page: Path, marks: tuple[str, str], text: str, pictures: Mapping[Path, Path]) -> None:
    """Put tables between the marks of a page, and pictures (from, to) beside it."""
    begin, end = marks
    where = "{cpu}, {cores} cores, {day}".format(**machine())
    put_between(page, begin, end, "\n".join([begin, "", text, "", f"Made on {where}.", "", end]))
    for source, target in pictures.items():
        # Figures have few colours: a palette takes a third of the bytes, which the repository keeps for ever.
        with Image.open(source) as picture:
            picture.convert("RGB").quantize(256).save(target, optimize=True)
