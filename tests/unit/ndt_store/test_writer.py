"""What a writer promises: nothing half-visible, nothing overwritten, nothing mixed."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from ndt_store import StoreWriter, open_store, verify
from ndt_store.errors import (
    AlreadyExistsError,
    DimensionError,
    IncompleteStoreError,
    InvalidInputError,
    NotFoundError,
    ResumeMismatchError,
    SchemaError,
    StorageError,
    StoreLockedError,
)
from ndt_store.layout import blocks
from ndt_store.planning import ProbeSet, Tap, plan_store
from ndt_store.testing import FaultyStorage, no_room, simulate_store

PROVENANCE = {"identity": {"model": "m", "dataset_digest": "abc"}, "environment": {"python": "3"}}
CUBE = "layers/fc/activations"


def _plan(checkpoints=(0, 10), n=6, dtype="float32", inputs=None):
    probe = ProbeSet(np.zeros((n, 2), np.float32) if inputs is None else inputs, np.arange(n) % 2)
    return plan_store(checkpoints, probe, [Tap("fc", "activations", ("example", "unit"), (3,), dtype)], block_nbytes=30)


def _open(path, plan=None, provenance=PROVENANCE):
    schema, static = plan or _plan()
    return StoreWriter.open(path, schema, static=static, provenance=provenance)


def _write(writer, step, value=1.0):
    for spec in writer.schema.cubes:
        for block in blocks(spec):
            shape = (block.stop - block.start, *spec.sizes[1:]) if spec.sizes else ()
            data = np.full(shape, "d", object) if spec.dtype == "string" else np.full(shape, value, spec.dtype)
            writer.write_block(step, spec.path, block.index, data)


def test_a_checkpoint_is_seen_once_it_is_committed_and_not_before(tmp_path):
    with _open(tmp_path / "s") as writer:
        _write(writer, 0)
        assert open_store(tmp_path / "s").checkpoints.tolist() == []
        writer.commit(0)
        assert open_store(tmp_path / "s").checkpoints.tolist() == [0]


def test_an_open_reader_keeps_its_snapshot_until_refreshed(tmp_path):
    with _open(tmp_path / "s") as writer:
        _write(writer, 0, 1.0)
        writer.commit(0)
        before = open_store(tmp_path / "s")
        lazy = before["fc"].activations
        _write(writer, 10, 2.0)
        writer.commit(10)
        assert before.checkpoints.tolist() == [0]
        assert lazy.compute().shape == (1, 6, 3)
        assert before.refresh()["fc"].activations.sel(checkpoint=10).values.min() == 2.0


def test_commit__raises_on_a_missing_block_and_shows_nothing(tmp_path):
    with _open(tmp_path / "s") as writer:
        writer.write_block(0, CUBE, 0, np.ones((2, 3), np.float32))
        with pytest.raises(
            IncompleteStoreError, match=r"2 of 3 blocks of layers/fc/activations.*block 1|weights_digest"
        ):
            writer.commit(0)
    assert open_store(tmp_path / "s").checkpoints.size == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, CUBE, 0, np.ones((2, 3), np.float32)), NotFoundError, "Checkpoint 5 is not planned"),
        ((0, "layers/no/activations", 0, np.ones((2, 3), np.float32)), NotFoundError, "no array"),
        ((0, CUBE, 3, np.ones((2, 3), np.float32)), NotFoundError, "no block 3"),
        ((0, CUBE, 0, np.ones((3, 3), np.float32)), DimensionError, r"shape \(3, 3\): expected \(2, 3\)"),
        ((0, CUBE, 0, np.ones((2, 3))), InvalidInputError, "dtype float64: expected float32"),
    ],
)
def test_write_block__raises_on_what_the_schema_does_not_plan(tmp_path, arguments, error, message):
    with _open(tmp_path / "s") as writer, pytest.raises(error, match=message):
        writer.write_block(*arguments)


def test_a_committed_checkpoint_never_changes(tmp_path):
    with _open(tmp_path / "s") as writer:
        _write(writer, 0)
        writer.commit(0)
        with pytest.raises(AlreadyExistsError, match="committed and never changes"):
            writer.write_block(0, CUBE, 0, np.ones((2, 3), np.float32))


def test_a_closed_writer_writes_nothing(tmp_path):
    writer = _open(tmp_path / "s")
    writer.close()
    with pytest.raises(InvalidInputError, match="closed"):
        writer.write_block(0, CUBE, 0, np.ones((2, 3), np.float32))


@pytest.mark.parametrize(
    ("plan", "provenance", "field"),
    [
        (lambda: _plan(dtype="float16"), PROVENANCE, "layers/fc/activations.dtype"),
        (lambda: _plan(checkpoints=(0, 20)), PROVENANCE, "checkpoints"),
        (lambda: _plan(inputs=np.ones((6, 2), np.float32)), PROVENANCE, "input"),
        (lambda: _plan(n=8), PROVENANCE, "example.sizes"),
        (_plan, {"identity": {**PROVENANCE["identity"], "dataset_digest": "xyz"}}, "dataset_digest"),
        (_plan, {"identity": {**PROVENANCE["identity"], "extra": 1}}, "extra"),
    ],
)
def test_resume__raises_on_another_capture_and_writes_nothing(tmp_path, plan, provenance, field):
    _open(tmp_path / "s").close()
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()}
    with pytest.raises(ResumeMismatchError, match="was begun with .* = .* and this capture has") as caught:
        _open(tmp_path / "s", plan(), provenance)
    assert caught.value.field == field
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*") if p.is_file()} == before


def test_resume_names_both_values(tmp_path):
    _open(tmp_path / "s").close()
    other = {"identity": {**PROVENANCE["identity"], "dataset_digest": "xyz"}}
    with pytest.raises(ResumeMismatchError, match="dataset_digest = 'abc' and this capture has 'xyz'"):
        _open(tmp_path / "s", provenance=other)


def test_resume_keeps_the_first_environment(tmp_path):
    _open(tmp_path / "s").close()
    _open(tmp_path / "s", provenance={**PROVENANCE, "environment": {"python": "4"}}).close()
    assert open_store(tmp_path / "s").provenance["environment"] == {"python": "3"}


def test_extend_adds_checkpoints_that_every_reader_sees(tmp_path):
    import xarray as xr

    with _open(tmp_path / "s", _plan(checkpoints=())) as writer:
        for step in (3, 40):
            writer.extend([step])
            _write(writer, step, float(step))
            writer.commit(step)
    assert verify(open_store(tmp_path / "s"), read_data=True).ok
    plain = xr.open_datatree(tmp_path / "s", engine="zarr")
    assert plain["layers/fc"].activations.sel(checkpoint=40).values.max() == 40.0


def test_extend__raises_on_an_earlier_step(tmp_path):
    with _open(tmp_path / "s") as writer, pytest.raises(SchemaError, match="increase strictly"):
        writer.extend([7])
    assert open_store(tmp_path / "s").schema.checkpoints == (0, 10)


def test_open__raises_on_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(AlreadyExistsError, match=r"thesis\.tex"):
        _open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_open__raises_on_a_zarr_hierarchy_that_is_not_ours(tmp_path):
    import zarr

    zarr.open_group(tmp_path / "other.zarr", mode="w").create_array("a", data=np.arange(3))
    with pytest.raises(NotFoundError, match="no activation store"):
        _open(tmp_path / "other.zarr")
    assert zarr.open_array(tmp_path / "other.zarr" / "a")[:].tolist() == [0, 1, 2]


def test_second_writer__raises_and_names_the_holder(tmp_path):
    holder = (
        "import sys, time, numpy as np\n"
        "from ndt_store.storage import LocalStorage\nfrom pathlib import Path\n"
        "lock = LocalStorage(Path(sys.argv[1])).lock()\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    path = tmp_path / "s"
    _open(path).close()
    process = subprocess.Popen([sys.executable, "-c", holder, str(path)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(StoreLockedError, match=f"process {process.pid} on .* since 2"):
            _open(path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    _open(path).close()  # the kernel dropped the killed holder's lock


def test_no_room_is_one_sentence_and_the_capture_resumes(tmp_path):
    path = tmp_path / "s.zarr"
    with pytest.raises(StorageError, match="No space left on device"):
        simulate_store(FaultyStorage(path, at=80, fault=no_room))
    sim = simulate_store(path)
    assert verify(sim.store, read_data=True).ok
    assert not (path / "tmp").exists()
    assert not (path / "lock").exists()


def test_opening_a_store_sweeps_what_a_killed_writer_of_views_left(tmp_path):
    store = simulate_store(tmp_path / "s").store
    left = store.catalogue.storage.root / "views" / "tmp" / "1-left"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half a view")
    simulate_store(tmp_path / "s")
    assert not left.exists()


def test_not_finite_values_are_stored_exactly_and_counted(tmp_path):
    values = np.ones((3, 12, 10), np.float32)
    values[1, 3, :4] = np.nan
    values[1, 5, 0], values[2, 0, 0] = np.inf, -np.inf
    store = simulate_store(tmp_path / "s", planted={CUBE: values}).store
    assert store["fc"].activations.values.tobytes() == values.tobytes()
    entries = [store.catalogue.record(step).arrays[CUBE] for step in (0, 10, 100)]
    assert [(entry.nan, entry.inf) for entry in entries] == [(0, 0), (4, 1), (0, 1)]


def test_large_finite_values_are_not_counted_as_infinite(tmp_path):
    values = np.full((3, 12, 10), 3e38, np.float32)
    store = simulate_store(tmp_path / "s", planted={CUBE: values}).store
    assert store.catalogue.record(0).arrays[CUBE].inf == 0


@pytest.mark.parametrize("labels", [[0, 1, np.nan], [0, 1, 0.5], [0, 1, -1], [0, 1]])
def test_probe_set__raises_on_labels_that_are_no_classes(labels):
    with pytest.raises(InvalidInputError, match="label"):
        ProbeSet(np.zeros((3, 2)), np.asarray(labels))


def test_commit_records_carry_a_digest_of_themselves(tmp_path):
    store = simulate_store(tmp_path / "s").store
    path = tmp_path / "s" / "commits" / "10.json"
    record = json.loads(path.read_text())
    record["weights_digest"] = "0" * 64
    path.write_text(json.dumps(record))
    report = verify(store.refresh())
    assert [(f.severity, f.array) for f in report.findings] == [("damaged", "commits/10.json")]


def test_a_store_stays_the_same_store_when_the_process_changes_its_folder(tmp_path, monkeypatch):
    for name, seed in (("a", 1), ("b", 2)):
        simulate_store(tmp_path / name / "s.zarr", seed=seed)
    monkeypatch.chdir(tmp_path / "a")
    store = open_store("s.zarr")
    lazy = store["fc"].activations
    expected = lazy.values.copy()
    monkeypatch.chdir(tmp_path / "b")
    assert store.path == "s.zarr"
    np.testing.assert_array_equal(lazy.values, expected)
    assert not np.array_equal(open_store("s.zarr")["fc"].activations.values, expected)


def test_another_store_at_the_same_place_has_other_dask_names(tmp_path):
    import shutil

    first = simulate_store(tmp_path / "s", seed=1).store["fc"].activations.data.name
    again = open_store(tmp_path / "s")["fc"].activations.data.name
    shutil.rmtree(tmp_path / "s")
    second = simulate_store(tmp_path / "s", seed=1).store["fc"].activations.data.name
    assert first == again
    assert first != second


def test_commits_without_their_root_document_are_not_adopted(tmp_path):
    from ndt_store.errors import IntegrityError

    simulate_store(tmp_path / "s")
    (tmp_path / "s" / "zarr.json").unlink()
    before = sorted(p for p in (tmp_path / "s").rglob("*"))
    with pytest.raises(IntegrityError, match=r"lost its zarr\.json but holds 3 committed checkpoints"):
        simulate_store(tmp_path / "s", seed=5)
    assert sorted(p for p in (tmp_path / "s").rglob("*")) == before


def test_a_file_in_the_place_of_a_store_is_left_alone(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(AlreadyExistsError, match="is a file"):
        _open(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"


def test_leftovers_of_an_interrupted_creation_with_other_layers_are_swept(tmp_path):
    path = tmp_path / "s"
    counted = FaultyStorage(tmp_path / "counted", at=0)
    simulate_store(counted, n_committed=0, layers={"other": (3,)})
    with pytest.raises(StorageError):
        # The last two of a creation: the root document, and the sync that shows it.
        simulate_store(FaultyStorage(path, at=counted.n_operations - 2, fault=no_room), layers={"other": (3,)})
    assert (path / "layers" / "other").exists()
    simulate_store(path, layers={"fc": (3,)})
    assert not (path / "layers" / "other").exists()


def test_a_lost_document_is_written_again_on_resume(tmp_path):
    _open(tmp_path / "s").close()
    lost = tmp_path / "s" / "layers" / "fc" / "activations" / "zarr.json"
    whole = lost.read_bytes()
    lost.unlink()
    _open(tmp_path / "s").close()
    assert lost.read_bytes() == whole


def test_abandon_takes_back_the_last_planned_checkpoint(tmp_path):
    with _open(tmp_path / "s") as writer:
        _write(writer, 0)
        writer.commit(0)
        _write(writer, 10)
        writer.abandon(10)
        with pytest.raises(NotFoundError, match="not planned"):
            writer.commit(10)
        with pytest.raises(InvalidInputError, match="cannot be abandoned"):
            writer.abandon(0)
    store = open_store(tmp_path / "s")
    assert store.is_complete
    assert verify(store, read_data=True).ok


def test_a_closed_writer_neither_extends_nor_commits(tmp_path):
    writer = _open(tmp_path / "s")
    _write(writer, 0)
    writer.close()
    for attempt in (lambda: writer.extend([20]), lambda: writer.commit(0), lambda: writer.abandon(10)):
        with pytest.raises(InvalidInputError, match="closed"):
            attempt()


def test_provenance_that_json_changes_still_resumes(tmp_path):
    given = {"identity": {"shape": (1, 2), "names": {1: "a"}}, "environment": {}}
    _open(tmp_path / "s", provenance=given).close()
    _open(tmp_path / "s", provenance=given).close()


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}, "\ud800", np.int64(3)])
def test_provenance_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InvalidInputError, match=r"provenance\['identity'\]\['x'\] cannot be kept"):
        _open(tmp_path / "s", provenance={"identity": {"x": value}})
    assert not (tmp_path / "s").exists()


def test_verify_looks_at_the_store_as_it_is_now(tmp_path):
    with _open(tmp_path / "s", _plan(checkpoints=(0,))) as writer:
        _write(writer, 0)
        writer.commit(0)
        opened = open_store(tmp_path / "s")
        writer.extend([5])
        assert [f.severity for f in verify(opened).findings] == ["incomplete"]


def test_blocks_that_another_thread_writes_during_an_extension_that_fails_are_there_and_as_they_were(tmp_path):
    begun, written = threading.Event(), threading.Event()

    def fault(operation):
        begun.set()
        assert written.wait(10)
        no_room(operation)

    def write_all():
        assert begun.wait(10)
        for spec in writer.schema.cubes:
            for block in blocks(spec):
                shape = (block.stop - block.start, *spec.sizes[1:]) if spec.sizes else ()
                data = np.full(shape, "d", object) if spec.dtype == "string" else np.ones(shape, spec.dtype)
                writer.write_block(0, spec.path, block.index, data)
                data[...] = "z" if spec.dtype == "string" else 7  # from here on the buffer is the caller's
        written.set()

    storage = FaultyStorage(tmp_path / "s", at=0, fault=fault)
    probe = ProbeSet(np.zeros((6, 2), np.float32), np.arange(6) % 2)
    tap = Tap("fc", "activations", ("example", "unit"), (3,))
    with _open(storage, plan_store((0,), probe, [tap], codec="none", block_nbytes=30)) as writer:
        thread = threading.Thread(target=write_all)
        thread.start()
        storage.at = storage.n_operations + 2
        with pytest.raises(StorageError, match="No space left"):
            writer.extend([10])
        thread.join()
        writer.commit(0)
    store = open_store(tmp_path / "s")
    assert verify(store, read_data=True).ok
    assert (store["fc"].activations.values == 1).all()
