"""The page and the table behind it."""

import base64
import re
from hashlib import sha256
from html.parser import HTMLParser

import dask
import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.plot import activations as unit_figures
from ndt_store.errors import MemoryBudgetError, NotFoundError, StorageError
from ndt_store.testing import simulate_store

from .sources import counted

CHECKPOINTS = (0, 10, 100)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    rng = np.random.default_rng(3)
    wide = rng.random((3, 60, 12, 4, 4)).astype(np.float32)
    wide[0, :, :5] = 0
    wide[2, ::3, 7] += 4
    layers = {"conv<1>": (12, 4, 4), "fc": (6,)}
    return simulate_store(
        tmp_path_factory.mktemp("report") / "run & co.zarr",
        checkpoints=CHECKPOINTS,
        n_examples=60,
        layers=layers,
        planted={"layers/conv<1>/activations": wide},
    )


@pytest.fixture(scope="module")
def page(simulated, tmp_path_factory):
    path = nq.report(simulated.store, tmp_path_factory.mktemp("out") / "new" / "folder", study=False)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def studied(simulated, tmp_path_factory):
    return nq.report(simulated.store, tmp_path_factory.mktemp("studied"))


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "td":
            self.cells.append("")
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open == "td":
            self.cells[-1] += data


def test_summary__equals_numpy(simulated):
    found = nq.summary(simulated.store).compute()
    assert found["dead"].dims == ("checkpoint", "layer")
    values = simulated.arrays["layers/conv<1>/activations"]
    one = found.sel(layer="conv<1>")
    assert one["units"].values.tolist() == [12, 12, 12]
    assert one["dead"].values.tolist() == [5, 0, 0]
    np.testing.assert_allclose(one["active_fraction"], (values != 0).mean((1, 2, 3, 4)))
    for c in range(3):
        means = values[c].mean((2, 3), dtype=np.float64)
        energy = np.linalg.svd(means - means.mean(0), compute_uv=False) ** 2
        assert one["stable_rank"].values[c] == pytest.approx(energy.sum() / energy.max())
        assert one["participation_ratio"].values[c] == pytest.approx(energy.sum() ** 2 / (energy**2).sum())
    whole = nq.dimensionality(simulated.store, positions="mean").compute()
    for name in ("stable_rank_low", "stable_rank_high", "participation_ratio_low", "participation_ratio_high"):
        np.testing.assert_allclose(found[name], whole[name])
    assert (found["n_examples"] == 60).all()


def test_summary__reads_each_chunk_once(rng):
    acts, source = counted(rng.random((2, 12, 4, 3, 3)), (1, 4, 4, 3, 3))
    dask.compute(nq.summary(acts))
    assert len(source.reads) == 6


def test_summary__with_a_nan_says_so(rng):
    values = rng.random((2, 12, 4))
    values[1, 3, 2] = np.nan
    found = nq.summary(counted(values, (1, 4, 4))[0]).compute()
    assert found["nan_count"].values.tolist() == [0, 1]
    assert np.isnan(found["active_fraction"]).values.tolist() == [False, True]


@pytest.mark.parametrize("which", ["page", "studied"])
def test_report__loads_nothing_and_runs_nothing(request, which):
    page = request.getfixturevalue(which)
    page = page if isinstance(page, str) else page.read_text(encoding="utf-8")
    parsed = Page(page)
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    assert base64.b64encode(sha256(style.encode()).digest()).decode() in policy
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert all(a["src"].startswith("data:image/svg+xml;base64,") for tag, a in parsed.tags if tag == "img")
    assert not re.search(r"\son\w+=", page)
    assert "url(" not in style
    assert 'style="' not in page


def test_report__shows_its_figures(page):
    images = [a for tag, a in Page(page).tags if tag == "img"]
    assert [image["alt"] for image in images] == [
        "Loss and accuracy on the probe set",
        "Dimension of each layer over training",
        "Dead units over training",
        "Class selectivity of units over training",
        "Inputs that drive the most selective units",
    ]
    for image in images:
        assert base64.b64decode(image["src"].partition(",")[2]).startswith(b"<?xml")


