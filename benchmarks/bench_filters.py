"""Questions that views do not hold, on a trained network and real images, against a scan of everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.harness import Bar, Row, against, is_quick, race
from capture.from_recipe import capture_recipe
from capture.recipe import Recipe, load_recipe, parse_recipe
from capture.training import train_recipe
from ndt_store import Store, open_store
from ndt_store.errors import NotFoundError
from ndt_store.storage import LocalStorage

__all__ = ["run"]

BAR = Bar(1.1, text="never over 1.1")


class _Counting(LocalStorage):
    """Counts the blocks of activations that are read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.n_reads = 0

    def read_into(self, key: str, buffers: Any) -> int:
        """Count, then read."""
        self.n_reads += "/activations/c/" in key
        return super().read_into(key, buffers)


def run(folder: Path) -> list[Row]:
    """Ranks beyond the view, thresholds and selections of examples, each against the same without views."""
    recipe = _recipe()
    train_recipe(recipe, folder / "training")
    store = open_store(_Counting(capture_recipe(recipe, folder / "run.zarr", folder / "training", progress=False).path))
    rows = []
    for layer in ("relu1", "relu3"):
        acts = store[layer].activations.isel(checkpoint=[-1])
        busiest = int(nq.unit_moments(acts)["mean"].argmax())
        one = acts.isel(unit=[busiest])
        high = float(nq.top_examples(one, k=20)["value"].min())
        chosen = np.flatnonzero(acts["label"].values == 3)
        questions: dict[str, tuple[xr.DataArray, Callable[..., xr.Dataset]]] = {
            "top 200 of one unit": (one, lambda a, **o: nq.top_examples(a, k=200, **o)),
            "top 200 of every unit": (acts, lambda a, **o: nq.top_examples(a, k=200, **o)),
            "examples beyond the 20th value of one unit": (one, partial(nq.examples_above, threshold=high)),
            "top 20 of one unit in one class": (one.isel(example=chosen), lambda a, **o: nq.top_examples(a, k=20, **o)),
            "moments over one class": (acts.isel(example=chosen), nq.unit_moments),
            "top 200 of one unit among 50 neighbouring examples": (
                one.isel(example=slice(0, 50)), lambda a, **o: nq.top_examples(a, k=50, **o),
            ),
        }  # fmt: skip
        rows += [_row(store, layer, what, *asked) for what, asked in questions.items()]
    return rows


def _recipe() -> Recipe:
    """cnn_deep as its recipe trains it, for fewer steps, on its own images or those that come with the package."""
    tables = load_recipe("cnn_deep").model_dump(mode="json")
    n_examples, steps = (1000, 50) if is_quick() else (8000, 300)
    try:
        load_recipe("cnn_deep").probe_data()
    except NotFoundError:
        tables["data"] = load_recipe("demo").model_dump(mode="json")["data"]
        n_examples = min(n_examples, 1000)
    tables["training"] |= {"steps": steps, "checkpoints": [0, steps], "log_every": steps}
    tables["probe"]["n_examples"] = n_examples
    tables["capture"] |= {"layers": ["relu*"], "kinds": ["activations"], "compression": "none"}
    return parse_recipe(tables)


def _row(store: Store, layer: str, what: str, data: xr.DataArray, question: Callable[..., xr.Dataset]) -> Row:
    storage: Any = store.catalogue.storage
    whole = store[layer].activations.isel(checkpoint=[-1])
    storage.n_reads = 0
    ours = question(data).compute()
    n_read = storage.n_reads
    xr.testing.assert_allclose(ours.drop_attrs(), question(data, views=False).compute().drop_attrs(), rtol=1e-6)
    n_blocks = len(store.catalogue.record(int(store.checkpoints[-1])).arrays[f"layers/{layer}/activations"].blocks)
    times = race(
        {
            "views and zone maps": lambda: question(data).compute(),
            "the same by a scan": lambda: question(data, views=False).compute(),
        }
    )
    return against(
        f"{what}, {layer}", times, "views and zone maps", "the same by a scan", bar=BAR,
        nbytes=whole.nbytes, n_examples=whole.sizes["example"], note=f"{n_read} of {n_blocks} blocks read",
    )  # fmt: skip
