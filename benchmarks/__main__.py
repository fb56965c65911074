"""`python -m benchmarks [NAME ...]`: run the benchmarks, print their tables, keep them beside this file.

Each ``bench_NAME.py`` here has ``run(folder) -> list[Row]`` and becomes one section of ``results.json`` and
``RESULTS.md``. A run of some sections replaces these and leaves the others, each with the machine and the day it was
made on, and quotes the README's figures anew. A section that fails leaves its error in place of its rows, and the exit
code is 1. With ``--quick`` sizes are
small and nothing is kept.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.harness import QUICK_VARIABLE, n_cores
from benchmarks.quote import quote_in
from benchmarks.report import markdown

HERE: Final = Path(__file__).parent
README: Final = HERE.parent / "README.md"
PACKAGES: Final = (
    "numpy", "numba", "torch", "torchvision", "zarr", "xarray", "dask", "numcodecs", "h5py", "tensorstore", "nnsight",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the sections named, or all; return the exit code."""
    names = available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run benchmarks and keep their tables.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"sections to run; by default all: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, some minutes; nothing is kept")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in names]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}: choose from {', '.join(names)}")
    if given.quick:
        os.environ[QUICK_VARIABLE] = "1"
    set_threads()
    path = HERE / "results.json"
    results: dict[str, Any] = {"sections": {}}
    if path.exists() and not given.quick:
        results = json.loads(path.read_text())
    ran = {name: section(name) for name in given.names or names}
    kept = {**results["sections"], **ran}
    results = {"sections": {name: kept[name] for name in names if name in kept}}
    if not given.quick:
        path.write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "RESULTS.md").write_text(markdown(results))
        quote_in(README, results)
        if "size" in ran and not ran["size"]["error"]:
            importlib.import_module("benchmarks.figure").draw(results, HERE / "time_against_size.png")
    print(markdown({"sections": ran}))
    return int(any(found["error"] for found in ran.values()))


def available() -> list[str]:
    """Names of the benchmarks beside this file."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def section(name: str) -> dict[str, Any]:
    """Run one benchmark in a folder of its own; a failure is part of the result."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    start = time.perf_counter()
    rows, error, title = [], "", name
    try:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        title = (module.__doc__ or name).strip().splitlines()[0]
        with tempfile.TemporaryDirectory(dir=os.environ.get("NDT_BENCH_DIR")) as folder:
            rows = [row.as_json() for row in module.run(Path(folder))]
    except Exception as failure:
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
    seconds = round(time.perf_counter() - start, 1)
    print(f"{name}: {len(rows)} rows in {seconds:.0f} s", file=sys.stderr, flush=True)
    return {"title": title, "error": error, "seconds": seconds, "machine": machine(), "rows": rows}


def set_threads() -> None:
    """One torch thread for each core, also where the environment says otherwise for all."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(n_cores())


def machine() -> dict[str, Any]:
    """Describe what the figures were made on."""
    return {
        "cpu": _cpu(),
        "cores": n_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "day": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
