"""Time against size: what happens when the examples double, and where asking again beats running the model again.

Two ReLU layers of cnn_deep. All per-unit moments are asked of stores of 2^8 to 2^14 examples, of the same values in
memory maps and in default Zarr stores, and of the model itself, run again with hooks that keep nothing but moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import dask
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import ndt_query as nq
from benchmarks.bench_scan import ours, plain_xarray, scan_only
from benchmarks.harness import Bar, Row, against, is_quick, race
from benchmarks.scans import memmap_numpy, write_formats
from benchmarks.subjects import batches, captured, images, model_and_data
from ndt_store import open_store

__all__ = ["FIGURE_PREFIX", "run"]

LAYERS: Final = ("relu3", "relu4")
FIGURE_PREFIX: Final = "all per-unit moments of 2 ReLU layers"
DOUBLING: Final = Bar(2.1)


def run(folder: Path) -> list[Row]:
    """Fill one folder for each size, race the candidates at each, then the largest against its half."""
    exponents = range(8, 11) if is_quick() else range(8, 15)
    rows: list[Row] = []
    for exponent in exponents:
        n = 1 << exponent
        place = folder / str(n)
        place.mkdir()
        captured(place / "none.zarr", "none", n_checkpoints=1, data=images(n), layers=LAYERS)
        nbytes = write_formats(place, place / "none.zarr", LAYERS)
        times = race(_candidates(place, n))
        for name in times:
            if not name.startswith("ours"):
                for mine in (key for key in times if key.startswith("ours")):
                    what = f"{FIGURE_PREFIX}, {mine.removeprefix('ours, ')}"
                    rows.append(against(what, times, mine, name, nbytes=nbytes, n_examples=n))
    largest = 1 << exponents[-1]
    return rows + _doubling(folder / str(largest // 2), folder / str(largest), largest)


def _candidates(place: Path, n: int) -> dict[str, Callable[[], object]]:
    candidates: dict[str, Callable[[], object]] = {"ours, scan": partial(ours, place / "none.zarr", LAYERS)}
    if scan_only(nq.unit_moments):
        candidates["ours, view"] = partial(from_view, place / "none.zarr")
    return candidates | {
        "numpy.memmap + numpy": partial(memmap_numpy, place, LAYERS),
        "xarray + dask, default zarr store": partial(plain_xarray, place / "plain.zarr", LAYERS),
        "running the model again": partial(run_again, model_and_data()[0], batches(images(n))),
    }


def from_view(path: Path) -> None:
    """`unit_moments` as a user calls it: the first call makes the view where the capture has not."""
    store = open_store(path)
    dask.compute(*(nq.unit_moments(store[layer].activations) for layer in LAYERS))


def run_again(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Mapping[str, list[NDArray[np.float64]]]:
    """Run the model over the batches and keep moments of two layers, in torch and in float64."""
    states: dict[str, list[torch.Tensor]] = {}

    def hook(layer: str) -> Any:
        def add(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            values = output.transpose(0, 1).flatten(1)
            exact = values.double()
            sums = [exact.sum(1), exact.square().sum(1), exact.abs().sum(1), (values > 0).sum(1)]
            low, high = torch.aminmax(values, dim=1)
            if layer not in states:
                states[layer] = [*sums, low, high]
                return
            before = states[layer]
            added = [a + b for a, b in zip(before, sums, strict=False)]
            states[layer] = [*added, torch.minimum(before[4], low), torch.maximum(before[5], high)]

        return add

    handles = [model.get_submodule(layer).register_forward_hook(hook(layer)) for layer in LAYERS]
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    for handle in handles:
        handle.remove()
    return {layer: [part.double().numpy() for part in state] for layer, state in states.items()}


def _doubling(half: Path, whole: Path, n: int) -> list[Row]:
    questions: dict[str, Callable[[xr.DataArray], Any]] = {
        "unit_moments": partial(nq.unit_moments, **scan_only(nq.unit_moments)),
        "top_examples": partial(nq.top_examples, **scan_only(nq.top_examples)),
        "class_means": _class_means,
        "dimensionality, position means": partial(nq.dimensionality, positions="mean", **scan_only(nq.dimensionality)),
    }
    rows = []
    for name, question in questions.items():
        times = race(
            {
                f"{n} examples": partial(_ask, question, whole / "none.zarr"),
                f"{n // 2} examples": partial(_ask, question, half / "none.zarr"),
            }
        )
        what = f"{name} of {n:,} examples, scan, against half of them"
        rows.append(against(what, times, f"{n} examples", f"{n // 2} examples", n_examples=n, bar=DOUBLING))
    return rows


def _class_means(acts: xr.DataArray) -> Any:
    return nq.class_means(acts, acts["label"], **scan_only(nq.class_means))


def _ask(question: Callable[[xr.DataArray], Any], path: Path) -> None:
    store = open_store(path)
    dask.compute(*(question(store[layer].activations) for layer in LAYERS))
