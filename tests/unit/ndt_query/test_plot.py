"""Figures show the numbers they are given, and leave no trace in the caller's matplotlib."""

import itertools
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import ndt_query as nq
from ndt_query import plot
from ndt_query.plot.style import OKABE_ITO
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .sources import labelled


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    steps = (0, 10, 100, 1000)
    return simulate_store(tmp_path_factory.mktemp("plot") / "run.zarr", checkpoints=steps, n_examples=24).store


@pytest.fixture(scope="module")
def tree(store):
    return nq.selectivity_index(store, n_permutations=19).compute()


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_dimensionality__draws_each_layer_with_its_interval(store):
    result = nq.dimensionality(store, positions="mean").compute()
    axes = plot.dimensionality(result, measure="stable_rank").axes[0]
    for line, layer in zip(lines(axes), store.layers, strict=True):
        np.testing.assert_array_equal(line, result["stable_rank"].sel(layer=layer))
    assert len(axes.collections) == 3
    low = min(path.vertices[:, 1].min() for band in axes.collections for path in band.get_paths())
    assert low == pytest.approx(float(result["stable_rank_low"].min()))
    assert axes.get_ylabel() == "stable rank"
    assert axes.get_title(loc="left") == "95% intervals over 24 examples"
    assert axes.get_xscale() == "symlog"
    assert [to_hex(line.get_color()).upper() for line in axes.get_lines()] == list(OKABE_ITO[:3])


def test_dimensionality__of_one_layer_draws_one_line():
    result = nq.dimensionality(labelled(np.random.default_rng(0).random((3, 9, 4))), interval="none")
    axes = plot.dimensionality(result).axes[0]
    assert len(lines(axes)) == 1
    assert axes.get_title(loc="left") == ""
    assert axes.get_xscale() == "linear"


def test_dimensionality__refuses_an_unknown_measure_and_a_single_checkpoint(store):
    result = nq.dimensionality(store, positions="mean")
    with pytest.raises(InvalidInputError, match="rank.*not an option"):
        plot.dimensionality(result, measure="rank")
    with pytest.raises(DimensionError, match="spans training"):
        plot.dimensionality(result.isel(checkpoint=0))


def test_dead_units__draws_the_dead_fraction(rng):
    values = rng.random((3, 20, 8)) + 0.1
    values[0, :, :6], values[1, :, :2] = 0, 0
    axes = plot.dead_units(nq.dead_units(labelled(values))).axes[0]
    assert lines(axes)[0].tolist() == [0.75, 0.25, 0]
    assert axes.get_title(loc="left") == "never active on 20 examples"


def test_selectivity__draws_quantiles_and_the_significant_share(store, tree):
    figure = plot.selectivity(tree)
    upper, lower = figure.axes[0], figure.axes[1]
    first = tree[next(iter(tree.children))].to_dataset()
    np.testing.assert_allclose(lines(upper)[0], first["selectivity_index"].median("unit"))
    np.testing.assert_allclose(lines(lower)[0], (first["q_value"] < 0.05).mean("unit"))
    assert len(figure.axes) == 6


def test_selectivity__without_p_values_has_no_lower_row(store):
    result = nq.selectivity_index(store, n_permutations=0)
    assert len(plot.selectivity(result, measure="auroc").axes) == 3


def test_selectivity__of_many_layers_wraps_into_rows(rng):
    one = nq.selectivity_index(labelled(rng.random((2, 12, 3))), n_permutations=9)
    figure = plot.selectivity(xr.DataTree.from_dict({f"block{i}": one for i in range(9)}))
    assert len(figure.axes) == 18
    assert figure.get_figheight() > 7


def test_selectivity__of_a_measure_that_is_undefined_draws_nothing_there(rng):
    signed = nq.selectivity_index(labelled(rng.standard_normal((2, 12, 3))), n_permutations=9)
    assert np.isnan(lines(plot.selectivity(signed, measure="selectivity_index").axes[0])[0]).all()


