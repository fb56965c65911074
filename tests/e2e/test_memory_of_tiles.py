"""Samples that would not fit the budget are multiplied tile by tile: peak memory in a fresh process, and the answer."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

MB = 1 << 20
N, SHAPE, BUDGET = 300, (64, 64, 64), 200 * MB

PROGRAM = """
import json, sys
import dask
dask.config.set(num_workers=2)
import ndt_query as nq
import ndt_query.answers
from ndt_query.budget import projected_nbytes
from ndt_store import open_store
from ndt_store.testing import simulate_store

def peak_nbytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

projected = []
check = ndt_query.answers.check
def noting(what, terms, *rest):
    projected.append(projected_nbytes(terms))
    check(what, terms, *rest)
ndt_query.answers.check = noting

def ask(acts):
    return nq.dimensionality(acts, interval="none", memory=int(sys.argv[2]), explain=True)

small = simulate_store(sys.argv[1] + ".small", n_examples=20).store
ask(small["conv1"].activations).compute()
before = peak_nbytes()
projected.clear()
found = ask(open_store(sys.argv[1])["a"].activations).compute()
print(json.dumps({"grown": peak_nbytes() - before, "projected": max(projected), "explain": found.attrs["explain"],
                  "ratio": found["participation_ratio"].item()}))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    from ndt_store import StoreWriter
    from ndt_store.layout import blocks
    from ndt_store.planning import ProbeSet, Tap, plan_store

    path = tmp_path_factory.mktemp("tiles") / "a.zarr"
    probe = ProbeSet(np.zeros((N, 1), np.float32), np.arange(N) % 10)
    tap = Tap("a", "activations", ("example", "unit", "y", "x"), SHAPE)
    schema, static = plan_store([0], probe, [tap], codec="none")
    with StoreWriter.open(path, schema, static=static, provenance={}) as writer:
        for spec in schema.cubes:
            for block in blocks(spec):
                shape = (block.stop - block.start, *spec.sizes[1:]) if spec.sizes else ()
                values = np.asarray("", object) if spec.dtype == "string" else np.zeros(shape, spec.dtype)
                if spec.path == "layers/a/activations":
                    values = one_hot(block.start, block.stop)
                writer.write_block(0, spec.path, block.index, values)
        writer.commit(0)
    return path


def one_hot(start, stop):
    """Samples that are orthogonal in groups of three: 100 directions, of equal weight."""
    values = np.zeros((stop - start, *SHAPE), np.float32).reshape(stop - start, -1)
    values[np.arange(stop - start), np.arange(start, stop) // 3] = 1
    return values.reshape(-1, *SHAPE)


def test_tiles_stay_within_the_budget_and_give_the_answer_of_a_closed_form(path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(BUDGET)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 4 * N * np.prod(SHAPE) >= 1.5 * BUDGET
    assert 0.15 * found["projected"] < found["grown"] < found["projected"] + 20 * MB
    assert found["projected"] <= BUDGET
    assert " passes" in found["explain"]
    assert found["ratio"] == pytest.approx(N // 3 - 1)
    assert list(path.glob("views/gram-flatten/a/activations/0"))
