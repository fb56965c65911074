"""Batches of any size become the same blocks; threads, errors and memory behave."""

import numpy as np
import pytest
import torch

from capture.pipeline import MAX_PENDING, N_THREADS, BlockAssembler, BlockMemory, HostCopies, projected_nbytes
from ndt_store.errors import CaptureError
from ndt_store.layout import numpy_dtype
from ndt_store.rawio import ALIGNMENT, DIRECT_NBYTES, STAGING_NBYTES
from ndt_store.schema import ArraySpec

SPEC = ArraySpec("layers/a/activations", ("checkpoint", "example", "unit"), (17, 3), "float32", 5)


class Collector:
    """Stands in for the writer."""

    def __init__(self, delay=None):
        self.blocks, self.delay, self.finite = {}, delay, {}

    def write_block(self, step, array, index, data, *, is_finite=False):
        if self.delay is not None:
            self.delay.wait(5)
        self.finite[index] = is_finite
        self.blocks[index] = data.copy()  # the memory of a block is used again


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 17, 40])
def test_blocks_do_not_depend_on_the_batch_size(batch, rng):
    data = rng.standard_normal((17, 3)).astype(np.float32)
    writer = Collector()
    with BlockAssembler(writer, 0, [SPEC]) as blocks:
        for start in range(0, 17, batch):
            blocks.add(SPEC.path, data[start : start + batch])
        blocks.finish()
    assert [writer.blocks[n].shape[0] for n in range(4)] == [5, 5, 5, 2]
    assert np.concatenate([writer.blocks[n] for n in range(4)]).tobytes() == data.tobytes()


def test_a_model_may_overwrite_its_batch_after_it_was_added():
    writer = Collector()
    batch = np.ones((17, 3), np.float32)
    with BlockAssembler(writer, 0, [SPEC]) as blocks:
        blocks.add(SPEC.path, batch)
        batch[:] = 7
        blocks.finish()
    assert all((block == 1).all() for block in writer.blocks.values())


@pytest.mark.parametrize(
    ("rows", "words"),
    [((16, 3), "for 16 of the 17"), ((18, 3), "more than the 17"), ((17, 4), r"shape \(4,\)")],
)
def test_assembler__raises_when_not_every_example_came_out_once(rows, words):
    def assemble():
        with BlockAssembler(Collector(), 0, [SPEC]) as blocks:
            blocks.add(SPEC.path, np.zeros(rows, np.float32))
            blocks.finish()

    with pytest.raises(CaptureError, match=words):
        assemble()


def test_never_more_blocks_wait_than_the_projection_says():
    import threading
    import time

    gate = threading.Event()
    spec = ArraySpec("a", ("checkpoint", "example", "unit"), (100, 3), "float32", 1)
    added = []

    def produce():
        with BlockAssembler(Collector(gate), 0, [spec]) as blocks:
            for n in range(100):
                blocks.add("a", np.zeros((1, 3), np.float32))
                added.append(n)
            blocks.finish()

    thread = threading.Thread(target=produce)
    thread.start()
    time.sleep(0.3)
    assert len(added) == MAX_PENDING
    gate.set()
    thread.join(10)
    assert len(added) == 100


def test_projection_has_one_term_for_each_thing_that_is_held():
    block = 5 * 3 * numpy_dtype(SPEC).itemsize
    blocks = 2 * 4 * 12 + block + (MAX_PENDING + 2) * block
    # Of each of 3 units: zones of 4 blocks, two rankings of 64, and moments and sums of 7 classes of several blocks.
    summaries = 3 * (4 * 20 + 2 * 64 * 24 + (MAX_PENDING + 2) * (80 + 8 * 8))
    assert projected_nbytes([SPEC], batch_size=4, n_classes=7) == blocks + summaries


def test_projection_of_arrays_without_units_has_no_summaries():
    spec = ArraySpec("a", ("checkpoint", "example", "head"), (17, 3), "float32", 5)
    assert projected_nbytes([spec], batch_size=4) == 2 * 4 * 12 + 60 + (MAX_PENDING + 2) * 60


def test_projection_of_large_blocks_has_whole_megabytes_and_what_direct_writing_takes():
    spec = ArraySpec("a", ("checkpoint", "example", "head"), (4, DIRECT_NBYTES // 4 + 1), "float32", 2)
    block = 3 << 20
    held = 2 * 3 * (DIRECT_NBYTES + 4) + block + MAX_PENDING * block
    assert projected_nbytes([spec], batch_size=3) == held + N_THREADS * (block + STAGING_NBYTES)


def test_memory_of_blocks_begins_at_a_page_is_used_again_and_stays_within_its_limit():
    size = 2 * DIRECT_NBYTES
    memory = BlockMemory(3 * size)

    def take(nbytes):
        array = memory.take((nbytes // 8, 2), np.dtype("<f4"))
        assert array.shape == (nbytes // 8, 2)
        assert array.dtype == np.float32
        assert array.ctypes.data % ALIGNMENT == 0
        return array

    first, second = take(size), take(size)
    assert not np.shares_memory(first, second)
    place = first.ctypes.data
    memory.give(first)
    memory.give(np.zeros(3))
    again = take(size)
    assert again.ctypes.data == place
    memory.give(again)
    memory.give(second)
    held = [take(size - (1 << 20)) for _ in range(3)]
    assert memory.held_nbytes <= 3 * size
    for array in held:
        memory.give(array)
    take(size)
    assert memory.held_nbytes <= 3 * size


def test_summaries_get_each_block_once_as_it_is_written():
    class Summaries:
        def __init__(self):
            self.seen = {}

        def add(self, path, index, data):
            assert (path, index) not in self.seen
            self.seen[path, index] = data.copy()
            return index == 2

    writer, summaries = Collector(), Summaries()
    data = np.arange(51, dtype=np.float32).reshape(17, 3)
    with BlockAssembler(writer, 0, [SPEC], summaries) as blocks:
        blocks.add(SPEC.path, data)
        blocks.finish()
    assert sorted(summaries.seen) == [(SPEC.path, n) for n in range(4)]
    for (_, index), block in summaries.seen.items():
        assert block.tobytes() == writer.blocks[index].tobytes()
    # What a summary knows of a block need not be found out again.
    assert writer.finite == {0: False, 1: False, 2: True, 3: False}


def test_on_a_cpu_tensors_arrive_at_once():
    copies = HostCopies(torch.device("cpu"))
    tensor = torch.arange(6.0).reshape(2, 3)
    assert copies.exchange({"a": tensor})["a"].tolist() == tensor.tolist()
    assert copies.exchange(None) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_batches_arrive_one_behind_and_unmixed():
    copies = HostCopies(torch.device("cuda"))
    arrived = []
    for n in range(6):
        batch = {"a": torch.full((64 - n, 1000), float(n), device="cuda")}
        arrived.append({name: array.copy() for name, array in copies.exchange(batch).items()})
    arrived.append(copies.exchange(None))
    assert arrived[0] == {}
    for n, got in enumerate(arrived[1:]):
        assert got["a"].shape == (64 - n, 1000)
        assert (got["a"] == n).all()
