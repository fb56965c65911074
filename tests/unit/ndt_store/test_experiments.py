"""Results of experiments: what was written reads back as it was, with and without our code, and is never half there."""

import pickle
import threading

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from ndt_store import StoreWriter, open_store, verify, write_experiment
from ndt_store.errors import (
    AlreadyExistsError,
    DimensionError,
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    SchemaError,
    StoreLockedError,
)
from ndt_store.storage import open_storage
from ndt_store.testing import DAMAGES, data_files, flip_bit, simulate_store


@pytest.fixture
def path(tmp_path):
    return simulate_store(tmp_path / "s.zarr").store.path


@pytest.fixture
def dataset(rng):
    return xr.Dataset(
        {
            "accuracy": (("jump", "arm", "seed"), rng.random((2, 3, 4)), {"long_name": "share that is right"}),
            "margin": (("arm", "example"), rng.random((3, 12), dtype=np.float32)),
            "half": ("seed", rng.random(4).astype("float16")),
            "right": (("arm", "example"), rng.random((3, 12)) > 0.5),
            "count": ("jump", np.array([2**53 + 1, -1])),
            "small": ("seed", np.arange(4, dtype="int32")),
            "pixel": ("seed", np.arange(4, dtype="uint8")),
            "note": (("jump", "arm"), [["", "a", "ü"], ["日本", "b c", "x" * 300]]),
            "n_batches": 7,
        },
        {
            "arm": ["normal", "frozen", "perturbed"],
            "seed": [1, 2, 5, 9],
            "when": ("jump", [100, 700], {"units": "optimizer steps"}),
            "device": "cpu",
        },
        {"title": "jumps", "sigma": 0.5, "moments": [100, 700], "nested": {"b": 1, "a": None}},
    )


def test_what_was_written_reads_back_as_it_was_in_values_dtypes_coordinates_and_attributes(path, dataset):
    write_experiment(path, "interventions", dataset)
    store = open_store(path)
    assert store.experiments == ("interventions",)
    found = store.experiment("interventions").load()
    xr.testing.assert_identical(found, dataset)
    for name, variable in dataset.variables.items():
        assert found[name].dtype == (np.dtypes.StringDType() if variable.dtype.kind == "U" else variable.dtype), name
    assert set(found.coords) == set(dataset.coords)


def test_plain_xarray_shows_the_same_experiment_and_the_same_tree(path, dataset):
    write_experiment(path, "a", dataset)
    write_experiment(path, "b", dataset[["accuracy"]])
    store = open_store(path)
    xr.testing.assert_identical(xr.open_zarr(path, group="experiments/a").load(), store.experiment("a").load())
    plain = xr.open_datatree(path, engine="zarr").load()
    xr.testing.assert_identical(plain, store.tree.load())
    xr.testing.assert_identical(plain, xr.open_datatree(path, engine="ndt").load())
    assert set(plain["experiments"].children) == {"a", "b"}


def test_a_large_array_is_written_and_read_in_blocks_and_lazily(path, monkeypatch):
    monkeypatch.setattr("ndt_store.layout.BLOCK_NBYTES", 1 << 12)
    monkeypatch.setattr("ndt_store.layout.rows_per_block.__defaults__", (1 << 12,))
    values = da.random.default_rng(1).random((300, 64), chunks=(70, 64))
    write_experiment(path, "large", xr.Dataset({"x": (("a", "b"), values)}))
    found = open_store(path).experiment("large").x
    assert found.chunks is not None
    assert len([f for f in data_files(open_storage(path).root / "experiments") if "/c/" in str(f)]) > 10
    np.testing.assert_array_equal(found.values, values.compute())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[123].values, values[123].compute())


