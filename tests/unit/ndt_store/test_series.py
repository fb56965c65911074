"""A series that grows while a network trains reads back as it was appended, by our code and by plain xarray."""

import contextlib
import json
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
import xarray as xr

from ndt_store import Column, SeriesWriter, StoreWriter, open_store, open_training, series_plan, verify
from ndt_store.errors import (
    AlreadyExistsError,
    DimensionError,
    FormatVersionError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    ResumeMismatchError,
    SchemaError,
    StorageError,
    StoreLockedError,
)
from ndt_store.storage import LocalStorage
from ndt_store.testing import DAMAGES, FaultyStorage, data_files, flip_bit, no_room, simulate_store

LAYERS = ["conv1", "blocks.0", "fc"]
ROWS = {
    "loss": Column(attrs={"long_name": "cross-entropy", "units": "nat"}),
    "rank": Column(("layer",)),
    "count": Column(dtype="int64"),
    "best": Column(dtype="bool"),
}


def open_series(path, **changed):
    given = {"rows": ROWS, "coords": {"layer": LAYERS}, "attrs": {"every": 5}, "identity": {"seed": 1}, **changed}
    return SeriesWriter.open(path, **{"flush_interval_s": 1000.0, **given})


def row(step):
    rng = np.random.default_rng(step)
    return {"loss": rng.random(), "rank": rng.random(3), "count": step * 2, "best": step % 2 == 0}


def append(writer, *steps):
    for step in steps:
        writer.append(step, **row(step))


def expected(*steps):
    rows = [row(step) for step in steps]
    data = {
        name: (
            (("step", *column.dims)),
            np.array([r[name] for r in rows], column.dtype).reshape(-1, *(3,) * len(column.dims)),
        )
        for name, column in ROWS.items()
    }
    coords = {"step": ("step", np.array(steps, "int64")), "layer": LAYERS}
    return xr.Dataset(data, coords)


def check(found, *steps):
    want = expected(*steps)
    assert set(found.variables) == set(want.variables)
    for name, variable in want.variables.items():
        assert found[name].dims == variable.dims
        assert name == "layer" or found[name].dtype == variable.dtype
        np.testing.assert_array_equal(found[name].values, variable.values)


def test_what_was_appended_is_read_back_bit_for_bit_with_attributes(tmp_path):
    with open_series(tmp_path / "s") as writer:
        append(writer, 0, 5, 700)
    found = open_training(tmp_path / "s")
    check(found, 0, 5, 700)
    assert found.attrs == {"every": 5}
    assert found.loss.attrs == {"long_name": "cross-entropy", "units": "nat"}
    assert found.step.attrs["long_name"] == "training step"


def test_plain_readers_see_the_same_rows_as_ours_whenever_they_look(tmp_path):
    path = str(tmp_path / "s")
    with open_series(path) as writer:
        for begin in range(0, 1200, 300):
            check(open_training(path), *range(begin))
            for plain in (xr.open_zarr(path, group="training"), xr.open_zarr(f"{path}/training")):
                xr.testing.assert_identical(plain.load(), open_training(path))
            append(writer, *range(begin, begin + 300))
            check(open_training(path), *range(begin))
            writer.flush()
    xr.testing.assert_identical(xr.open_zarr(path, group="training").load(), open_training(path))
    check(open_training(path), *range(1200))


def test_a_capture_into_the_place_of_a_series_keeps_it_and_shows_it_in_its_tree(tmp_path):
    path = str(tmp_path / "s")
    with open_series(path) as writer:
        append(writer, 0, 5)
        writer.flush()
        with pytest.raises(NotFoundError, match="no capture yet"):
            open_store(path)
        store = simulate_store(path).store
        append(writer, 10)
    check(store.training, 0, 5, 10)
    plain = xr.open_datatree(path, engine="zarr").load()
    xr.testing.assert_identical(plain, open_store(path).tree.load())
    xr.testing.assert_identical(plain, xr.open_datatree(path, engine="ndt").load())
    check(plain["training"].to_dataset(inherit=False), 0, 5, 10)


def test_a_series_beside_a_store_that_exists_is_shown_and_the_store_is_what_it_was(tmp_path):
    path = str(tmp_path / "s")
    before = simulate_store(path).store.tree.load()
    with open_series(path) as writer:
        append(writer, 0)
    tree = xr.open_datatree(path, engine="zarr").load()
    xr.testing.assert_identical(tree, open_store(path).tree.load())
    del tree["training"]
    xr.testing.assert_identical(tree, before)


