"""All per-unit moments of every layer: our query, the same in plain xarray over a default Zarr store, and memmap."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import xarray as xr

import ndt_query as nq
from benchmarks.harness import Row, against, race
from benchmarks.subjects import LAYERS, captured, dense

__all__ = ["run"]


def run(folder: Path) -> list[Row]:
    """Scan the activations of two checkpoints, warm cache."""
    stores = {name: captured(folder / f"scan-{name}.zarr", name) for name in ("none", "fast")}
    for layer in LAYERS:
        values = dense(stores["none"], layer)
        np.save(folder / f"{layer}.npy", values)
        plain = stores["none"][layer].activations.load().drop_vars(["split", "label"]).drop_attrs()
        plain.to_dataset(name="activations").to_zarr(folder / "plain.zarr", group=layer, mode="w", consolidated=False)

    def ours(name: str) -> None:
        dask.compute(*(nq.unit_moments(stores[name][layer].activations) for layer in LAYERS))

    def plain_xarray() -> None:
        results = []
        for layer in LAYERS:
            opened = xr.open_dataset(folder / "plain.zarr", group=layer, engine="zarr", chunks={}, consolidated=False)
            acts = opened.activations.astype(np.float64)
            over = [dim for dim in acts.dims if dim not in ("checkpoint", "unit")]
            results.append([acts.mean(over), acts.std(over), acts.min(over), acts.max(over), (acts > 0).mean(over)])
        dask.compute(*results)

    def memmap() -> None:
        for layer in LAYERS:
            data = np.load(folder / f"{layer}.npy", mmap_mode="r")
            over = (0, *range(2, data.ndim - 1))  # of one checkpoint: example, then positions after unit
            for checkpoint in data:
                for start in range(0, len(checkpoint), 125):
                    block = np.asarray(checkpoint[start : start + 125], dtype=np.float64)
                    block.sum(over)
                    np.square(block).sum(over)
                    block.min(over)
                    block.max(over)
                    (block > 0).sum(over)

    times = race(
        {"none": lambda: ours("none"), "fast": lambda: ours("fast"), "xarray + dask": plain_xarray, "memmap": memmap}
    )
    nbytes = sum(dense(stores["none"], layer).nbytes for layer in LAYERS)
    what = f"all per-unit moments of {nbytes / 1e6:.0f} MB, profile {{}}"
    return [
        against(what.format(name), times, name, baseline)
        for name in ("none", "fast")
        for baseline in ("xarray + dask", "memmap")
    ]
