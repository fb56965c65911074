"""A disk without room ends a capture with one sentence and exit code 3; with room it resumes."""

import resource
import subprocess
import sys

import pytest

from ndt_store import open_store, verify

pytest.importorskip("torch", reason="needs torch: pip install 'ndt-activations[capture]'")

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


def test_a_capture_that_runs_out_of_room_resumes_when_there_is_room(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert _ndt(tmp_path, "train", "tiny.toml").returncode == 0
    failed = _ndt(tmp_path, "capture", "tiny.toml", limit_nbytes=20_000)
    assert failed.returncode == 3
    (sentence,) = [line for line in failed.stderr.splitlines() if line.startswith("ndt:")]
    assert "The file system refused while writing" in sentence
    assert "run the same command again to resume" in sentence
    assert "Traceback" not in failed.stderr
    assert _ndt(tmp_path, "capture", "tiny.toml").returncode == 0
    assert verify(open_store(tmp_path / "runs" / "tiny.zarr"), read_data=True).ok
