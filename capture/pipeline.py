"""From tensors on a device to blocks on disk, beside the forward pass and in bounded memory.

Three stages run at once. While the model computes batch n + 1, a side stream copies batch n into pinned buffers, and
writer threads encode and write the blocks that batch n - 1 completed. On a CPU there is nothing to bring over: each
output goes into its open block as it leaves its module, while it is in the processor's cache, and the model's own
memory is free again as early as without a capture::

    model -> HostCopies -> BlockAssembler -> writer threads -> StoreWriter

What is held at any time: two batches on their way from a device, one open block an array, and at most `MAX_PENDING`
blocks with the writers. None of it grows with the number of examples, but for the zone maps of the summaries: 20 bytes
for each unit and block.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ndt_store.dims import UNIT
from ndt_store.errors import CaptureError
from ndt_store.layout import numpy_dtype
from ndt_store.rawio import DIRECT_NBYTES, STAGING_NBYTES
from ndt_store.schema import ArraySpec
from ndt_store.views.build import summary_nbytes
from ndt_store.views.flight import CheckpointSummary
from ndt_store.views.frame import class_limit, has_views
from ndt_store.writer import StoreWriter

__all__ = ["MAX_PENDING", "BlockAssembler", "HostCopies", "projected_nbytes"]

N_THREADS: Final = 2
MAX_PENDING: Final = 2 * N_THREADS
_GRAIN_NBYTES: Final = 1 << 20

Arrays = Mapping[str, torch.Tensor]


class HostCopies:
    """Brings batches to host memory: one behind from CUDA, at once from anywhere else.

    On CUDA each batch goes through one of two sets of pinned buffers on a stream of its own, so that copying overlaps
    the next forward pass. The tensors stay referenced until their copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._pinned: list[dict[str, torch.Tensor]] = [{}, {}]
        self._turn = 0
        self._waiting: tuple[Arrays, dict[str, torch.Tensor], Any] | None = None

    def exchange(self, batch: Arrays | None) -> Mapping[str, NDArray[Any]]:
        """Start copying `batch` and return what has arrived, {} if nothing has; None only collects."""
        if self._stream is None:
            return {name: tensor.cpu().numpy() for name, tensor in (batch or {}).items()}
        before, self._waiting = self._waiting, None if batch is None else self._start(self._stream, batch)
        if before is None:
            return {}
        _, host, event = before
        event.synchronize()
        return {name: tensor.numpy() for name, tensor in host.items()}

    def _start(self, stream: torch.cuda.Stream, batch: Arrays) -> tuple[Arrays, dict[str, torch.Tensor], Any]:
        self._turn ^= 1
        buffers, host = self._pinned[self._turn], {}
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for name, tensor in batch.items():
                buffer = buffers.get(name)
                if buffer is None or buffer.shape[0] < tensor.shape[0] or buffer.dtype != tensor.dtype:
                    buffer = buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                host[name] = buffer[: tensor.shape[0]]
                host[name].copy_(tensor, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        return batch, host, event


class BlockAssembler:
    """Cuts the stream of batches of one checkpoint into blocks and has them written.

    Parameters
    ----------
    writer : StoreWriter
        Where blocks go.
    step : int
        The checkpoint in flight.
    specs : sequence of ArraySpec
        The cubes that will be filled, by path.
    summaries : CheckpointSummary, optional
        Gets each block from the thread that writes it, while the block is in the processor's cache.

    Notes
    -----
    An error in a writer thread is raised by the next call here. Leaving the context waits for the threads.
    """

    def __init__(
        self, writer: StoreWriter, step: int, specs: Sequence[ArraySpec], summaries: CheckpointSummary | None = None
    ) -> None:
        self._writer = writer
        self._summaries = summaries
        self._step = step
        self._specs = {spec.path: spec for spec in specs}
        self._open: dict[str, NDArray[Any]] = {}
        self._memory = BlockMemory(_blocks_nbytes(specs))
        self._filled = dict.fromkeys(self._specs, 0)
        self._room = threading.BoundedSemaphore(MAX_PENDING)
        self._pool = ThreadPoolExecutor(N_THREADS, thread_name_prefix="ndt-write")
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)

    def add(self, path: str, rows: NDArray[Any]) -> None:
        """Append the next examples of one cube, shape (examples of the batch, *other sizes); `rows` is copied."""
        spec = self._specs[path]
        if rows.shape[1:] != spec.sizes[1:]:
            raise CaptureError(
                f"{path} came out with shape {rows.shape[1:]} an example where {spec.sizes[1:]} was planned: make "
                "every batch take the same path through the model."
            )
        taken = 0
        while taken < len(rows):
            done = self._filled[path]
            if done >= spec.sizes[0]:
                raise CaptureError(f"{path} came out for more than the {spec.sizes[0]} examples of the probe set.")
            index, offset = divmod(done, spec.rows)
            length = min(spec.rows, spec.sizes[0] - index * spec.rows)
            if path not in self._open:
                self._open[path] = self._memory.take((length, *spec.sizes[1:]), numpy_dtype(spec))
            count = min(length - offset, len(rows) - taken)
            # Not by torch, whose threads would wait for each other while the writers have the processors.
            self._open[path][offset : offset + count] = rows[taken : taken + count]
            self._filled[path] = done + count
            taken += count
            if offset + count == length:
                self._submit(path, index, self._open.pop(path))

    def put(self, path: str, data: NDArray[Any]) -> None:
        """Write a cube whose checkpoint is a single block."""
        self._submit(path, 0, data)

    def finish(self) -> None:
        """Wait until every block is down.

        Raises
        ------
        CaptureError
            Fewer examples came out than the probe set has.
        """
        for path, filled in self._filled.items():
            if filled != self._specs[path].sizes[0]:
                raise CaptureError(
                    f"{path} came out for {filled} of the {self._specs[path].sizes[0]} examples of the probe set: make "
                    "the model return one output an example."
                )
        for future in self._futures:
            future.result()

    def _submit(self, path: str, index: int, data: NDArray[Any]) -> None:
        self._room.acquire()
        for future in [future for future in self._futures if future.done()]:
            self._futures.remove(future)
            future.result()
        self._futures.append(self._pool.submit(self._write, path, index, data))

    def _write(self, path: str, index: int, data: NDArray[Any]) -> None:
        try:
            is_finite = self._summaries is not None and self._summaries.add(path, index, data)
            self._writer.write_block(self._step, path, index, data, is_finite=is_finite)
        finally:
            self._memory.give(data)
            self._room.release()


