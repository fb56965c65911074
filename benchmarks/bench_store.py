"""How large a store is beside its raw float32 values, and how long it takes to open one and to say what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import xarray as xr

from benchmarks.harness import Row, against, race
from benchmarks.subjects import LAYERS, captured, dense
from ndt_store import open_store
from ndt_store.codecs import PROFILES

__all__ = ["run"]


def run(folder: Path) -> list[Row]:
    """Sizes of each profile; opening against plain xarray; `ndt info` as a whole process against bare Python."""
    rows = []
    for name in PROFILES:
        path = folder / f"size-{name}.zarr"
        store = captured(path, name)
        raw = sum(dense(store, layer).nbytes for layer in LAYERS)
        on_disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        size = (on_disk / 1e6, raw / 1e6, on_disk / raw)
        rows.append(
            Row(f"size of a store of ReLU activations, profile {name}", "raw float32", *size, (size[2],) * 2, "MB", 1)
        )
    path = folder / "size-none.zarr"
    times = race(
        {
            "open_store": lambda: open_store(path),
            "open_store and one layer": lambda: open_store(path)["relu2"],
            "xarray.open_datatree": lambda: xr.open_datatree(path, engine="zarr").close(),
        }
    )
    rows += [against(what, times, what, "xarray.open_datatree") for what in ("open_store", "open_store and one layer")]
    program = "from ndt_store.cli import main; main()"
    times = race(
        {
            "ndt info": lambda: _process("-c", program, "info", str(path)),
            "python that imports numpy": lambda: _process("-c", "import numpy"),
        }
    )
    rows.append(against("`ndt info`, whole process", times, "ndt info", "python that imports numpy"))
    return rows


def _process(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
