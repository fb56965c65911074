"""Codecs on what networks really emit: size, and speed each way on one core.

`python -m benchmarks.bench_codecs` trains three recipes briefly, captures them at step 0 and at the end, and measures
every codec on 8 MB of each kind of data: the first rows of each layer's first block, each layer with the share of the
bytes that it has in the store, and each piece encoded alone, as a block is. It prints Markdown and keeps
``codecs.json`` beside this file; `docs/decisions/0004-default-compression.md` quotes both.

Speeds are of CPU time of one thread, so that a busy machine changes them little; the disk's are of the wall clock.
Codecs that encode below 0.2 GB/s see the first 2 MB of each kind only. Costs are those of one core that overlaps
nothing, in seconds for each GB of float32: to capture is to encode, checksum and write the stored bytes with fsync; to
scan is to read them, checksum, decode, and run a kernel at 5 GB/s. Without compression blocks are read in place, and
nothing is decoded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.codec_candidates import CODECS, Codec, as_bytes
from benchmarks.codec_report import Figure, Machine, as_rows, report
from benchmarks.codec_subjects import KINDS, RELU_LAYERS, captured_runs, sample
from benchmarks.harness import Bar, Row, against, is_quick, race, sized
from ndt_store import Store, codecs
from ndt_store.layout import n_blocks

__all__ = ["figures", "main", "measure", "measure_machine", "run"]

STEPS: Final = 200
SAMPLE_NBYTES: Final = 8 << 20
SLOW_SAMPLE_NBYTES: Final = 2 << 20
BARRED: Final = (codecs.DEFAULT_PROFILE, "compact")
WAYS: Final = ("encode", "decode")
Values = NDArray[np.float32]


def figures(pieces: Sequence[Values], kind: str, step: int, chosen: Sequence[Codec], rounds: int = 7) -> list[Figure]:
    """Measure codecs on the pieces of one kind in one race; without rounds sizes and errors alone."""
    nbytes = sum(piece.nbytes for piece in pieces)
    outs = [np.empty_like(piece) for piece in pieces]
    packed = {codec.name: [codec.encode(piece) for piece in pieces] for codec in chosen}
    errors = {codec.name: _check(codec, packed[codec.name], pieces, outs) for codec in chosen}
    shares = {
        name: sum(len(payload) + codecs.CRC_NBYTES for payload in payloads) / nbytes
        for name, payloads in packed.items()
    }
    if not rounds:
        return [Figure(name, kind, step, share, max_relative_error=errors[name]) for name, share in shares.items()]
    candidates: dict[str, _Watched] = {}
    for codec in chosen:
        candidates[f"encode {codec.name}"] = _Watched(partial(_encode_all, codec.encode, pieces))
        candidates[f"decode {codec.name}"] = _Watched(partial(_decode_all, codec.decode, packed[codec.name], outs))
    with _collector_at_rest():
        race(candidates, rounds)
    found = []
    for name, share in shares.items():
        # The first round of a race does not count.
        encode, decode = ([nbytes / 1e9 / t for t in candidates[f"{way} {name}"].seconds[1:]] for way in WAYS)
        found.append(
            Figure(
                name,
                kind,
                step,
                share,
                encode_gbs=statistics.median(encode),
                decode_gbs=statistics.median(decode),
                encode_quartiles=_quartiles(encode),
                decode_quartiles=_quartiles(decode),
                max_relative_error=errors[name],
            )
        )
    return found


class _Watched:
    """A call that keeps the CPU seconds of its thread: what a codec takes of one core, however busy the others are."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.seconds: list[float] = []

    def __call__(self) -> None:
        start = time.thread_time()
        self.call()
        self.seconds.append(time.thread_time() - start)


