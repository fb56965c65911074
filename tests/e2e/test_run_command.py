"""`ndt run`, killed at any of its stages, goes on from there to the same store."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from ndt_store import open_store, open_training, verify

running = pytest.importorskip("tests.e2e.running", reason="needs torch: pip install '.[capture]'")

STAGES = {
    "first pass": "weights/first-pass/training-state.safetensors",
    "first pass, tracked": "run.zarr/commits/training.json",
    "second pass": "weights/training-state.safetensors",
    "weights": "weights/step-000000.safetensors",
    "capture": "run.zarr/zarr.json",
    "first commit": "run.zarr/commits/0.json",
    "last commit": "run.zarr/commits/160.json",
    "report": "report",
}
"""A file whose appearance says that the stage has begun."""


@pytest.fixture(scope="module")
def context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.e2e.running", "capture.run_cli", "capture.session", "ndt_query.report"])
    return context


def _run(context, folder: Path, until: str | None = None, recipe: str = running.RECIPE) -> int:
    process = context.Process(target=running.run, args=(str(folder), recipe))
    process.start()
    if until is not None:
        while process.is_alive() and not (folder / until).exists():
            time.sleep(0.001)
        process.kill()
    process.join(120)
    assert process.exitcode is not None, (folder / "log.txt").read_text()
    return process.exitcode


def _contents(root: Path) -> dict[str, object]:
    """Every file of a store, but when it was written, and what is derived from it."""
    found: dict[str, object] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        key = path.relative_to(root).as_posix()
        if key.startswith("commits/") and "training" not in key:
            record = json.loads(path.read_bytes())
            del record["committed_at"], record["digest"]
            found[key] = record
        elif not key.startswith("views/"):
            found[key] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def uninterrupted(context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert _run(context, folder) == 0, (folder / "log.txt").read_text()
    return folder


def test_a_recipe_is_run_from_its_first_weights_to_its_report(uninterrupted):
    store = open_store(uninterrupted / "run.zarr")
    assert store.is_complete
    assert verify(store, read_data=True).ok
    assert store.training.sizes["step"] == 41
    assert {0, 160} <= set(store.checkpoints.tolist())
    assert (uninterrupted / "report" / "index.html").stat().st_size > 10_000
    said = (uninterrupted / "log.txt").read_text()
    assert "jumps" in said


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_a_stage_it_goes_on_to_the_same_store(context, uninterrupted, tmp_path, stage):
    assert _run(context, tmp_path / "run", until=STAGES[stage]) in (-signal.SIGKILL, 0)
    assert _run(context, tmp_path / "run") == 0, (tmp_path / "run" / "log.txt").read_text()
    assert _contents(tmp_path / "run" / "run.zarr") == _contents(uninterrupted / "run.zarr")
    assert open_training(tmp_path / "run" / "run.zarr").identical(open_training(uninterrupted / "run.zarr"))


def test_a_cnn_is_run_with_its_fields_its_cams_and_its_study(context, tmp_path):
    folder = tmp_path / "cnn"
    assert _run(context, folder, recipe=running.CNN) == 0, (folder / "log.txt").read_text()
    assert open_store(folder / "run.zarr").experiments == ("receptive_fields",)
    assert (folder / "run-cams" / "index.html").exists()
    assert "What emerges in the CNN" in (folder / "report" / "index.html").read_text()
    assert (folder / "report" / "cnn" / "emergence.pdf").exists()
    assert _run(context, folder, recipe=running.CNN) == 0, (folder / "log.txt").read_text()  # nothing is in the way
