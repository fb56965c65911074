"""Per-unit moments of arrays in other formats, two threads, a block at a time, nothing read or copied twice.

h5py and tensorstore read blocks for the store's own kernel, so that they are compared as formats. numpy.memmap is
shown twice: with that kernel, and with what numpy itself offers.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.harness import n_cores
from benchmarks.sinks import open_tensorstore
from ndt_store import open_store
from ndt_store.layout import BLOCK_NBYTES
from ndt_store.views import moments

__all__ = ["FORMATS", "Format", "Moments", "Scan", "block_rows", "kernel_moments", "numpy_moments", "write_formats"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Moments = Mapping[str, Sequence[NDArray[Any]]]
"""By layer: mean, std, min, max, mean magnitude and active fraction, each (checkpoint, unit)."""
Scan = Callable[[], Moments]
Place = tuple[str, int]
"""Layer, and position of the checkpoint."""
Blocks = Sequence[tuple[Place, Callable[[], F32]]]

SLAB_NBYTES: Final = 1 << 20
"""Float64 values handled at a time by numpy: about a core's own cache."""


@dataclass(frozen=True)
class Format:
    """A format beside ours: where `write_formats` puts it, what it needs, and how its moments are computed."""

    place: str
    package: str
    scan: Callable[[Path, Sequence[str]], Moments]

    @property
    def is_installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None


