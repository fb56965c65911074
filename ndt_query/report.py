"""One self-contained HTML page about a store: what it is, one table, its figures, and how each number was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from matplotlib.figure import Figure

from ndt_query.firing import dead_units
from ndt_query.geometry import dimensionality
from ndt_query.inputs import class_name
from ndt_query.layers import Whole, each_layer, root_dataset
from ndt_query.output import INDEX, require_free, staged
from ndt_query.pages import figure_source, render, write_page
from ndt_query.performance import NEEDED, performance
from ndt_query.plot import activations as unit_figures
from ndt_query.plot import measures as measure_figures
from ndt_query.proportions import clopper_pearson
from ndt_query.ranking import top_examples
from ndt_query.report_study import studied
from ndt_query.report_training import trained
from ndt_query.selectivity import selectivity_index
from ndt_query.study_pages import KINDS
from ndt_query.summary import DIMENSIONS, summary
from ndt_store.dims import CHECKPOINT, LAYER, UNIT
from ndt_store.errors import NotFoundError

__all__ = ["report"]

TEMPLATE: Final = "report.html.j2"
N_PERMUTATIONS: Final = 500
N_UNITS: Final = 6
N_RANKS: Final = 10
LEAST_RATE: Final = 0.01
"""Fraction of examples in which a unit has to fire to be pictured."""

POSITIONS: Final = "mean"
MAX_TEXT: Final = 300
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything the page shows, computed."""

    summary: xr.Dataset
    dimension: xr.Dataset
    dead: dict[str, xr.Dataset]
    selectivity: dict[str, xr.Dataset]


def report(
    store: Whole,
    out_dir: str | Path,
    *,
    study: bool = True,
    progress: Progress | None = None,
    memory: int | str | None = None,
) -> Path:
    """Write one HTML page about a store.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        With at least one committed checkpoint and one layer of activations. Labels are needed for the part on
        selectivity, inputs for the pictures, loss and predictions for the part on performance, what was tracked while
        training for the part on jumps, the experiment of ``ndt intervene`` for that on interventions; what is not there
        is left out, and the page says so of selectivity.
    out_dir : str or Path
        Folder of the page, made where missing; an older page in it is replaced.
    study : bool
        Whether the page has the study of its kind of network: `ndt_query.cnn_study`, `transformer_study`, or
        `mlp_study` of any other. Its figures and numbers go to ``cnn/``, ``transformer/`` or ``mlp/`` of the folder.
    progress : callable, optional
        Called as ``progress(done, total)`` after each layer, and then after each part of the study.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Path
        The page, ``index.html``. It loads nothing from anywhere, and its content policy allows no script.

    Raises
    ------
    NotFoundError
        There is no layer of activations, or no committed checkpoint.
    InvalidInputError
        The folder is a store, or holds files of others; nothing is written.
    StorageError
        The page cannot be written.

    Notes
    -----
    One pass over the activations of each layer, then one over the last checkpoint of layers whose units are pictured;
    the study takes two more at six checkpoints.
    Text from the store is escaped.
    """
    parts = tuple(kind.name for kind in KINDS)
    require_free(out_dir, TEMPLATE, parts)  # before the work, of which views stay in the store
    findings = _findings(store, progress, memory)
    figures = _figures(store, findings, memory)
    training = trained(store)
    n = int(next(iter(findings.dead.values())).attrs["n_examples"])
    found: dict[str, Any] = {"words": "", "section": "", "figures": []}
    with staged(out_dir, TEMPLATE, parts) as folder:
        if study:
            given: dict[str, Any] = {"n_permutations": N_PERMUTATIONS, "progress": progress, "memory": memory}
            found = studied(store, folder, findings.selectivity, **given)
        page = render(
            TEMPLATE,
            _title(store),
            facts=_facts(store, findings),
            provenance=_flat(getattr(store, "provenance", {})),
            table=_table(findings.summary),
            figures=figures,
            study=found,
            training=training,
            training_figures=[figure_source(kind, figure) for kind, figure in training.figures],
            n=n,
            rate_bound=f"{float(clopper_pearson(0, n, side='upper')[1]):.2%}",
            n_permutations=N_PERMUTATIONS,
            least_rate=f"{LEAST_RATE:.0%}",
            has_labels=bool(findings.selectivity),
        )
        write_page(page, folder / INDEX, "The report")
    return Path(out_dir) / INDEX


def _findings(store: Whole, progress: Progress | None, memory: int | str | None) -> Findings:
    layers = dict(each_layer(store))
    if any(acts.sizes.get(CHECKPOINT, 0) == 0 for acts in layers.values()):
        raise NotFoundError("The store has no committed checkpoint to report on: capture one first.")
    one: dict[str, Any] = {}
    for done, (layer, acts) in enumerate(layers.items(), 1):
        chosen = {layer: acts}
        questions = [
            summary(chosen, positions=POSITIONS, memory=memory),
            dimensionality(chosen, positions=POSITIONS, memory=memory),
            dead_units(acts, memory=memory),
        ]
        if "label" in acts.coords and len(np.unique(acts["label"].values)) > 1:
            questions.append(selectivity_index(acts, n_permutations=N_PERMUTATIONS, memory=memory))
        one[layer] = compute(*questions)
        if progress is not None:
            progress(done, len(layers))
    return Findings(
        xr.concat([found[0] for found in one.values()], LAYER, combine_attrs="override"),
        xr.concat([found[1] for found in one.values()], LAYER, combine_attrs="override"),
        {layer: found[2] for layer, found in one.items()},
        {layer: found[3] for layer, found in one.items() if len(found) > 3},
    )