def test_the_same_again_writes_nothing_and_something_else_is_refused(path, dataset):
    write_experiment(path, "x", dataset, identity={"seeds": 3})
    files = {f: f.read_bytes() for f in data_files(open_storage(path).root)}
    write_experiment(path, "x", dataset, identity={"seeds": 3})
    other = dataset.copy(deep=True)
    other.accuracy[1, 2, 3] += 1e-9
    for match, given, identity in (
        ("with another identity", dataset, {"seeds": 4}),
        ("with other variables", dataset.drop_vars("note"), {"seeds": 3}),
        ("with other variables", dataset.assign_attrs(title="other"), {"seeds": 3}),
        ("with other values of 'accuracy'", other, {"seeds": 3}),
    ):
        with pytest.raises(AlreadyExistsError, match=match):
            write_experiment(path, "x", given, identity=identity)
    assert {f: f.read_bytes() for f in data_files(open_storage(path).root)} == files
    write_experiment(path, "x", other, identity={"seeds": 4}, replace=True)
    xr.testing.assert_identical(open_store(path).experiment("x").load(), other)
    assert verify(open_store(path), read_data=True).ok


def test_an_experiment_in_the_place_of_another_leaves_nothing_of_it(path, dataset):
    before = {f: f.read_bytes() for f in data_files(open_storage(path).root)}
    write_experiment(path, "x", dataset)
    write_experiment(path, "x", xr.Dataset({"y": 1}), replace=True)
    added = {f.relative_to(path).as_posix() for f in data_files(open_storage(path).root) if f not in before}
    assert added == {
        "experiments/zarr.json",
        "experiments/x/zarr.json",
        "experiments/x/y/zarr.json",
        "experiments/x/y/c",
        "commits/experiments/x.json",
    }


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (InvalidInputError, "'bad' .* dtype complex128: expected one of float32", {"bad": 1j}),
        (InvalidInputError, "dtype datetime64", {"bad": np.datetime64("2026-01-01", "ns")}),
        (InvalidInputError, "'bad' of experiments/x holds int 3", {"bad": ("y", np.array(["a", 3], object))}),
        (InvalidInputError, "strings of up to 2000004 bytes", {"bad": ("y", np.array(["x" * 2_000_000]))}),
        (DimensionError, "'bad' .* no entries along 'y'", {"bad": ("y", [])}),
        (
            InvalidInputError,
            "attribute 'scale_factor', which xarray takes",
            {"bad": ("y", [1.0], {"scale_factor": 2.0})},
        ),
        (InvalidInputError, "'_FillValue'", {"bad": ("y", [1.0], {"_FillValue": 2.0})}),
        (InvalidInputError, "attribute", {"bad": ("y", [1.0], {"units": "days since 2000-01-01"})}),
        (InvalidInputError, r"attrs of 'bad'\['why'\] cannot be kept", {"bad": ("y", [1.0], {"why": float("nan")})}),
        (SchemaError, "'a/b' cannot name", {"a/b": 1}),
        (SchemaError, "dimension of experiments/x/bad 'a/b' cannot name", {"bad": ("a/b", [1])}),
        (DimensionError, r"rename\(checkpoint='step'\)", {"bad": ("checkpoint", [1, 2, 3])}),
        (DimensionError, r"rename\(example='probe'\)", {"bad": ("example", [1, 2])}),
        (SchemaError, "Dimension 'class' of experiments/x/bad has 4 entries", {"bad": ("class", [1, 2, 3, 4])}),
    ],
)
def test_what_plain_readers_would_not_get_back_is_refused_in_a_sentence(path, error, match, change):
    with pytest.raises(error, match=match):
        write_experiment(path, "x", xr.Dataset(change))
    store = open_store(path)
    assert store.experiments == ()
    assert verify(store, read_data=True).ok
    xr.open_datatree(path, engine="zarr")


