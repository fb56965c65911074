"""Data for the tests of questions: labelled arrays, and a source that counts its reads."""

from __future__ import annotations

import threading

import dask.array as da
import numpy as np
import xarray as xr

from ndt_store import Store
from ndt_store.storage import LocalStorage

DIMS = {1: ("unit",), 2: ("token", "unit"), 3: ("unit", "y", "x")}


class CountingSource:
    """An array that dask reads chunk by chunk, and that notes each read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, values.ndim
        self.reads: list[tuple[slice, ...]] = []
        self._lock = threading.Lock()

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        with self._lock:
            self.reads.append(key)
        return self.values[key]


def labelled(values: np.ndarray, *, n_classes: int = 3, chunks: tuple[int, ...] | None = None) -> xr.DataArray:
    """Label (checkpoint, example, ...) values as a store does; lazily where chunks are given."""
    _, n, *shape = values.shape
    return xr.DataArray(
        values if chunks is None else da.from_array(values, chunks=chunks),
        dims=("checkpoint", "example", *DIMS[len(shape)]),
        coords={
            "checkpoint": np.arange(values.shape[0]) * 100,
            "example": np.arange(n) * 2 + 5,
            "unit": np.arange(shape[0] if len(shape) != 2 else shape[1]),
            "label": ("example", np.arange(n) % n_classes),
        },
        name="activations",
        attrs={"store": "run.zarr", "layer": "conv1", "kind": "activations"},
    )


def counted(values: np.ndarray, chunks: tuple[int, ...]) -> tuple[xr.DataArray, CountingSource]:
    """Label values that are read through a counting source."""
    source = CountingSource(values)
    array = da.from_array(source, chunks=chunks, asarray=False, meta=np.empty((0,) * values.ndim, values.dtype))
    return labelled(values).copy(data=array), source


class CountingStorage(LocalStorage):
    """Counts blocks of layers that are read."""

    reads: list[str]

    def __init__(self, root):
        super().__init__(root)
        self.reads = []

    def read_into(self, key, buffers):
        if key.startswith("layers/") and ("activations" in key or "gradients" in key):
            self.reads.append(key)
        return super().read_into(key, buffers)


def reads(store: Store) -> list[str]:
    """Blocks of layers that were read of a store on a `CountingStorage`."""
    return store.catalogue.storage.reads
