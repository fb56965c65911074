"""CKA of all layers and checkpoints from Gram views, and what twice the examples cost beyond one batch.

The first store has six layers at eight checkpoints and 1,000 examples; a fresh process asks for all pairs after it has
asked once, so that the figure is the query's and not that of imports. The other store has one wide layer of random
values, of which a fresh process with two threads asks `cka_matrix` for n examples and for 2n, in turn; its peak memory
is the kernel's own, ``VmHWM``, and that of the process which asks nothing stands beside it. A block is read
once for every four batches, 4,096 examples. Of more than 16 batches, 16,384 examples, as many are drawn at random.
"""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.bench_memory import Cube, Peak, peak, write_cube
from benchmarks.harness import Bar, Row, against, is_quick, sized
from ndt_store import index_store, open_store
from ndt_store.testing import simulate_store

__all__ = ["run"]

BAR_SECONDS: Final = 0.5
LAYERS: Final = {f"layer{place}": (16 * place, 8, 8) for place in range(1, 7)}
STEPS: Final = tuple(range(0, 800, 100))
SHAPE: Final = (64, 10, 10)
SIZES: Final = 4096, 8192, 16_384
ROUNDS: Final = 5

ALL_PAIRS: Final = "nq.cka_matrix(store)"
WARM: Final = "store = open_store(sys.argv[1]); nq.cka_matrix(store)"
NOTHING: Final = "acts.sizes"
ONE: Final = "nq.cka_matrix(acts)"


def run(folder: Path) -> list[Row]:
    """Ask about a store with views, then about n and 2n examples of one without."""
    sizes = (2048,) if is_quick() else SIZES
    return [_from_views(folder / "views.zarr"), *(row for n in sizes for row in _doubled(folder, n))]


def _from_views(path: Path) -> Row:
    n_examples = 100 if is_quick() else 1000
    simulate_store(
        path, checkpoints=STEPS, n_examples=n_examples, layers=LAYERS, kinds=("activations",), block_nbytes=8 << 20
    )
    store = open_store(path)
    index_store(store, gram=("flatten",))
    nbytes = sum(store[layer].activations.nbytes for layer in store.layers)
    seconds = [peak(path, ALL_PAIRS, "", WARM).seconds for _ in range(1 if is_quick() else ROUNDS)]
    shutil.rmtree(path)
    what = f"all pairs of {len(LAYERS)} layers at {len(STEPS)} checkpoints, from Gram views"
    times = {"views": seconds, "the bar": [BAR_SECONDS] * len(seconds)}
    bar = Bar(BAR_SECONDS, "ours", f"at most {BAR_SECONDS:g} s")
    return against(what, times, "views", "the bar", nbytes=nbytes, n_examples=n_examples, bar=bar)


def _doubled(folder: Path, n: int) -> list[Row]:
    """Time and peak memory of 2n examples over those of n, in batches of the default size."""
    cubes = {size: Cube(1, size, SHAPE) for size in (n, 2 * n)}
    for size, cube in cubes.items():
        write_cube(folder / f"{size}.zarr", cube)
    found: dict[int, list[Peak]] = {size: [] for size in cubes}
    for number in range(1 + (1 if is_quick() else ROUNDS)):
        for size in (n, 2 * n) if number % 2 else (2 * n, n):
            one = peak(folder / f"{size}.zarr", ONE)
            if number:
                found[size].append(one)
    idle = peak(folder / f"{n}.zarr", NOTHING).nbytes
    for size in cubes:
        shutil.rmtree(folder / f"{size}.zarr")
    times = {f"{size:,} examples": [one.seconds for one in ran] for size, ran in found.items()}
    small, large = (int(statistics.median(one.nbytes for one in found[size])) for size in (n, 2 * n))
    whole = {"nbytes": cubes[2 * n].nbytes, "n_examples": 2 * n}
    short, long = times
    row = against(f"time of all pairs, {long}", times, long, short, bar=Bar(2.0), **whole)
    memory = replace(
        sized(f"peak memory of the same, {long}", short, large, small, bar=None if is_quick() else Bar(1.1)),
        **whole,
        note=f"the process that asks nothing of {short} takes {idle / 1e6:.0f} MB",
    )
    return [row, memory]