class BlockMemory:
    """Memory of blocks, which is used again: faulting in fresh pages costs more than filling them.

    It begins at a page, as writing past the page cache asks for, and consists of huge pages where the system has them.
    Blocks too small for that are ordinary arrays.

    Parameters
    ----------
    limit_nbytes : int
        What is kept for later is let go as soon as more than this would be held together with what is in use.

    Attributes
    ----------
    held_nbytes : int
        In use and kept.
    """

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self.held_nbytes = 0
        self._idle: list[mmap.mmap] = []
        self._lent: dict[int, mmap.mmap] = {}
        self._guard = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a C-contiguous array without defined values."""
        size = _memory_nbytes(math.prod(shape) * dtype.itemsize)
        if size < DIRECT_NBYTES:
            return np.empty(shape, dtype)
        with self._guard:
            found = next((memory for memory in reversed(self._idle) if len(memory) == size), None)
            if found is not None:
                self._idle.remove(found)
            else:
                while self._idle and self.held_nbytes + size > self._limit_nbytes:
                    self.held_nbytes -= len(self._idle.pop(0))
                self.held_nbytes += size
                found = mmap.mmap(-1, size)
                if hasattr(mmap, "MADV_HUGEPAGE"):
                    with suppress(OSError):
                        found.madvise(mmap.MADV_HUGEPAGE)
            array = np.frombuffer(found, dtype, math.prod(shape)).reshape(shape)
            self._lent[id(array)] = found
        return array

    def give(self, array: NDArray[Any]) -> None:
        """Take an array back that `take` returned and nobody uses any more; others are passed over."""
        with self._guard:
            memory = self._lent.pop(id(array), None)
            if memory is not None:
                self._idle.append(memory)


def projected_nbytes(specs: Sequence[ArraySpec], batch_size: int, n_classes: int = 0) -> int:
    """Host memory that a capture takes at most, beside the model and its passes, in bytes.

    Two batches on their way, one open block an array, `MAX_PENDING` blocks with the writers, one encoded copy for each
    writer thread, with what it needs to write it, and the summaries: sums by class for each of `n_classes`, and a few
    numbers for each block.
    """
    example = sum(int(np.prod(spec.sizes[1:])) * numpy_dtype(spec).itemsize for spec in specs)
    largest = max(map(_block_nbytes, specs), default=0)
    encoded = largest + (STAGING_NBYTES if largest >= DIRECT_NBYTES else 0)
    summaries = 0
    for spec in filter(has_views, specs):
        n_units = spec.sizes[spec.dims.index(UNIT) - 1]
        summaries += summary_nbytes(spec, n_units, min(n_classes, class_limit(spec, n_units)), MAX_PENDING)
    return 2 * batch_size * example + _blocks_nbytes(specs) + N_THREADS * encoded + summaries


def _blocks_nbytes(specs: Sequence[ArraySpec]) -> int:
    nbytes = [_block_nbytes(spec) for spec in specs]
    return sum(nbytes) + MAX_PENDING * max(nbytes, default=0)


def _block_nbytes(spec: ArraySpec) -> int:
    return _memory_nbytes(math.prod((min(spec.rows, spec.sizes[0]), *spec.sizes[1:])) * numpy_dtype(spec).itemsize)


def _memory_nbytes(nbytes: int) -> int:
    """Bytes that a block takes in memory: rounded up, so that arrays share memory, where it is made of pages."""
    return nbytes if nbytes < DIRECT_NBYTES else -(-nbytes // _GRAIN_NBYTES) * _GRAIN_NBYTES