def test_report__tabulates_the_summary(page, simulated):
    cells, found = Page(page).cells, nq.summary(simulated.store).compute()
    rows = [cells[i : i + 7] for i in range(0, len(cells), 7)]
    assert len(rows) == 6
    assert rows[0][:4] == ["conv<1>", "0", "12", "5"]
    for row, (layer, step) in zip(rows, [(n, s) for n in found["layer"].values for s in CHECKPOINTS], strict=True):
        one = found.sel(layer=layer, checkpoint=step)
        assert row[4] == f"{100 * one['active_fraction'].item():.1f}"
        assert row[5] == f"{one['stable_rank'].item():.2f}"
        assert row[6] == f"{one['participation_ratio'].item():.2f}"
        for name in ("stable_rank", "participation_ratio"):
            assert f"<small>{one[f'{name}_low'].item():.2f} to {one[f'{name}_high'].item():.2f}</small>" in page


def test_report__escapes_what_comes_from_the_store(page):
    assert "conv&lt;1&gt;" in page
    assert "conv<1>" not in page
    assert "run &amp; co.zarr" in page


def test_report__states_n_null_and_provenance(page):
    text = re.sub(r"\s+", " ", page)
    assert "all 60 examples" in text
    assert "4.87%" in text  # 1 - 0.05^(1/60)
    assert "500 permutations" in text
    assert "identity.seed" in text
    assert "<dt>Model</dt><dd>simulated</dd>" in text
    assert "<dt>Checkpoints</dt><dd>3, steps 0 to 100</dd>" in text


