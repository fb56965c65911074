"""A writer of a series or an experiment that dies at any storage operation leaves what every reader can use.

Death is simulated in this process: the operation and every later one of the same storage raise, so that nothing which
runs on the way out can tidy up. `tests/e2e/test_kill_series.py` kills processes.
"""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ndt_store import Column, SeriesWriter, open_store, open_training, series_plan, verify, write_experiment
from ndt_store.errors import NotFoundError, StorageError
from ndt_store.testing import FaultyStorage, data_files, no_room, simulate_store

N_STEPS = 14
ROWS = {"loss": Column(), "rank": Column(("layer",))}


class DiedError(BaseException):
    """Not an Exception, so that nothing handles it."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(series_plan, "ROWS", 4)


def mortal(root: Path, at: int) -> FaultyStorage:
    def fault(operation):
        storage.at = storage.n_operations + 1
        raise DiedError(operation)

    storage = FaultyStorage(root, at, fault)
    return storage


def row(step, attempt=0):
    rng = np.random.default_rng((step, attempt))
    return {"loss": rng.random(), "rank": rng.random(2)}


def track(storage, attempt=0, back=0, after=()):
    """Append to the end from where the series stands, or from some steps before, with a flush every third step."""
    with SeriesWriter.open(
        storage, rows=ROWS, coords={"layer": ["a", "b"]}, identity={"seed": 1}, flush_interval_s=1e9
    ) as writer:
        if back and writer.last_step is not None:
            writer.truncate(writer.last_step - back)
        begin = -1 if writer.last_step is None else writer.last_step
        for step in range(begin + 1, N_STEPS):
            writer.append(step, **row(step, attempt))
            if step % 3 == 2:
                writer.flush()
            for call in (call for at, call in after if at == step):
                call()


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in data_files(root)}


def seen(root):
    """What our reader sees, after checking that plain readers see a series that is as good."""
    try:
        found = open_training(root)
    except NotFoundError:
        return None
    for read in (lambda: xr.open_zarr(f"{root}/training"), lambda: xr.open_zarr(str(root), group="training")):
        try:
            plain = read().load()
        except (FileNotFoundError, KeyError):
            assert not found.sizes["step"]
            continue
        check_attempts(plain)
    return found


def check_attempts(found):
    """Each row is that of its step, in the first attempt or, after those, in the second."""
    assert found.step.values.tolist() == list(range(found.sizes["step"]))
    attempts = []
    for step in found.step.values:
        one = found.sel(step=step)
        attempts += [
            a
            for a in (0, 1)
            if row(step, a)["loss"] == one.loss.item() and (row(step, a)["rank"] == one["rank"].values).all()
        ]
    assert len(attempts) == found.sizes["step"]
    assert attempts == sorted(attempts)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "s"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_plan, "ROWS", 4)
        storage = mortal(root, 0)
        track(storage)
    return files(root), storage.n_operations


def test_a_series_whose_writer_dies_at_any_operation_is_a_prefix_and_goes_on_to_the_same_bytes(tmp_path, whole):
    expected, n_operations = whole
    lost = []
    for at in range(1, n_operations + 1):
        root = tmp_path / str(at)
        with pytest.raises(DiedError):
            track(mortal(root, at))
        found = seen(root)
        if found is not None:
            check_attempts(found)
            lost.append(found.sizes["step"])
        track(root)
        assert files(root) == expected, at
    assert lost == sorted(lost)
    assert set(lost) == {0, 3, 6, 9, 12, N_STEPS}


def test_rows_that_a_full_disk_refused_are_kept_and_written_by_the_next_flush(tmp_path, whole):
    expected, _ = whole
    root = tmp_path / "s"
    storage = FaultyStorage(root, 0, no_room)
    n_refused = 0
    with SeriesWriter.open(
        storage, rows=ROWS, coords={"layer": ["a", "b"]}, identity={"seed": 1}, flush_interval_s=1e9
    ) as writer:
        for step in range(N_STEPS):
            writer.append(step, **row(step))
            storage.at = storage.n_operations + 1 + step
            try:
                writer.flush()
            except StorageError:
                n_refused += 1
                check_attempts(open_training(root))
    assert n_refused > N_STEPS // 2
    assert files(root) == expected


def test_what_is_appended_after_a_truncation_never_mixes_with_what_was_dropped(tmp_path):
    track(mortal(tmp_path / "s", 0))
    before = files(tmp_path / "s")
    storage = mortal(tmp_path / "s", 0)
    track(storage, attempt=1, back=7)
    expected = files(tmp_path / "s")
    for at in range(1, storage.n_operations + 1):
        root = tmp_path / str(at)
        for key, data in before.items():
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(data)
        with pytest.raises(DiedError):
            track(mortal(root, at), attempt=1, back=7)
        found = seen(root)
        check_attempts(found)
        assert found.sizes["step"] >= N_STEPS - 7
        with SeriesWriter.open(root, rows=ROWS, coords={"layer": ["a", "b"]}, identity={"seed": 1}) as writer:
            writer.truncate(N_STEPS - 8)
        track(root, attempt=1)
        assert files(root) == expected, at


def test_a_store_created_around_a_series_keeps_it_wherever_the_capture_dies(tmp_path):
    reference = tmp_path / "reference"
    layers = {"fc": (3,)}
    storage = mortal(reference, 0)
    track(reference)
    simulate_store(storage, layers=layers, n_examples=4, checkpoints=(0, 10))
    training = {key: data for key, data in files(reference).items() if "training" in key}
    series = files(reference)
    for at in range(1, storage.n_operations + 1, 2):
        root = tmp_path / str(at)
        track(root)
        with pytest.raises(DiedError):
            simulate_store(mortal(root, at), layers=layers, n_examples=4, checkpoints=(0, 10))
        assert {key: data for key, data in files(root).items() if "training" in key} == training
        assert seen(root).sizes["step"] == N_STEPS
        simulate_store(root, layers=layers, n_examples=4, checkpoints=(0, 10))
        assert set(files(root)) == set(series)
        assert verify(open_store(root), read_data=True).ok


def test_a_series_and_a_capture_that_die_together_both_go_on(tmp_path):
    layers = {"fc": (3,)}

    def capture_too(storage):
        return lambda: simulate_store(storage, layers=layers, n_examples=4, checkpoints=(0, 10))

    storage = mortal(tmp_path / "reference", 0)
    track(storage, after=[(4, capture_too(storage))])
    expected = set(files(tmp_path / "reference"))
    for at in range(1, storage.n_operations + 1, 7):
        root = tmp_path / str(at)
        dying = mortal(root, at)
        with pytest.raises(DiedError):
            track(dying, after=[(4, capture_too(dying))])
        found = seen(root)
        if found is not None:
            check_attempts(found)
        track(root)
        capture_too(root)()
        assert set(files(root)) == expected
        store = open_store(root)
        assert verify(store, read_data=True).ok
        xr.testing.assert_identical(xr.open_datatree(str(root), engine="zarr").load(), store.tree.load())


def test_an_experiment_whose_writer_dies_is_there_whole_or_not_at_all(tmp_path):
    first = xr.Dataset({"x": ("y", np.arange(5.0)), "z": ("y", list("abcde"))}, {"when": ("y", np.arange(5))})
    second = xr.Dataset({"x": ("y", np.arange(3.0))}, attrs={"second": True})
    base = simulate_store(tmp_path / "base", layers={"fc": (3,)}, n_examples=4, checkpoints=(0,)).store
    start = files(Path(base.path))
    write_experiment(storage := mortal(tmp_path / "base", 0), "e", first)
    n_writing, with_first = storage.n_operations, files(tmp_path / "base")
    write_experiment(storage := mortal(tmp_path / "base", 0), "e", second, replace=True)
    n_replacing, with_second = storage.n_operations, files(tmp_path / "base")
    for n_operations, before, after, dataset in (
        (n_writing, start, with_first, first),
        (n_replacing, with_first, with_second, second),
    ):
        for at in range(1, n_operations + 1):
            root = tmp_path / f"{n_operations}-{at}"
            for key, data in before.items():
                (root / key).parent.mkdir(parents=True, exist_ok=True)
                (root / key).write_bytes(data)
            with pytest.raises(DiedError):
                write_experiment(mortal(root, at), "e", dataset, replace=True)
            store = open_store(root)
            plain = xr.open_datatree(str(root), engine="zarr").load()
            for name in store.experiments:
                found = store.experiment(name).load()
                assert found.identical(first) or found.identical(second)
            for name in plain.children.get("experiments", xr.DataTree()).children:
                shown = plain[f"experiments/{name}"].to_dataset(inherit=False)
                assert shown.identical(first) or shown.identical(second)
            assert not [f for f in verify(store, read_data=True).findings if f.severity == "damaged"]
            write_experiment(root, "e", dataset, replace=True)
            assert files(root) == after, at