def _quartiles(speeds: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return low, high


def _encode_all(encode: Callable[[Values], object], pieces: Sequence[Values]) -> None:
    for piece in pieces:
        encode(piece)


def _decode_all(decode: Callable[[Any, Values], object], packed: Sequence[Any], outs: Sequence[Values]) -> None:
    for payload, out in zip(packed, outs, strict=True):
        decode(payload, out)


def _check(codec: Codec, packed: Sequence[Any], pieces: Sequence[Values], outs: Sequence[Values]) -> float:
    worst = 0.0
    for payload, piece, out in zip(packed, pieces, outs, strict=True):
        codec.decode(payload, out)
        if codec.is_lossy:
            nonzero = piece != 0
            worst = max(worst, float((np.abs(out - piece)[nonzero] / np.abs(piece[nonzero])).max(initial=0)))
        elif not np.array_equal(as_bytes(out), as_bytes(piece)):
            raise RuntimeError(f"codec {codec.name} did not give back the values it was given")
    return worst


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    # `race` collects garbage before each run: with torch's objects in view that takes longer than what is timed.
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def measure_machine(folder: Path, n_files: int = 16) -> Machine:
    """Time the checksum and the disk that holds `folder`, in files of 8 MB."""
    block = np.random.default_rng(0).integers(0, 256, SAMPLE_NBYTES, dtype=np.uint8)
    buffer = np.empty_like(block)
    files = [folder / f"block-{n}" for n in range(n_files)]

    def write() -> None:
        for file in files:
            with file.open("wb", buffering=0) as opened:
                opened.write(block.data)
                os.fsync(opened.fileno())

    def read() -> None:
        for file in files:
            with file.open("rb", buffering=0) as opened:
                opened.readinto(buffer.data)

    with _collector_at_rest():
        times = race({"write": write, "warm": read, "crc": lambda: codecs.crc32c(block.data)})
        times |= race({"cold": read}, cold={"cold": files})
    speeds = {name: statistics.median(n_files * SAMPLE_NBYTES / 1e9 / t for t in ts) for name, ts in times.items()}
    return Machine(speeds["crc"] / n_files, speeds["write"], speeds["cold"], speeds["warm"])


def measure(stores: Mapping[str, Store], step: int) -> list[Figure]:
    """Measure every codec on every kind of data at `step`, and the sizes at step 0 too."""
    found = []
    for kind in KINDS:
        for is_slow, nbytes in ((False, SAMPLE_NBYTES), (True, SLOW_SAMPLE_NBYTES)):
            chosen = [codec for codec in CODECS if codec.is_slow is is_slow]
            found += figures(sample(stores, kind, step, nbytes), kind, step, chosen)
            if not is_slow:
                found += figures(sample(stores, kind, 0, nbytes), kind, 0, chosen, rounds=0)
        print(f"{kind}: measured", file=sys.stderr, flush=True)
    return found


def relu_nbytes(store: Store, step: int, encode: Callable[[Values], int]) -> tuple[int, int]:
    """Return stored and raw bytes of every block of the ReLU layers at one step; `encode` gives those of a block."""
    stored = raw = 0
    for path in RELU_LAYERS:
        spec = store.schema.find(path)
        assert spec is not None, path
        for index in range(n_blocks(spec)):
            values = store.read_block(path, step, index)
            stored += encode(values)
            raw += values.nbytes
    return stored, raw


def run(folder: Path) -> list[Row]:
    """Sizes of every profile on trained ReLU layers, and its speed each way against a copy of the same bytes."""
    steps = STEPS // 4 if is_quick() else STEPS
    stores = captured_runs(folder, ("cnn_deep", "transformer_shallow"), steps=steps)
    rows = []
    for step in (steps, 0):
        for name in codecs.PROFILES:
            sizes = relu_nbytes(stores["cnn_deep"], step, partial(_profile_nbytes, name))
            bar = Bar(0.55) if step and name in BARRED else None
            what = f"ReLU layers of cnn_deep at step {step}, profile {name}"
            rows.append(sized(what, "raw float32", *sizes, bar=bar))
    for kind in ("relu", "residual"):
        rows += _speeds(sample(stores, kind, steps, SAMPLE_NBYTES), kind)
    return rows


def _profile_nbytes(name: str, values: Values) -> int:
    return codecs.encode(values, name).nbytes


def _codec_nbytes(codec: Codec, values: Values) -> int:
    return len(codec.encode(values)) + codecs.CRC_NBYTES


def _speeds(pieces: Sequence[Values], kind: str) -> list[Row]:
    outs = [np.empty_like(piece) for piece in pieces]
    copy = "copy of the same bytes"
    candidates: dict[str, Callable[[], object]] = {copy: lambda: [piece.copy() for piece in pieces]}
    for name in codecs.PROFILES:
        encode = partial(codecs.encode, codec=name)
        packed = [memoryview(bytes(encode(piece).payload)) for piece in pieces]
        candidates[f"encode and checksum {kind}, profile {name}"] = partial(_encode_all, encode, pieces)
        candidates[f"decode {kind}, profile {name}"] = partial(_decode_all, _decoder(name), packed, outs)
    with _collector_at_rest():
        times = race(candidates)
    nbytes = sum(piece.nbytes for piece in pieces)
    return [against(what, times, what, copy, nbytes=nbytes) for what in candidates if what != copy]


def _decoder(name: str) -> Callable[[memoryview, Values], None]:
    return lambda payload, out: codecs.decode(payload, name, out)


def main() -> None:
    """Measure, print the tables and keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_codecs", description="Compare codecs.")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each recipe")
    parser.add_argument("--folder", type=Path, help="keep trainings and stores here, and take over what is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("NDT_BENCH_DIR")) as temporary:
        folder = given.folder or Path(temporary)
        stores = captured_runs(folder, steps=given.steps)
        machine = measure_machine(Path(temporary))
        found = measure(stores, given.steps)
        relu = {
            codec.name: relu_nbytes(stores["cnn_deep"], given.steps, partial(_codec_nbytes, codec))
            for codec in CODECS
            if not codec.is_slow
        }
        nonzero = {kind: _nonzero_share(sample(stores, kind, given.steps, SAMPLE_NBYTES)) for kind in KINDS}
    tables = report(found, machine, {name: a / b for name, (a, b) in relu.items()}, profiles(), nonzero, given.steps)
    document = {"steps": given.steps, "machine": asdict(machine), "relu_layers": relu, "nonzero": nonzero}
    # One figure a line, so that two runs can be told apart in a diff.
    rows = ",\n".join(json.dumps(row) for row in as_rows(found))
    head = json.dumps(document, indent=1).removesuffix("\n}")
    (Path(__file__).parent / "codecs.json").write_text(f'{head},\n "figures": [\n{rows}\n ]\n}}\n')
    print(tables)


def _nonzero_share(pieces: Sequence[Values]) -> float:
    return sum(int(np.count_nonzero(piece)) for piece in pieces) / sum(piece.size for piece in pieces)


def profiles() -> dict[str, str]:
    """Return the codec behind each profile, by the names that the tables use."""
    found = {}
    for name, profile in codecs.PROFILES.items():
        chain = profile.zarr_codecs("float32")[1:-1]
        settings = chain[0]["configuration"] if chain else {}
        if chain and chain[0]["name"] == "blosc":
            found[name] = f"blosc {settings['cname']} {settings['clevel']} {settings['shuffle']}"
        else:
            found[name] = f"{chain[0]['name']} {settings['level']}" if chain else "none"
    return found


if __name__ == "__main__":
    main()
