"""A disk without room ends a capture with one sentence and exit code 3; with room it resumes."""

import resource
import subprocess
import sys

import pytest

from ndt_store import open_store, verify
from ndt_store.errors import StorageError
from ndt_store.testing import FaultyStorage, no_room

pytest.importorskip("torch", reason="needs torch: pip install '.[capture]'")

RECIPE = """
name = "tiny"
[model]
name = "mlp_narrow"
[data]
name = "digits"
[training]
steps = 4
batch_size = 32
checkpoints = [0, 4]
[probe]
n_examples = 300
[capture]
layers = ["**"]
compression = "none"
"""


def _ndt(folder, *arguments, limit_nbytes=None):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_nbytes, limit_nbytes))

    return subprocess.run(
        [sys.executable, "-m", "ndt_store", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        preexec_fn=None if limit_nbytes is None else limit,
    )


def test_a_capture_that_runs_out_of_room_keeps_what_is_committed_and_resumes(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert _ndt(tmp_path, "train", "tiny.toml").returncode == 0
    path = tmp_path / "runs" / "tiny.zarr"
    whole = FaultyStorage(tmp_path / "whole.zarr", 0)
    _capture(tmp_path, whole)
    # Room until the last blocks of the second checkpoint; the very last operations are its commit and its views.
    n_views = sum(p.is_file() for p in (tmp_path / "whole.zarr" / "views").rglob("4"))
    with pytest.raises(StorageError):
        _capture(tmp_path, FaultyStorage(path, whole.n_operations - n_views - 8, no_room))
    assert open_store(path).checkpoints.tolist() == [0]
    committed = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob("c/0/**/*") if p.is_file()}
    assert committed

    # No file of the second checkpoint fits any more, those of the metadata do.
    failed = _ndt(tmp_path, "capture", "tiny.toml", limit_nbytes=33_000)
    assert failed.returncode == 3
    (sentence,) = [line for line in failed.stderr.splitlines() if line.startswith("ndt:")]
    assert "The file system refused while writing" in sentence
    assert "/c/1/" in sentence
    assert "run the same command again to resume" in sentence
    assert "Traceback" not in failed.stderr
    assert open_store(path).checkpoints.tolist() == [0]

    assert _ndt(tmp_path, "capture", "tiny.toml").returncode == 0
    store = open_store(path)
    assert store.checkpoints.tolist() == [0, 4]
    assert verify(store, read_data=True).ok
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in committed} == committed


def _capture(folder, storage):
    from capture.from_recipe import capture_recipe
    from capture.recipe import load_recipe

    capture_recipe(load_recipe(folder / "tiny.toml"), storage, folder / "runs" / "tiny-checkpoints", progress=False)
