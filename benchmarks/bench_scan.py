"""All per-unit moments of a layer group: a scan of the store, beside other formats and beside the machine's limit.

Every candidate computes mean, std, min, max, mean magnitude and active fraction with float64 accumulators, and is
compared with the others before any is timed. The floor reads the stored bytes of profile ``none`` into one buffer a
thread and hands them to the kernel: no checksum and no labels.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray

import ndt_query as nq
from benchmarks.harness import Bar, Row, against, is_quick, n_cores, race
from benchmarks.pagecache import can_drop, files_below
from benchmarks.scans import FORMATS, Moments, Scan, kernel_moments, write_formats
from benchmarks.subjects import LAYERS, captured, images
from ndt_store import open_store
from ndt_store.layout import block, block_shape

__all__ = ["run", "scan_only"]

PROFILES: Final = ("none", "fast")
XARRAY: Final = "xarray + dask, default zarr store"
FLOOR: Final = "floor: readinto + bare kernel"
BARS: Final = {XARRAY: Bar(1 / 6, text="at most 1/6"), FLOOR: Bar(1 / 0.7, text="at most 1/0.7")}


def run(folder: Path) -> list[Row]:
    """Scan every ReLU of cnn_deep at three checkpoints, from memory and from the disk."""
    n_examples, n_checkpoints = (400, 1) if is_quick() else (4000, 3)
    layers = LAYERS[:4]
    for name in PROFILES:
        captured(folder / f"{name}.zarr", name, n_checkpoints=n_checkpoints, data=images(n_examples), layers=layers)
    nbytes = write_formats(folder, folder / "none.zarr", layers)
    scans: dict[str, Scan] = {
        **{f"ours, {name}": partial(ours, folder / f"{name}.zarr", layers) for name in PROFILES},
        XARRAY: partial(plain_xarray, folder / "plain.zarr", layers),
        FLOOR: partial(floor, folder / "none.zarr", layers),
        **{name: partial(made.scan, folder, layers) for name, made in FORMATS.items() if made.is_installed},
    }
    _require_equal(scans)
    places = {name: [folder / made.place] for name, made in FORMATS.items()}
    places |= {f"ours, {name}": [folder / f"{name}.zarr"] for name in PROFILES}
    places |= {XARRAY: [folder / "plain.zarr"], FLOOR: [folder / "none.zarr"]}
    size = {"nbytes": nbytes, "n_examples": n_examples * n_checkpoints}
    rows = _rows(race(scans), cache="warm", **size)
    if can_drop(folder):
        cold = {name: files_below(*places[name]) for name in scans}
        rows += _rows(race(scans, cold=cold), cache="cold", **size)
    return rows


def _rows(times: Mapping[str, list[float]], *, cache: Any, **size: Any) -> list[Row]:
    rows = []
    for name in PROFILES:
        for baseline in times:
            if baseline.startswith("ours") or (baseline == FLOOR and name != "none"):
                continue
            # The bars are set for a warm cache.
            bar = BARS.get(baseline) if cache == "warm" else None
            what = f"all per-unit moments of 4 ReLU layers, profile {name}"
            rows.append(against(what, times, f"ours, {name}", baseline, cache=cache, bar=bar, **size))
    return rows


def scan_only(function: Callable[..., Any]) -> dict[str, Any]:
    """Options that keep a query from answering out of a view."""
    return {"views": False} if "views" in inspect.signature(function).parameters else {}


def ours(path: Path, layers: tuple[str, ...]) -> Moments:
    """`unit_moments` of every layer, computed together."""
    store = open_store(path)
    options = scan_only(nq.unit_moments)
    found = dask.compute(*(nq.unit_moments(store[layer].activations, **options) for layer in layers))
    names = ("mean", "std", "min", "max", "mean_abs", "active_fraction")
    return {layer: [moments[name].values for name in names] for layer, moments in zip(layers, found, strict=True)}


def plain_xarray(path: Path, layers: tuple[str, ...]) -> Moments:
    """Compute the same in xarray's own words, every reduction over one reading of each chunk."""
    wanted = []
    for layer in layers:
        opened = xr.open_dataset(path, group=layer, engine="zarr", chunks={}, consolidated=False)
        acts = opened.activations
        over = [dim for dim in acts.dims if dim not in ("checkpoint", "unit")]
        exact: dict[str, Any] = {"dtype": np.float64}
        found = [acts.mean(over, **exact), acts.std(over, **exact), acts.min(over), acts.max(over)]
        wanted.append([*found, abs(acts).mean(over, **exact), (acts > 0).mean(over)])
    results = dask.compute(*wanted)
    return {layer: [array.values for array in found] for layer, found in zip(layers, results, strict=True)}


def floor(path: Path, layers: tuple[str, ...]) -> Moments:
    """Read the stored bytes into one buffer a thread and give them to the kernel."""
    store = open_store(path)
    buffers = threading.local()

    def part(file: str, shape: tuple[int, ...], rows: int) -> Callable[[], NDArray[np.float32]]:
        size = math.prod(shape)

        def read() -> NDArray[np.float32]:
            if not hasattr(buffers, "values") or buffers.values.size < size:
                buffers.values = np.empty(size, np.float32)
            values: NDArray[np.float32] = buffers.values[:size].reshape(shape)
            with open(file, "rb", buffering=0) as opened:  # noqa: PTH123 - Path.open adds to what is measured
                opened.readinto(values.reshape(-1).view(np.uint8).data)
            return values[:rows]

        return read

    blocks = []
    for layer in layers:
        spec = store.schema.find(f"layers/{layer}/activations")
        assert spec is not None
        for position, step in enumerate(store.checkpoints.tolist()):
            for index, entry in enumerate(store.catalogue.record(step).arrays[spec.path].blocks):
                where = block(spec, index)
                # The last block is padded on disk.
                rows = where.stop - where.start
                blocks.append(((layer, position), part(str(path / entry.key), block_shape(spec), rows)))
    return kernel_moments(blocks, n_cores())


def _require_equal(scans: Mapping[str, Scan]) -> None:
    """Refuse to time candidates that do not compute the same numbers."""
    found = {name: scan() for name, scan in scans.items()}
    first = next(iter(found.values()))
    for name, moments in found.items():
        for layer, expected in first.items():
            for got, wanted in zip(moments[layer], expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9, err_msg=f"{name}, {layer}")
