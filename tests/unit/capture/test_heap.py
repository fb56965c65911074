"""Freed memory is kept while passes run, and goes back to the system afterwards."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")

# Blocks larger than any threshold that glibc adjusts itself to, as the maps of a batch are.
PROGRAM = """
import resource, torch
from contextlib import nullcontext
from pathlib import Path
from capture.heap import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

outside = faults()
with {context}:
    faults()
    inside, held = faults(), resident_mb()
print(outside, inside, held - resident_mb(), faults())
"""


def run(context="freed_memory_kept()", **environment):
    command = [sys.executable, "-c", PROGRAM.replace("{context}", context)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def test_memory_that_is_freed_is_taken_again_without_page_faults():
    outside, inside, _, _ = run()
    assert outside > 10 * (1 << 26) / 4096 / 2  # or nothing would be shown
    assert inside < outside / 100


def test_what_was_kept_goes_back_to_the_system_and_so_do_later_blocks():
    outside, _, released, later = run()
    assert released > 0.9 * (1 << 26) / 1e6
    assert later > outside / 10


def test_nested_uses_end_with_the_outermost():
    _, inside, released, _ = run("freed_memory_kept(), freed_memory_kept()")
    assert inside < 1000
    assert released > 0.9 * (1 << 26) / 1e6


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_an_allocator_that_the_user_has_tuned_is_left_alone(name):
    value = "glibc.malloc.trim_threshold=131072" if name == "GLIBC_TUNABLES" else "131072"
    outside, inside, _, _ = run(**{name: value})
    assert inside > outside / 2


@pytest.fixture
def entered(monkeypatch):
    """How often memory was begun to be kept."""
    from contextlib import contextmanager

    from capture import passes, training

    times = []

    @contextmanager
    def noted():
        times.append(True)
        yield

    for module in (passes, training):
        monkeypatch.setattr(module, "freed_memory_kept", noted)
    return times


def test_a_capture_keeps_what_its_passes_free(entered, tmp_path):
    import torch

    import capture

    data = torch.ones(4, 3), torch.zeros(4, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    capture.capture(model, data, store=tmp_path / "run.zarr", layers=["*"], progress=False)
    assert entered == [True]


def test_a_training_keeps_what_its_steps_free(entered):
    import capture
    from capture.recipe import TrainingRecipe

    data = capture.load_data("digits", "train").first(20)
    model = capture.build_model("mlp_narrow", input_shape=data.input_shape, n_classes=10)
    capture.train(TrainingRecipe(steps=2, batch_size=10), model, data)
    assert entered == [True]
