"""The study of a CNN as one query: its memory, its time with and without views, and what views spare it reading.

cnn_deep is trained for some steps on 2,000 images and captured at five moments, five layers. The study then runs in
fresh processes, in turn with the views that the capture and an earlier study left, and with none; what a process read
is the kernel's own count, ``rchar`` of ``/proc/self/io``, and its peak ``VmHWM``.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

import capture
from benchmarks.harness import Bar, Row, against, is_quick, sized
from benchmarks.subjects import LAYERS, images
from capture.models import build_model

__all__ = ["run"]

BAR_MB: Final = 1500
ROUNDS: Final = 3
MOMENTS: Final = (0, 5, 20, 60, 150)
QUICK_MOMENTS: Final = (0, 2, 5)
WITH, WITHOUT = "views", "no views"

PROGRAM: Final = """
import json, sys, time
import dask
dask.config.set(num_workers=2)
import ndt_query as nq
from ndt_store import open_store
def read():
    return int(next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1])
nq.cnn_study
before, start = read(), time.perf_counter()
nq.cnn_study(open_store(sys.argv[1]))
seconds, nbytes = time.perf_counter() - start, read() - before
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "read": nbytes, "peak": int(peak.split()[1]) * 1024}))
"""


def run(folder: Path) -> list[Row]:
    """Capture, then study in turn with views and without."""
    n_examples, moments = (200, QUICK_MOMENTS) if is_quick() else (2000, MOMENTS)
    path = folder / "study.zarr"
    nbytes = _captured(path, n_examples, moments)
    found: dict[str, list[Mapping[str, float]]] = {WITH: [], WITHOUT: []}
    for number in range(1 + (1 if is_quick() else ROUNDS)):
        for name in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
            one = _studied(path, views=name == WITH)
            if number:
                found[name].append(one)
    of = {name: {key: [one[key] for one in ran] for key in ran[0]} for name, ran in found.items()}
    peaks = [int(max(of[name]["peak"])) for name in (WITH, WITHOUT)]
    read = [int(statistics.median(of[name]["read"])) for name in (WITH, WITHOUT)]
    what = f"study of a CNN, {len(LAYERS)} layers at {len(moments)} moments"
    seconds = {name: values["seconds"] for name, values in of.items()}
    bar = None if is_quick() else Bar(BAR_MB, "ours", f"at most {BAR_MB} MB")
    spared = f"views spare {1 - read[0] / read[1]:.0%} of what is read without them"
    sizes = {"nbytes": nbytes, "n_examples": n_examples}
    return [
        replace(sized(f"peak memory of the {what}", "the bar", peaks[0], BAR_MB * 1_000_000, bar=bar), **sizes),
        replace(sized("the same without views", "the bar", peaks[1], BAR_MB * 1_000_000, bar=bar), **sizes),
        against(f"time of the {what}", seconds, WITH, WITHOUT, **sizes),
        replace(sized(f"bytes read by the {what}", "without views", read[0], read[1]), **sizes, note=spared),
    ]


def _captured(path: Path, n_examples: int, moments: tuple[int, ...]) -> int:
    """Train cnn_deep on `n_examples` images, capturing at the moments; return the activations' size."""
    inputs, labels = images(n_examples)
    model = build_model("cnn_deep", input_shape=inputs.shape[1:], n_classes=10, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    pixels, classes = torch.from_numpy(inputs), torch.from_numpy(labels)
    with capture.Session(model, (inputs, labels), store=path, layers=list(LAYERS), progress=False) as session:
        for step in range(moments[-1] + 1):
            if step in moments:
                session.capture(step)
            batch = torch.randint(len(inputs), (128,), generator=generator)
            loss = torch.nn.functional.cross_entropy(model(pixels[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        store = session.store
        return sum(store[layer].activations.nbytes for layer in LAYERS)


def _studied(path: Path, *, views: bool) -> dict[str, float]:
    """Study the store in a fresh process, with its views or with none beside it."""
    there, away = path / "views", path.with_name("views-away")
    if not views:
        there.rename(away)
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=False)
    finally:
        if not views:
            shutil.rmtree(there, ignore_errors=True)  # what the study itself made
            away.rename(there)
    if done.returncode:
        raise RuntimeError(f"The study failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
