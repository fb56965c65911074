"""Killed at any point and killed again while resuming, a capture loses nothing that was committed."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ndt_store import open_store, verify
from ndt_store.errors import NotFoundError
from ndt_store.views.files import decode

killing = pytest.importorskip("tests.e2e.killing", reason="needs torch: pip install '.[capture]'")

N_POINTS = 40


@pytest.fixture(scope="module")
def context():
    # The fork server imports torch once; each capture is then a fork of it, with no threads started yet.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.e2e.killing", "capture.session", "capture.run", "ndt_store.views.compiled"])
    return context


@pytest.fixture(scope="module")
def uninterrupted(context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    assert _run(context, folder / "run.zarr", 0) == 0
    return folder / "run.zarr", json.loads((folder / "operations.json").read_text())


def _run(context, path: Path, at: int, kill_after_s: float | None = None) -> int:
    process = context.Process(target=killing.run, args=(str(path), at))
    process.start()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _contents(root: Path) -> dict[str, object]:
    contents: dict[str, object] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        key = path.relative_to(root).as_posix()
        data = path.read_bytes()
        if key.startswith("commits/"):
            record = json.loads(data)
            del record["committed_at"], record["digest"]
            contents[key] = record
        elif not key.startswith("views/"):
            contents[key] = data
    return contents


def _views(root: Path) -> dict[str, object]:
    """Views but for the digests of what they cover, which depend on when that was committed."""
    found = {}
    for path in (p for p in (root / "views").rglob("*") if p.is_file()):
        view = decode(path.read_bytes())
        arrays = {name: (values.dtype, values.tobytes()) for name, values in view.arrays.items()}
        found[path.relative_to(root).as_posix()] = (view.view, view.array, view.checkpoint, view.meta, arrays)
    return found


def _check_finished(path: Path, reference: Path) -> None:
    assert _contents(path) == _contents(reference)
    # Those of a checkpoint whose capture died after the commit are missing, and made when they are asked for.
    expected = _views(reference)
    assert {key: expected.get(key) for key in _views(path)} == _views(path)


def _committed(path: Path) -> dict[int, bytes]:
    """Every value of every committed checkpoint, as a reader sees it now."""
    try:
        store = open_store(path)
    except NotFoundError:
        return {}
    assert not [f for f in verify(store, read_data=True).findings if f.severity == "damaged"]
    arrays = [spec.path for spec in store.schema.cubes if spec.dtype != "string"]
    tree = store.tree
    return {
        int(step): b"".join(tree[path].sel(checkpoint=step).values.tobytes() for path in arrays)
        for step in store.checkpoints
    }


def _check_survivors(before: dict[int, bytes], after: dict[int, bytes]) -> None:
    assert {step: after.get(step) for step in before} == before


@pytest.mark.parametrize("point", range(N_POINTS))
def test_killed_twice_at_a_store_operation_the_finished_store_is_byte_equal(context, uninterrupted, tmp_path, point):
    reference, n_operations = uninterrupted
    first = 1 + round(point * (n_operations - 1) / (N_POINTS - 1))
    path = tmp_path / "run.zarr"
    assert _run(context, path, first) == -signal.SIGKILL
    survived = _committed(path)
    second = 1 + (point * 7) % 25
    exitcode = _run(context, path, second)
    assert exitcode in (-signal.SIGKILL, 0)
    _check_survivors(survived, _committed(path))
    assert _run(context, path, 0) == 0
    _check_finished(path, reference)


def test_killed_at_random_times_the_finished_store_is_byte_equal(context, uninterrupted, tmp_path):
    reference, _ = uninterrupted
    start = time.monotonic()
    assert _run(context, tmp_path / "timed.zarr", 0) == 0
    duration = time.monotonic() - start
    rng = np.random.default_rng(3)
    n_killed = attempt = 0
    while n_killed < 6 and attempt < 40:
        attempt += 1
        path = tmp_path / f"{attempt}.zarr"
        survived: dict[int, bytes] = {}
        exitcode = -signal.SIGKILL
        while exitcode == -signal.SIGKILL:
            # Whatever the machine's speed, most of these moments fall into the capture.
            exitcode = _run(context, path, 0, kill_after_s=float(rng.uniform(0, duration)))
            n_killed += exitcode == -signal.SIGKILL
            now = _committed(path)
            _check_survivors(survived, now)
            survived = now
        assert exitcode == 0
        _check_finished(path, reference)
    assert n_killed >= 6  # or the moments fell beside the captures, and nothing was shown
