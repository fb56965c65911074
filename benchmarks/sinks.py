"""Where peers put what they keep: files, arrays and containers, with and without waiting for the disk."""

# ruff: noqa: D102 - the methods are documented once, in the protocol

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.pagecache import files_below

__all__ = [
    "HdfSink", "MemmapSink", "SaveSink", "Sink", "TensorStoreSink", "ThreadedSaveSink", "Values", "ZarrSink",
    "open_tensorstore", "sync_files",
]  # fmt: skip

Values = NDArray[np.float32]

IN_FLIGHT: Final = 8
"""Writes that may be under way before the forward pass waits, so that memory stays bounded."""


class Sink(Protocol):
    """Where values go: made for a folder, a number of examples, and whether closing it waits for the disk."""

    def write(self, layer: str, start: int, values: Values) -> None:
        """Keep the values of the examples from `start` on."""

    def close(self) -> None:
        """Finish."""

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        """Return all that was kept of a layer, (example, ...)."""


def sync_files(*places: Path) -> None:
    """Wait until files and their folders are on the disk."""
    files = files_below(*places)
    for path in [*files, *dict.fromkeys(file.parent for file in files)]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class SaveSink:
    """numpy.save: one file for each layer and batch."""

    def __init__(self, folder: Path, _n_examples: int, durable: bool) -> None:
        self.folder = folder
        self.durable = durable

    def write(self, layer: str, start: int, values: Values) -> None:
        with (self.folder / f"{layer}-{start:08d}.npy").open("wb") as file:
            np.save(file, values)
            if self.durable:
                file.flush()
                os.fsync(file.fileno())

    def close(self) -> None:
        if self.durable:
            sync_files(self.folder)

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        return np.concatenate([np.load(file) for file in sorted(folder.glob(f"{layer}-*.npy"))])


class ThreadedSaveSink(SaveSink):
    """numpy.save in two threads beside the forward pass."""

    def __init__(self, folder: Path, n_examples: int, durable: bool) -> None:
        super().__init__(folder, n_examples, durable)
        self.pool = ThreadPoolExecutor(2)
        self.pending: list[Future[None]] = []

    def write(self, layer: str, start: int, values: Values) -> None:
        if len(self.pending) >= IN_FLIGHT:
            self.pending.pop(0).result()
        self.pending.append(self.pool.submit(super().write, layer, start, values))

    def close(self) -> None:
        for future in self.pending:
            future.result()
        self.pool.shutdown()
        super().close()


class MemmapSink:
    """numpy.memmap: one file a layer, allocated at its full size."""

    def __init__(self, folder: Path, n_examples: int, durable: bool) -> None:
        self.folder = folder
        self.n_examples = n_examples
        self.durable = durable
        self.arrays: dict[str, np.memmap[Any, np.dtype[np.float32]]] = {}

    def write(self, layer: str, start: int, values: Values) -> None:
        if layer not in self.arrays:
            self.arrays[layer] = np.lib.format.open_memmap(
                self.folder / f"{layer}.npy", "w+", np.float32, (self.n_examples, *values.shape[1:])
            )
        self.arrays[layer][start : start + len(values)] = values

    def close(self) -> None:
        if self.durable:
            for array in self.arrays.values():
                array.flush()
        self.arrays.clear()
        if self.durable:
            sync_files(self.folder)

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        values: Values = np.load(folder / f"{layer}.npy")
        return values


class HdfSink:
    """h5py: one contiguous dataset a layer in one file."""

    def __init__(self, folder: Path, n_examples: int, durable: bool) -> None:
        import h5py

        self.file = h5py.File(folder / "kept.h5", "w", libver="latest")
        self.folder = folder
        self.n_examples = n_examples
        self.durable = durable

    def write(self, layer: str, start: int, values: Values) -> None:
        if layer not in self.file:
            # Filling what is overwritten anyway would write every byte twice.
            self.file.create_dataset(layer, (self.n_examples, *values.shape[1:]), "f4", fill_time="never")
        self.file[layer].write_direct(values, dest_sel=np.s_[start : start + len(values)])

    def close(self) -> None:
        self.file.close()
        if self.durable:
            sync_files(self.folder)

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        import h5py

        with h5py.File(folder / "kept.h5") as file:
            values: Values = file[layer][...]
        return values


class TensorStoreSink:
    """tensorstore: one uncompressed Zarr v3 array a layer, a chunk a batch, written asynchronously."""

    def __init__(self, folder: Path, n_examples: int, durable: bool) -> None:
        import tensorstore

        self.folder = folder
        self.n_examples = n_examples
        # Its file driver syncs every file and folder by default.
        self.context = tensorstore.Context({"file_io_sync": durable})
        self.arrays: dict[str, Any] = {}
        self.pending: list[Any] = []

    def write(self, layer: str, start: int, values: Values) -> None:
        if layer not in self.arrays:
            self.arrays[layer] = open_tensorstore(
                self.folder / layer, (self.n_examples, *values.shape[1:]), values.shape, context=self.context
            )
        if len(self.pending) >= IN_FLIGHT:
            self.pending.pop(0).result()
        self.pending.append(self.arrays[layer][start : start + len(values)].write(values))

    def close(self) -> None:
        for future in self.pending:
            future.result()

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        values: Values = open_tensorstore(folder / layer).read().result()
        return values


def open_tensorstore(path: Path, shape: Sequence[int] = (), chunks: Sequence[int] = (), *, context: Any = None) -> Any:
    """Open a Zarr v3 array of float32 with tensorstore, or make one, uncompressed, where a shape is given."""
    import tensorstore as ts

    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
    if not shape:
        return ts.open(place, context=context).result()
    raw = ts.CodecSpec({"driver": "zarr3", "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]})
    return ts.open(
        place,
        create=True,
        dtype=ts.float32,
        shape=list(shape),
        chunk_layout=ts.ChunkLayout(chunk_shape=list(chunks)),
        fill_value=np.float32(np.nan),
        codec=raw,
        context=context,
    ).result()


class ZarrSink:
    """zarr-python: one array a layer, a chunk a batch, its default compression and pipeline."""

    def __init__(self, folder: Path, n_examples: int, durable: bool) -> None:
        import zarr

        self.group = zarr.open_group(folder / "kept.zarr", mode="w")
        self.folder = folder
        self.n_examples = n_examples
        self.durable = durable
        self.arrays: dict[str, Any] = {}

    def write(self, layer: str, start: int, values: Values) -> None:
        if layer not in self.arrays:
            shape = (self.n_examples, *values.shape[1:])
            self.arrays[layer] = self.group.create_array(layer, shape=shape, chunks=values.shape, dtype="float32")
        self.arrays[layer][start : start + len(values)] = values

    def close(self) -> None:
        if self.durable:
            sync_files(self.folder)

    @staticmethod
    def read(folder: Path, layer: str) -> Values:
        import zarr

        array: Any = zarr.open_group(folder / "kept.zarr", mode="r")[layer]
        return np.asarray(array[...])