def test_a_series_that_is_opened_again_goes_on(tmp_path):
    for begin in range(0, 1100, 220):
        with open_series(tmp_path / "s") as writer:
            assert writer.last_step == (begin - 1 if begin else None)
            append(writer, *range(begin, begin + 220))
    check(open_training(tmp_path / "s"), *range(1100))


def test_a_series_that_is_opened_again_and_gains_nothing_changes_no_file(tmp_path):
    simulate_store(tmp_path / "s")
    with open_series(tmp_path / "s") as writer:
        append(writer, 0, 5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()}
    with open_series(tmp_path / "s") as writer:
        assert writer.last_step == 5
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("last", [-1, 0, 100, 511, 512, 600, 1023, 1100, 1199, 5000])
def test_truncate_drops_what_comes_after_a_step_and_what_is_appended_instead_counts(tmp_path, last):
    path = tmp_path / "s"
    with open_series(path) as writer:
        append(writer, *range(1100))
        writer.flush()
        append(writer, *range(1100, 1200))
        writer.truncate(last)
        kept = range(min(last + 1, 1200))
        assert writer.last_step == (kept[-1] if kept else None)
        check(open_training(path), *kept)
        append(writer, 6000, 6001)
    check(open_training(path), *kept, 6000, 6001)
    xr.testing.assert_identical(xr.open_zarr(str(path), group="training").load(), open_training(path))
    with open_series(path) as writer:
        append(writer, 6002)
    check(open_training(path), *kept, 6000, 6001, 6002)


def test_rows_are_safe_on_their_own_after_a_while_and_appending_does_not_wait_for_the_disk(tmp_path):
    allowed, begun = threading.Event(), threading.Event()

    def slow(operation):
        begun.set()
        assert allowed.wait(20)

    storage = FaultyStorage(tmp_path / "s", 0, slow)
    with open_series(storage, flush_interval_s=0.0) as writer:
        storage.at = storage.n_operations + 1
        append(writer, 3)
        assert begun.wait(20)
        append(writer, 4, 5)
        check(open_training(tmp_path / "s"))
        allowed.set()
        while not open_training(tmp_path / "s").sizes["step"]:
            time.sleep(0.01)
        check(open_training(tmp_path / "s"), 3)
    check(open_training(tmp_path / "s"), 3, 4, 5)


def test_what_a_disk_refused_beside_the_caller_is_raised_by_the_next_append_and_no_row_is_lost(tmp_path):
    storage = FaultyStorage(tmp_path / "s", 0, no_room)
    with open_series(storage, flush_interval_s=0.0) as writer:
        storage.at = storage.n_operations + 1
        append(writer, 3)
        refused = False
        while not refused:
            try:
                append(writer, writer.last_step + 1)
            except StorageError as error:
                refused = "No space left" in str(error)
        last = writer.last_step
        append(writer, last + 1)
    check(open_training(tmp_path / "s"), *range(3, last + 2))


def test_append__raises_on_rows_that_do_not_fit_and_keeps_none_of_them(tmp_path):
    with open_series(tmp_path / "s") as writer:
        append(writer, 5)
        for error, match, step, changed in (
            (InvalidInputError, "last step is 5: steps increase", 5, {}),
            (InvalidInputError, "last step is 5", 4, {}),
            (SchemaError, "whole numbers", 6.5, {}),
            (DimensionError, r"training/rank has shape \(3,\): got \(2,\)", 6, {"rank": [1.0, 2.0]}),
            (InvalidInputError, "training/count holds int64: got 1.5", 6, {"count": 1.5}),
            (InvalidInputError, "training/count holds int64: got nan", 6, {"count": np.nan}),
            (InvalidInputError, "training/loss holds float64: got 'much'", 6, {"loss": "much"}),
            (InvalidInputError, "'lost' is missing or unknown", 6, {"lost": 1.0}),
        ):
            with pytest.raises(error, match=match):
                writer.append(step, **{**row(6), **changed})
        with pytest.raises(InvalidInputError, match="'best' is missing"):
            writer.append(6, loss=1.0, rank=[1, 2, 3], count=1)
        append(writer, 6)
    check(open_training(tmp_path / "s"), 5, 6)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("seed", {"identity": {"seed": 2}}),
        ("columns.loss.dtype", {"rows": {**ROWS, "loss": Column(dtype="float32")}}),
        ("columns.lr", {"rows": {**ROWS, "lr": Column()}}),
        ("coords.layer", {"coords": {"layer": ["conv1", "blocks.1", "fc"]}}),
        ("dim", {"dim": "epoch"}),
    ],
)
def test_open__raises_where_another_series_was_begun(tmp_path, field, changed):
    open_series(tmp_path / "s").close()
    with pytest.raises(ResumeMismatchError, match=f"was begun with {field} = .* and this training has") as caught:
        open_series(tmp_path / "s", **changed)
    assert caught.value.field == field
    open_series(tmp_path / "s").close()


