"""The commands about geometry print what the functions find and draw it; the figures show the numbers they get."""

import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query import plot
from ndt_store.cli import main
from ndt_store.errors import DimensionError
from ndt_store.testing import simulate_store

STEPS = (0, 10, 40, 100, 200)
N = 60


def separating(rng, n_units):
    """Classes that come apart from step 40 on, in a subspace that turns there."""
    found = rng.standard_normal((len(STEPS), N, n_units)) * np.linspace(2, 0.2, n_units)
    found[2:] = found[2:, :, ::-1] + 6 * np.eye(n_units)[np.arange(N) % 3]
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(3)
    layers = {"conv": (6, 2, 2), "fc": (8,)}
    planted = {
        "layers/conv/activations": separating(rng, 6)[..., None, None] + rng.standard_normal((5, N, 6, 2, 2)),
        "layers/fc/activations": separating(rng, 8),
    }
    path = tmp_path_factory.mktemp("geometry") / "r.zarr"
    return simulate_store(path, checkpoints=STEPS, n_examples=N, layers=layers, kinds=("activations",),
                          planted=planted).store  # fmt: skip


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_subspaces__tabulates_the_drift_of_each_layer(store, capsys, tmp_path):
    drift, overlap = tmp_path / "drift.png", tmp_path / "overlap.svg"
    code, out, err = run(capsys, "subspaces", store.path, "-k", 2, "--figure", drift, "--overlap", overlap,
                         "--format", "json")  # fmt: skip
    rows = json.loads(out)
    found = nq.subspace_drift(store, 2)
    assert code == 0
    assert drift.stat().st_size > 0
    assert overlap.stat().st_size > 0
    assert "turning: done" in err
    assert [(row["layer"], row["before"], row["after"]) for row in rows[:2]] == [("conv", 0, 10), ("conv", 10, 40)]
    assert len(rows) == 8
    np.testing.assert_allclose([row["drift"] for row in rows], found["drift"].values.ravel())
    np.testing.assert_allclose([row["overlap"] + row["drift"] for row in rows], 1)
    assert [row["chance"] for row in rows[3:5]] == [2 / 6, 2 / 8]
    assert rows[0]["p_value"] == float(found["p_value"][0])
    code, out, _ = run(capsys, "subspaces", store.path, "--layer", "fc", "-k", 2, "--checkpoint", "0:100",
                       "--format", "csv")  # fmt: skip
    assert code == 0
    assert len(out.splitlines()) == 4


def test_subspaces__says_which_layer_is_too_narrow(store, capsys):
    code, out, err = run(capsys, "subspaces", store.path, "-k", 7)
    assert (code, out) == (2, "")
    assert "Layer conv: n_components=7" in err
    assert run(capsys, "subspaces", store.path, "-k", 2, "--checkpoint", "0:40")[0] == 2
    assert run(capsys, "subspaces", store.path, "--figure", "x.gif")[0] == 2


def test_drift_of_a_store__keeps_the_labels_of_its_transitions(store):
    found = nq.subspace_drift(store, 2)
    assert found["before"].values.tolist() == list(STEPS[:-1])
    assert found["after"].values.tolist() == list(STEPS[1:])


def test_disentangle__tabulates_what_the_function_finds(store, capsys, tmp_path):
    figure = tmp_path / "apart.png"
    code, out, err = run(capsys, "disentangle", store.path, "--figure", figure, "--format", "json")
    rows = json.loads(out)
    found = nq.disentanglement(store)
    assert code == 0
    assert figure.stat().st_size > 0
    assert "disentangling: done" in err
    assert [(row["layer"], row["checkpoint"]) for row in rows[::5]] == [("conv", 0), ("fc", 0)]
    for row in rows:
        one = found.sel(layer=row["layer"], checkpoint=row["checkpoint"])
        for name in ("accuracy", "accuracy_low", "control", "silhouette_high", "separation", "intrinsic_dimension"):
            assert row[name] == float(one[name])
        assert row["class_dimension"] == float(one["class_dimension"].mean())
    code, out, _ = run(capsys, "disentangle", store.path, "--layer", "fc", "--checkpoint", "200")
    assert code == 0
    assert "±" in out
    assert "accuracy_low" not in out