def block_rows(shape: Sequence[int]) -> int:
    """Examples in a block of about the size of the store's."""
    return max(1, BLOCK_NBYTES // (math.prod(shape[2:]) * 4))


def write_formats(folder: Path, store: Path, layers: Sequence[str]) -> int:
    """Write the activations of a store in every format that is installed; return their bytes as float32."""
    opened = open_store(store)
    (folder / "memmap").mkdir()
    nbytes = 0
    for layer in layers:
        acts = opened[layer].activations
        values: F32 = acts.values
        nbytes += values.nbytes
        chunks = (1, block_rows(values.shape), *values.shape[2:])
        np.save(folder / "memmap" / f"{layer}.npy", values)
        plain = xr.Dataset({"activations": (acts.dims, values)})
        encoding = {"activations": {"chunks": chunks}}
        plain.to_zarr(folder / "plain.zarr", group=layer, mode="w", consolidated=False, encoding=encoding)
        if importlib.util.find_spec("h5py"):
            import h5py

            with h5py.File(folder / "kept.h5", "a", libver="latest") as file:
                file.create_dataset(layer, data=values)
        if importlib.util.find_spec("tensorstore"):
            array = open_tensorstore(folder / "tensorstore" / layer, values.shape, chunks)
            array.write(values).result()
    return nbytes


def kernel_moments(blocks: Blocks, n_threads: int) -> Moments:
    """Read blocks and put them through the store's kernel, in threads."""

    def one(item: tuple[Place, Callable[[], F32]]) -> tuple[Place, moments.Moments]:
        place, read = item
        values = read()
        rows, units = values.shape[:2]
        return place, moments.update(values.reshape(1, rows, 1, units, -1))

    merged: dict[Place, moments.Moments] = {}
    with ThreadPoolExecutor(n_threads) as pool, threadpool_limits(1, "blas"):
        for place, state in pool.map(one, blocks):
            merged[place] = moments.merge(merged[place], state) if place in merged else state
    names = ("mean", "std", "min", "max", "mean_abs", "active_fraction")
    found: dict[str, list[list[Any]]] = {}
    for (layer, _), state in merged.items():
        final = moments.finalise(state)
        found.setdefault(layer, []).append([final[name][0] for name in names])
    return {layer: [np.stack(column) for column in zip(*rows, strict=True)] for layer, rows in found.items()}


def _memmap_blocks(folder: Path, layers: Sequence[str]) -> Blocks:
    def part(array: Any, c: int, start: int, rows: int) -> Callable[[], F32]:
        return lambda: np.asarray(array[c, start : start + rows])

    opened = {layer: np.load(folder / "memmap" / f"{layer}.npy", mmap_mode="r") for layer in layers}
    return [
        ((layer, c), part(array, c, start, block_rows(array.shape)))
        for layer, array in opened.items()
        for c in range(len(array))
        for start in range(0, array.shape[1], block_rows(array.shape))
    ]


def memmap_kernel(folder: Path, layers: Sequence[str]) -> Moments:
    """numpy.memmap, handed to the store's kernel in place."""
    return kernel_moments(_memmap_blocks(folder, layers), n_cores())


def hdf_kernel(folder: Path, layers: Sequence[str]) -> Moments:
    """h5py, read into one buffer a thread; the library lets one thread in at a time."""
    import h5py

    buffers = threading.local()

    def part(dataset: Any, c: int, start: int, rows: int) -> Callable[[], F32]:
        def read() -> F32:
            n = min(rows, dataset.shape[1] - start)
            size = n * math.prod(dataset.shape[2:])
            if not hasattr(buffers, "values") or buffers.values.size < size:
                buffers.values = np.empty(size, np.float32)
            values: F32 = buffers.values[:size].reshape(n, *dataset.shape[2:])
            dataset.read_direct(values, np.s_[c, start : start + n])
            return values

        return read

    with h5py.File(folder / "kept.h5") as file:
        blocks = [
            ((layer, c), part(file[layer], c, start, block_rows(file[layer].shape)))
            for layer in layers
            for c in range(len(file[layer]))
            for start in range(0, file[layer].shape[1], block_rows(file[layer].shape))
        ]
        return kernel_moments(blocks, n_cores())


def tensorstore_kernel(folder: Path, layers: Sequence[str]) -> Moments:
    """tensorstore, a whole chunk at a time, its own caching left at its default of none."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": n_cores()}})

    def part(array: Any, c: int, start: int, rows: int) -> Callable[[], F32]:
        return lambda: array[c, start : min(start + rows, array.shape[1])].read().result()

    opened = {layer: open_tensorstore(folder / "tensorstore" / layer, context=context) for layer in layers}
    blocks = [
        ((layer, c), part(array, c, start, block_rows(array.shape)))
        for layer, array in opened.items()
        for c in range(array.shape[0])
        for start in range(0, array.shape[1], block_rows(array.shape))
    ]
    return kernel_moments(blocks, n_cores())


def memmap_numpy(folder: Path, layers: Sequence[str]) -> Moments:
    """numpy.memmap and numpy's own reductions."""
    return numpy_moments(_memmap_blocks(folder, layers), n_cores())


def numpy_moments(blocks: Blocks, n_threads: int) -> Moments:
    """Moments by numpy: slabs that fit the cache, columns summed by BLAS in float64, positions joined at the end."""

    def one(item: tuple[Place, Callable[[], F32]]) -> tuple[Place, int, int, F64]:
        place, read = item
        values = read()
        return place, values.shape[1], len(values), _column_sums(values.reshape(len(values), -1))

    totals: dict[Place, tuple[int, int, F64]] = {}
    with ThreadPoolExecutor(n_threads) as pool, threadpool_limits(1, "blas"):
        for place, n_units, n, sums in pool.map(one, blocks):
            if place in totals:
                _, n_before, before = totals[place]
                before[:4] += sums[:4]
                np.minimum(before[4], sums[4], out=before[4])
                np.maximum(before[5], sums[5], out=before[5])
                totals[place] = n_units, n_before + n, before
            else:
                totals[place] = n_units, n, sums
    found: dict[str, list[list[F64]]] = {}
    for (layer, _), (n_units, n, sums) in totals.items():
        by_unit = sums.reshape(6, n_units, -1)
        total, squares, absolute, active = by_unit[:4].sum(axis=2) / (n * by_unit.shape[2])
        std = np.sqrt(np.maximum(squares - total**2, 0))
        row = [total, std, by_unit[4].min(axis=1), by_unit[5].max(axis=1), absolute, active]
        found.setdefault(layer, []).append(row)
    return {layer: [np.stack(column) for column in zip(*rows, strict=True)] for layer, rows in found.items()}


def _column_sums(values: F32) -> F64:
    """Sum, sum of squares, sum of magnitudes, active count, least and largest of each column of (example, column)."""
    n, columns = values.shape
    # At most 255 rows, which is what an uint8 counter holds.
    step = max(1, min(255, SLAB_NBYTES // (8 * columns)))
    sums = np.zeros((6, columns))
    sums[4], sums[5] = np.inf, -np.inf
    exact, mask, ones = np.empty((step, columns)), np.empty((step, columns), np.bool_), np.ones(step)
    for start in range(0, n, step):
        slab = values[start : start + step]
        rows = len(slab)
        np.minimum(sums[4], slab.min(axis=0), out=sums[4])
        np.maximum(sums[5], slab.max(axis=0), out=sums[5])
        np.greater(slab, 0, out=mask[:rows])
        sums[3] += np.add.reduce(mask[:rows].view(np.uint8), axis=0, dtype=np.uint8)
        np.copyto(exact[:rows], slab)
        sums[0] += ones[:rows] @ exact[:rows]
        np.abs(exact[:rows], out=exact[:rows])
        sums[2] += ones[:rows] @ exact[:rows]
        np.multiply(exact[:rows], exact[:rows], out=exact[:rows])
        sums[1] += ones[:rows] @ exact[:rows]
    return sums


FORMATS: Mapping[str, Format] = {
    "numpy.memmap + numpy": Format("memmap", "numpy", memmap_numpy),
    "numpy.memmap + our kernel": Format("memmap", "numpy", memmap_kernel),
    "h5py + our kernel": Format("kept.h5", "h5py", hdf_kernel),
    "tensorstore + our kernel": Format("tensorstore", "tensorstore", tensorstore_kernel),
}
