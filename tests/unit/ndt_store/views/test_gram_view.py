"""Gram views: made from blocks in any number of tiles, kept, and refused where they are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest

from ndt_store import ViewWarning
from ndt_store.storage import LocalStorage
from ndt_store.testing import simulate_store
from ndt_store.views import gram_build, gram_view
from ndt_store.views.frame import frame_of
from ndt_store.views.gram import SampleGram
from ndt_store.views.gram_build import GramPart, Tiles, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, too_large
from ndt_store.views.samples import deal_groups, unpacked
from ndt_store.views.shelf import keep, load, view_key

LAYERS = {"conv": (4, 3, 2), "wide": (70, 2, 2), "tokens": (3, 200)}
N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("gram") / "s.zarr"
    options = {"checkpoints": (0, 5), "kinds": ("activations",), "block_nbytes": 4096}
    return simulate_store(path, n_examples=N, layers=LAYERS, **options)


def about(store, layer):
    spec = store.schema.find(f"layers/{layer}/activations")
    return store.catalogue, spec, frame_of(store.catalogue, spec)


def dense(made, layer, mode, position=1):
    values = made.arrays[f"layers/{layer}/activations"][position].astype(np.float64)
    if layer == "tokens":
        values = values.transpose(0, 2, 1)[..., None]
    return {
        "flatten": values.reshape(N, -1),
        "mean": values.mean((2, 3)),
        "samples": values.transpose(0, 2, 3, 1).reshape(-1, values.shape[1]),
    }[mode]


@pytest.mark.parametrize("nbytes", [1, 24000, 1 << 30], ids=["least", "some tiles", "one tile"])
@pytest.mark.parametrize("mode", GRAM_VIEWS)
@pytest.mark.parametrize("layer", LAYERS)
def test_make_gram__holds_the_statistics_of_the_smaller_side(made, layer, mode, nbytes):
    catalogue, spec, _ = about(made.store, layer)
    state = make_gram(catalogue, spec, 5, mode, nbytes=nbytes, n_threads=2).state
    samples = dense(made, layer, mode)
    n, d = samples.shape
    y = samples - samples.mean(axis=0)
    assert isinstance(state, SampleGram) == (n <= d)
    if isinstance(state, SampleGram):
        np.testing.assert_allclose(unpacked(state.products, n), y @ y.T, rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(state.with_mean, y @ samples.mean(axis=0), rtol=1e-9, atol=1e-6)
        return
    groups = np.repeat(deal_groups(N), n // N)
    for g in range(10):
        y = samples[groups == g] - samples[groups == g].mean(axis=0)
        np.testing.assert_allclose(state[g].matrix, y.T @ y, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(state[g].fourth, ((y * y).sum(axis=1) ** 2).sum(), rtol=1e-9)
        assert state[g].n == (groups == g).sum()


def test_make_gram__of_some_examples_and_units_reads_only_their_blocks(made):
    catalogue, spec, _ = about(made.store, "wide")
    rows, units = np.array([3, 4, 40]), np.array([0, 7, 69])
    state = make_gram(catalogue, spec, 5, "flatten", nbytes=1, rows=rows, units=units).state
    samples = made.arrays["layers/wide/activations"][1][np.ix_(rows, units)].reshape(3, -1).astype(np.float64)
    y = samples - samples.mean(axis=0)
    np.testing.assert_allclose(unpacked(state.products, 3), y @ y.T, rtol=1e-9)


@pytest.mark.parametrize("nbytes", [1, 9000, 24000, 40000])
def test_tiles__bring_all_pairs_together_within_their_room(made, nbytes):
    _, spec, frame = about(made.store, "wide")
    part = GramPart(frame, "flatten", np.arange(N), np.arange(frame.n_units))
    tiles = Tiles.of(part, nbytes)
    covered = [row for tile in tiles.tiles for row in range(tile.start, tile.stop)]
    assert covered == list(range(N))
    row_nbytes = 4 * 280
    assert all(tile.start % spec.rows == 0 for tile in tiles.tiles)
    for tile in tiles.tiles:
        assert (tile.stop - tile.start) * row_nbytes <= max(2 * nbytes // 3, spec.rows * row_nbytes)
    assert tiles.n_passes == (len(tiles.tiles) + 1) / 2


def test_tiles__read_blocks_as_often_as_they_say(made):
    class Counting(LocalStorage):
        n_reads = 0

        def read_into(self, key, buffers):
            Counting.n_reads += key.startswith("layers/wide/activations/c")
            return super().read_into(key, buffers)

    from ndt_store import open_store

    store = open_store(Counting(made.store.catalogue.storage.root))
    catalogue, spec, frame = about(store, "wide")
    part = GramPart(frame, "flatten", np.arange(N), np.arange(frame.n_units))
    assert len(Tiles.of(part, 1).tiles) == N / spec.rows
    make_gram(catalogue, spec, 0, "flatten", nbytes=1)
    assert Counting.n_reads == Tiles.of(part, 1).n_passes * N / spec.rows
    Counting.n_reads = 0
    make_gram(catalogue, spec, 0, "flatten", nbytes=1 << 30)
    assert Counting.n_reads == N / spec.rows


@pytest.mark.parametrize("mode", GRAM_VIEWS)
@pytest.mark.parametrize("layer", LAYERS)
def test_gram_view__is_read_as_it_was_kept_and_no_larger_than_it_says(made, layer, mode):
    catalogue, spec, frame = about(made.store, layer)
    view = make_gram(catalogue, spec, 0, mode, nbytes=1 << 30)
    keep(catalogue, frame, 0, view)
    again, why = load(catalogue, frame, 0, GRAM_VIEWS[mode])
    assert why == ""
    for name, values in view.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], values)
    assert again.meta() == view.meta()
    assert sum(values.nbytes for values in view.arrays().values()) <= GRAM_VIEWS[mode].largest_nbytes(frame)
    assert view_key(view.name, spec, 0) == f"views/gram-{mode}/{layer}/activations/0"


def test_gram_view__of_other_sizes_or_groups_is_damaged(made):
    catalogue, spec, frame = about(made.store, "conv")
    kind = GRAM_VIEWS["mean"]
    view = make_gram(catalogue, spec, 0, "mean", nbytes=1 << 30)
    other = make_gram(*about(made.store, "wide")[:2], 0, "samples", nbytes=1 << 30)
    regrouped = gram_view.GroupSums(view.state.sums, view.state.groups[::-1])
    for state in (other.state, regrouped):
        with pytest.raises(ValueError, match="where|other groups"):
            kind.from_arrays(frame, {}, kind(state).arrays())
    keep(catalogue, frame, 0, kind(regrouped))
    with pytest.warns(ViewWarning, match="other groups"):
        assert load(catalogue, frame, 0, kind) == (None, "damaged")


def test_too_large__keeps_what_is_small_or_a_small_share(made, monkeypatch):
    _, _, frame = about(made.store, "tokens")
    kind = GRAM_VIEWS["samples"]
    assert kind.largest_nbytes(frame) == 8 * (180 * 181 // 2 + 180 + 1)
    assert too_large(kind, frame) == ""
    monkeypatch.setattr(gram_view, "FLOOR_NBYTES", 0)
    assert too_large(kind, frame) == "it would take 0.1 MB, more than 25% of the 0.1 MB of the array at one checkpoint"
    monkeypatch.setattr(gram_view, "SHARE", 1.0)
    assert too_large(kind, frame) == ""


def test_gram_part__cuts_runs_at_blocks_whatever_is_selected(made):
    _, spec, frame = about(made.store, "wide")
    rows = np.array([0, 1, spec.rows, 3 * spec.rows, 3 * spec.rows + 1])
    part = GramPart(frame, "mean", rows, np.arange(70))
    assert list(part.runs(0, 1)) == [slice(0, 2), slice(2, 3), slice(3, 5)]
    assert list(part.runs(2, 1 << 20)) == [slice(2, 5)]
    assert list(part.runs(0, 3 * 70 * 8)) == [slice(0, 3), slice(3, 5)]
    assert list(part.runs(5, 1)) == []


def test_make_gram__uses_no_more_room_than_it_may(made, monkeypatch):
    catalogue, spec, _ = about(made.store, "wide")
    monkeypatch.setattr(gram_build, "TILE_NBYTES", 24000)
    sizes = []
    reading = GramPart.read

    def noting(self, catalogue, step, run, out, n_threads):
        sizes.append(out.nbytes)
        return reading(self, catalogue, step, run, out, n_threads)

    monkeypatch.setattr(GramPart, "read", noting)
    make_gram(catalogue, spec, 0, "flatten", nbytes=1 << 30)
    assert 8000 < max(sizes) <= 16000
    assert 4000 < min(sizes) <= 8000
