"""`make bench`: run every benchmark, print the table, keep it as JSON and Markdown beside this file."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks import bench_capture, bench_scan, bench_store
from benchmarks.harness import Row

HERE = Path(__file__).parent


def main() -> None:
    """Run all, print and save."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("NDT_BENCH_DIR")) as folder:
        for module in (bench_store, bench_capture, bench_scan):
            print(f"{module.__name__} ...", file=sys.stderr)
            rows += module.run(Path(folder))
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "zarr", "xarray", "dask", "numcodecs")},
    }
    (HERE / "results.json").write_text(
        json.dumps({"machine": machine, "rows": [row.as_json() for row in rows]}, indent=1) + "\n"
    )
    table = markdown(rows, machine)
    (HERE / "RESULTS.md").write_text(table)
    print(table)


def markdown(rows: list[Row], machine: dict[str, object]) -> str:
    """Render the rows as a table; a ratio is ours over the baseline's, so that less is better."""
    lines = [
        "# Benchmark results",
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores; medians, ratios taken round by round.",
        "",
        "| what | ours | against | theirs | ours / theirs | least to most | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.what} | {row.ours:.3g} {row.unit} | {row.against} | {row.baseline:.3g} {row.unit} | {row.ratio:.3g} "
        f"| {row.spread[0]:.3g} to {row.spread[1]:.3g} | {row.n} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
