"""Figures of growth and of smoothness show the numbers they are given."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query import plot
from ndt_store.errors import DimensionError

STEPS = np.arange(0, 1000, 5)


def curve(step):
    return 2 + 3 / (1 + np.exp(-0.02 * (step - 400)))


@pytest.fixture(scope="module")
def fits():
    rng = np.random.default_rng(3)
    rows = np.stack([curve(STEPS) + 0.2 * rng.standard_normal(200), rng.standard_normal(200), (STEPS > 500) * 1.0])
    series = xr.DataArray(rows, {"layer": ["_a", "b$", "c"], "step": STEPS}, ("layer", "step"))
    return nq.fit_growth(series, n_resamples=60, n_null=99)


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_growth__draws_data_fit_band_and_midpoint(fits):
    figure = plot.growth(fits, label="rank")
    axes, one = figure.axes[0], fits.isel(layer=0)
    np.testing.assert_array_equal(lines(axes)[0], one["observed"])
    np.testing.assert_array_equal(lines(axes)[1], one["fit"])
    assert axes.get_lines()[2].get_xdata()[0] == one["midpoint"]
    band = np.concatenate([path.vertices[:, 1] for path in axes.collections[0].get_paths()])
    assert (band.min(), band.max()) == (one["fit_low"].min(), one["fit_high"].max())
    assert axes.get_title(loc="left") == "\u200a_a"
    assert axes.get_title(loc="right") == f"$R^2$ = {one['r2'].item():.3g}"
    assert (axes.get_ylabel(), figure.axes[1].get_ylabel()) == ("rank", "")
    # Even measurements are not bunched on a logarithmic axis.
    assert axes.get_xscale() == "linear"


def test_growth__says_where_there_is_none_and_what_sits_on_its_bound(fits):
    _, none, step = plot.growth(fits).axes
    assert len(none.get_lines()) == 1
    assert not none.collections
    assert none.get_title(loc="right") == f"no growth, p = {fits['p_value'].values[1]:.2g}"
    assert step.get_title(loc="right").endswith("on its bound: rate")


def test_growth__of_one_series_over_checkpoints_has_their_axis(rng):
    checkpoints = np.array([0, 10, 30, 80, 160, 300, 500, 800, 1200, 2000])
    series = xr.DataArray(curve(checkpoints), {"checkpoint": checkpoints}, ("checkpoint",))
    figure = plot.growth(nq.fit_growth(series, n_resamples=20, n_null=99))
    (axes,) = figure.axes
    assert axes.get_xscale() == "symlog"
    assert axes.get_title(loc="left") == ""


def test_growth__of_many_series_leaves_empty_places_blank(fits):
    figure = plot.growth(xr.concat([fits, fits.isel(layer=[0])], "layer"))
    assert [axes.axison for axes in figure.axes] == [True] * 4 + [False] * 2
    assert [bool(axes.get_xlabel()) for axes in figure.axes[:4]] == [False, True, True, True]


def test_smoothness__draws_trajectories_and_derivatives_with_their_intervals(rng):
    a, b = (curve(STEPS) + noise * rng.standard_normal(200) for noise in (0.02, 0.2))
    result = nq.smoothness(a, b, STEPS, n_resamples=200)
    figure = plot.smoothness(result, names=["calm", "rough"])
    left, right = figure.axes
    for drawn, row in zip(lines(left), result["trajectory"].values, strict=True):
        np.testing.assert_array_equal(drawn, row)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["calm", "rough"]
    spreads = [line.get_xdata() for line in right.get_lines()[::3]]
    np.testing.assert_allclose([spread[1] for spread in spreads], 1000 * np.sqrt(result["variance"]))
    ends = [line.get_xdata() for line in right.get_lines()[2::3]]
    for end, low, high in zip(ends, result["variance_low"].values, result["variance_high"].values, strict=True):
        np.testing.assert_allclose(end, 1000 * np.sqrt([low, high]))
    ratio = np.exp(result["log_variance_ratio"].item())
    assert right.get_title(loc="left").startswith(f"variance ratio {ratio:.2g} (")
    assert "p < 0.001" in right.get_title(loc="left")


def test_smoothness__of_what_is_not_known_still_draws(rng, tmp_path):
    unknown = nq.smoothness(np.ones(200), curve(STEPS) + rng.standard_normal(200), STEPS)
    figure = plot.smoothness(unknown)
    assert "variance ratio unknown" in figure.axes[1].get_title(loc="left")
    assert plot.save(figure, tmp_path / "a.svg").stat().st_size > 0


def test_curves__refuse_what_they_cannot_draw(fits):
    with pytest.raises(DimensionError, match="spans training"):
        plot.growth(fits.isel(step=0))
    layers = xr.DataArray(np.random.default_rng(0).random((2, 20)), dims=("layer", "step"))
    with pytest.raises(DimensionError, match="select one pair"):
        plot.smoothness(nq.smoothness(layers, layers, n_resamples=20))
