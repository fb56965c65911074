"""Runs compared as a figure, as a page, and on the command line."""

import errno
import json
import re

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_store.cli import main
from ndt_store.errors import DimensionError, StorageError
from ndt_store.testing import simulate_store

from .runs import GROUPS, LAYERS, four_runs, with_batch_size


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return four_runs(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def compared(stores):
    return nq.compare_runs(stores, groups=GROUPS)


@pytest.fixture
def with_batches(stores, monkeypatch):
    return with_batch_size(monkeypatch, stores)


def test_figure__has_four_panels_by_group(compared):
    figure = nq.plot.compare_runs(compared)
    assert len(figure.axes) == 4
    dimension, learned, jumps, apart = figure.axes
    assert len(dimension.get_lines()) == 4 + 2
    np.testing.assert_allclose(dimension.get_lines()[0].get_ydata(), compared["dimension"].sel(run="slow 0"))
    np.testing.assert_allclose(
        learned.get_lines()[2].get_ydata(), compared["learned"].sel(run=["slow 0", "slow 1"]).mean("run")
    )
    assert jumps.get_lines()[2].get_ydata().tolist() == compared["n_jumps"].values[2:].tolist()
    assert [text.get_text() for text in apart.get_xticklabels()] == ["slow", "fast"]
    largest = float(compared["largest_jump"].sel(run="fast 1"))
    assert [text.get_text() for text in jumps.texts] == [f"{largest:.2g} SD"]
    with pytest.raises(DimensionError, match="pass that of compare_runs"):
        nq.plot.compare_runs(compared.drop_vars("learned"))


def test_figure__shows_examples_where_batches_are_known(with_batches):
    found = nq.compare_runs(with_batches, groups=["slow", "slow", "fast", "fast"], by="examples")
    figure = nq.plot.compare_runs(found)
    axes = figure.axes[4]
    drawn = np.concatenate([line.get_ydata() for line in axes.get_lines() if line.get_linestyle() == "None"])
    np.testing.assert_allclose(np.sort(drawn), np.sort(found["examples_to"].values.ravel()))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["50%", "75%", "90%"]
    assert figure.axes[0].get_xlabel() == "examples seen"
    assert np.diff(found["at"])[0] >= 10  # no places between 0 and the first measurement, of 320 examples, but a few


def test_figure__leaves_names_that_would_touch_to_the_legend(compared):
    long = compared.assign_coords(group=("run", [f"a_group_with_a_long_name_{n}" for n in range(4)]))
    figure = nq.plot.compare_runs(long)
    assert {text.get_text() for text in figure.axes[3].get_xticklabels()} == {""}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == long["group"].values.tolist()


def test_page__shows_groups_runs_and_pairs(stores, compared, tmp_path):
    pairs = nq.smooth_pairs(stores, compared)
    page = nq.comparison_page(compared, tmp_path / "out", smooth=pairs, reports={"slow 0": "slow0/index.html"})
    text = page.read_text()
    assert 'href="slow0/index.html"' in text
    assert "slow over fast" in text
    assert "4 runs in 2 groups: slow, fast" in text
    assert (tmp_path / "out" / "smoothness.pdf").is_file()
    kept = xr.open_datatree(tmp_path / "out" / "comparison.zarr", engine="zarr", consolidated=False)
    xr.testing.assert_allclose(kept["runs"]["area"].load().drop_vars(["group", "layer", "run"]),
                               compared["area"].drop_vars(["group", "layer", "run"]))  # fmt: skip
    assert set(kept.children) == {"runs", "groups", "smoothness"}


def test_page__warns_of_what_makes_runs_hard_to_compare(stores, compared, tmp_path):
    said = re.sub(r"\s+", " ", nq.comparison_page(compared, tmp_path / "same").read_text())
    assert "Accuracy and dimension are of the validation set. Separability" in said
    assert "may not compare" not in said
    early = simulate_store(tmp_path / "early.zarr", checkpoints=(0, 395), n_examples=30, layers=LAYERS).store
    mixed = nq.compare_runs({"slow": stores["slow 0"], "early": early})
    assert mixed["curves_from"].values.tolist() == ["validation set", "probe set of 30 examples"]
    text = nq.comparison_page(mixed, tmp_path / "mixed").read_text()
    assert (
        "The runs were measured on other examples or in another way, so their curves may not compare: "
        "validation set of slow" in text
    )
    assert "different checkpoints" not in text


def test_page__on_a_full_disk_is_one_sentence_and_leaves_nothing(compared, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ndt_query.output.save", full)
    with pytest.raises(StorageError, match="No space left on device; give another folder"):
        nq.comparison_page(compared, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command__tabulates_runs_and_groups(stores, capsys, tmp_path):
    paths = [stores[name].path for name in ("slow 0", "fast 0")]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "compare",
                *paths,
                "--format",
                "json",
                "--figure",
                str(tmp_path / "c.png"),
                "--out",
                str(tmp_path / "page"),
            ]
        )
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    rows = json.loads(captured.out)
    assert [row["run"] for row in rows] == ["slow0", "fast0", "mean of 2"]
    assert [row["n_runs"] for row in rows] == [1, 1, 2]
    assert {(row["layer"], row["last_checkpoint"]) for row in rows} == {("relu", 395)}
    assert "layer compared: relu" in captured.err
    assert "different checkpoints" not in captured.err
    assert "may not compare" not in captured.err
    assert {(row["curves_from"], row["positions"], row["data"]) for row in rows} == {("validation set", "", "")}
    found = nq.compare_runs(paths)
    assert rows[0]["area"] == pytest.approx(float(found["area"][0]))
    assert rows[2]["area_low"] == pytest.approx(float(nq.compare_groups(found)["area_low"][0]))
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert (tmp_path / "page" / "index.html").is_file()
    early = simulate_store(tmp_path / "early.zarr", checkpoints=(0, 195), n_examples=30, layers=LAYERS).store
    with pytest.raises(SystemExit) as stop:
        main(["compare", *paths, early.path, "--format", "csv"])
    captured = capsys.readouterr()
    assert (
        "end at different checkpoints, so their ends may not compare: 395 of slow0, fast0; 195 of early" in captured.err
    )
    assert (
        "measured on other examples or in another way, so their curves may not compare: "
        "validation set of slow0, fast0; probe set of 30 examples of early"
    ) in captured.err
    assert captured.out.splitlines()[-1].startswith("mean of 3,simulated,3,relu,,,,,")
    with pytest.raises(SystemExit) as stop:
        main(["compare", paths[0]])
    assert stop.value.code == 2
    assert "a comparison needs two" in capsys.readouterr().err


def test_figure__has_the_mean_of_a_group_where_the_table_has(stores):
    """A run without jumps and separability leaves its group without a mean of them."""
    from ndt_query.plot import compare_runs as draw

    named = {name: stores[name] for name in ("slow 0", "slow 1", "fast 0", "fast 1")}
    whole = nq.compare_runs(named, groups=["slow", "slow", "fast", "fast"])

    def bars(comparison, place):
        axes = draw(comparison).axes[place]
        return sum(line.get_linewidth() == 1.0 and len(line.get_xdata()) == 2 for line in axes.lines)

    lacking = whole.copy(deep=True)
    for name in ("n_jumps", "separability_accuracy"):
        lacking[name][0] = np.nan
    assert [bars(whole, place) - bars(lacking, place) for place in (2, 3)] == [1, 1]
    assert np.isnan(nq.compare_groups(lacking)["n_jumps"].sel(group="slow"))


def test_page__leaves_out_what_a_run_lacks(compared, tmp_path):
    lacking = compared.copy(deep=True)
    for name in ("n_jumps", "separability_accuracy", "dimension_final", "final_accuracy", "final_accuracy_low"):
        lacking[name][0] = np.nan
    assert "nan" not in nq.comparison_page(lacking, tmp_path / "out").read_text()