def _figures(store: Whole, findings: Findings, memory: int | str | None) -> list[dict[str, str]]:
    figures = []
    root = root_dataset(store)
    if all(name in root.variables for name in NEEDED):
        figures.append(figure_source("performance", measure_figures.performance(performance(root))))
    figures += [
        figure_source("dimension", measure_figures.dimensionality(findings.dimension)),
        figure_source("dead", unit_figures.dead_units(findings.dead)),
    ]
    if findings.selectivity:
        figures.append(figure_source("selectivity", measure_figures.selectivity(findings.selectivity)))
        pictured = _pictured(store, findings, memory)
        if pictured is not None:
            figures.append(figure_source("examples", pictured))
    return figures


def _pictured(store: Whole, findings: Findings, memory: int | str | None) -> Figure | None:
    """Draw what drives the units with the largest AUROC, of those that are selective and fire often enough to tell."""
    root = root_dataset(store)
    if "input" not in root or root["input"].ndim not in (2, 3, 4):
        return None
    candidates = []
    for layer, found in findings.selectivity.items():
        last = found.isel({CHECKPOINT: -1})
        fires = findings.dead[layer]["firing_rate"].isel({CHECKPOINT: -1}) >= LEAST_RATE
        scores = np.where((last["q_value"] < 0.05) & fires, last["auroc"], -np.inf)
        for unit in np.argsort(-scores, kind="stable")[:2]:
            if np.isfinite(scores[unit]):
                candidates.append((float(scores[unit]), layer, int(unit), last["preferred_class"].values[unit]))
    candidates.sort(key=lambda candidate: -candidate[0])
    if not candidates:
        return None
    results, titles = [], []
    layers = dict(each_layer(store))
    for score, layer, unit, preferred in candidates[:N_UNITS]:
        acts = layers[layer].isel({CHECKPOINT: -1, UNIT: [unit]})
        name = class_name(acts["label"], preferred)
        results.append(top_examples(acts, N_RANKS, memory=memory).isel({UNIT: 0}).compute())
        titles.append(f"{layer[-20:]}, unit {acts[UNIT].values[0]}\n{name[:20]}\nAUROC {score:.3f}")
    return unit_figures.top_examples(results, root["input"], titles=titles, labels=root.get("label"))


def _title(store: Whole) -> str:
    title = root_dataset(store).attrs.get("title")
    return str(title or Path(str(getattr(store, "path", "store"))).name)[:MAX_TEXT]


def _facts(store: Any, findings: Findings) -> list[tuple[str, str]]:
    found = findings.summary
    steps = found[CHECKPOINT].values
    span = f"{len(steps)}, steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"1, step {steps[0]}"
    first = next(iter(findings.dead.values()))
    units = int(found["units"].isel({CHECKPOINT: 0}).sum())
    model = dict(getattr(store, "provenance", {}).get("identity", {})).get("model")
    nbytes = sum(acts.nbytes for _, acts in each_layer(store))
    return [
        ("Store", str(getattr(store, "path", ""))),
        *([("Model", str(model)[:MAX_TEXT])] if model else []),
        ("Checkpoints", span),
        ("Examples", str(first.attrs["n_examples"])),
        ("Layers", f"{found.sizes[LAYER]}, {units} units"),
        ("Activations", f"{nbytes / 1e6:,.1f} MB before compression"),
        ("Missing values", f"{int(found['nan_count'].sum())} NaN"),
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{name}.")
        elif value not in (None, "", [], ()):
            text = str(value)
            rows.append((name, text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " \u2026"))
    return rows


def _number(value: float, digits: int) -> str:
    return "\u2013" if math.isnan(value) else f"{value:,.{digits}f}"


def _interval(cell: Mapping[str, float], name: str) -> str:
    low, high = cell[f"{name}_low"], cell[f"{name}_high"]
    return "" if math.isnan(low) else f"{low:,.2f} to {high:,.2f}"


def _table(found: xr.Dataset) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for layer in found[LAYER].values:
        for step in found[CHECKPOINT].values:
            cell = {
                str(name): float(one) for name, one in found.sel({LAYER: layer, CHECKPOINT: step}).data_vars.items()
            }
            rows.append(
                {
                    "layer": str(layer),
                    "step": int(step),
                    "first": step == found[CHECKPOINT].values[0],
                    "cells": [
                        (_number(cell["units"], 0), ""),
                        (_number(cell["dead"], 0), ""),
                        (_number(100 * cell["active_fraction"], 1), ""),
                        *((_number(cell[name], 2), _interval(cell, name)) for name in DIMENSIONS),
                    ],
                }
            )
    return rows
