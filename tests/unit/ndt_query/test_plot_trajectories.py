"""Figures of trajectories and of jumps against their null show the numbers they are given."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query import plot
from ndt_store.errors import InvalidInputError, NotFoundError

N = 120
STEPS = np.arange(N) * 5


@pytest.fixture(scope="module")
def tracked():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((N, 3))
    values[70:, 1] += 9
    values[:, 2] = 4
    ratio = xr.DataArray(values, dims=("step", "layer"), coords={"step": STEPS, "layer": ["one", "two", "still"]})
    loss = xr.DataArray(np.exp(-np.arange(N) / 20), dims="step")
    return xr.Dataset({"participation_ratio": ratio, "loss": loss, "validation_loss": 1 + loss})


@pytest.fixture(scope="module")
def jumps(tracked):
    return nq.detect_jumps(tracked)


def test_trajectories__draws_each_layer_with_its_level_and_jumps(jumps, tracked):
    axes = plot.trajectories(jumps).axes
    assert [one.get_title(loc="left") for one in axes] == ["one: no jumps", "two: 1 jump", "still: no jumps"]
    for one, layer in zip(axes, ("one", "two", "still"), strict=True):
        points, level, *marks = one.get_lines()
        np.testing.assert_array_equal(points.get_ydata(), tracked["participation_ratio"].sel(layer=layer))
        np.testing.assert_array_equal(level.get_ydata(), jumps["level"].sel(measured_layer=layer))
        assert [mark.get_xdata()[0] for mark in marks] == ([350] if layer == "two" else [])
    assert axes[0].get_ylabel() == "participation ratio"
    low, high = float(jumps["low"][0]), float(jumps["high"][0])
    band = axes[1].patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == (low, high)


def test_trajectories__shows_the_loss_with_all_jumps(jumps, tracked):
    axes = plot.trajectories(jumps, tracked).axes[-1]
    training, validation, mark = axes.get_lines()
    np.testing.assert_array_equal(training.get_ydata(), tracked["loss"])
    np.testing.assert_array_equal(validation.get_ydata(), tracked["validation_loss"])
    assert mark.get_xdata()[0] == 350
    assert axes.get_title(loc="left") == "loss"


def test_trajectories__of_one_series_is_one_panel():
    found = nq.detect_jumps(np.random.default_rng(0).standard_normal(N), STEPS)
    (axes,) = plot.trajectories(found).axes
    assert axes.get_title(loc="left") == "no jumps"


def test_trajectories__of_many_layers_stay_within_the_page(tracked):
    many = xr.concat([tracked["participation_ratio"].sel(layer="still")] * 11, dim="layer")
    found = nq.detect_jumps(many.assign_coords(layer=[f"block{k}" for k in range(11)]))
    figure = plot.trajectories(found, tracked)
    assert len(figure.axes) == 12
    assert figure.get_figwidth() <= 7.2


def test_trajectories__refuses_what_it_cannot_draw(jumps):
    with pytest.raises(NotFoundError, match="no 'step': pass a result of detect_jumps"):
        plot.trajectories(xr.Dataset())
    with pytest.raises(NotFoundError, match="neither loss nor validation_loss"):
        plot.trajectories(jumps, xr.Dataset())


def test_jump_nulls__draws_each_jump_and_each_next_change_beside_its_null(jumps):
    axes = plot.jump_nulls(jumps).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()][1] == "two  350"
    assert len(axes.patches) == 3
    low, high = np.nanquantile(jumps["null_strength"][0], [0.05, 0.95])
    bar = axes.patches[1]
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == pytest.approx((low, high))
    points = [line for line in axes.get_lines() if line.get_marker() == "o"]
    expected = [jumps["next_strength"][0], jumps["strength"][0], jumps["next_strength"][1]]
    np.testing.assert_allclose([line.get_xdata()[0] for line in points], expected)
    assert [line.get_markerfacecolor() == "white" for line in points] == [True, False, True]
    assert "$q$ = " in axes.texts[1].get_text()
    assert "$p$ = " in axes.texts[0].get_text()


def test_jump_nulls__refuses_more_rows_than_fit(jumps):
    many = jumps.isel(jump=[0] * 41)
    with pytest.raises(InvalidInputError, match="43 jumps and layers to draw: expected at most 40"):
        plot.jump_nulls(many)
