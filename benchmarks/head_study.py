"""`python -m benchmarks.head_study`: run the study of transformer_shallow with several seeds, for the docs.

Each seed is one `ndt run transformer_shallow` (resumable; needs MNIST in ``NDT_DATA_DIR``); the tables are made of
the numbers that its report left beside its page, ``transformer/study.zarr``, and of `predict_specialisation` over all
seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.seeds import Run, ends, keep, ran, table
from ndt_query.plot import save
from ndt_store import open_store

__all__ = ["BEGIN", "END", "main", "tables"]

RECIPE: Final = "transformer_shallow"
EARLY: Final = 29
ROOT: Final = Path(__file__).parent.parent
PAGE: Final = ROOT / "docs" / "explanation" / "heads.md"
PICTURES: Final = PAGE.parent / "figures"
PICTURED: Final = ("patterns", "specialisation", "clusters", "importance", "flow")
BEGIN: Final = "<!-- heads: written by `python -m benchmarks.head_study` -->"
END: Final = "<!-- end of heads -->"
ENDS: Final = (0, -1)


Rows = Iterator[tuple[Sequence[str], Callable[[Run], str]]]


def tables(runs: Sequence[Run], foretold: xr.Dataset | None = None) -> str:
    """Return the tables as Markdown, a column for each seed."""
    steps = [int(runs[0].study["measures"]["checkpoint"].values[end]) for end in ENDS]
    said = f"step {steps[0]} to {steps[1]}"
    accuracy: Rows = iter([([""], ends)])
    parts: list[tuple[str, list[str], Rows]] = [
        (f"Accuracy on the probe set, {said}", [""], accuracy),
        (f"Entropy of attention, range over heads, {said}", ["layer"], _range(runs, "entropy")),
        (f"Mean distance, tokens, range over heads, {said}", ["layer"], _range(runs, "distance")),
        (f"Divergence between heads, bits, with 95% interval, {said}", ["layer"], _specialised(runs)),
        ("Half of that rise happened between steps", ["layer"], _halves(runs)),
        (f"Where heads look, share between classes, median of heads, {said}", ["layer"], _selective(runs)),
        ("Clusters of heads: largest silhouette, and p against one cloud", ["moment"], _clusters()),
        (f"Categories of heads by the stated rule, {said}", ["kind"], _kinds(runs)),
        (f"Class read off a head, range over heads, {said}", ["layer"], _probed(runs)),
        (f"Accuracy lost without one head (set to 0), range over heads, step {steps[1]}", ["layer"], _worth(runs)),
        ("Gradient importance against margins lost: rank correlation, p", ["moment"], _ranks()),
        (f"Flow through both layers, {said}", ["measure"], _flow()),
    ]
    found = [table(*part, runs) for part in parts]
    if foretold is not None:
        found.append(_foretold(foretold))
    return "\n\n".join(found)


def _foretold(found: xr.Dataset) -> str:
    lines = [f"**Specialisation foretold at step {EARLY}, {found.sizes['member']} heads**", ""]
    lines += ["| held out | R2 | of the layer alone | 95% of shuffled heads | p |", "|---|---|---|---|---|"]
    for scheme in found["scheme"].values:
        one = found.sel(scheme=scheme)
        values = [float(one[name]) for name in ("r2", "layer_r2", "null_95", "p_value")]
        lines.append(f"| {scheme} | " + " | ".join(f"{value:.2g}" for value in values) + " |")
    return "\n".join(lines)


def _layers(runs: Sequence[Run]) -> list[str]:
    return [str(layer) for layer in runs[0].study["measures"]["layer"].values]


def _range(runs: Sequence[Run], name: str) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["measures"].to_dataset()[name].sel(layer=layer)
            return " to ".join(f"{float(one[end].min()):.2f} - {float(one[end].max()):.2f}" for end in ENDS)

        yield [layer], cell


def _specialised(runs: Sequence[Run]) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["specialisation"].to_dataset().sel(layer=layer)
            low, high = one["specialisation_low"], one["specialisation_high"]
            values = zip(one["specialisation"].values, low.values, high.values, strict=True)
            rows = [f"{value:.3f} ({a:.3f}, {b:.3f})" for value, a, b in values]
            return f"{rows[0]} to {rows[-1]}, p {float(one['p_value'][-1]):.3f}"

        yield [layer], cell


def _halves(runs: Sequence[Run]) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["specialisation"].to_dataset().sel(layer=layer)
            return "limits overlap" if one["half"].isnull() else f"{one['half_after']:.0f} and {one['half']:.0f}"

        yield [layer], cell


def _selective(runs: Sequence[Run]) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["selectivity"].to_dataset().sel(layer=layer)
            first, last = (float(one["eta_squared"][end].median()) for end in ENDS)
            return f"{first:.2f} to {last:.2f} (chance {float(one['null_mean'].mean()):.3f})"

        yield [layer], cell


def _clusters() -> Rows:
    # Seeds with jumps have moments of their own.
    for name, place in (("first", 0), ("last", -1)):

        def cell(run: Run, place: int = place) -> str:
            one = run.study["clusters"].to_dataset().isel(checkpoint=place)
            return f"{float(one['silhouette'].max()):.2f}, k {int(one['best_k'])}, p {float(one['best_p_value']):.2g}"

        yield [name], cell

    def least(run: Run) -> str:
        one = run.study["clusters"].to_dataset()
        place = int(one["best_p_value"].values.argmin())
        return f"step {int(one['checkpoint'][place])}: p {float(one['best_p_value'][place]):.2g}"

    yield ["least p of all"], least


def _kinds(runs: Sequence[Run]) -> Rows:
    for kind in runs[0].study["categories"]["kind"].values:

        def cell(run: Run, kind: str = kind) -> str:
            share = run.study["categories"].to_dataset()["share"].sel(kind=kind).values
            return f"{share[0]:.0%} to {share[-1]:.0%}"

        yield [str(kind)], cell


def _probed(runs: Sequence[Run]) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["probes"].to_dataset()["class_accuracy"].sel(layer=layer)
            return " to ".join(f"{float(one[end].min()):.0%} - {float(one[end].max()):.0%}" for end in ENDS)

        yield [layer], cell


def _worth(runs: Sequence[Run]) -> Rows:
    for layer in _layers(runs):

        def cell(run: Run, layer: str = layer) -> str:
            one = run.study["importance"].to_dataset().sel(layer=layer, ablation="zero").isel(step=-1)
            drop, sure = one["accuracy_drop"].values, int((one["q_value"] < 0.05).sum())
            return f"{np.nanmin(drop):.1%} - {np.nanmax(drop):.1%}, {sure} of {np.isfinite(drop).sum()} with q < 5%"

        yield [layer], cell


def _ranks() -> Rows:
    for name, share in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):

        def cell(run: Run, share: float = share) -> str:
            found = run.study["importance"].to_dataset().sel(ablation="zero")
            one = found.isel(step=round(share * (found.sizes["step"] - 1)))
            return f"step {int(one['step'])}: {float(one['rank_correlation']):.2f}, {float(one['rank_p_value']):.2g}"

        yield [name], cell


def _flow() -> Rows:
    for name in ("flow_entropy", "input_diversity", "output_concentration"):

        def cell(run: Run, name: str = name) -> str:
            one = run.study["flow"].to_dataset()
            values = [(float(one[f"{name}{end}"][place])) for place in ENDS for end in ("", "_low", "_high")]
            first, last = values[:3], values[3:]
            return " to ".join(f"{value:.3f} ({low:.3f}, {high:.3f})" for value, low, high in (first, last))

        yield [name.replace("_", " ")], cell

    def stuck(run: Run) -> str:
        found = run.study["flow"].to_dataset()["bottleneck"]
        return " to ".join(str(int(found[place].sum())) for place in ENDS)

    yield ["bottlenecks"], stuck


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, and keep them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_study", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/heads"), help="where runs are kept")
    given = parser.parse_args(arguments)
    runs = [ran(RECIPE, "transformer", seed, given.folder) for seed in given.seeds]
    foretold = nq.predict_specialisation({f"seed {run.seed}": open_store(run.store) for run in runs}, EARLY)
    text = tables(runs, foretold)
    print(text)
    drawn = runs[0].report / "transformer"
    keep(PAGE, (BEGIN, END), text, {drawn / f"{name}.png": PICTURES / f"{RECIPE}-{name}.png" for name in PICTURED})
    save(nq.plot.predicted_specialisation(foretold), PICTURES / f"{RECIPE}-foretold.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
