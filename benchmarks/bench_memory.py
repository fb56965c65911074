"""Peak memory of questions about a cube far larger than memory should be, each in a fresh process.

The cube is random, written without compression, and removed afterwards. A question runs with two threads, the budget
that it takes by itself, and no view to answer from; its peak is the kernel's own, ``VmHWM``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.harness import Bar, Row, is_quick, sized
from ndt_store import StoreWriter
from ndt_store.layout import blocks
from ndt_store.planning import ProbeSet, Tap, plan_store

__all__ = ["Cube", "Peak", "peak", "run", "write_cube"]

BAR_MB: Final = 1500
LAYER: Final = "conv"

QUESTIONS: Final[Mapping[str, str]] = {
    "unit_moments": "nq.unit_moments(acts, views=False)",
    "dimensionality of position means": "nq.dimensionality(acts, positions='mean', views=False)",
    "dimensionality of flattened maps": "nq.dimensionality(acts, positions='flatten', interval='none', views=False)",
}

PROGRAM: Final = """
import json, sys, time
import dask
dask.config.set(num_workers=2)
import ndt_query as nq
from ndt_store import open_store
exec(sys.argv[4])
start = time.perf_counter()
eval(sys.argv[3])
seconds = time.perf_counter() - start
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"nbytes": int(line.split()[1]) * 1024, "seconds": seconds}))
"""


PREPARE: Final = "acts = open_store(sys.argv[1])[sys.argv[2]].activations"


@dataclass(frozen=True)
class Cube:
    """Extents of a cube of float32 activations."""

    n_checkpoints: int
    n_examples: int
    shape: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 4 * self.n_checkpoints * self.n_examples * int(np.prod(self.shape))


FULL: Final = Cube(10, 4000, (256, 17, 17))
QUICK: Final = Cube(4, 1000, (64, 9, 9))


@dataclass(frozen=True)
class Peak:
    """What one question took: the most memory that its process ever held, and seconds."""

    nbytes: int
    seconds: float


def run(folder: Path, cube: Cube | None = None) -> list[Row]:
    """Ask each question of the cube: 12 GB at full scale."""
    cube = cube or (QUICK if is_quick() else FULL)
    path = folder / "memory.zarr"
    write_cube(path, cube)
    rows = []
    for name, question in QUESTIONS.items():
        found = peak(path, f"{question}.compute()")
        what = f"peak memory of {name}"
        row = sized(what, "the bar", found.nbytes, BAR_MB * 1_000_000, bar=Bar(BAR_MB, "ours", f"at most {BAR_MB} MB"))
        note = f"{name}: {found.seconds:.0f} s for {cube.nbytes / 1e9:.1f} GB, {cube.n_checkpoints} checkpoints"
        rows.append(replace(row, nbytes=cube.nbytes, n_examples=cube.n_examples, note=note))
    return rows


def peak(path: Path, question: str, layer: str = LAYER, prepare: str = PREPARE) -> Peak:
    """Evaluate a question in a fresh process that has run `prepare`: by default it binds activations to ``acts``."""
    command: Sequence[str] = [sys.executable, "-c", PROGRAM, str(path), layer, question, prepare]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{question} failed: {done.stderr[-2000:]}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def write_cube(path: Path, cube: Cube) -> None:
    """Write a store of one layer; every block holds the same random values from another place on."""
    probe = ProbeSet(np.zeros((cube.n_examples, 1), np.float32), np.arange(cube.n_examples) % 10)
    tap = Tap(LAYER, "activations", ("example", "unit", "y", "x"), cube.shape)
    schema, static = plan_store(range(cube.n_checkpoints), probe, [tap], codec="none")
    spec = schema.find(f"layers/{LAYER}/activations")
    assert spec is not None
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal(2 * spec.rows * int(np.prod(cube.shape)), dtype=np.float32), 0)
    with StoreWriter.open(path, schema, static=static, provenance={}) as writer:
        for step in range(cube.n_checkpoints):
            for array in schema.cubes:
                for block in blocks(array):
                    shape = (block.stop - block.start, *array.sizes[1:]) if array.sizes else ()
                    if array == spec:
                        start = int(rng.integers(len(values) // 2))
                        part = values[start : start + int(np.prod(shape))].reshape(shape)
                    else:
                        part = np.asarray("", object) if array.dtype == "string" else np.zeros(shape, array.dtype)
                    writer.write_block(step, array.path, block.index, part)
            writer.commit(step)
