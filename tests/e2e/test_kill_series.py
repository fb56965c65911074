"""Killed at any moment, the writer of a series loses no row that was flushed, and plain readers stay right."""

from __future__ import annotations

import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ndt_store import open_training
from ndt_store.errors import NotFoundError
from tests.e2e import appending


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.e2e.appending", "ndt_store.series"])
    return context


def _run(context, path: Path, kill_after_s: float | None = None) -> int:
    process = context.Process(target=appending.run, args=(str(path),))
    process.start()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _check(found: xr.Dataset) -> int:
    n = found.sizes["step"]
    rows = [appending.row(step) for step in range(n)]
    assert found.step.values.tolist() == list(range(n))
    np.testing.assert_array_equal(found.loss.values, [row["loss"] for row in rows])
    np.testing.assert_array_equal(found["rank"].values, np.reshape([row["rank"] for row in rows], (n, 3)))
    return n


def test_killed_at_random_times_every_flushed_row_is_there_and_the_rest_follows(context, tmp_path):
    start = time.monotonic()
    assert _run(context, tmp_path / "timed") == 0
    duration = time.monotonic() - start
    rng = np.random.default_rng(5)
    path = tmp_path / "run.zarr"
    n_killed, n_seen, exitcode = 0, 0, -signal.SIGKILL
    while exitcode == -signal.SIGKILL:
        exitcode = _run(context, path, float(rng.uniform(0, duration / 6)) if n_killed < 12 else None)
        n_killed += exitcode == -signal.SIGKILL
        try:
            n = _check(open_training(path))
        except NotFoundError:
            continue
        safe = path.with_suffix(".safe")
        assert n >= max(n_seen, int(safe.read_text() or 0) if safe.exists() else 0)
        n_seen = n
        # The metadata of plain readers may be those of the flush before, or of one whose record was not published.
        assert abs(_check(xr.open_zarr(f"{path}/training").load()) - n) <= 1
    assert exitcode == 0
    assert n_killed >= 6
    assert _check(open_training(path)) == appending.N_STEPS
    assert _check(xr.open_zarr(str(path), group="training").load()) == appending.N_STEPS
