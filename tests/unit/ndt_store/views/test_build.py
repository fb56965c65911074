"""Views equal a dense float64 pass, are the same bits however they are made, and are not used where they may lie."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from ndt_store import (
    IntegrityError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    ViewWarning,
    index_store,
    open_store,
)
from ndt_store.dims import UNIT
from ndt_store.layout import blocks, n_blocks
from ndt_store.testing import simulate_store
from ndt_store.testing.faults import FaultyStorage, no_room
from ndt_store.views.build import BlockSummary, make_views, summary_nbytes
from ndt_store.views.files import decode, encode
from ndt_store.views.flight import CheckpointSummary
from ndt_store.views.frame import frame_of, has_views
from ndt_store.views.gram_view import GRAM_VIEWS
from ndt_store.views.kinds import K, MomentsView, TopView
from ndt_store.views.shelf import keep, load, view_key

CONV = "layers/conv1/activations"


@pytest.fixture
def simulated(tmp_path):
    return simulate_store(tmp_path / "s.zarr", n_examples=90)


def cubes(store):
    return [spec for spec in store.schema.cubes if has_views(spec)]


def as_rows(spec, dense):
    """(example, unit, position) of one checkpoint, float64."""
    moved = np.moveaxis(dense.astype(np.float64), spec.dims.index(UNIT) - 1, 1)
    return moved.reshape(*moved.shape[:2], -1)


def test_arrays_with_units_have_views_and_others_have_none(tmp_path):
    store = simulate_store(tmp_path / "s.zarr", attention={"attn": (2, 3)}).store
    assert {spec.path for spec in cubes(store)} == {
        f"layers/{layer}/{kind}" for layer in ("conv1", "blocks.0", "fc") for kind in ("activations", "gradients")
    }


@pytest.mark.parametrize("n_threads", [1, 3])
def test_moments_zones_and_sums_by_class_equal_a_dense_pass(simulated, n_threads):
    store = simulated.store
    labels = store.labels
    for spec in cubes(store):
        view = make_views(store.catalogue, spec, 10, n_threads=n_threads, save=False).moments
        dense = as_rows(spec, simulated.arrays[spec.path][1])
        by_unit = dense.transpose(1, 0, 2).reshape(dense.shape[1], -1)
        assert (view.moments.count == by_unit.shape[1]).all()
        np.testing.assert_allclose(view.moments.mean[0], by_unit.mean(1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(view.moments.m2[0] / by_unit.shape[1], by_unit.var(1), rtol=1e-10)
        np.testing.assert_allclose(view.moments.abs_mean[0], np.abs(by_unit).mean(1), rtol=1e-12)
        np.testing.assert_array_equal(view.moments.active[0], (by_unit != 0).sum(1))
        np.testing.assert_array_equal(view.moments.active_examples[0], (dense != 0).any(2).sum(0))
        assert n_blocks(spec) > 1
        for index, where in enumerate(blocks(spec)):
            part = dense[where.start : where.stop]
            np.testing.assert_array_equal(view.zones.minimum[index], part.min((0, 2)))
            np.testing.assert_array_equal(view.zones.maximum[index], part.max((0, 2)))
            np.testing.assert_array_equal(view.zones.active[index], (part != 0).sum((0, 2)))
        for code, label in enumerate(np.unique(labels)):
            expected = dense.mean(2)[labels == label].sum(0)
            np.testing.assert_allclose(view.classes.total[0, code], expected, rtol=1e-11, atol=1e-11)


def test_the_ranking_equals_a_full_sort(simulated):
    store = simulated.store
    for spec in cubes(store):
        view = make_views(store.catalogue, spec, 100, save=False).top
        dense = as_rows(spec, simulated.arrays[spec.path][2])
        best = dense.max(2)
        for unit in range(best.shape[1]):
            order = np.lexsort((store.examples, -best[:, unit]))[:K]
            np.testing.assert_array_equal(store.examples[view.row[unit]], store.examples[order])
            np.testing.assert_array_equal(view.value[unit], best[order, unit].astype(np.float32))
            np.testing.assert_array_equal(view.place[unit], dense[order, unit].argmax(1))


def test_threads_blocks_in_any_order_and_the_file_give_the_same_bytes(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    frame = frame_of(store.catalogue, spec)
    made = make_views(store.catalogue, spec, 0)
    summary = BlockSummary(frame)
    order = np.random.default_rng(0).permutation(n_blocks(spec))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda index: summary.add(int(index), store.read_block(CONV, 0, int(index))), order))
    again = summary.views()
    for ours, theirs in ((made.moments, again.moments), (made.top, again.top)):
        kept, why = load(store.catalogue, frame, 0, type(ours))
        assert why == ""
        for name, values in ours.arrays().items():
            assert values.tobytes() == theirs.arrays()[name].tobytes() == kept.arrays()[name].tobytes()


def test_a_summary_that_lacks_a_block_ends_in_no_view(simulated):
    spec = simulated.store.schema.find(CONV)
    summary = BlockSummary(frame_of(simulated.store.catalogue, spec))
    summary.add(0, simulated.store.read_block(CONV, 0, 0))
    with pytest.raises(ValueError, match="blocks of layers/conv1/activations were not summarised"):
        summary.views()


def test_views_made_in_flight_equal_those_made_from_the_store(simulated):
    store = simulated.store
    flight = CheckpointSummary(store.catalogue)
    for spec in store.schema.cubes:
        for index in range(n_blocks(spec)):
            flight.add(spec.path, index, store.read_block(spec.path, 10, index))
    flight.keep(store.catalogue, 10)
    for spec in cubes(store):
        frame = frame_of(store.catalogue, spec)
        made = make_views(store.catalogue, spec, 10, save=False)
        for view in (made.moments, made.top):
            kept, _ = load(store.catalogue, frame, 10, type(view))
            for name, values in view.arrays().items():
                np.testing.assert_array_equal(kept.arrays()[name], values)


def test_index_makes_what_is_missing_and_nothing_twice(simulated):
    store = simulated.store
    seen = []
    first = index_store(store, layers=["fc"], checkpoints=[0, 100], progress=lambda *at: seen.append(at))
    assert (first.n_present, first.n_made) == (0, 4)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    second = index_store(store)
    assert (second.n_present, second.n_made) == (4, 14)
    assert index_store(store, force=True).n_made == 18
    assert second.nbytes == sum(
        store.catalogue.storage.size(view_key(kind.name, spec, step))
        for spec in cubes(store)
        for step in (0, 10, 100)
        for kind in (MomentsView, TopView)
    )


def test_index_makes_gram_views_where_they_are_small_beside_their_arrays(simulated, monkeypatch):
    store = simulated.store
    report = index_store(store, gram=["mean", "flatten"])
    assert (report.n_made, report.n_too_large) == (18, 0)
    assert index_store(store, gram=["mean", "flatten"]).n_present == 18
    for spec in cubes(store):
        assert load(store.catalogue, frame_of(store.catalogue, spec), 10, GRAM_VIEWS["mean"])[1] == ""
    monkeypatch.setattr("ndt_store.views.gram_view.FLOOR_NBYTES", 0)
    again = index_store(store, layers=["fc"], gram=["mean"], force=True)
    assert again.n_too_large == 6


def test_index__raises_on_an_unknown_gram_view(simulated):
    with pytest.raises(InvalidInputError, match="no Gram view 'max'"):
        index_store(simulated.store, gram=["max"])


def test_index__raises_on_names_that_are_not_there(simulated):
    with pytest.raises(NotFoundError, match="no layer 'conv2'"):
        index_store(simulated.store, layers=["conv2"])
    with pytest.raises(NotFoundError, match="no checkpoint 5"):
        index_store(simulated.store, checkpoints=[5])


def test_index__raises_where_nothing_can_be_written(simulated):
    store = open_store(FaultyStorage(simulated.store.catalogue.storage.root, at=1, fault=no_room))
    with pytest.raises(StorageError, match="No space left"):
        index_store(store)
    make_views(open_store(FaultyStorage(store.path, at=1, fault=no_room)).catalogue, cubes(store)[0], 0)


def test_a_damaged_block_ends_in_no_view(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    entry = store.catalogue.record(0).arrays[CONV].blocks[1]
    path = store.catalogue.storage.root / entry.key
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError, match="does not match its checksum"):
        make_views(store.catalogue, spec, 0, n_threads=2)
    assert load(store.catalogue, frame_of(store.catalogue, spec), 0, MomentsView) == (None, "not made yet")


@pytest.mark.parametrize("kind", [MomentsView, TopView])
def test_a_damaged_view_is_named_and_not_used(simulated, kind):
    store = simulated.store
    spec = store.schema.find(CONV)
    frame = frame_of(store.catalogue, spec)
    make_views(store.catalogue, spec, 0)
    path = store.catalogue.storage.root / view_key(kind.name, spec, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(ViewWarning, match=f"View views/{kind.name}/conv1/activations/0 of .* is damaged .*checksum"):
        assert load(store.catalogue, frame, 0, kind) == (None, "damaged")
    index_store(store, layers=["conv1"])
    assert load(store.catalogue, frame, 0, kind)[1] == ""


def test_a_view_of_another_commit_is_stale(simulated, tmp_path):
    store = simulated.store
    spec = store.schema.find(CONV)
    made = make_views(store.catalogue, spec, 0)
    other = simulate_store(tmp_path / "other.zarr", n_examples=90, seed=1).store
    frame = frame_of(other.catalogue, spec)
    target = other.catalogue.storage.root / view_key("topk", spec, 0)
    target.parent.mkdir(parents=True)
    target.write_bytes((store.catalogue.storage.root / view_key("topk", spec, 0)).read_bytes())
    with pytest.warns(ViewWarning, match="is stale"):
        assert load(other.catalogue, frame, 0, TopView) == (None, "stale")
    keep(other.catalogue, frame, 0, made.top)
    assert load(other.catalogue, frame, 0, TopView)[1] == ""


def test_a_view_of_another_array_or_checkpoint_is_damaged(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    make_views(store.catalogue, spec, 0)
    root = store.catalogue.storage.root
    (root / view_key("topk", spec, 10)).write_bytes((root / view_key("topk", spec, 0)).read_bytes())
    with pytest.warns(ViewWarning, match="it says that it is view topk of layers/conv1/activations at 0"):
        assert load(store.catalogue, frame_of(store.catalogue, spec), 10, TopView)[1] == "damaged"


def test_a_view_of_another_version_is_made_again_without_a_word(simulated, monkeypatch):
    store = simulated.store
    spec = store.schema.find(CONV)
    make_views(store.catalogue, spec, 0)
    monkeypatch.setattr(MomentsView, "version", 2)
    assert (
        load(store.catalogue, frame_of(store.catalogue, spec), 0, MomentsView)[1] == "made by version 1 where this is 2"
    )
    assert index_store(store, layers=["conv1"], checkpoints=[0]).n_made == 2


def test_a_forged_view_with_rows_beyond_the_examples_is_damaged(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    frame = frame_of(store.catalogue, spec)
    top = make_views(store.catalogue, spec, 0).top
    row = top.row.copy()
    row[0, 0] = 90
    keep(store.catalogue, frame, 0, TopView(top.value, row, top.place))
    with pytest.warns(ViewWarning, match="names examples or positions that the array does not have"):
        assert load(store.catalogue, frame, 0, TopView)[0] is None


def test_many_classes_are_kept_of_arrays_that_are_large_beside_them(tmp_path):
    layers = {"small": (3,), "large": (2, 40, 40)}
    store = simulate_store(tmp_path / "s.zarr", n_examples=60, n_classes=30, layers=layers).store
    for layer, kept in (("small", False), ("large", True)):
        spec = store.schema.find(f"layers/{layer}/activations")
        frame = frame_of(store.catalogue, spec)
        make_views(store.catalogue, spec, 0)
        view, why = load(store.catalogue, frame, 0, MomentsView)
        assert (frame.codes is not None, view.classes is not None, why) == (kept, kept, "")


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        (TopView, "row", lambda a: a.astype(np.float32)),
        (TopView, "row", lambda a: a.astype(np.int64) - 5),
        (TopView, "place", lambda a: a.astype(np.float64)),
        (TopView, "value", lambda a: a.astype(np.float64)),
        (MomentsView, "counts", lambda a: a + 0.5),
        (MomentsView, "means", lambda a: a.astype(np.float32)),
        (MomentsView, "zone_active", lambda a: a.astype(np.int64)),
    ],
)
def test_a_forged_view_with_arrays_of_another_type_is_damaged(simulated, kind, name, change):
    store = simulated.store
    spec = store.schema.find(CONV)
    frame = frame_of(store.catalogue, spec)
    make_views(store.catalogue, spec, 0)
    path = store.catalogue.storage.root / view_key(kind.name, spec, 0)
    found = decode(path.read_bytes())
    path.write_bytes(encode(replace(found, arrays={**found.arrays, name: change(found.arrays[name])})))
    with pytest.warns(ViewWarning, match="is damaged"):
        assert load(store.catalogue, frame, 0, kind) == (None, "damaged")


def test_a_loop_of_links_in_the_place_of_a_view_is_damage(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    path = store.catalogue.storage.root / view_key("topk", spec, 0)
    path.parent.mkdir(parents=True)
    path.symlink_to(path)
    with pytest.warns(ViewWarning, match="is damaged"):
        assert load(store.catalogue, frame_of(store.catalogue, spec), 0, TopView)[1] == "damaged"


def test_a_folder_in_the_place_of_a_view_is_damage(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    (store.catalogue.storage.root / view_key("topk", spec, 0)).mkdir(parents=True)
    with pytest.warns(ViewWarning, match="is damaged .it is no file: remove what stands there"):
        assert load(store.catalogue, frame_of(store.catalogue, spec), 0, TopView)[1] == "damaged"


def test_a_summary_holds_few_parts_however_many_blocks_there_are(tmp_path):
    store = simulate_store(
        tmp_path / "s.zarr", n_examples=400, n_classes=8, layers={"fc": (50,)}, block_nbytes=400
    ).store
    spec = store.schema.find("layers/fc/activations")
    assert n_blocks(spec) > 100
    summary = BlockSummary(frame_of(store.catalogue, spec))
    held = []
    for index in range(n_blocks(spec)):
        summary.add(index, store.read_block(spec.path, 0, index))
        held.append(len(pickle.dumps(summary._waiting)) + len(pickle.dumps(summary._merged)))
    assert max(held) < 2 * held[0]
    assert sum(array.nbytes for array in summary.views().moments.arrays().values()) < summary_nbytes(spec, 50, 8, 1)


def test_a_ranking_of_fewer_ranks_than_its_version_has_is_damaged(simulated):
    store = simulated.store
    spec = store.schema.find(CONV)
    frame = frame_of(store.catalogue, spec)
    make_views(store.catalogue, spec, 0)
    path = store.catalogue.storage.root / view_key("topk", spec, 0)
    found = decode(path.read_bytes())
    few = {name: values[:, :5] for name, values in found.arrays.items()}
    path.write_bytes(encode(replace(found, meta={"k": 5}, arrays=few)))
    with pytest.warns(ViewWarning, match="it holds 5 ranks where 64 are expected"):
        assert load(store.catalogue, frame, 0, TopView) == (None, "damaged")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_a_summary_says_whether_every_value_of_a_block_is_finite(simulated, value):
    spec = simulated.store.schema.find(CONV)
    summary = BlockSummary(frame_of(simulated.store.catalogue, spec))
    data = simulated.arrays[CONV][0][: spec.rows].copy()
    data[1, 2, 0, 1] = value
    assert summary.add(0, data) == np.isfinite(value)
    assert summary.add(1, simulated.arrays[CONV][0][spec.rows : 2 * spec.rows])
