"""Reading alone: plain xarray over our store and over a default Zarr store, and blocks against bare `readinto`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.harness import Row, against, race
from benchmarks.subjects import LAYERS, captured
from ndt_store import Store
from ndt_store.blocks import read_block
from ndt_store.commits import BlockEntry
from ndt_store.layout import block_nbytes, block_shape, numpy_dtype
from ndt_store.schema import layer_path

__all__ = ["run"]

N_THREADS = 2
LAYER = LAYERS[0]


def run(folder: Path) -> list[Row]:
    """Read the activations of two checkpoints, warm cache, two threads."""
    stores = {name: captured(folder / f"read-{name}.zarr", name) for name in ("none", "fast")}
    with dask.config.set(num_workers=N_THREADS):
        return [*_expressions(stores, folder), *_blocks(stores["none"])]


def _expressions(stores: dict[str, Store], folder: Path) -> list[Row]:
    """Two expressions that any user of xarray would write."""
    values = stores["none"][LAYER].activations.load().drop_vars(["split", "label"]).drop_attrs()
    values.to_dataset(name="activations").to_zarr(folder / "read-plain.zarr", mode="w", consolidated=False)
    plain = xr.open_dataset(folder / "read-plain.zarr", engine="zarr", chunks={}, consolidated=False).activations
    arrays = {name: store[LAYER].activations for name, store in stores.items()} | {"xarray + default zarr": plain}
    over = [dim for dim in plain.dims if dim not in ("checkpoint", "unit")]
    expressions: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
        "acts.mean({})": lambda acts: acts.mean(over),
        "(acts > 0).mean({})": lambda acts: (acts > 0).mean(over),
        "acts.isel(example=[5, 900])": lambda acts: acts.isel(example=[5, 900]),
    }
    rows = []
    for text, expression in expressions.items():
        times = race({name: partial(_compute, expression, acts) for name, acts in arrays.items()})
        what = f"{text.format(', '.join(over))}, plain xarray, profile {{}}"
        row = partial(against, nbytes=plain.nbytes, n_examples=plain.sizes["example"])
        rows += [row(what.format(name), times, name, "xarray + default zarr") for name in stores]
    return rows


def _compute(expression: Callable[[xr.DataArray], xr.DataArray], acts: xr.DataArray) -> None:
    expression(acts).compute()


def _blocks(store: Store) -> list[Row]:
    """Every block of a layer into one buffer a thread, checked, against the same files without a check."""
    spec = store.schema.find(layer_path(LAYER, "activations"))
    assert spec is not None
    storage = store.catalogue.storage
    entries = [
        entry for step in store.checkpoints for entry in store.catalogue.record(int(step)).arrays[spec.path].blocks
    ]
    local = threading.local()

    def buffer() -> NDArray[np.uint8]:
        if not hasattr(local, "buffer"):
            local.buffer = np.zeros(block_nbytes(spec), np.uint8)
        found: NDArray[np.uint8] = local.buffer
        return found

    def checked(entry: BlockEntry) -> None:
        read_block(storage, spec, entry, buffer().view(numpy_dtype(spec)).reshape(block_shape(spec)))

    def bare(entry: BlockEntry) -> None:
        with (Path(storage.path) / entry.key).open("rb", buffering=0) as file:
            file.readinto(buffer().data)

    with ThreadPoolExecutor(N_THREADS) as pool:
        times = race(
            {
                "read_block": lambda: list(pool.map(checked, entries)),
                "readinto": lambda: list(pool.map(bare, entries)),
            }
        )
    what = "blocks into reused buffers, checksums compared"
    nbytes = len(entries) * block_nbytes(spec)
    return [against(what, times, "read_block", "readinto", nbytes=nbytes, n_examples=spec.sizes[0])]
