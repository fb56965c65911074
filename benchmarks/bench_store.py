"""How large a store is beside its raw float32 values, and how long it takes to open one and to say what it is."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import xarray as xr

from benchmarks.harness import Bar, Row, against, is_quick, race, sized
from benchmarks.subjects import LAYERS, captured, dense, images
from ndt_store import open_store
from ndt_store.codecs import PROFILES
from ndt_store.testing import simulate_store

__all__ = ["run"]

MEMORY_DISK = Path("/dev/shm")


def run(folder: Path) -> list[Row]:
    """Sizes of each profile; opening a small and a long store; `ndt info` as a whole process."""
    rows = []
    for name in PROFILES:
        path = folder / f"{name}.zarr"
        store = captured(path, name, data=images(100 if is_quick() else 1000))
        raw = sum(dense(store, layer).nbytes for layer in LAYERS)
        on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows.append(sized(f"store of ReLU activations as initialised, profile {name}", "raw float32", on_disk, raw))
    return rows + _opening(folder) + _info(folder / "none.zarr")


def _opening(folder: Path) -> list[Row]:
    """Open a small store, and one of 200 layers and 100 checkpoints, whose 20,000 files are quickest made in memory."""
    rows = []
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if MEMORY_DISK.is_dir() else folder) as place:
        long = Path(place) / "long.zarr"
        n_layers, n_checkpoints = (20, 10) if is_quick() else (200, 100)
        layers = {f"blocks.{n}": (4,) for n in range(n_layers)}
        simulate_store(long, checkpoints=range(n_checkpoints), n_examples=4, layers=layers, kinds=["activations"])
        on = "in memory (tmpfs)" if MEMORY_DISK.is_dir() else "on disk"
        what = f"of {n_layers} layers and {n_checkpoints} checkpoints, {on}"
        for path, title, held in ((folder / "none.zarr", "of 5 layers and 2 checkpoints", False), (long, what, True)):
            times = race(
                {
                    "open_store": partial(open_store, path),
                    "open_store and one layer": partial(_one_layer, path),
                    "xarray.open_datatree": partial(_plain, path),
                }
            )
            for call in ("open_store", "open_store and one layer"):
                faster = Bar(1 / 20, text="at most 1/20") if held and call == "open_store" else None
                rows.append(against(f"{call} {title}", times, call, "xarray.open_datatree", bar=faster))
            if held:
                limit = Bar(0.040, on="ours", text="at most 40 ms")
                rows.append(against(f"open_store {title}", times, "open_store", "xarray.open_datatree", bar=limit))
    return rows


def _one_layer(path: Path) -> None:
    store = open_store(path)
    _ = store[store.layers[0]].activations


def _plain(path: Path) -> None:
    xr.open_datatree(path, engine="zarr").close()


def _info(path: Path) -> list[Row]:
    program = "from ndt_store.cli import main; main()"
    bare = "python that imports numpy"
    times = race(
        {
            "ndt info": lambda: _process("-c", program, "info", str(path)),
            bare: lambda: _process("-c", "import numpy"),
        }
    )
    return [against("`ndt info`, whole process", times, "ndt info", bare)]


def _process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
