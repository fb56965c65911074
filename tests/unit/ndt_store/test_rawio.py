"""Bytes arrive whatever their alignment, whether or not the file system lets them past the page cache."""

import errno
import fcntl
import mmap
import os

import numpy as np
import pytest

from ndt_store.rawio import (
    ALIGNMENT,
    DIRECT_NBYTES,
    STAGING_NBYTES,
    create_file,
    read_all,
    sync_folders,
    write_all,
    write_file,
)

needs_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")


def _bytes(nbytes, *, aligned=True):
    memory = memoryview(mmap.mmap(-1, nbytes + ALIGNMENT))[0 if aligned else 8 :][:nbytes]
    memory[:] = np.random.default_rng(nbytes).integers(0, 256, nbytes, np.uint8).tobytes()
    return memory


def _write(path, buffers):
    descriptor = create_file(path, sum(buffer.nbytes for buffer in buffers))
    try:
        write_all(descriptor, buffers)
        return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & getattr(os, "O_DIRECT", 0))
    finally:
        os.close(descriptor)


@pytest.fixture
def written(monkeypatch):
    """Count bytes by the way they take."""
    counts = {"direct": 0, "ordinary": 0}
    write, writev = os.write, os.writev

    def counted_write(fd, data):
        n = write(fd, data)
        counts["direct"] += n
        return n

    def counted_writev(fd, parts):
        n = writev(fd, parts)
        counts["ordinary"] += n
        return n

    monkeypatch.setattr(os, "write", counted_write)
    monkeypatch.setattr(os, "writev", counted_writev)
    return counts


SIZES = [
    [0],
    [5],
    [DIRECT_NBYTES],
    [DIRECT_NBYTES - 4, 4],
    [DIRECT_NBYTES + 4092, 4],
    [3 * STAGING_NBYTES + 77, 4],
    [100, 2 * STAGING_NBYTES + 9, 0, 4095, 4096],
]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_byte_arrives_in_order(tmp_path, sizes, aligned):
    buffers = [_bytes(n, aligned=aligned) for n in sizes]
    assert not _write(tmp_path / "f", buffers)  # what follows on this descriptor need not be aligned
    assert (tmp_path / "f").read_bytes() == b"".join(buffers)


@needs_direct
@pytest.mark.parametrize("aligned", [True, False])
def test_a_large_file_goes_past_the_cache_but_for_its_unaligned_end(tmp_path, written, aligned):
    _write(tmp_path / "f", [_bytes(DIRECT_NBYTES + 100, aligned=aligned), _bytes(4)])
    assert written == {"direct": DIRECT_NBYTES, "ordinary": 104}


def test_a_small_file_goes_through_the_cache(tmp_path, written):
    _write(tmp_path / "f", [_bytes(DIRECT_NBYTES - 1)])
    assert written == {"direct": 0, "ordinary": DIRECT_NBYTES - 1}


@needs_direct
def test_a_file_system_without_direct_writing_gets_ordinary_ones(tmp_path, monkeypatch, written):
    opened = os.open

    def refusing(path, flags, *rest):
        if flags & os.O_DIRECT:
            os.close(opened(path, flags & ~os.O_DIRECT, *rest))  # Linux leaves the file behind
            raise OSError(errno.EINVAL, "no direct writing here")
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    data = _bytes(DIRECT_NBYTES + 3)
    _write(tmp_path / "f", [data])
    assert (tmp_path / "f").read_bytes() == data
    assert written["direct"] == 0


@needs_direct
@pytest.mark.parametrize("taken", [0, ALIGNMENT, 1000])
def test_direct_writing_that_stops_half_way_is_finished_by_ordinary_writing(tmp_path, monkeypatch, taken):
    write, calls = os.write, []

    def stopping(fd, data):
        calls.append(len(data))
        if len(calls) > 1 or not taken:
            raise OSError(errno.EINVAL, "cannot be written directly")
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        n = write(fd, data[:taken])
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        return n

    monkeypatch.setattr(os, "write", stopping)
    data = _bytes(DIRECT_NBYTES + 50)
    _write(tmp_path / "f", [data])
    assert (tmp_path / "f").read_bytes() == data


@needs_direct
def test_write_all__raises_what_the_disk_says(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full"):
        _write(tmp_path / "f", [_bytes(DIRECT_NBYTES)])


def test_create_file__raises_on_a_file_that_is_there_and_keeps_it(tmp_path):
    (tmp_path / "f").write_text("precious")
    for nbytes in (1, DIRECT_NBYTES):
        with pytest.raises(FileExistsError):
            create_file(tmp_path / "f", nbytes)
    assert (tmp_path / "f").read_text() == "precious"


def test_read_all_fills_buffers_across_their_borders_and_counts_what_there_was(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    first, second = bytearray(4), bytearray(8)
    with (tmp_path / "f").open("rb") as file:
        assert read_all(file.fileno(), [memoryview(first), memoryview(second)]) == 10
    assert (first, second) == (b"0123", b"456789\0\0")


def test_sync_folders_syncs_each_and_passes_over_what_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("x")
    synced, fsync = [], os.fsync

    def noting(fd):
        synced.append(os.path.realpath(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    sync_folders([tmp_path / "a", tmp_path / "gone", tmp_path / "file", tmp_path])
    assert synced == [str(tmp_path / "a"), str(tmp_path)]


def test_write_file__raises_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def failing(fd):
        raise OSError(errno.EIO, "broken")

    write_file(tmp_path / "kept", [_bytes(9)], durable=True)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="broken"):
        write_file(tmp_path / "f", [_bytes(9)], durable=True)
    write_file(tmp_path / "g", [_bytes(9)], durable=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g", "kept"]


def test_more_buffers_than_the_kernel_takes_at_once_are_written_and_read(tmp_path):
    parts = [memoryview(bytes([n % 251, n % 7])) for n in range(3000)]
    write_file(tmp_path / "f", parts, durable=False)
    assert (tmp_path / "f").read_bytes() == b"".join(parts)
    found = [memoryview(bytearray(2)) for _ in parts]
    with (tmp_path / "f").open("rb") as file:
        assert read_all(file.fileno(), found) == 6000
    assert found == parts
