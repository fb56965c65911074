"""Questions about the attention of a vision transformer: time, and peak memory of a fresh process each.

12 heads of 197 tokens for 2,000 examples at 5 checkpoints are 19 GB of float32. The patterns are random rows that sum
to 1, written without compression, and removed afterwards. A question runs with two threads and the budget that it takes
by itself; its peak is the kernel's own, ``VmHWM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.bench_memory import BAR_MB, peak
from benchmarks.harness import Bar, Row, is_quick, sized
from ndt_store import StoreWriter
from ndt_store.layout import blocks
from ndt_store.planning import ProbeSet, Tap, plan_store

__all__ = ["Attention", "run", "write_attention"]

LAYER: Final = "attention"
POOL: Final = 64
"""Examples of which all others are made."""

QUESTIONS: Final[Mapping[str, str]] = {
    "entropy, sparsity, distance": "[nq.attention_entropy(at), nq.attention_sparsity(at), nq.attention_distance(at)]",
    "mean patterns": "[nq.mean_pattern(at)]",
    "class selectivity": "[nq.attention_selectivity(at, n_permutations=200)]",
    "specialisation": "[nq.head_specialisation(at, n_permutations=49)]",
    "clusters of heads": "[nq.cluster_heads(at)]",
    "flow": "[nq.flow_metrics({'attention': at})]",
}


@dataclass(frozen=True)
class Attention:
    """Extents of the attention of one layer, float32."""

    n_checkpoints: int
    n_examples: int
    n_heads: int
    n_tokens: int

    @property
    def nbytes(self) -> int:
        """Its size."""
        return 4 * self.n_checkpoints * self.n_examples * self.n_heads * self.n_tokens**2


FULL: Final = Attention(5, 2000, 12, 197)
QUICK: Final = Attention(2, 200, 4, 50)


def run(folder: Path, cube: Attention | None = None) -> list[Row]:
    """Ask each question of the patterns."""
    cube = cube or (QUICK if is_quick() else FULL)
    path = folder / "attention.zarr"
    write_attention(path, cube)
    rows = []
    for name, question in QUESTIONS.items():
        asked = f"dask.compute(*(lambda at: {question})(store['{LAYER}']))"
        found = peak(path, asked, LAYER, prepare="import dask; store = open_store(sys.argv[1])")
        bar = None if is_quick() else Bar(BAR_MB, "ours", f"at most {BAR_MB} MB")
        row = sized(f"peak memory of {name}", "the bar", found.nbytes, BAR_MB * 1_000_000, bar=bar)
        rate = cube.nbytes / 1e9 / found.seconds
        note = f"{name}: {found.seconds:.0f} s for {cube.nbytes / 1e9:.1f} GB, {rate:.2g} GB a second"
        rows.append(replace(row, nbytes=cube.nbytes, n_examples=cube.n_examples, note=note))
    return rows


def write_attention(path: Path, cube: Attention) -> None:
    """Write a store of one layer; every block holds examples of the same pool from another place on."""
    probe = ProbeSet(np.zeros((cube.n_examples, 1), np.float32), np.arange(cube.n_examples) % 10)
    sizes = (cube.n_heads, cube.n_tokens, cube.n_tokens)
    tap = Tap(LAYER, "attentions", ("example", "head", "query", "key"), sizes)
    schema, static = plan_store(range(cube.n_checkpoints), probe, [tap], codec="none")
    rng = np.random.default_rng(0)
    pool = np.exp(2 * rng.standard_normal((POOL, *sizes), dtype=np.float32))
    pool /= pool.sum(axis=-1, keepdims=True)
    with StoreWriter.open(path, schema, static=static, provenance={}) as writer:
        for step in range(cube.n_checkpoints):
            for array in schema.cubes:
                for block in blocks(array):
                    n = block.stop - block.start
                    if array.path.endswith("attentions"):
                        part = pool[(int(rng.integers(POOL)) + np.arange(n)) % POOL]
                    else:
                        part = np.asarray("", object) if array.dtype == "string" else np.zeros((n, *array.sizes[1:]))
                    writer.write_block(step, array.path, block.index, part)
            writer.commit(step)
