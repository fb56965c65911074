"""The medium: whole or not at all, one writer, and errors that say what to do."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ndt_store.errors import StorageError, StoreLockedError
from ndt_store.storage import LocalStorage


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "store")


def test_write_replaces_whole_files_and_leaves_no_temporary(storage):
    storage.write("a/b", [b"one", memoryview(b"two")])
    storage.write("a/b", [b"new"])
    assert storage.read("a/b", 99) == b"new"
    assert sorted(storage.list()) == ["a/b"]


def test_read_into_fills_buffers_across_their_borders(storage):
    storage.write("k", [b"0123456789"])
    first, second = bytearray(4), bytearray(8)
    assert storage.read_into("k", [memoryview(first), memoryview(second)]) == 10
    assert (first, second) == (b"0123", b"456789\0\0")


def test_every_write_is_synced_before_it_is_renamed_and_folders_on_sync(storage, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(storage.root).replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd))[1]
    )
    monkeypatch.setattr(
        type(storage.root), "replace", lambda self, to: (events.append(f"rename {to}"), replace(self, to))[1]
    )
    storage.write("x/y", [b"data"])
    target = storage.root / "x" / "y"
    assert events[-1] == f"rename {target}"
    assert "/tmp/" in events[-2].replace(str(storage.root), "")
    events.clear()
    storage.sync()
    assert {str(target.parent), str(storage.root), str(storage.root.parent)} <= set(events)
    events.clear()
    storage.sync()
    assert events == []


def test_write__raises_a_sentence_when_the_path_is_a_file(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="refused while writing .*: .*make room or mend permissions"):
        LocalStorage(tmp_path / "store").write("k", [b"x"])


def test_lock_keeps_the_second_out_until_released(storage):
    lock = storage.lock()
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on"):
        storage.lock()
    lock.release()
    storage.lock().release()
    assert list(storage.list()) == []


def test_a_lock_file_that_a_dead_writer_left_does_not_lock(storage):
    storage.root.mkdir()
    (storage.root / "lock").write_text('{"host": "gone", "pid": 1, "started": "2020-01-01T00:00:00Z"}')
    storage.lock().release()


def test_delete_takes_prefixes_and_does_not_mind_absence(storage):
    storage.write("p/a", [b"1"])
    storage.write("p/q/b", [b"2"])
    storage.delete("p")
    storage.delete("p")
    assert list(storage.list()) == []
    storage.write("p/a", [b"again"])
    assert storage.read("p/a", 99) == b"again"


def test_what_need_not_last_leaves_the_writers_temporaries_alone(storage, monkeypatch):
    storage.root.mkdir()
    sources = []
    replace = type(storage.root).replace
    monkeypatch.setattr(type(storage.root), "replace", lambda self, to: (sources.append(self), replace(self, to))[1])
    storage.write("views/moments/a/0", [b"1"], durable=False)
    assert [source.parent for source in sources] == [storage.root / "views" / "tmp"]
    assert not (storage.root / "tmp").exists()
    assert list(storage.list()) == ["views/moments/a/0"]


@pytest.mark.parametrize("gone", ["views/tmp", "views"])
def test_what_need_not_last_is_written_after_another_has_swept(storage, gone):
    storage.root.mkdir()
    storage.write("views/a/0", [b"1"], durable=False)
    LocalStorage(storage.root).delete(gone)
    storage.write("views/a/1", [b"2"], durable=False)
    assert storage.read("views/a/1", 9) == b"2"


def test_what_need_not_last_is_written_though_its_temporary_is_swept_once(storage, monkeypatch):
    replace, sweeps = type(storage.root).replace, []

    def swept_before(self, to):
        if not sweeps:
            sweeps.append(LocalStorage(storage.root).delete("views/tmp"))
        return replace(self, to)

    storage.root.mkdir()
    monkeypatch.setattr(type(storage.root), "replace", swept_before)
    storage.write("views/a/0", [b"1"], durable=False)
    assert storage.read("views/a/0", 9) == b"1"


def test_a_store_that_was_removed_does_not_come_back_as_a_folder_of_views(storage):
    with pytest.raises(StorageError, match="No such file"):
        storage.write("views/a/0", [b"1"], durable=False)
    assert not storage.root.exists()


def test_a_file_that_cannot_be_put_into_place_leaves_no_temporary(storage):
    storage.write("a/b", [b"1"])
    with pytest.raises(StorageError, match="refused while writing"):
        storage.write("a", [b"2"])
    assert list(storage.list()) == ["a/b"]


def test_writes_that_need_not_last_and_the_sweep_of_a_writer_do_not_disturb_each_other(storage):
    storage.root.mkdir()
    done = threading.Event()

    def sweep():
        other = LocalStorage(storage.root)
        while not done.is_set():
            other.delete("tmp")

    with ThreadPoolExecutor(3) as pool:
        sweeping = pool.submit(sweep)
        try:
            list(pool.map(lambda n: storage.write(f"views/a/{n % 50}", [b"1" * 3000], durable=False), range(500)))
        finally:
            done.set()
        sweeping.result()


def test_delete_leaves_what_comes_meanwhile_and_does_not_mind_what_goes(storage, monkeypatch):
    for n in range(4):
        storage.write(f"p/q/{n}", [b"1"])
    unlink, folder = os.unlink, storage.root / "p" / "q"

    def disturbed(name, **options):
        if name == "1":
            unlink(folder / "1")
            (folder / "new").write_bytes(b"2")
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", disturbed)
    storage.delete("p")
    assert list(storage.list()) == ["p/q/new"]


def test_delete_removes_links_and_not_what_they_lead_to(storage, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    storage.write("p/a", [b"1"])
    (storage.root / "p" / "link").symlink_to(outside)
    (storage.root / "tmp").rmdir()
    (storage.root / "tmp").symlink_to(outside)
    storage.delete("p")
    storage.delete("tmp")
    assert list(storage.root.iterdir()) == []
    assert (outside / "precious").exists()


def test_a_temporary_of_an_earlier_process_with_the_same_pid_is_no_obstacle(storage):
    (storage.root / "tmp").mkdir(parents=True)
    for n in range(3):
        (storage.root / "tmp" / f"{os.getpid()}-{n}").write_bytes(b"old")
    storage.write("k", [b"new"])
    assert storage.read("k", 9) == b"new"


def test_a_lock_whose_text_cannot_be_written_is_a_lock_all_the_same(storage, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = storage.lock()
    with pytest.raises(StoreLockedError):
        storage.lock()
    lock.release()
    storage.lock().release()


def test_release_leaves_the_lock_file_of_another_holder(storage):
    first = storage.lock()
    (storage.root / "lock").unlink()
    second = storage.lock()
    first.release()
    with pytest.raises(StoreLockedError):
        storage.lock()
    second.release()


def test_what_could_not_be_synced_is_synced_the_next_time(storage, monkeypatch):
    storage.write("x/y", [b"data"])
    fsync, failing = os.fsync, [True]

    def once(descriptor):
        if failing:
            failing.clear()
            raise OSError(5, "Input/output error")
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", once)
    with pytest.raises(StorageError, match="Input/output error"):
        storage.sync()
    storage.sync()
    assert {str(storage.root / "x"), str(storage.root)} <= set(synced)


def test_gathered_writes_are_synced_together_and_only_then_seen_in_order(storage, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(storage.root).replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(Path(f"/proc/self/fd/{fd}").readlink()), fsync(fd))[1])
    monkeypatch.setattr(
        type(storage.root), "replace", lambda self, to: (events.append(f"rename {to}"), replace(self, to))[1]
    )
    with storage.gather() as sink:
        for key in ("b/1", "a/2", "b/3"):
            sink.write(key, [key.encode()])
        assert not [key for key in storage.list() if not key.startswith("tmp/")]
        assert not (storage.root / "a").exists()
        sink.sync()
        assert {path.parent.name for path in events[:3]} == {"tmp"}
        assert events[3:6] == [f"rename {storage.root / key}" for key in ("b/1", "a/2", "b/3")]
        assert {storage.root / "a", storage.root / "b", storage.root} <= set(events[6:])
        sink.write("c", [b"4"])
        assert not storage.exists("c")
        sink.sync()
        assert storage.read("c", 9) == b"4"
    assert sorted(storage.list()) == ["a/2", "b/1", "b/3", "c"]


def test_gathering_holds_a_few_files_at_most(storage, monkeypatch):
    gate, begun = threading.Event(), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (begun.append(fd), gate.wait(5), fsync(fd))[2])
    added = []

    def add_many():
        for n in range(20):
            sink.write(str(n), [b"x"])
            added.append(n)

    with storage.gather() as sink:
        thread = threading.Thread(target=add_many)
        thread.start()
        thread.join(0.3)
        assert len(added) == len(begun) == 4
        gate.set()
        thread.join(5)
        sink.sync()
    assert len(list(storage.list())) == 20


def test_what_was_gathered_and_never_synced_is_gone(storage):
    with storage.gather() as sink:
        sink.write("a", [b"1"])
    storage.sync()
    assert list(storage.list()) == []
    storage.write("a", [b"2"])
    assert storage.read("a", 9) == b"2"


def test_a_write_beside_a_gathering_is_seen_at_once_and_stays(storage):
    with storage.gather() as sink:
        sink.write("a", [b"1"])
        buffer = bytearray(b"mine")
        storage.write("b", [buffer])
        buffer[:] = b"used"
        storage.sync()
        assert not storage.exists("a")
    assert {key: storage.read(key, 9) for key in storage.list()} == {"b": b"mine"}


def test_a_gathered_write_that_fails_is_told_by_the_sync_which_shows_nothing(storage, monkeypatch):
    fsync = os.fsync

    def failing(fd):
        if os.fstat(fd).st_size == 3:
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with storage.gather() as sink:
        sink.write("a/b", [b"1"])
        sink.write("c/d", [b"333"])
        with pytest.raises(StorageError, match="refused while writing .*c/d: Input/output error"):
            sink.sync()
        assert not storage.exists("a/b")
    assert list(storage.list()) == []