def test_examples_are_the_stores_or_have_another_name(path):
    examples = open_store(path).examples
    write_experiment(path, "all", xr.Dataset({"a": ("example", np.arange(12))}, {"example": examples}))
    with pytest.raises(DimensionError, match="other examples"):
        write_experiment(path, "other", xr.Dataset({"a": ("example", np.arange(12))}, {"example": examples[::-1]}))
    write_experiment(path, "other", xr.Dataset({"a": ("probe", [1, 2])}, {"probe": examples[:2]}))
    xr.testing.assert_identical(xr.open_datatree(path, engine="zarr").load(), open_store(path).tree.load())


def test_names_and_places_that_are_none(path, tmp_path, dataset):
    for name in ("a/b", "..", "", "__x"):
        with pytest.raises(SchemaError, match="experiment .* cannot name"):
            write_experiment(path, name, dataset)
    with pytest.raises(NotFoundError, match="does not exist"):
        write_experiment(tmp_path / "nowhere", "x", dataset)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(NotFoundError, match="no experiment 'y': its experiments are none yet"):
        open_store(path).experiment("y")


def test_an_experiment_is_written_while_a_capture_writes(tmp_path, dataset):
    sim = simulate_store(tmp_path / "s", n_committed=1)
    static = {spec.path: sim.arrays[spec.path] for spec in sim.store.schema.static}
    with StoreWriter.open(tmp_path / "s", sim.store.schema, static=static, provenance=sim.store.provenance) as writer:
        write_experiment(tmp_path / "s", "x", dataset)
        writer.extend([1000])
    plain = xr.open_datatree(tmp_path / "s", engine="zarr")
    assert plain.checkpoint.values.tolist() == [0, 10, 100, 1000]
    xr.testing.assert_identical(plain["experiments/x"].to_dataset(inherit=False).load(), dataset)
    assert not [f for f in verify(open_store(tmp_path / "s"), read_data=True).findings if f.severity == "damaged"]


def test_two_writers_of_experiments_do_not_mix(path, dataset):
    lock = open_storage(path).for_writer("experiments").lock()
    with pytest.raises(StoreLockedError, match="experiments/ of"):
        write_experiment(path, "x", dataset)
    lock.release()
    write_experiment(path, "x", dataset)


def test_every_damage_to_an_experiment_is_found_and_named(path, dataset):
    write_experiment(path, "x", dataset)
    root = open_storage(path).root
    rng = np.random.default_rng(3)
    files = [*data_files(root / "experiments"), root / "commits" / "experiments" / "x.json"]
    for trial, file in enumerate(files * 3):
        whole = file.read_bytes()
        DAMAGES[trial % 3](file, rng)
        findings = verify(open_store(path), read_data=True).findings
        key = file.relative_to(root).as_posix()
        assert any(key in (f.array, f.block, f"{f.array}/zarr.json") for f in findings), (key, findings)
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(whole)
    assert verify(open_store(path), read_data=True).ok


def test_a_flipped_bit_raises_where_it_is_read_and_nowhere_else(path, dataset, rng):
    write_experiment(path, "x", dataset)
    flip_bit(open_storage(path).root / "experiments/x/accuracy/c/0/0/0", rng)
    found = open_store(path).experiment("x")
    np.testing.assert_array_equal(found.margin.values, dataset.margin.values)
    with pytest.raises(IntegrityError) as caught:
        found.accuracy.load()
    assert (caught.value.array, caught.value.block) == ("experiments/x/accuracy", "experiments/x/accuracy/c/0/0/0")


def test_readers_beside_a_writer_see_an_experiment_whole_or_not_at_all(path, dataset):
    stop = threading.Event()
    failures = []

    def look():
        while not stop.is_set():
            try:
                store = open_store(path)
                for name in store.experiments:
                    xr.testing.assert_identical(store.experiment(name).load(), dataset)
                tree = xr.open_datatree(path, engine="zarr")
                for child in tree.children.get("experiments", xr.DataTree()).children.values():
                    xr.testing.assert_identical(child.to_dataset(inherit=False).load(), dataset)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for n in range(15):
        write_experiment(path, f"x{n}", dataset)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
