"""Pages of Grad-CAM comparisons: every example that they should show, on honest scales, with the arrays beside them."""

import base64
import importlib
import io
import json
import re

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import ndt_query as nq
from ndt_query import gallery
from ndt_query.moments import spread_pairs
from ndt_query.tiles import NOT_A_NUMBER, SIDE, Tiles, as_tiles
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError, StorageError
from ndt_store.testing import simulate_store

STEPS = (0, 10, 40)
N = 30
LAYER = "conv<1>"


def simulated_store(path, **options):
    rng = np.random.default_rng(5)
    label = np.arange(N) % 3
    wrong = np.arange(N) % 5 == 0
    planted = {
        f"layers/{LAYER}/activations": rng.random((3, N, 4, 5, 6)).astype(np.float32),
        f"layers/{LAYER}/gradients": rng.standard_normal((3, N, 4, 5, 6)).astype(np.float32),
        "prediction": np.stack([np.zeros(N, int), np.where(wrong, (label + 1) % 3, label), label]),
    }
    return simulate_store(
        path, checkpoints=STEPS, n_examples=N, layers={LAYER: (4, 5, 6), "fc": (6,)}, planted=planted, **options
    ).store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("cams") / "run & co.zarr")


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    seen = []
    folder = tmp_path_factory.mktemp("out") / "new"
    index = nq.cam_gallery(
        store, folder, pairs=[(0, 10), (10, 40)], n_per_class=4, progress=lambda *one: seen.append(one)
    )
    assert seen == [(1, 2), (2, 2)]
    return index


def pictures(page):
    found = {}
    for source, alt in re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)"', page):
        found[alt] = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    return found


def test_spread_pairs__span_training_without_gaps():
    assert spread_pairs(range(0, 1100, 100), 5) == ((0, 200), (200, 400), (400, 600), (600, 800), (800, 1000))
    assert spread_pairs([0, 10]) == ((0, 10),)
    assert spread_pairs([0, 10, 40]) == ((0, 10), (10, 40))


def test_gallery__has_a_page_for_each_pair_and_conv_layer(made):
    assert sorted(path.name for path in (made.parent / "pages").iterdir()) == ["001.html", "002.html"]
    text = made.read_text()
    assert "24 comparisons" in text
    for words in ("0 to 10", "10 to 40", "conv&lt;1&gt;", "run &amp; co.zarr", 'href="pages/002.html"'):
        assert words in text
    assert ">fc<" not in text


def test_page__shows_the_first_examples_of_each_class_that_are_right_after(made, store):
    page = (made.parent / "pages" / "001.html").read_text()
    label, right = np.arange(N) % 3, np.arange(N) % 5 != 0
    wanted = [int(2 * n + 5) for c in range(3) for n in np.flatnonzero((label == c) & right)[:4]]
    assert [int(name) for name in re.findall(r'alt="example (\d+) of class \d"', page)] == wanted
    assert nq.correct_examples(store, [10], n_per_class=4)["example"].values.tolist() == sorted(wanted)


def test_page__draws_raw_maps_on_one_scale(made, store):
    page = (made.parent / "pages" / "002.html").read_text()
    drawn = pictures(page)["example 7 of class 1"]
    assert drawn.shape == (4 * SIDE + 3 * 2, SIDE, 3)
    cam = nq.grad_cam(store[LAYER].sel(example=[7])).isel(example=0).compute()
    before, after = cam.sel(checkpoint=10).values, cam.sel(checkpoint=40).values
    limit = max(before.max(), after.max())
    rows, columns = np.arange(SIDE) * 5 // SIDE, np.arange(SIDE) * 6 // SIDE
    for place, values in ((1, before / limit), (2, after / limit)):
        expected = mpl.colormaps["viridis"](values, bytes=True)[..., :3][np.ix_(rows, columns)]
        np.testing.assert_array_equal(drawn[place * (SIDE + 2) :][:SIDE], expected)
    expected = mpl.colormaps["RdBu_r"](0.5 + (after - before) / limit / 2, bytes=True)[..., :3][np.ix_(rows, columns)]
    np.testing.assert_array_equal(drawn[3 * (SIDE + 2) :], expected)
    assert f"7<br>{limit:.3g}" in page


def test_pages__load_nothing_and_run_nothing(made):
    for page in [made, *(made.parent / "pages").iterdir()]:
        text = page.read_text()
        assert "default-src 'none'; img-src data:" in text
        assert "<script" not in text
        assert not re.search(r'(src|href)="(?!data:|pages/|\.\./index)', text)


def test_arrays__are_those_of_the_pages(made, store):
    tree = xr.open_datatree(made.parent / "cams.zarr", engine="zarr", consolidated=False)
    found = tree[f"10-40/{LAYER}"].to_dataset().load()
    chosen = nq.correct_examples(store, [40], n_per_class=4)
    expected = nq.cam_difference(nq.grad_cam(store[LAYER].sel(example=chosen.example)), 10, 40).compute()
    np.testing.assert_allclose(found["difference"], expected["difference"])
    assert found["label"].values.tolist() == chosen.values.tolist()
    assert "software" in tree.attrs


