"""What tracking costs on top of training: cnn_deep, every 5 steps, and the share of each stage.

The training is the recipe's own, so that its loop, its batches and its deterministic kernels are on both sides, and the
series is written as `ndt train` writes it. A stage's share is its time in one measurement over that of five steps.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from benchmarks.harness import Bar, Row, against, is_quick, race
from capture._reproducible import deterministic
from capture.data import ImageData, load_embedded
from capture.heap import freed_memory_kept
from capture.models import build_model
from capture.recipe import Recipe, load_recipe
from capture.recipe_tables import DEFAULT_N_EXAMPLES, TrainingRecipe
from capture.second_order import measured, sample_rows, second_order
from capture.series import TrackedSeries, Tracking
from capture.sites import discover_sites
from capture.taps import Tapper
from capture.tracking import Measurement, Tracker
from capture.training import train
from ndt_store.views.samples import eigenvalues
from ndt_store.views.spectrum import measures

__all__ = ["run"]

BARE = "bare training"
EVERY = 5


def run(folder: Path) -> list[Row]:
    """Train cnn_deep with and without tracking, then time one measurement in parts."""
    recipe = load_recipe("cnn_deep")
    n_steps = 2 * EVERY if is_quick() else 20 * EVERY
    settings = TrainingRecipe(steps=n_steps, log_every=EVERY, checkpoints=[n_steps])
    data = load_embedded("train").first(10 * settings.batch_size).standardised(recipe.data.mean, recipe.data.std)
    validation = load_embedded("test").balanced(DEFAULT_N_EXAMPLES).standardised(recipe.data.mean, recipe.data.std)
    model = build_model("cnn_deep", input_shape=data.input_shape, n_classes=data.n_classes, seed=0)
    begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    store = folder / "run.zarr"

    def training(positions: str | None) -> Callable[[], object]:
        tracking = None
        if positions is not None:
            layers = recipe.capture.layers
            tracker = Tracker(model, validation.inputs, validation.labels, layers, positions=positions)
            tracking = Tracking(tracker, store, EVERY)

        def once() -> None:
            model.load_state_dict(begun)
            train(settings, model, data, tracking=tracking)

        return once

    ours = {positions: f"tracked, {positions}" for positions in ("flatten", "mean")}
    candidates = {BARE: training(None)} | {name: training(positions) for positions, name in ours.items()}
    times = race(candidates, between=lambda: shutil.rmtree(store, ignore_errors=True))
    what = f"{n_steps} steps of cnn_deep, tracked every {EVERY} on {len(validation)} examples, positions "
    bars = {"flatten": Bar(1.25), "mean": None}
    rows = [
        against(what + positions, times, name, BARE, cache="", n_examples=len(validation), bar=bars[positions])
        for positions, name in ours.items()
    ]
    return rows + _stages(folder / "stages.zarr", recipe, model, data, validation)


class _Known:
    """Stands for a tracker that has measured already."""

    def __init__(self, tracker: Tracker) -> None:
        self.identity, self.layers, self.measures = tracker.identity, tracker.layers, tracker.measures
        self.model = tracker.model
        self._found = tracker.measure()

    def measure(self) -> Measurement:
        return self._found


def _stages(store: Path, recipe: Recipe, model: torch.nn.Module, data: ImageData, validation: ImageData) -> list[Row]:
    inputs, labels = torch.from_numpy(validation.inputs), torch.from_numpy(validation.labels)
    sites = discover_sites(model, recipe.capture.layers, ["activations"], inputs)
    tapper = Tapper(model, sites)
    with tapper:
        kept = {name: tensor for (name, _), tensor in tapper.run(inputs, labels).tensors.items()}
    samples = [sample_rows(kept[site.name], site.dims, "flatten") for site in sites]
    matrices = [second_order(rows, True) for rows in samples]
    spectra = [eigenvalues(matrix.numpy()) for matrix, _ in matrices]
    tracker = Tracker(model, validation.inputs, validation.labels, recipe.capture.layers)
    known: Any = _Known(tracker)
    steps = itertools.count()

    libraries = ThreadpoolController()

    def spectrum() -> None:
        # As the tracker does, or a second thread would spin into what is timed next.
        with libraries.limit(limits=1, user_api="blas"):
            for pair in matrices:
                measured(*pair, len(labels), True)

    def evaluation() -> None:
        with tapper:
            tapper.run(inputs, labels, lambda *_: None)

    with freed_memory_kept(), deterministic(0, torch.device("cpu")), TrackedSeries(known, store, {}) as series:

        def write() -> None:
            series.record(next(steps))
            series.flush()

        stages = {
            "one measurement": tracker.measure,
            "evaluation pass": evaluation,
            "centring and products": lambda: [second_order(rows, True) for rows in samples],
            "eigenvalues and measures": spectrum,
            "six measures of known eigenvalues": lambda: [measures(spectrum) for spectrum in spectra],
            "writing a row and waiting for the disk": write,
        }
        bare = f"{EVERY} training steps"
        times = race({bare: _training_steps(model, data), **stages})
    note = "rows are flushed every 2 seconds, not each by itself"
    return [
        against(
            f"cnn_deep, {len(validation)} examples: {stage}",
            times,
            stage,
            bare,
            cache="",
            n_examples=len(validation),
            note=note if stage.startswith("writing") else "",
        )
        for stage in stages
    ]


def _training_steps(model: torch.nn.Module, data: ImageData) -> Callable[[], None]:
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run() -> None:
        for batch in range(EVERY):
            rows = torch.arange(128 * batch, 128 * (batch + 1))
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()

    return run