@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (3, 6, 5), (6, 5, 3), (8,)], ids=str)
def test_top_examples__draws_the_inputs_it_names(rng, shape):
    found = nq.top_examples(labelled(rng.random((1, 12, 2))), k=3).isel(checkpoint=0)
    dims = ("example", *"abc"[: len(shape)])
    inputs = xr.DataArray(rng.random((12, *shape)), dims=dims, coords={"example": np.arange(12) * 2 + 5})
    figure = plot.top_examples([found.isel(unit=u) for u in (0, 1)], inputs, titles=["one", "two"])
    pictures = [axes for axes in figure.axes if axes.axison]
    assert len(pictures) == 6
    best = inputs.sel(example=found["example"].values[0, 0]).values
    drawn = pictures[0].images[0].get_array() if len(shape) > 1 else lines(pictures[0])[0]
    assert drawn.size == best.size
    assert pictures[0].get_xlabel() == f"{found['value'].values[0, 0]:.3g}"
    if len(shape) == 2:
        np.testing.assert_array_equal(drawn, best)


def test_top_examples__shares_one_scale(rng):
    found = nq.top_examples(labelled(rng.random((1, 6, 1))), k=6).isel(checkpoint=0)
    inputs = xr.DataArray(rng.random((6, 2, 2)), dims=("example", "a", "b"), coords={"example": np.arange(6) * 2 + 5})
    figure = plot.top_examples([found.isel(unit=0)], inputs, titles=["one"])
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    assert limits == {(inputs.min().item(), inputs.max().item())}


def test_top_examples__refuses_inputs_that_do_not_fit(rng):
    found = nq.top_examples(labelled(rng.random((1, 6, 1))), k=2).isel(checkpoint=0, unit=0)
    inputs = xr.DataArray(
        np.zeros((6, 2, 2, 2, 2)), dims=("example", *"abcd"), coords={"example": np.arange(6) * 2 + 5}
    )
    with pytest.raises(DimensionError, match="neither image nor vector"):
        plot.top_examples([found], inputs, titles=["one"])
    with pytest.raises(NotFoundError, match="inputs lack example"):
        plot.top_examples([found], inputs.isel(example=slice(0, 0)), titles=["one"])


def test_figures__leave_the_callers_settings_alone(tree):
    before = dict(mpl.rcParams)
    with mpl.rc_context({"font.size": 3.0, "axes.facecolor": "red"}):
        figure = plot.selectivity(tree)
        assert mpl.rcParams["font.size"] == 3.0
    assert dict(mpl.rcParams) == before
    assert to_hex(figure.axes[0].get_facecolor()) == "#ffffff"