def test_gallery__is_made_again_over_an_older_one(store, tmp_path):
    for _ in range(2):
        nq.cam_gallery(store, tmp_path, pairs=[(10, 40)], n_per_class=1)
    assert len(list((tmp_path / "pages").iterdir())) == 1


def test_gallery__leaves_no_page_of_an_older_one(store, tmp_path):
    nq.cam_gallery(store, tmp_path, pairs=[(0, 10), (10, 40)], n_per_class=1)
    nq.cam_gallery(store, tmp_path, pairs=[(10, 40)], n_per_class=1)
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["001.html"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pairs": [(0, 11)]}, NotFoundError, "no checkpoint 11"),
        ({"pairs": [(10, 10)]}, InvalidInputError, "no pair of checkpoints"),
        ({"pairs": []}, InvalidInputError, "pairs is empty"),
        ({"pairs": [0, 10]}, InvalidInputError, "0 is no pair of checkpoints"),
        ({"pairs": [(0, 1.5)]}, InvalidInputError, "no pair of checkpoints"),
        ({"layers": "fc"}, NotFoundError, "No layer like fc has activations, gradients and positions y and x"),
        ({"n_per_class": 0}, InvalidInputError, "n_per_class"),
    ],
)
def test_gallery__refuses_before_it_writes(store, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        nq.cam_gallery(store, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_gallery__says_when_nothing_is_right(tmp_path):
    planted = {"prediction": np.full((3, 12), 7)}
    made = simulate_store(tmp_path / "r.zarr", layers={"conv": (2, 3, 3)}, planted=planted).store
    with pytest.raises(NotFoundError, match="no example right at checkpoint 10"):
        nq.cam_gallery(made, tmp_path / "out")


def test_gallery__that_cannot_be_written_says_so(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        nq.cam_gallery(store, tmp_path / "file", pairs=[(10, 40)])


def test_tiles__show_a_nan_in_a_colour_of_its_own():
    values = np.zeros((SIDE, SIDE))
    values[0, 0] = np.nan
    assert tuple(Tiles.of_difference(values, 1.0)[0, 0]) == NOT_A_NUMBER
    assert tuple(Tiles.of_map(values, 1.0)[1, 1]) == tuple(mpl.colormaps["viridis"](0.0, bytes=True)[:3])


def test_as_tiles__takes_images_and_nothing_else(rng):
    grey = xr.DataArray(rng.random((2, 4, 5)), dims=("example", "row", "column"), coords={"example": [3, 9]})
    assert as_tiles(grey).of(9).shape == (SIDE, SIDE, 3)
    colour = xr.DataArray(rng.random((2, 3, 4, 5)), dims=("example", "channel", "row", "column"))
    assert as_tiles(colour.assign_coords(example=[0, 1])).pixels.shape == (2, 4, 5, 3)
    assert as_tiles(xr.DataArray(rng.random((2, 7)), dims=("example", "feature"))) is None
    with pytest.raises(NotFoundError, match="lack example 4"):
        as_tiles(grey).of(4)


def test_command__writes_the_pages(store, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cams", str(store.path), "--out", str(tmp_path), "--pair", "10:40", "--per-class", "2"])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out.strip()) == (0, str(tmp_path / "index.html"))
    assert "6 comparisons" in (tmp_path / "index.html").read_text()
    for wrong in ("10-40", "a:b"):
        with pytest.raises(SystemExit) as stop:
            main(["cams", str(store.path), "--pair", wrong])
        assert stop.value.code == 2
        assert "no pair of checkpoints" in capsys.readouterr().err


def test_figure__draws_the_maps_of_each_example(store):
    chosen = nq.correct_examples(store, [40], n_per_class=1)
    comparison = nq.cam_difference(nq.grad_cam(store[LAYER].sel(example=chosen.example)), 10, 40)
    figure = nq.plot.cams(comparison, store.root["input"])
    images = [one.get_images()[0] for one in figure.axes]
    assert len(images) == 4 * 3
    difference = images[9]
    np.testing.assert_allclose(difference.get_array(), comparison["difference"].isel(example=0))
    limit = float(comparison["limit"][0])
    assert difference.get_clim() == pytest.approx((-limit, limit))
    assert images[3].get_clim() == images[6].get_clim() == pytest.approx((0, limit))
    assert [one.get_title(loc="left") for one in figure.axes[:3]] == ["class 0", "class 1", "class 2"]
    with pytest.raises(DimensionError, match="pass that of cam_difference"):
        nq.plot.cams(store[LAYER])
    with pytest.raises(InvalidInputError, match="expected 1 to 12"):
        nq.plot.cams(nq.cam_difference(nq.grad_cam(store[LAYER]), 10, 40))


def test_figure__of_classes_is_on_one_scale(store):
    cam = nq.grad_cam(store[LAYER])
    figure = nq.plot.class_cams(nq.class_cams(cam))
    images = [one.get_images()[0] for one in figure.axes[:9]]
    assert len({one.get_clim() for one in images}) == 1
    assert images[0].get_clim()[0] == 0
    assert figure.axes[0].get_title(loc="left") == "class 0"
    of_difference = nq.plot.class_cams(nq.class_cams(nq.cam_difference(cam, 10, 40)["difference"]))
    low, high = of_difference.axes[0].get_images()[0].get_clim()
    assert low == -high
    with pytest.raises(DimensionError, match="pass that of class_cams"):
        nq.plot.class_cams(cam.to_dataset(name="cam"))


def test_gallery_and_figure__load_only_the_inputs_that_they_show(store, tmp_path, monkeypatch):
    gallery, figures = (importlib.import_module(f"ndt_query.{name}") for name in ("gallery", "plot.cams"))
    sizes = []

    def noted(inputs):
        sizes.append(inputs.sizes["example"])
        return as_tiles(inputs)

    monkeypatch.setattr(gallery, "as_tiles", noted)
    monkeypatch.setattr(figures, "as_tiles", noted)
    nq.cam_gallery(store, tmp_path, pairs=[(10, 40)], n_per_class=2)
    chosen = nq.correct_examples(store, [40], n_per_class=1)
    comparison = nq.cam_difference(nq.grad_cam(store[LAYER].sel(example=chosen.example)), 10, 40)
    nq.plot.cams(comparison, store.root["input"])
    assert sizes == [6, 3]
    with pytest.raises(NotFoundError, match="inputs lack example"):
        nq.plot.cams(comparison, store.root["input"].isel(example=slice(1)))


def test_signed_gallery__draws_what_speaks_against_the_class_and_says_so(store, tmp_path):
    page = nq.cam_gallery(store, tmp_path, pairs=[(10, 40)], n_per_class=4, signed=True)
    assert "speaks against the class below 0" in page.read_text()
    drawn = pictures((tmp_path / "pages" / "001.html").read_text())["example 7 of class 1"]
    cam = nq.grad_cam(store[LAYER].sel(example=[7]), signed=True).isel(example=0).compute()
    before, after = cam.sel(checkpoint=10).values, cam.sel(checkpoint=40).values
    assert before.min() < 0
    limit = max(abs(before).max(), abs(after).max(), abs(after - before).max())
    rows, columns = np.arange(SIDE) * 5 // SIDE, np.arange(SIDE) * 6 // SIDE
    for place, values in ((1, before), (2, after), (3, after - before)):
        expected = mpl.colormaps["RdBu_r"](0.5 + values / limit / 2, bytes=True)[..., :3][np.ix_(rows, columns)]
        np.testing.assert_array_equal(drawn[place * (SIDE + 2) :][:SIDE], expected)
    tree = xr.open_datatree(tmp_path / "cams.zarr", engine="zarr", consolidated=False)
    assert json.loads(tree.attrs["parameters"]) == {"signed": True, "n_per_class": 4}
    np.testing.assert_allclose(tree[f"10-40/{LAYER}"]["before"].sel(example=7), before, rtol=1e-6)


def test_command__passes_signed_on(store, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(gallery, "cam_gallery", lambda *_, **options: seen.update(options) or tmp_path)
    with pytest.raises(SystemExit):
        main(["cams", str(store.path), "--signed", "--per-class", "3"])
    assert (seen["signed"], seen["n_per_class"]) == (True, 3)


def test_gallery__passes_over_pairs_of_which_nothing_is_right(tmp_path):
    label = np.arange(N) % 3
    rng = np.random.default_rng(1)
    made = simulate_store(
        tmp_path / "r.zarr", checkpoints=STEPS, n_examples=N, layers={"c": (2, 4, 4)},
        planted={
            "layers/c/activations": rng.random((3, N, 2, 4, 4)), "layers/c/gradients": rng.random((3, N, 2, 4, 4)),
            "prediction": np.stack([label, (label + 1) % 3, label]),
        },
    ).store  # fmt: skip
    nq.cam_gallery(made, tmp_path / "out", n_per_class=1)
    assert list(xr.open_datatree(tmp_path / "out" / "cams.zarr", engine="zarr", consolidated=False)) == ["10-40"]
    with pytest.raises(NotFoundError, match="no example right at checkpoint 10"):
        nq.cam_gallery(made, tmp_path / "out", pairs=[(0, 10), (10, 40)])


def test_mean_map__of_a_nan_is_drawn_on_the_scale_of_what_is_known():
    means = xr.Dataset({"mean": (("class", "y", "x"), [[[1.0, np.nan], [-2.0, 0.0]]])}, {"class": [0]})
    assert gallery._mean_picture(means, 0)["limit"] == "2"