def test_dimensionality__is_reached_with_intervals_and_a_figure(store, capsys, tmp_path):
    figure = tmp_path / "dimension.pdf"
    code, out, _ = run(capsys, "dimensionality", store.path, "--measure", "effective_rank", "--figure", figure,
                       "--format", "json")  # fmt: skip
    rows = json.loads(out)
    found = nq.dimensionality(store, positions="mean")
    assert code == 0
    assert figure.stat().st_size > 0
    assert len(rows) == 10
    for row in rows:
        one = found.sel(layer=row["layer"], checkpoint=row["checkpoint"])
        for end in ("", "_low", "_high"):
            assert row[f"effective_rank{end}"] == pytest.approx(float(one[f"effective_rank{end}"]))
    assert "stable_rank" not in rows[0]
    out = run(capsys, "dimensionality", store.path, "--layer", "fc")[1]
    assert "stable_rank" in out
    assert "participation_ratio_corrected" in out
    assert "±" in out


def test_overlap_figure__shows_each_layer_with_its_chance(store):
    found = nq.subspace_overlap(store, 2)
    figure = plot.subspace_overlap(found)
    for axes, layer in zip(figure.axes, ("conv", "fc"), strict=False):
        np.testing.assert_allclose(axes.images[0].get_array(), found["overlap"].sel(layer=layer))
        assert axes.get_title(loc="left") == f"{layer}\nchance {2 / (6 if layer == 'conv' else 8):.2g}"
        assert axes.images[0].get_clim() == (0, 1)


def test_drift_figure__draws_drift_chance_and_nulls(store):
    found = nq.subspace_drift(store, 2)
    left, right = plot.subspace_drift(found).axes
    drawn = [line.get_ydata() for line in left.get_lines() if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(drawn, found["drift"])
    levels = [line.get_ydata()[0] for line in left.get_lines() if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(levels, sorted(1 - found["chance"].values))
    np.testing.assert_allclose([bar.get_width() for bar in right.patches], found["null_05"])


@pytest.mark.parametrize("n_layers", [2, 12])
def test_disentanglement_figure__has_a_line_for_each_layer(store, n_layers):
    two = nq.disentanglement(store)
    parts = {f"layer.{place}": two.isel(layer=place % 2) for place in range(n_layers)}
    figure = plot.disentanglement(parts)
    accuracy, silhouette, separation, of_class, intrinsic, key = figure.axes
    for axes, name in ((accuracy, "accuracy"), (silhouette, "silhouette"), (separation, "separation"),
                       (intrinsic, "intrinsic_dimension")):  # fmt: skip
        drawn = [line.get_ydata() for line in axes.get_lines() if line.get_marker() == "o"]
        assert len(drawn) == n_layers
        np.testing.assert_allclose(drawn[1], two[name].isel(layer=1))
    drawn = [line.get_ydata() for line in of_class.get_lines()]
    np.testing.assert_allclose(drawn[0], two["class_dimension"].isel(layer=0).mean("class"))
    texts = [text.get_text() for text in key.get_legend().get_texts()]
    assert len(texts) == n_layers + 1
    assert "shuffled labels" in texts
    figure.draw_without_rendering()


def test_components_figure__draws_the_share_that_the_first_components_hold(store):
    found = nq.pca(store, 4)
    axes = plot.components(found).axes[0]
    drawn = np.array([line.get_ydata() for line in axes.get_lines()])
    np.testing.assert_allclose(drawn, found["conv"]["explained_variance_ratio"].values.cumsum(axis=1))


def test_figures__refuse_other_results():
    other = xr.Dataset({"x": ("checkpoint", np.zeros(3))}, {"checkpoint": np.arange(3)})
    for draw in (plot.subspace_overlap, plot.subspace_drift, plot.disentanglement, plot.components):
        with pytest.raises(DimensionError, match="pass that of"):
            draw(other)