def test_figures__do_without_pyplot():
    script = (
        "import sys, ndt_query.plot as p; [getattr(p, n) for n in p.__all__]; print('matplotlib.pyplot' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_save__writes_equal_figures_as_equal_files(tmp_path, tree):
    paths = [plot.save(plot.selectivity(tree), tmp_path / f"{n}.svg") for n in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert plot.save(Figure(), tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def ticks(axes):
    axes.figure.canvas.draw()
    return [label.get_text().replace("\u2009", ",") for label in axes.get_xticklabels()]


def overlapping(axes):
    axes.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    return any(left.x1 > right.x0 for left, right in itertools.pairwise(boxes))


def of_steps(steps):
    values = np.random.default_rng(0).random((len(steps), 12, 3)).astype(np.float32)
    return labelled(values).assign_coords(checkpoint=np.asarray(steps))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([0, 10, 30, 80, 160, 300], ["0", "30", "80", "160", "300"]),
        ([7], ["7"]),
        (range(100, 2001, 100), ["500", "1,000", "1,500", "2,000"]),
        (range(100, 1630, 90), ["400", "800", "1,200", "1,540"]),
        (range(0, 2001, 5), ["0", "10", "100", "2,000"]),
        ([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"]),
        ([1000, 1001, 1002], ["1,000", "1,001", "1,002"]),
        ([0, 999_998, 1_000_000], ["0", "1,000,000"]),
    ],
    ids=str,
)
def test_steps__are_marked_where_captured_or_at_round_ones_and_at_the_last(steps, expected):
    axes = plot.dimensionality(nq.dimensionality(of_steps(steps), interval="none")).axes[0]
    found = ticks(axes)
    assert found == expected
    assert found[-1] == f"{steps[-1]:,}"
    assert not overlapping(axes)


def test_steps__of_narrow_panels_do_not_touch():
    one = nq.selectivity_index(of_steps([0, 10, 30, 80, 160, 3000, 250_000]), n_permutations=9)
    figure = plot.selectivity(xr.DataTree.from_dict({f"layer{i}": one for i in range(5)}))
    assert not any(overlapping(axes) for axes in figure.axes[1::2])


def test_dead_units__marks_round_percentages(rng):
    values = rng.random((2, 20, 100)) + 0.1
    values[1, :, :21] = 0
    axes = plot.dead_units(nq.dead_units(labelled(values))).axes[0]
    axes.figure.canvas.draw()
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[:5] == ["0%", "5%", "10%", "15%", "20%"]
    np.testing.assert_allclose([float(text[:-1]) for text in shown], 100 * axes.get_yticks())


def test_selectivity__draws_auroc_for_signed_layers_and_the_index_for_others(rng):
    layers = {
        "relu": labelled(rng.random((3, 12, 4))),
        "mostly": labelled(np.stack([rng.standard_normal((12, 4)), *rng.random((2, 12, 4))])),
        "dead": labelled(rng.random((3, 12, 4)) * [0, 0, 0, 1]),
        "logits": labelled(rng.standard_normal((3, 12, 4))),
    }
    result = nq.selectivity_index(layers, n_permutations=9)
    upper = plot.selectivity(result).axes[::2]
    expected = ["selectivity_index"] * 3 + ["auroc"]
    for axes, (name, node), measure in zip(upper, result.children.items(), expected, strict=True):
        np.testing.assert_allclose(lines(axes)[0], node[measure].median("unit"), err_msg=name)
    assert [axes.get_ylabel() for axes in upper] == ["selectivity index", "", "", "AUROC"]
    assert upper[3].get_ylim() != upper[0].get_ylim()
    assert upper[1].get_ylim() == upper[0].get_ylim()


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 2), (5, 5), (6, 3), (7, 4), (8, 4), (9, 3), (10, 5), (12, 4)])
def test_selectivity__leaves_few_places_empty(rng, n, columns):
    one = nq.selectivity_index(labelled(rng.random((2, 12, 2))), n_permutations=0)
    figure = plot.selectivity(xr.DataTree.from_dict({f"l{i}": one for i in range(n)}))
    assert figure.axes[0].get_gridspec().ncols == columns


def test_performance__draws_what_it_is_given(store):
    result = nq.performance(store)
    figure = plot.performance(result)
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        np.testing.assert_array_equal(lines(axes)[0], result[name])
        assert axes.get_ylabel() == name
        band = np.concatenate([path.vertices[:, 1] for path in axes.collections[0].get_paths()])
        assert band.max() == pytest.approx(float(result[f"{name}_high"].max()))


def test_top_examples__names_classes(rng):
    found = nq.top_examples(labelled(rng.random((1, 6, 1))), k=2).isel(checkpoint=0, unit=0)
    ids = {"example": np.arange(6) * 2 + 5}
    inputs = xr.DataArray(rng.random((6, 2, 2)), dims=("example", "a", "b"), coords=ids)
    labels = xr.DataArray([0, 1, 2] * 2, dims="example", coords=ids, attrs={"class_names": ["cat", "a $dog$"]})
    figure = plot.top_examples([found], inputs, titles=["one"], labels=labels)
    shown = [axes.get_xlabel().split("\n")[1] for axes in figure.axes if axes.axison]
    names = {0: "cat", 1: r"a \$dog\$", 2: "2"}
    assert shown == [names[labels.sel(example=example).item()] for example in found["example"].values]


def test_figures__draw_names_as_they_are(rng, tmp_path):
    layers = {"_blocks.0": labelled(rng.random((2, 6, 2))), r"$\frac$": labelled(rng.random((2, 6, 2)))}
    figure = plot.dimensionality(nq.dimensionality(layers))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == ["\u200a_blocks.0", r"\$\frac\$"]
    plot.save(figure, tmp_path / "a.svg")
    plot.save(plot.selectivity(nq.selectivity_index(layers, n_permutations=0)), tmp_path / "b.svg")
