"""`python -m benchmarks.three_runs`: train the study's three runs with several seeds, and look for their jumps.

Trains, tracked, wherever that is not done yet (resumable; needs MNIST and Fashion-MNIST in ``NDT_DATA_DIR``), and
writes tables and figures of what survives the null into ``docs/explanation``. With ``--quick`` 200 steps, and nothing
is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import ndt_query as nq
from benchmarks.__main__ import machine
from benchmarks.quote import put_between
from capture.recipe import Recipe, load_recipe
from capture.training import train_recipe
from ndt_query.plot import save, trajectories
from ndt_store import open_training

__all__ = ["BEGIN", "END", "RUNS", "Run", "figures", "main", "tables", "trained"]

RUNS: Final = ("cnn_deep", "transformer_shallow", "mlp_narrow")
MEASURES: Final = ("participation_ratio", "stable_rank")
ALPHA: Final = 0.05
QUICK_STEPS: Final = 200

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "three-runs.md"
PICTURES: Final = PAGE.parent / "figures"
BEGIN: Final = "<!-- runs: written by `python -m benchmarks.three_runs` -->"
END: Final = "<!-- end of runs -->"


@dataclass(frozen=True)
class Run:
    """One training.

    Parameters
    ----------
    name : str
        Of the recipe.
    seed : int
    training : Dataset
        What was tracked.
    jumps : dict of str to Dataset
        `detect_jumps` of each measure.
    digest : str
        Of the last weights.
    """

    name: str
    seed: int
    training: xr.Dataset
    jumps: dict[str, xr.Dataset]
    digest: str


def trained(recipe: Recipe, seed: int, folder: Path, data_dir: str | None = None) -> Run:
    """Train one seed of a recipe with tracking, where that is not done, and look for its jumps."""
    chosen = recipe.with_seed(seed).with_checkpoints([recipe.training.steps])
    store = folder / f"{recipe.name}-seed{seed}.zarr"
    result = train_recipe(chosen, store.with_name(f"{store.stem}-checkpoints"), store=store, data_dir=data_dir)
    training = open_training(store)
    jumps = {measure: nq.detect_jumps(training, alpha=ALPHA, measure=measure) for measure in MEASURES}
    return Run(recipe.name, seed, training, jumps, result.weights_digest)


def tables(runs: Sequence[Run]) -> str:
    """Return the tables as Markdown: how many jumps each run has, which they are, and how its layers grow."""
    lines = ["| run | seed | accuracy | measure | layers | jumps | positions | least p beside | weights |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for run in runs:
        for measure, found in run.jumps.items():
            positions = ", ".join(str(step) for step in np.unique(found["step"].values)) or "none"
            accuracy, least = float(run.training["validation_accuracy"][-1]), float(found["next_p_value"].min())
            lines.append(
                f"| {run.name} | {run.seed} | {accuracy:.3f} | {measure.replace('_', ' ')} "
                f"| {found.sizes['measured_layer']} | {found.sizes['jump']} | {positions} | {least:.2g} "
                f"| {run.digest[:12]} |"
            )
    lines += ["", *_each_jump(runs), "", *_growth(runs)]
    return "\n".join(lines)


def _each_jump(runs: Sequence[Run]) -> list[str]:
    lines = ["| run | seed | measure | layer | step | 95% interval | size | in noise | phase | p | q |"]
    lines.append("|---|---|---|---|---|---|---|---|---|---|---|")
    for run in runs:
        for measure, found in run.jumps.items():
            phase = nq.characterise_jumps(found)["phase"].values
            for place in range(found.sizes["jump"]):
                one = found.isel(jump=place)
                lines.append(
                    f"| {run.name} | {run.seed} | {measure.replace('_', ' ')} | {one['layer'].item()} "
                    f"| {one['step'].item()} | {one['low'].item()} to {one['high'].item()} | {one['size'].item():+.3g} "
                    f"| {one['size_in_noise'].item():+.1f} | {phase[place]:.3f} | {one['p_value'].item():.2g} "
                    f"| {one['q_value'].item():.2g} |"
                )
    return lines if len(lines) > 2 else ["No jump survives the null in any run."]


def _growth(runs: Sequence[Run]) -> list[str]:
    lines = [
        "| run | seed | layers that grow or shrink | R2 of their fits | R2 of validation accuracy |",
        "|---|---|---|---|---|",
    ]
    for run in runs:
        fits = nq.fit_growth(run.training["participation_ratio"])
        accuracy = float(nq.fit_growth(run.training["validation_accuracy"])["r2"])
        r2 = fits["r2"].values
        lines.append(
            f"| {run.name} | {run.seed} | {int(fits['growth'].sum())} of {r2.size} | {np.nanmin(r2):.2f} to "
            f"{np.nanmax(r2):.2f} | {accuracy:.3f} |"
        )
    return lines


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw the first seed of each run."""
    return {run.name: trajectories(run.jumps[MEASURES[0]], run.training) for run in runs if run.seed == runs[0].seed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, look, print the tables, and keep those that are not quick."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.three_runs", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/three-runs"), help="where trainings are kept")
    parser.add_argument("--data-dir", help="folder of the full data sets; default NDT_DATA_DIR")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps; nothing is kept")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        runs = []
        for name in RUNS:
            recipe = load_recipe(name)
            if given.quick:
                recipe = recipe.with_checkpoints([QUICK_STEPS])
                recipe = recipe.model_copy(
                    update={"training": recipe.training.model_copy(update={"steps": QUICK_STEPS})}
                )
            for seed in given.seeds:
                folder = Path(temporary) if given.quick else given.folder
                runs.append(trained(recipe, seed, folder, given.data_dir))
                counts = ", ".join(f"{found.sizes['jump']} of {name}" for name, found in runs[-1].jumps.items())
                print(f"{name}, seed {seed}: jumps: {counts}", file=sys.stderr, flush=True)
        text = tables(runs)
        print(text)
        if not given.quick:
            where = "{cpu}, {cores} cores, {day}".format(**machine())
            steps = runs[0].training["step"].values
            said = f"Trained and measured on {where}; {len(steps)} measurements, step {steps[0]} to {steps[-1]}."
            put_between(PAGE, BEGIN, END, "\n".join([BEGIN, "", text, "", said, "", END]))
            PICTURES.mkdir(exist_ok=True)
            for name, figure in figures(runs).items():
                save(figure, PICTURES / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
