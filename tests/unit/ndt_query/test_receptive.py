"""Receptive fields: widths equal to plain integration, intervals that cover, patches equal to what gradients reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import xarray as xr
from matplotlib.figure import Figure

import ndt_query as nq
from ndt_query import plot
from ndt_query.patches import patch_bounds
from ndt_query.receptive import SHARE
from ndt_store import open_store, write_experiment
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

EXTENT = 30


def experiment(maps: np.ndarray, centre: float = 15.0, size: float = 25.0) -> xr.Dataset:
    """Make an experiment of maps (step, layer, unit, group, row, column), all of one theoretical field."""
    steps, layers, units, groups = maps.shape[:4]
    first, last = centre - (size - 1) / 2, centre + (size - 1) / 2
    start, stop = max(int(first), 0), min(int(last) + 1, EXTENT)
    kept = maps[..., start:stop, start:stop]

    def theory(value: float) -> Any:
        return (("layer", "axis"), np.full((layers, 2), value))

    return xr.Dataset(
        {
            "size": theory(size),
            "stride": theory(2.0),
            "offset": theory(centre - 2 * 4),
            "position": theory(4),
            "first": theory(first),
            "last": theory(last),
            "crop_start": theory(start),
            "crop_size": theory(stop - start),
            "kind": ("layer", ["sliding"] * layers),
            "reason": ("layer", [""] * layers),
            "input_size": ("axis", [EXTENT, EXTENT]),
            "effective": (("step", "layer", "unit", "field_row", "field_column"), kept.mean(3).astype(np.float32)),
            "row_mass": (("step", "layer", "unit", "group", "field_row"), kept.sum(-1)),
            "column_mass": (("step", "layer", "unit", "group", "field_column"), kept.sum(-2)),
            "group_size": ("group", np.full(groups, 4)),
        },
        {
            "step": np.arange(steps) * 10,
            "layer": [f"conv{n}" for n in range(layers)],
            "axis": ["y", "x"],
            "unit_index": (("layer", "unit"), np.tile(np.arange(units), (layers, 1))),
        },
    )


def bumps(sigma_y: np.ndarray | float, sigma_x: np.ndarray | float, centre: float = 15.0) -> np.ndarray:
    """Normal bumps (..., field_row, field_column), integrated over pixels."""
    edges = np.arange(EXTENT + 1) - 0.5 - centre

    def one(sigma: np.ndarray | float) -> np.ndarray:
        return np.diff(scipy.stats.norm.cdf(edges / np.asarray(sigma)[..., None]), axis=-1)

    return one(sigma_y)[..., :, None] * one(sigma_x)[..., None, :]


def test_width__of_a_normal_bump_is_four_standard_deviations_along_each_axis() -> None:
    # Pixels blur it: their mass lies evenly over them.
    found = nq.receptive_field(experiment(np.tile(bumps(2.0, 3.0), (1, 1, 1, 4, 1, 1))))
    np.testing.assert_allclose(found["width"].values[0, 0, 0], [8.0, 12.0], atol=0.25)
    np.testing.assert_allclose(found["ratio"].values[0, 0, 0], [8 / 25, 12 / 25], atol=0.01)


@pytest.mark.parametrize(("size", "centre"), [(25, 15.0), (24, 14.5), (1, 15.0), (2, 14.5)])
def test_width__of_an_even_field_is_the_share_of_its_size(size: int, centre: float) -> None:
    data = experiment(np.ones((1, 1, 1, 3, EXTENT, EXTENT)), centre, size)
    found = nq.receptive_field(data)
    np.testing.assert_allclose(found["width"], SHARE * size)
    np.testing.assert_allclose(found["layer_ratio"], SHARE)


@pytest.mark.parametrize("centre", [15.0, 14.5, 3.0, 26.5])
def test_width__is_where_plain_integration_reaches_the_share(rng: np.random.Generator, centre: float) -> None:
    maps = rng.exponential(size=(2, 2, 3, 4, EXTENT, EXTENT))
    data = experiment(maps, centre)
    found = nq.receptive_field(data)

    def held(length: float, mass: np.ndarray, middle: float) -> float:
        seen = 0.0
        for pixel, value in enumerate(mass):
            low, high = max(pixel - 0.5, middle - length / 2), min(pixel + 0.5, middle + length / 2)
            seen += value * max(high - low, 0.0)
        return seen / mass.sum() - SHARE

    for step, layer, unit in np.ndindex(2, 2, 3):
        for axis, dim in enumerate(("row", "column")):
            mass = data[f"{dim}_mass"].values[step, layer, unit].sum(0)
            middle = centre - data["crop_start"].values[layer, axis]
            expected = scipy.optimize.brentq(held, 0, 100, args=(mass, middle))
            assert found["width"].values[step, layer, unit, axis] == pytest.approx(expected, rel=1e-9)


def test_intervals__are_those_of_leaving_out_one_group_at_a_time(rng: np.random.Generator) -> None:
    data = experiment(rng.exponential(size=(2, 1, 3, 6, EXTENT, EXTENT)))
    sizes = np.array([4, 4, 4, 5, 5, 3])
    data["group_size"] = ("group", sizes)
    found = nq.receptive_field(data, confidence=0.9)
    without = [nq.receptive_field(data.isel(group=[n for n in range(6) if n != g])) for g in range(6)]
    for name in ("width", "layer_width", "layer_ratio", "change"):
        parts = np.stack([one[name].values for one in without])
        error = np.sqrt(5 / 6 * ((parts - parts.mean(0)) ** 2).sum(0))
        reach = scipy.stats.t.ppf(0.95, 5) * error
        np.testing.assert_allclose(found[f"{name}_low"], found[name] - reach)
        np.testing.assert_allclose(found[f"{name}_high"], found[name] + reach)
    change = found["layer_width"].isel(step=1) - found["layer_width"].isel(step=0)
    np.testing.assert_allclose(found["change"], change)
    np.testing.assert_allclose(found["layer_width"], found["width"].mean("unit"))


def noisy(rng: np.random.Generator, growth: float, n_groups: int = 16) -> xr.Dataset:
    """Two steps of fields whose width varies over examples, which the steps share, and grows between them."""
    shared = rng.normal(0, 0.15, (1, 1, 1, n_groups))
    sigmas = 2.5 + shared + rng.normal(0, 0.1, (2, 1, 4, n_groups)) + growth * np.arange(2)[:, None, None, None]
    return experiment(bumps(sigmas, sigmas))


def test_change__is_found_where_it_is_and_seldom_where_it_is_not(rng: np.random.Generator) -> None:
    grown = nq.receptive_field(noisy(rng, 0.3))
    assert (grown["change_low"] > 0).all()
    assert grown["change"].values == pytest.approx(1.2, abs=0.2)
    wrong = 0
    for _ in range(200):
        same = nq.receptive_field(noisy(rng, 0.0)).isel(layer=0).sel(axis="x")
        wrong += not same["change_low"] <= 0 <= same["change_high"]
    assert 2 <= wrong <= 22  # 10 expected; beyond these limits by chance once in a thousand


def test_silent_units__have_no_width_and_do_not_count() -> None:
    maps = np.tile(bumps(2.0, 2.0), (2, 1, 4, 5, 1, 1))
    maps[:, :, 1] = 0  # dead for all examples
    maps[:, :, 2, 1:] = 0  # alive in one group alone: leaving it out leaves nothing
    maps[0, :, 3] = 0  # dead at first
    found = nq.receptive_field(experiment(maps)).isel(layer=0)
    assert np.isnan(found["width"].values[:, 1]).all()
    assert np.isfinite(found["width"].values[:, 2]).all()
    assert np.isnan(found["width_low"].values[:, 2]).all()
    assert found["n_units"].values.tolist() == [1, 2]
    assert int(found["n_units_both"]) == 1
    np.testing.assert_allclose(found["layer_width"], 8.0, atol=0.25)
    np.testing.assert_allclose(found["change"], 0.0, atol=1e-12)
    none = nq.receptive_field(experiment(maps[:, :, 1:2]))
    assert none["n_units"].values.tolist() == [[0], [0]]
    assert np.isnan(none["layer_width"]).all()
    assert np.isnan(none["change"]).all()


def test_one_group__has_widths_without_intervals() -> None:
    found = nq.receptive_field(experiment(np.tile(bumps(2.0, 2.0), (1, 1, 2, 1, 1, 1))))
    np.testing.assert_allclose(found["layer_width"], 8.0, atol=0.25)
    assert np.isnan(found["layer_width_low"]).all()
    assert "change" not in found


def test_unknown_fields__have_no_width_and_keep_their_reason(rng: np.random.Generator) -> None:
    data = experiment(rng.exponential(size=(1, 2, 2, 4, EXTENT, EXTENT)))
    for name in ("size", "stride", "offset", "first", "last"):
        data[name].values[1] = np.nan
    data["kind"], data["reason"] = ("layer", ["sliding", "unknown"]), ("layer", ["", "it is not known"])
    found = nq.receptive_field(data)
    assert found["kind"].values.tolist() == ["sliding", "unknown"]
    assert np.isfinite(found["width"].values[:, 0]).all()
    assert np.isnan(found["width"].values[:, 1]).all()
    assert found["reason"].values.tolist() == ["", "it is not known"]


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> Any:
    simulate_store(tmp_path / "run.zarr")
    data = experiment(bumps(rng.uniform(2, 4, (3, 2, 4, 6)), 3.0))
    write_experiment(tmp_path / "run.zarr", "receptive_fields", data)
    return open_store(tmp_path / "run.zarr")


def test_store__is_asked_for_all_layers_some_or_one(store: Any) -> None:
    every = nq.receptive_field(store)
    assert every.sizes["layer"] == 2
    assert every.attrs["store"] == store.path
    assert (every.attrs["n_examples"], every.attrs["n_groups"]) == (24, 6)
    one = nq.receptive_field(store, "conv1")
    assert "layer" not in one.dims
    xr.testing.assert_equal(one, every.sel(layer="conv1"))
    assert nq.receptive_field(store, ["conv1"]).sizes["layer"] == 1
    with pytest.raises(NotFoundError, match="The receptive fields are those of conv0, conv1: got 'fc'"):
        nq.receptive_field(store, "fc")
    with pytest.raises(NotFoundError, match="got 'no layer'"):
        nq.receptive_field(store, [])
    with pytest.raises(InvalidInputError, match="confidence=2"):
        nq.receptive_field(store, confidence=2)


def test_other_data__are_refused(tmp_path: Path, store: Any) -> None:
    simulate_store(tmp_path / "empty.zarr")
    with pytest.raises(NotFoundError, match="make it with `ndt receptive-fields`"):
        nq.receptive_field(open_store(tmp_path / "empty.zarr"))
    with pytest.raises(DimensionError, match="no variable 'size'"):
        nq.receptive_field(xr.Dataset())
    with pytest.raises(DimensionError, match="expected what capture.receptive_fields gives"):
        nq.receptive_field(store.experiment("receptive_fields").isel(step=0))


def field(size: float, stride: float, offset: float, kind: str = "sliding") -> xr.Dataset:
    return xr.Dataset(
        {
            "size": ("axis", [size, size]),
            "stride": ("axis", [stride, stride]),
            "offset": ("axis", [offset, offset]),
            "kind": ((), kind),
            "reason": ((), "because"),
        },
        {"axis": ["y", "x"]},
    )


@pytest.mark.parametrize(
    ("of", "position", "expected"),
    [
        (field(3, 1, 0), (0, 5), (slice(0, 2), slice(4, 7))),
        (field(8, 2, 0.5), (7, 13), (slice(11, 19), slice(23, 28))),
        (field(38, 8, 3.5), (1, 2), (slice(0, 28), slice(1, 28))),
        (field(1, 4, 0), (6, 0), (slice(24, 25), slice(0, 1))),
        (field(28, 0, 13.5, "global"), (3, 9), (slice(0, 28), slice(0, 28))),
        (field(8, np.nan, 3.5), (0, 0), (slice(0, 8), slice(0, 8))),
    ],
)
def test_patch__is_the_window_within_the_image(of: xr.Dataset, position: tuple[int, int], expected: Any) -> None:
    assert patch_bounds(of, *position, (1, 28, 28)) == expected
    assert patch_bounds(of, *position, (28, 28)) == expected


def test_patch__that_cannot_be_cut() -> None:
    with pytest.raises(InvalidInputError, match="Position 40 along y sees nothing of 28 input positions"):
        patch_bounds(field(3, 1, 0), 40, 2, (1, 28, 28))
    with pytest.raises(InvalidInputError, match="Position 1 along x sees nothing"):
        patch_bounds(field(8, np.nan, 3.5), 0, 1, (28, 28))
    with pytest.raises(InvalidInputError, match=r"not known \(because\)"):
        patch_bounds(field(np.nan, np.nan, np.nan, "unknown"), 0, 0, (28, 28))
    with pytest.raises(DimensionError, match="got position y=None, x=2"):
        patch_bounds(field(3, 1, 0), None, 2, (28, 28))
    with pytest.raises(DimensionError, match="select one"):
        patch_bounds(xr.concat([field(3, 1, 0)] * 2, "layer"), 0, 0, (28, 28))
    series = field(3, 2, 1).isel(axis=[1])
    assert patch_bounds(series, None, 4, (2, 40)) == (slice(8, 11),)


def test_patch__is_where_the_gradient_of_each_position_is() -> None:
    torch = pytest.importorskip("torch")
    import capture

    torch.manual_seed(0)
    nn = torch.nn
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, stride=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 1, 3))
    images = torch.randn(8, 1, 21, 25)
    fields = capture.receptive_fields(model, (images, torch.zeros(8)), layers=["3"], progress=False)
    one = nq.receptive_field(fields, "3")
    leaf = images.requires_grad_()
    out = model(leaf)
    for y, x in np.ndindex(*out.shape[2:]):
        (gradient,) = torch.autograd.grad(out[:, 0, y, x].sum(), leaf, retain_graph=True)
        seen = np.argwhere(gradient.abs().sum((0, 1)).numpy() > 0)
        rows, columns = patch_bounds(one, y, x, images.shape)
        assert (rows.start, rows.stop - 1) == (seen[:, 0].min(), seen[:, 0].max())
        assert (columns.start, columns.stop - 1) == (seen[:, 1].min(), seen[:, 1].max())


def test_figure__draws_maps_within_their_squares_and_widths(store: Any) -> None:
    result = nq.receptive_field(store)
    figure = plot.receptive_fields(result)
    assert isinstance(figure, Figure)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title("left") for axes in maps] == ["conv0", "conv1", "", ""]
    assert maps[0].images[0].get_array().shape == (EXTENT, EXTENT)
    np.testing.assert_allclose(maps[0].images[0].get_array().sum(), 1.0, rtol=1e-5)
    square = maps[0].patches[0]
    assert (*square.get_xy(), square.get_width(), square.get_height()) == (2.5, 2.5, 25, 25)
    by_layer, over_steps = (axes for axes in figure.axes if not axes.images)
    np.testing.assert_allclose(by_layer.lines[0].get_ydata(), [25, 25])
    np.testing.assert_allclose(by_layer.containers[1][0].get_ydata(), result["layer_width"].isel(step=-1).mean("axis"))
    np.testing.assert_allclose(over_steps.lines[1].get_ydata(), result["layer_width"].isel(layer=1).mean("axis"))
    one_step = plot.receptive_fields(nq.receptive_field(store.experiment("receptive_fields").isel(step=[0])))
    assert len(one_step.axes) == 3


def test_figure__refuses_what_it_cannot_draw(store: Any) -> None:
    with pytest.raises(DimensionError, match="no layer_width over layers"):
        plot.receptive_fields(nq.receptive_field(store, "conv1"))
    data = store.experiment("receptive_fields").load()
    series = data.isel(axis=[1]).drop_vars("row_mass").assign(effective=data["effective"].sum("field_row"))
    with pytest.raises(DimensionError, match="of series"):
        plot.receptive_fields(nq.receptive_field(series))