def test_open__raises_what_cannot_be_a_series(tmp_path):
    for match, changed in (
        ("dimension 'unit': give its labels", {"rows": {"loss": Column(("unit",))}}),
        ("of string with codec none, and cannot grow", {"rows": {"loss": Column(dtype="string")}}),
        ("has dtype 'complex64'", {"rows": {"loss": Column(dtype="complex64")}}),
        ("described twice: training/layer", {"rows": {"layer": Column()}}),
        ("'a/b' cannot name", {"rows": {"a/b": Column()}}),
    ):
        with pytest.raises(SchemaError, match=match):
            open_series(tmp_path / "s", **changed)
    with pytest.raises(InvalidInputError, match=r"identity.*cannot be kept as JSON"):
        open_series(tmp_path / "s", identity={"seed": float("nan")})
    assert not (tmp_path / "s").exists()


def test_open__raises_where_somebody_elses_files_lie(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyExistsError, match="is a file"):
        open_series(tmp_path / "file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(AlreadyExistsError, match=r"holds 'thesis.tex'"):
        open_series(tmp_path / "home")
    xr.Dataset({"x": ("y", [1])}).to_zarr(tmp_path / "plain", zarr_format=3, consolidated=False)
    with pytest.raises(AlreadyExistsError, match="is a Zarr hierarchy and no activation store"):
        open_series(tmp_path / "plain")
    simulate_store(tmp_path / "s")
    (tmp_path / "s" / "training").mkdir()
    (tmp_path / "s" / "training" / "notes.txt").write_text("x")
    with pytest.raises(AlreadyExistsError, match=r"training/notes.txt"):
        open_series(tmp_path / "s")


def test_one_writer_at_a_time_and_a_capture_beside_it(tmp_path):
    with open_series(tmp_path / "s"):
        with pytest.raises(StoreLockedError, match=r"training/ of .* is being written by process \d+"):
            open_series(tmp_path / "s")
        simulate_store(tmp_path / "s")
    open_series(tmp_path / "s").close()


def test_open_training__raises_where_nothing_was_tracked(tmp_path):
    with pytest.raises(NotFoundError, match="train with tracking"):
        open_training(tmp_path / "s")
    with pytest.raises(NotFoundError, match="train with tracking"):
        _ = simulate_store(tmp_path / "s").store.training


def test_a_closed_writer_says_so(tmp_path):
    writer = open_series(tmp_path / "s")
    writer.close()
    writer.close()
    for call in (lambda: append(writer, 1), writer.flush, lambda: writer.truncate(0)):
        with pytest.raises(InvalidInputError, match="is closed: open it again"):
            call()


def test_a_flipped_bit_is_found_and_named(tmp_path, rng):
    path = tmp_path / "s"
    with open_series(path) as writer:
        append(writer, *range(600))
    for key in ("training/rank/c/0/0", "training/loss/c/1", "training/step/c/0", "training/layer/c/0"):
        whole = (path / key).read_bytes()
        flip_bit(path / key, rng)
        with pytest.raises(IntegrityError) as caught:
            open_training(path)
        assert (caught.value.array, caught.value.block) == (key.split("/c/")[0], key)
        (path / key).write_bytes(whole)
    record = path / "commits" / "training.json"
    flip_bit(record, rng)
    for read in (open_training, open_series):
        with pytest.raises(IntegrityError, match=r"commits/training.json is damaged"):
            read(path)


def test_readers_beside_a_writer_see_a_prefix_and_never_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(series_plan, "ROWS", 8)
    path = str(tmp_path / "s")
    stop = threading.Event()
    failures = []
    seen = {"ours": set(), "plain": set()}

    def look(name, read):
        while not stop.is_set():
            try:
                found = read()
                check(found, *range(found.sizes["step"]))
                seen[name].add(found.sizes["step"])
            except Exception as error:
                failures.append(error)
                return

    with open_series(path) as writer:
        readers = [("ours", lambda: open_training(path)), ("plain", lambda: xr.open_zarr(f"{path}/training").load())]
        threads = [threading.Thread(target=look, args=reader) for reader in readers]
        for thread in threads:
            thread.start()
        for step in range(60):
            append(writer, step)
            writer.flush()
        # A plain reader that holds the metadata of rows that are dropped reads others in their place; ours looks again.
        stop.set()
        for thread in threads:
            thread.join()
        stop.clear()
        thread = threading.Thread(target=look, args=readers[0])
        thread.start()
        for turn in range(30):
            writer.truncate(20 + turn)
            append(writer, *range(21 + turn, 40 + turn))
            writer.flush()
        stop.set()
        thread.join()
    assert not failures
    assert all(len(lengths) > 1 for lengths in seen.values())


class Hooked(LocalStorage):
    """Calls `hook` once, before or after the first read of `key`; the storages for other writers do too."""

    hook = None
    key = ""
    before = True

    def read(self, key, limit):
        if key != Hooked.key or Hooked.hook is None:
            return super().read(key, limit)
        hook, Hooked.hook = Hooked.hook, None
        if Hooked.before:
            hook()
        data = super().read(key, limit)
        if not Hooked.before:
            hook()
        return data

    def for_writer(self, name):
        other = Hooked(self.root)
        other._writer = name
        return other


def hook(monkeypatch, key, call, *, before=True):
    monkeypatch.setattr(Hooked, "key", key)
    monkeypatch.setattr(Hooked, "before", before)
    monkeypatch.setattr(Hooked, "hook", call)


def test_a_reader_whose_rows_are_dropped_under_its_hands_begins_anew(tmp_path, monkeypatch):
    with open_series(tmp_path / "s") as writer:
        append(writer, *range(20))
        writer.flush()

        def go_back_to(step):
            writer.truncate(step)
            append(writer, 50)
            writer.flush()

        hook(monkeypatch, "training/rank/c/0/0", lambda: go_back_to(9))
        check(open_training(Hooked(tmp_path / "s")), *range(10), 50)
        simulate_store(tmp_path / "s")
        hook(monkeypatch, "training/rank/c/0/0", lambda: go_back_to(4))
        assert not verify(open_store(Hooked(tmp_path / "s")), read_data=True).findings


def test_blocks_are_durable_before_what_counts_their_rows(tmp_path):
    operations = []

    def note(operation):
        operations.append(operation)
        storage.at = storage.n_operations + 1

    storage = FaultyStorage(tmp_path / "s", 0, note)
    with open_series(storage) as writer:
        append(writer, 1, 2)
        storage.at = storage.n_operations + 1
        writer.flush()
        flushed = list(operations)
        operations.clear()
        writer.truncate(1)
        truncated = list(operations)
    blocks = [n for n, operation in enumerate(flushed) if "/c/" in operation]
    counts = [n for n, operation in enumerate(flushed) if ".json" in operation]
    syncs = [n for n, operation in enumerate(flushed) if operation == "syncing directories"]
    assert max(blocks) < syncs[0] < min(counts) <= max(counts) < syncs[1]
    assert not any("/c/" in operation for operation in truncated)
    assert truncated[-1] == "syncing directories"


def test_whoever_changes_the_root_waits_for_who_is_at_it(tmp_path, monkeypatch):
    path = tmp_path / "s"
    sim = simulate_store(path)
    static = {spec.path: sim.arrays[spec.path] for spec in sim.store.schema.static}
    with (
        StoreWriter.open(path, sim.store.schema, static=static, provenance=sim.store.provenance) as capture,
        open_series(Hooked(path)) as writer,
    ):
        extension = threading.Thread(target=lambda: capture.extend([1000]))

        def extend_meanwhile():
            extension.start()
            extension.join(0.3)

        append(writer, 5)
        hook(monkeypatch, "zarr.json", extend_meanwhile, before=False)
        writer.flush()
        extension.join()
    plain = xr.open_datatree(str(path), engine="zarr")
    assert plain.checkpoint.values.tolist() == [0, 10, 100, 1000]
    check(plain["training"].to_dataset(inherit=False).load(), 5)


def test_a_capture_and_a_series_that_change_the_root_together_both_show_in_it(tmp_path):
    path = tmp_path / "s"
    sim = simulate_store(path, n_committed=0)
    static = {spec.path: sim.arrays[spec.path] for spec in sim.store.schema.static}

    def extend():
        with StoreWriter.open(path, sim.store.schema, static=static, provenance=sim.store.provenance) as writer:
            for n in range(30):
                writer.extend([1000 + n])

    thread = threading.Thread(target=extend)
    with open_series(path) as writer:
        thread.start()
        for step in range(30):
            append(writer, step)
            writer.flush()
        thread.join()
    plain = xr.open_datatree(str(path), engine="zarr")
    assert plain.sizes["checkpoint"] == 33
    check(plain["training"].to_dataset(inherit=False).load(), *range(30))
    assert not [f for f in verify(open_store(path), read_data=True).findings if f.severity == "damaged"]


def test_verify_counts_a_series_and_finds_every_damage_to_it(tmp_path):
    root = tmp_path / "s"
    plain = verify(simulate_store(root, layers={"fc": (3,)}).store, read_data=True)
    with open_series(root) as writer:
        append(writer, *range(600))
    report = verify(open_store(root), read_data=True)
    assert report.ok
    assert report.n_supplements == 1
    # Two blocks of each growing array and one of labels; a document of each array and of the group.
    assert report.n_blocks == plain.n_blocks + 2 * 5 + 1
    assert report.n_documents == plain.n_documents + 7
    rng = np.random.default_rng(1)
    files = [*data_files(root / "training"), root / "commits" / "training.json", root / "zarr.json"]
    for trial, file in enumerate(files * 6):
        whole = file.read_bytes()
        DAMAGES[(trial + trial // len(files)) % 3](file, rng)
        key = file.relative_to(root).as_posix()
        if key == "zarr.json":
            with contextlib.suppress(IntegrityError, NotFoundError, FormatVersionError):
                assert not verify(open_store(root), read_data=True).ok
        else:
            findings = verify(open_store(root), read_data=True).findings
            assert any(key in (f.array, f.block, f"{f.array}/zarr.json") for f in findings), (key, findings)
        file.write_bytes(whole)
    assert verify(open_store(root), read_data=True).ok


def test_verify_tells_an_interrupted_flush_from_damage(tmp_path):
    root = tmp_path / "s"
    simulate_store(root, layers={"fc": (3,)})
    keys = ("zarr.json", "training/zarr.json", "training/loss/zarr.json")
    with open_series(root) as writer:
        append(writer, 1, 2)
        writer.flush()
        older = {key: (root / key).read_bytes() for key in keys}
        append(writer, 3)
    for key, data in older.items():
        whole = (root / key).read_bytes()
        (root / key).write_bytes(data)
        (finding,) = verify(open_store(root), read_data=True).findings
        assert (finding.severity, finding.array) == ("incomplete", key)
        assert "shows 2 rows of training where the record counts 3" in finding.message
        (root / key).write_bytes(whole)
    for key, data in older.items():
        (root / key).write_bytes(data)
    open_series(root).close()
    assert verify(open_store(root), read_data=True).ok


def test_dimensions_that_the_root_has_too_are_refused_because_no_tree_could_hold_both(tmp_path):
    simulate_store(tmp_path / "s")
    with pytest.raises(SchemaError, match="Dimension 'class' of training/class has 5 entries"):
        open_series(tmp_path / "s", rows={"loss": Column(("class",))}, coords={"class": list("abcde")})
    assert not (tmp_path / "s" / "training").exists()
    assert verify(open_store(tmp_path / "s")).ok


@pytest.mark.parametrize(
    "nodes",
    [
        {"training": 3},
        {"training": {}, "training/loss": {"shape": 3, "dimension_names": None}},
        {"training/step": {"shape": ["x"], "dimension_names": [["a"]]}},
        {"experiments/x/y": {"shape": [1 << 70], "dimension_names": ["example"]}},
    ],
    ids=str,
)
def test_a_root_that_shows_nonsense_beside_the_cubes_is_damaged_and_nothing_else_breaks(tmp_path, nodes):
    root = tmp_path / "s" / "zarr.json"
    store = simulate_store(root.parent, n_tracked=3).store
    document = json.loads(root.read_bytes())
    document["consolidated_metadata"]["metadata"].update(nodes)
    root.write_text(json.dumps(document, indent=1))
    assert any(f.severity == "damaged" for f in verify(open_store(root.parent)).findings)
    xr.testing.assert_identical(open_store(root.parent).training, store.training)


def test_opening_a_store_reads_nothing_of_its_series(tmp_path):
    class Counting(LocalStorage):
        keys: ClassVar[list[str]] = []

        def read(self, key, limit):
            self.keys.append(key)
            return super().read(key, limit)

    simulate_store(tmp_path / "s", n_tracked=3)
    store = open_store(Counting(tmp_path / "s"))
    assert Counting.keys == ["zarr.json"]
    assert store.training.sizes["step"] == 3
