"""Answers from views, against a scan of the same values and against running the model again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import capture
import ndt_query as nq
from benchmarks.harness import Bar, Row, against, is_quick, n_cores, race, sized
from benchmarks.scans import block_rows, memmap_numpy
from benchmarks.subjects import colour_images, resnet18
from ndt_store import Store, index_store, open_store
from ndt_store.testing import simulate_store

__all__ = ["run"]

LAYERS = ("layer1", "layer2", "layer3", "layer4", "fc")
BATCH_SIZE = 100
RERUN_EXAMPLES = 500
K = 20

Blocks = Sequence[tuple[int, NDArray[np.float32]]]


def run(folder: Path) -> list[Row]:
    """Whole-store questions, rankings, and what views take on disk."""
    n_examples, n_checkpoints = (400, 2) if is_quick() else (8000, 4)
    inputs, labels = colour_images(n_examples)
    labels = labels % 10
    path = folder / "views.zarr"
    model = resnet18()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    capture.capture(
        model, (inputs, labels), store=path, checkpoints=[(step, state) for step in range(n_checkpoints)],
        layers=list(LAYERS), batch_size=BATCH_SIZE, compression="none", progress=False,
    )  # fmt: skip
    store = open_store(path)
    (folder / "memmap").mkdir()
    for layer in LAYERS:
        np.save(folder / "memmap" / f"{layer}.npy", store[layer].activations.values)
    rows = _whole(folder, path, model, inputs, labels, n_checkpoints)
    rows += _rankings(folder, store)
    return rows + _sizes(folder)


def _whole(
    folder: Path, path: Path, model: torch.nn.Module, inputs: Any, labels: NDArray[np.int64], n_checkpoints: int
) -> list[Row]:
    """unit_moments, dead_units and class_means of every layer and checkpoint; views are read each time."""
    store = open_store(path)
    scans: dict[str, tuple[Callable[[Store], object], Callable[[], object]]] = {
        "unit_moments": (nq.unit_moments, lambda: memmap_numpy(folder, LAYERS)),
        "dead_units": (nq.dead_units, lambda: _memmap(folder, _firing)),
        "class_means": (nq.class_means, lambda: _memmap(folder, lambda rows, at: _by_class(rows, labels[at]))),
    }
    batch = torch.from_numpy(inputs[:RERUN_EXAMPLES])
    share = len(inputs) * n_checkpoints / RERUN_EXAMPLES

    def rerun() -> None:
        with torch.inference_mode():
            for part in batch.split(BATCH_SIZE):
                model(part)

    rows = []
    nbytes = sum((folder / "memmap" / f"{layer}.npy").stat().st_size for layer in LAYERS)
    for name, (question, scan) in scans.items():
        found: Any = question(store)
        if any(variable.chunks is not None for node in found.leaves for variable in node.data_vars.values()):
            raise AssertionError(f"{name} was not answered from views")
        times = race({"views": lambda q=question: q(store), "numpy.memmap": scan, "model": rerun})
        times["running the model again"] = [seconds * share for seconds in times["model"]]
        what = f"{name} of a store, from views"
        sizes: dict[str, Any] = {"nbytes": nbytes, "n_examples": len(inputs)}
        rows.append(against(what, times, "views", "numpy.memmap", bar=Bar(1 / 50, text="50 times faster"), **sizes))
        rows.append(
            against(
                what,
                times,
                "views",
                "running the model again",
                bar=Bar(1e-3, text="1,000 times faster"),
                **sizes,
                note=f"bare forward pass of {len(batch)} examples, scaled to {share * len(batch):,.0f}",
            )
        )
    return rows


def _memmap(folder: Path, reduce: Callable[[NDArray[np.float32], slice], NDArray[Any]]) -> list[list[NDArray[Any]]]:
    """Reduce every block of every layer and checkpoint in threads."""
    work = []
    for layer in LAYERS:
        array = np.load(folder / "memmap" / f"{layer}.npy", mmap_mode="r")
        step = block_rows(array.shape)
        work += [(array, c, slice(n, n + step)) for c in range(len(array)) for n in range(0, array.shape[1], step)]
    with ThreadPoolExecutor(n_cores()) as pool, threadpool_limits(1, "blas"):
        return list(pool.map(lambda item: reduce(np.asarray(item[0][item[1], item[2]]), item[2]), work))


def _firing(rows: NDArray[np.float32], _at: slice) -> NDArray[Any]:
    """Count active values and firing examples by unit, and NaN, which is what `dead_units` says."""
    flat = rows.reshape(*rows.shape[:2], -1)
    active = np.count_nonzero(flat, axis=2)
    return np.stack([active.sum(axis=0), (active > 0).sum(axis=0), np.isnan(flat.max(axis=2)).sum(axis=0)])


def _by_class(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[Any]:
    """Sum the mean over positions by class and unit, and count NaN, which is what `class_means` says."""
    means = rows.reshape(*rows.shape[:2], -1).mean(axis=2, dtype=np.float64)
    return np.vstack([np.eye(10)[labels].T @ means, np.isnan(means).sum(axis=0)])


def _rankings(folder: Path, store: Store) -> list[Row]:
    acts = store["fc"].activations.isel(checkpoint=[-1])
    dense = np.load(folder / "memmap" / "fc.npy", mmap_mode="r")[-1]
    ids = store.examples

    def brute(units: Sequence[int]) -> NDArray[np.int64]:
        return np.stack([ids[np.lexsort((ids, -dense[:, unit]))[:K]] for unit in units])

    every = range(dense.shape[1])
    if not np.array_equal(nq.top_examples(acts, k=K)["example"].values[0], brute(every)):
        raise AssertionError("top_examples differs from a full sort")
    one, whole = f"top {K} of one unit, from the view", f"top {K} of each of {len(every):,} units, from the view"
    times = race(
        {
            one: lambda: nq.top_examples(acts.sel(unit=[7]), k=K),
            whole: lambda: nq.top_examples(acts, k=K),
            "a full sort of one unit": lambda: brute([7]),
            "a full sort of each unit": lambda: brute(every),
        }
    )
    sizes: dict[str, Any] = {"nbytes": dense.nbytes, "n_examples": len(dense), "note": "equal for every unit"}
    return [
        against(one, times, one, "a full sort of one unit", bar=Bar(0.005, "ours", "at most 5 ms"), **sizes),
        against(whole, times, whole, "a full sort of each unit", bar=Bar(0.02, "ours", "at most 20 ms"), **sizes),
    ]


def _sizes(folder: Path) -> list[Row]:
    """Bytes of views at 16,384 examples, of dense and of convolutional layers."""
    n = 1024 if is_quick() else 16_384
    rows = []
    for layer, shape in {"a dense layer of 1,000 units": (1000,), "a layer of 64 maps of 8 x 8": (64, 8, 8)}.items():
        simulated = simulate_store(
            folder / f"size-{shape[0]}.zarr", checkpoints=(0,), n_examples=n, n_classes=10, layers={"layer": shape},
            kinds=("activations",), codec="none", block_nbytes=8 << 20,
        )  # fmt: skip
        index_store(simulated.store)
        cube = simulated.arrays["layers/layer/activations"].nbytes
        by_view = {
            view.name: sum(file.stat().st_size for file in view.rglob("*") if file.is_file())
            for view in (folder / f"size-{shape[0]}.zarr" / "views").iterdir()
        }
        without_gram = sum(size for name, size in by_view.items() if not name.startswith("gram"))
        against_what = f"raw float32 of {layer}, {n:,} examples"
        bar = None if is_quick() else Bar(0.01, text="at most 1%")
        rows.append(sized("size of view topk, k = 64", against_what, by_view["topk"], cube, bar=bar))
        bar = None if is_quick() else Bar(0.03, text="at most 3%")
        rows.append(sized("size of all views but Gram", against_what, without_gram, cube, bar=bar))
        nq.dimensionality(simulated.store, positions="mean", memory="4 GB").compute()
        gram = sum(
            file.stat().st_size
            for file in (folder / f"size-{shape[0]}.zarr" / "views").rglob("*")
            if file.is_file() and "gram" in file.as_posix()
        )
        rows.append(sized("size of view gram-mean", against_what, gram, cube))
    return rows
