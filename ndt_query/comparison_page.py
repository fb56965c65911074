"""Runs compared as a page: their numbers, those of their groups, which learn more smoothly, and where to read on."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.compare import SCALARS, compare_groups, differing, each_run, stores_of
from ndt_query.intervals import mean_ci
from ndt_query.output import INDEX, require_free, staged, write_results
from ndt_query.pages import figure_source, render, write_page
from ndt_query.plot.compare import compare_runs as draw_runs
from ndt_query.plot.curves import smoothness as draw_smoothness
from ndt_query.smoothness import smoothness
from ndt_store.dims import LAYER, RUN, STEP, TRAINING_GROUP
from ndt_store.errors import DimensionError, NotFoundError
from ndt_store.reader import Store
from ndt_store.runs import Runs

__all__ = ["comparison_page", "group_rows", "pair_rows", "require_comparison_folder", "smooth_pairs"]

TEMPLATE: Final = "comparison.html.j2"
NUMBERS: Final = "comparison.zarr"
MEASURE: Final = "participation_ratio"
PAIR: Final = "pair"


def smooth_pairs(
    stores: Runs | Mapping[str, Store] | Sequence[Store | str | os.PathLike[str]],
    comparison: xr.Dataset,
    *,
    seed: int = 0,
) -> xr.Dataset:
    """Ask of each two groups which one's dimension changes more smoothly, seed by seed.

    Parameters
    ----------
    stores : Runs, mapping, or sequence of Store or path
        As given to `compare_runs`, under the same names.
    comparison : Dataset (run)
        What that gave: its groups and layers are asked about.
    seed : int
        Of the resamples.

    Returns
    -------
    Dataset
        As of `ndt_query.smoothness`, over ``pair``: the n-th run of one group beside the n-th of another, with the
        coordinates ``first`` and ``second`` (names of runs), ``first_group`` and ``second_group``. Runs that were not
        tracked, or have no counterpart, are in no pair.

    Raises
    ------
    NotFoundError
        The Dataset is no comparison, or is of a run that is not among the stores.

    Notes
    -----
    Trajectories are of the participation ratio of the compared layer, at the steps that both measured.
    """
    opened = stores_of(stores)
    missing = [name for name in (RUN, "group", LAYER) if name not in comparison.coords]
    if missing:
        raise NotFoundError(f"The Dataset has no {missing[0]}: pass that of compare_runs.")
    strange = [str(name) for name in comparison[RUN].values if str(name) not in opened]
    if strange:
        raise NotFoundError(f"The comparison is of run {strange[0]!r}: give its store (given: {', '.join(opened)}).")
    tracked: dict[str, dict[int, tuple[str, xr.DataArray]]] = {}
    counts: Counter[str] = Counter()
    for name, group, layer in zip(*(comparison[key].values for key in (RUN, "group", LAYER)), strict=True):
        store, number = opened[str(name)], counts[str(group)]
        counts[str(group)] += 1
        if TRAINING_GROUP in store.catalogue.supplements:
            training = store.training
            if MEASURE in training and LAYER in training.coords and str(layer) in training[LAYER].values:
                series = training[MEASURE].sel({LAYER: str(layer)}, drop=True)
                tracked.setdefault(str(group), {})[number] = str(name), series
    found: list[xr.Dataset] = []
    labels: list[tuple[str, str, str, str]] = []
    for (one, firsts), (other, seconds) in itertools.combinations(tracked.items(), 2):
        for number in sorted(firsts.keys() & seconds.keys()):
            (first, a), (second, b) = firsts[number], seconds[number]
            both = xr.align(a, b, join="inner")
            try:
                found.append(smoothness(*both, seed=seed))
            except DimensionError:  # too few steps in common
                continue
            labels.append((first, second, one, other))
    if not found:
        return xr.Dataset(coords={name: (PAIR, []) for name in ("first", "second", "first_group", "second_group")})
    steps = set.intersection(*(set(one[STEP].values.tolist()) for one in found))
    kept = [one.drop_vars(["trajectory", "derivative"]).drop_dims([STEP, "interval"], errors="ignore") for one in found]
    if all(len(steps) == one.sizes[STEP] for one in found):
        kept = found
    result = xr.concat(kept, dim=PAIR, combine_attrs="drop_conflicts")
    columns = dict(zip(("first", "second", "first_group", "second_group"), zip(*labels, strict=True), strict=True))
    return result.assign_coords({name: (PAIR, list(column)) for name, column in columns.items()})


def require_comparison_folder(out_dir: str | Path) -> None:
    """Raise what `comparison_page` would, before the work, where that can be told."""
    require_free(out_dir, TEMPLATE, (NUMBERS,))


def comparison_page(
    comparison: xr.Dataset,
    out_dir: str | Path,
    *,
    smooth: xr.Dataset | None = None,
    reports: Mapping[str, str] | None = None,
) -> Path:
    """Write a page about compared runs, its figures as PDF and PNG, and its numbers.

    Parameters
    ----------
    comparison : Dataset
        From `compare_runs`.
    out_dir : str or Path
        Folder, made where missing; an older comparison in it is replaced.
    smooth : Dataset, optional
        From `smooth_pairs`.
    reports : mapping of str to str, optional
        Where the report of each run lies, from the page.

    Returns
    -------
    Path
        ``index.html``. Beside it lie the figures and ``comparison.zarr`` with the groups ``runs``, ``groups`` and
        ``smoothness``.

    Raises
    ------
    NotFoundError
        The Dataset is no comparison.
    InvalidInputError
        The folder is a store, or holds files of others; nothing is written.
    StorageError
        The folder cannot be written.
    """
    groups = compare_groups(comparison)
    figures = {"runs": draw_runs(comparison)}
    pairs = None if smooth is None or not smooth.sizes.get(PAIR) else smooth
    if pairs is not None and "trajectory" in pairs:
        first = pairs.isel({PAIR: 0})
        figures["smoothness"] = draw_smoothness(first, names=[str(first["first"].item()), str(first["second"].item())])
    nodes = {"runs": comparison, "groups": groups} | ({} if pairs is None else {"smoothness": pairs})
    with staged(out_dir, TEMPLATE, (NUMBERS,)) as folder:
        write_results(folder, figures, xr.DataTree.from_dict(nodes), NUMBERS)
        page = render(
            TEMPLATE,
            "Runs compared",
            figures=[figure_source(name, figure) for name, figure in figures.items()],
            n_runs=comparison.sizes[RUN],
            curves_from=each_run(comparison, "curves_from"),
            differing=[f"{one[0].upper()}{one[1:]}." for one in differing(comparison)],
            names=[str(name) for name in groups["group"].values],
            rows=group_rows(groups),
            fractions=[f"{float(one):.0%}" for one in groups["fraction"].values],
            runs=_run_rows(comparison, reports or {}),
            pairs=[] if pairs is None else pair_rows(pairs),
        )
        write_page(page, folder / INDEX, "The comparison")
    return Path(out_dir) / INDEX


def group_rows(groups: xr.Dataset) -> list[dict[str, Any]]:
    """Return a row for each number that groups are compared by: what it is, and of each group its mean and limits."""
    rows = []
    for key, text in SCALARS.items():
        said = [
            _with_limits(*(float(groups[f"{key}{end}"][place]) for end in ("", "_low", "_high")))
            for place in range(groups.sizes["group"])
        ]
        rows.append({"what": text, "said": said})
    for n, fraction in enumerate(groups["fraction"].values):
        said = [
            _with_limits(*(float(groups[f"examples_to{end}"][place, n]) for end in ("", "_low", "_high")))
            for place in range(groups.sizes["group"])
        ]
        rows.append({"what": f"examples until {float(fraction):.0%} of the final accuracy", "said": said})
    rows.append({"what": "runs", "said": [(str(int(n)), "") for n in groups["n_runs"].values]})
    return rows


def _with_limits(value: float, low: float, high: float) -> tuple[str, str]:
    if not np.isfinite(value):
        return "", ""
    # Runs that agree to the last digit, as counts do, have no spread to make an interval of.
    return _number(value), f"{_number(low)} to {_number(high)}" if np.isfinite(low) and low < high else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{value:.1%}" if np.isfinite(value) else ""


def _run_rows(comparison: xr.Dataset, reports: Mapping[str, str]) -> list[dict[str, str]]:
    rows = []
    for name in comparison[RUN].values:
        one = comparison.sel({RUN: name})
        accuracy, low, high = (float(one[f"final_accuracy{end}"]) for end in ("", "_low", "_high"))
        jumps, dimension = float(one["n_jumps"]), float(one["dimension_final"])
        rows.append(
            {
                "run": str(name), "group": str(one["group"].item()), "layer": str(one[LAYER].item()),
                "report": reports.get(str(name), ""),
                "accuracy": _share(accuracy),
                "limits": f"{low:.1%} to {high:.1%}" if np.isfinite(low) else "",
                "jumps": f"{jumps:.0f}" if np.isfinite(jumps) else "",
                "dimension": f"{dimension:.1f}" if np.isfinite(dimension) else "",
                "separability": _share(float(one["separability_accuracy"])),
                "examples": "; ".join(_number(float(n)) for n in one["examples_to"].values if np.isfinite(n)),
            }
        )  # fmt: skip
    return rows


def pair_rows(pairs: xr.Dataset) -> list[dict[str, Any]]:
    """Return a row for each two groups: ratios of variances by seed, and their mean, of which seeds are the draws."""
    rows = []
    groups = list(zip(pairs["first_group"].values, pairs["second_group"].values, strict=True))
    for first, second in dict.fromkeys(groups):
        ratios = pairs["log_variance_ratio"].values[[one == (first, second) for one in groups]]
        made = mean_ci(ratios)
        rows.append(
            {
                "groups": f"{first} over {second}",
                "ratios": ", ".join(f"{float(np.exp(one)):.2g}" for one in ratios),
                "mean": _with_limits(*(float(np.exp(getattr(made, name))) for name in ("estimate", "low", "high"))),
            }
        )
    return rows
