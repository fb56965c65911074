"""Peak memory in a fresh process: bounded by the projection, and the same for four times the examples."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MB = 1 << 20

CAPTURE = """
import json, resource, sys
import torch
from torch import nn
import capture
from capture.pipeline import projected_nbytes

torch.set_num_threads(1)

class Images(torch.utils.data.Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.full((1, 16, 16), float(i % 7)), i % 3

net = nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 3))
options = dict(layers=["0", "1"], kinds=["activations", "gradients"], batch_size=32, block_nbytes=1 << 20,
               compression="none", progress=False)
capture.capture(net, Images(33), store=sys.argv[1] + "/warm.zarr", **options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
store = capture.capture(net, Images(int(sys.argv[2])), store=sys.argv[1] + "/run.zarr", **options)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
tapped = [s for s in store.schema.cubes if s.path.startswith("layers/")]
print(json.dumps({"grown": after - before, "projected": projected_nbytes(tapped, 32)}))
"""


def _run(program: str, *arguments: object) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_capture_stays_within_its_projection_whatever_the_number_of_examples(tmp_path):
    pytest.importorskip("torch", reason="needs torch: pip install 'ndt-activations[capture]'")
    grown = {}
    for n in (500, 2000):
        folder = tmp_path / str(n)
        folder.mkdir()
        measured = _run(CAPTURE, folder, n)
        grown[n] = measured["grown"]
        # 4 cubes of 64 x 16 x 16 float32 each: 2,000 examples are 524 MB, far above what may be held.
        assert measured["grown"] < measured["projected"] + 20 * MB
        assert measured["projected"] < 60 * MB
    assert grown[2000] < grown[500] + 10 * MB