def test_report__tells_its_progress_and_replaces_an_older_page(simulated, tmp_path):
    seen = []
    first = nq.report(simulated.store, tmp_path, study=False, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert nq.report(simulated.store, str(tmp_path), study=False) == first
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_report__of_a_store_with_one_class_leaves_selectivity_out(tmp_path):
    store = simulate_store(tmp_path / "run.zarr", n_classes=1).store
    text = nq.report(store, tmp_path / "out").read_text()
    assert "Selectivity is left out" in text
    assert len([1 for tag, _ in Page(text).tags if tag == "img"]) == 3


def test_report__of_one_checkpoint_and_signed_layers_still_works(tmp_path, rng):
    values = rng.standard_normal((1, 12, 10))
    store = simulate_store(
        tmp_path / "run.zarr", checkpoints=(7,), layers={"fc": (10,)}, planted={"layers/fc/activations": values}
    ).store
    assert "1, step 7" in nq.report(store, tmp_path / "out").read_text()


def test_report__of_a_store_without_commits_says_so(tmp_path):
    store = simulate_store(tmp_path / "run.zarr", n_committed=0).store
    with pytest.raises(NotFoundError, match="no committed checkpoint"):
        nq.report(store, tmp_path / "out")


def test_report__shows_a_dash_for_what_a_nan_hides(tmp_path, rng):
    values = rng.random((3, 12, 10))
    values[1, 0, 0] = np.nan
    store = simulate_store(tmp_path / "run.zarr", layers={"fc": (10,)}, planted={"layers/fc/activations": values}).store
    cells = Page(nq.report(store, tmp_path / "out", study=False).read_text()).cells
    assert [cells[i : i + 7][4:] for i in (0, 7, 14)][1] == ["–", "–", "–"]


@pytest.fixture
def drawn(monkeypatch):
    """Keep what the grid of inputs is drawn from."""
    seen = []
    draw = unit_figures.top_examples

    def keep(results, inputs, *, titles, labels):
        seen.append(titles)
        return draw(results, inputs, titles=titles, labels=labels)

    monkeypatch.setattr(unit_figures, "top_examples", keep)
    return seen


def test_report__pictures_robust_units_by_auroc_and_names_their_class(tmp_path, rng, drawn):
    values = rng.random((1, 600, 3)).astype(np.float32)
    second = np.arange(600) % 3 == 1
    values[0, second, 1] += 2
    values[0, second, 2] += 0.6
    rare = np.zeros((1, 600, 1))
    rare[0, 1:15:3] = 0.01  # index 1 and q of 1%, from five examples of 600
    store = simulate_store(
        tmp_path / "r.zarr",
        checkpoints=(0,),
        n_examples=600,
        layers={"fc": (3,), "rare": (1,)},
        planted={"layers/fc/activations": values, "layers/rare/activations": rare},
    ).store
    assert nq.selectivity_index(store["rare"])["q_value"].values.item() < 0.05
    text = nq.report(store, tmp_path / "out").read_text()
    titles = drawn[0]
    assert [title.split("\n")[0] for title in titles] == ["fc, unit 1", "fc, unit 2"]
    assert {title.split("\n")[1] for title in titles} == {"class 1"}
    assert titles[0].endswith("AUROC 1.000")
    assert "fire in 1% of examples or more" in text


def test_report__of_a_tree_is_that_of_its_store(simulated, tmp_path, drawn):
    one = nq.report(simulated.store, tmp_path / "a", study=False).read_text()
    two = nq.report(simulated.store.tree, tmp_path / "b").read_text()
    assert drawn[0] == drawn[1]
    assert Page(one).cells == Page(two).cells


def test_report__of_a_cnn_has_its_study(studied, simulated, tmp_path):
    text = re.sub(r"\s+", " ", studied.read_text(encoding="utf-8"))
    alone = nq.study_page(nq.cnn_study(simulated.store, n_permutations=500), tmp_path / "alone")
    cells = Page(alone.read_text(encoding="utf-8")).cells
    assert cells[:2] == ["conv<1>", "12"]
    kept = Page(studied.read_text(encoding="utf-8")).cells
    assert kept[: len(cells)] == cells
    assert "What emerges in the CNN" in text
    assert "Kinds of units, by a stated rule" in text
    assert "From step 0, where" in text
    numbers = {path.name for path in (studied.parent / "cnn").iterdir()}
    assert numbers == {path.name for path in alone.parent.iterdir()} - {"index.html"}
    for name in ("selectivity/conv<1>", "types/conv<1>", "emergence", "waking", "composition/conv<1>--fc"):
        one, two = (
            xr.open_datatree(folder / "study.zarr", engine="zarr", consolidated=False)[name].to_dataset()
            for folder in (studied.parent / "cnn", alone.parent)
        )
        xr.testing.assert_equal(one, two)


def test_report__of_no_cnn_has_no_study_of_one(tmp_path):
    flat = simulate_store(tmp_path / "flat.zarr", layers={"fc": (6,)}).store
    text = nq.report(flat, tmp_path / "flat").read_text()
    assert "What emerges" not in text
    assert "How representations change" in text
    assert sorted(path.name for path in (tmp_path / "flat").iterdir()) == ["index.html", "mlp"]
    once = simulate_store(tmp_path / "once.zarr", layers={"fc": (6,)}, checkpoints=(0,)).store
    assert "How representations change" not in nq.report(once, tmp_path / "once").read_text()
    assert [path.name for path in (tmp_path / "once").iterdir()] == ["index.html"]


def test_report__says_why_a_study_is_left_out(simulated, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise MemoryBudgetError("It needs 9 GB, and 1 GB is allowed.", 9, 1)

    monkeypatch.setattr("ndt_query.report_study.cnn_study", refuse)
    text = nq.report(simulated.store, tmp_path / "out").read_text()
    assert "It is left out. It needs 9 GB, and 1 GB is allowed." in text


def test_report__of_a_mapping_of_layers_does_without_a_root(tmp_path, rng):
    acts, _ = counted(rng.random((2, 12, 4)), (1, 4, 4))
    text = nq.report({"a": acts, "b": acts}, tmp_path).read_text()
    assert next(a["alt"] for tag, a in Page(text).tags if tag == "img") == "Dimension of each layer over training"


def test_report__that_cannot_be_written_says_so(simulated, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        nq.report({"a": xr.DataArray(np.ones((1, 4, 2)), dims=("checkpoint", "example", "unit"))}, tmp_path / "file")


def test_report__of_layers_inside_one_another_is_written(tmp_path):
    store = simulate_store(tmp_path / "r.zarr", layers={"block": (3,), "block/mlp": (4,)}).store
    text = nq.report(store, tmp_path / "out").read_text()
    assert "block/mlp" in text
