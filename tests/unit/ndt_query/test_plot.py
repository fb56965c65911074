"""Figures show the numbers they are given, and leave no trace in the caller's matplotlib."""

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
    assert axes.get_title(loc="left") == "95% intervals over examples"
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


def test_selectivity__of_a_layer_that_is_undefined_draws_nothing_there(rng):
    signed = nq.selectivity_index(labelled(rng.standard_normal((2, 12, 3))), n_permutations=9)
    assert np.isnan(lines(plot.selectivity(signed).axes[0])[0]).all()


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
