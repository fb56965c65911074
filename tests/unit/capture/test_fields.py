"""Effective receptive fields: equal to plain gradients, cropped where theory ends, kept; the model is as found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import capture
from capture.checkpoints import weights_digest
from ndt_store import open_store, verify
from ndt_store.errors import (
    AlreadyExistsError,
    CaptureError,
    InvalidInputError,
    NotFoundError,
    ResumeMismatchError,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 4, 3),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 2, 12, 12, generator=generator), torch.arange(24) % 3


def measure(model: nn.Module, data: Any, layers: list[str], **options: Any) -> xr.Dataset:
    return capture.receptive_fields(model, data, layers=layers, progress=False, **options)


def plain_map(model: nn.Module, inputs: Tensor, n_modules: int, place: tuple[Any, ...]) -> np.ndarray:
    """Mean over examples of the gradients' absolute values, one example at a time, in float64."""
    first = nn.Sequential(*list(model.children())[:n_modules]).double().eval()
    found = []
    for image in inputs.double():
        leaf = image[None].clone().requires_grad_()
        first(leaf * 1)[(0, *place)].backward()
        assert leaf.grad is not None
        found.append(leaf.grad[0].abs().sum(0).numpy())
    model.float()
    return np.stack(found)


@pytest.mark.parametrize(
    ("layer", "n_modules", "unit", "position", "rows"),
    [
        ("0", 1, 3, (6, 6), slice(5, 8)),
        ("1", 2, 0, (6, 6), slice(5, 8)),
        ("2", 3, 4, (6, 6), slice(5, 8)),
        ("3", 4, 1, (3, 3), slice(5, 9)),
        ("4", 5, 2, (2, 2), slice(3, 11)),
        ("6", 7, 1, (), slice(0, 12)),
    ],
)
def test_effective_field__is_the_mean_of_plain_gradients(
    images: tuple[Tensor, Tensor], layer: str, n_modules: int, unit: int, position: tuple[int, ...], rows: slice
) -> None:
    model = net()
    found = measure(model, images, ["*"], units=None, n_examples=24, n_groups=5, batch_size=7)
    one = found.sel(layer=layer, step=0).isel(unit=unit)
    each = plain_map(model, images[0], n_modules, (unit, *position))
    mean = each.mean(0)
    outside = mean.copy()
    outside[rows, rows] = 0
    assert not outside.any()
    assert one["crop_start"].values.tolist() == [rows.start] * 2
    assert one["crop_size"].values.tolist() == [rows.stop - rows.start] * 2
    size = rows.stop - rows.start
    np.testing.assert_allclose(one["effective"].values[:size, :size], mean[rows, rows], rtol=1e-4, atol=1e-9)
    assert one["effective"].isnull().sum() == 144 - size**2
    # Groups hold each example once: their means, weighted, are the margins of the mean.
    weights = found["group_size"] / found["group_size"].sum()
    np.testing.assert_allclose((one["row_mass"] * weights).sum("group")[:size], mean[rows].sum(1), rtol=1e-4)
    np.testing.assert_allclose((one["column_mass"] * weights).sum("group")[:size], mean[:, rows].sum(0), rtol=1e-4)
    assert sorted(found["group_size"].values.tolist()) == [4, 5, 5, 5, 5]


def test_groups__are_means_of_their_examples(images: tuple[Tensor, Tensor]) -> None:
    model = net()
    found = measure(model, images, ["4"], units={"4": [2]}, n_examples=24, n_groups=24)
    each = plain_map(model, images[0], 5, (2, 2, 2))[:, 3:11, 3:11]
    rows = found["row_mass"].values[0, 0, 0]
    expected = each.sum(2)
    # One example a group, in an order of its own.
    order = [int(np.abs(expected - row).sum(1).argmin()) for row in rows]
    assert sorted(order) == list(range(24))
    assert order != list(range(24))
    np.testing.assert_allclose(rows, expected[order], rtol=1e-4, atol=1e-8)


def test_linear_layers__have_the_absolute_weights_whatever_the_input(images: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 5, padding=2, bias=False))
    found = measure(model, images, ["0"], units=None)
    weight = model[0].weight.detach().abs().sum(1)
    np.testing.assert_allclose(found["effective"].values[0, 0], weight, rtol=1e-5)
    np.testing.assert_allclose(found["row_mass"].values[0, 0], weight.sum(2)[:, None].expand(3, 16, 5), rtol=1e-5)


def test_series__have_columns_alone() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3, dilation=2, padding=2), nn.Tanh(), nn.Conv1d(2, 3, 3, stride=2))
    found = measure(model, (torch.randn(9, 1, 30), torch.zeros(9)), ["*"], n_groups=3)
    assert found["effective"].dims == ("step", "layer", "unit", "field_column")
    assert "row_mass" not in found
    assert found["axis"].values.tolist() == ["x"]
    assert found["size"].values.tolist() == [[5], [5], [7]]
    assert found["stride"].values.tolist() == [[1], [1], [2]]
    seen = found["effective"].sel(layer="0").values[0, 0, :5]
    assert (seen > 0).tolist() == [True, False, True, False, True]


def test_units__evenly_or_by_name_or_all(images: tuple[Tensor, Tensor]) -> None:
    few = measure(net(), images, ["0", "4"], units=2)
    assert few["unit_index"].values.tolist() == [[0, 2], [0, 2]]
    named = measure(net(), images, ["0", "4"], units={"4": [3, 1, 0]})
    assert named["unit_index"].values.tolist() == [[0, 1, 2, 3, 4], [3, 1, 0, -1, -1]]
    xr.testing.assert_allclose(
        few["effective"].sel(layer="4").isel(unit=0, drop=True),
        named["effective"].sel(layer="4").isel(unit=2, drop=True),
    )
    assert named["effective"].sel(layer="4").isel(unit=slice(3, None)).isnull().all()


def test_a_dead_unit__has_a_map_of_zeros(images: tuple[Tensor, Tensor]) -> None:
    model = net()
    with torch.no_grad():
        model[1].bias[2] = -100.0
    found = measure(model, images, ["2"], units=None)
    assert (found["effective"].values[0, 0, 2, :3, :3] == 0).all()
    assert (found["effective"].values[0, 0, 1, :3, :3] > 0).all()


def test_checkpoints__are_loaded_measured_and_put_back(images: tuple[Tensor, Tensor]) -> None:
    model = net().train()
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    double = {name: value * 2 if name == "0.weight" else value for name, value in model.state_dict().items()}
    before = weights_digest(model.state_dict())
    state = torch.get_rng_state()
    found = measure(model, images, ["0", "4"], checkpoints=[(5, double), (0, model.state_dict())])
    assert found["step"].values.tolist() == [0, 5]
    assert found["weights_digest"].values[0] == before != found["weights_digest"].values[1]
    first = found["effective"].sel(layer="0").isel(field_row=slice(3), field_column=slice(3))
    np.testing.assert_allclose(first.sel(step=5), 2 * first.sel(step=0), rtol=1e-5)
    assert weights_digest(model.state_dict()) == before
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model[4].parameters()] == [False, True]
    assert model[0].weight.grad is not None
    assert bool((model[0].weight.grad == 1).all())
    assert model[4].bias.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def stored(tmp_path: Any, images: tuple[Tensor, Tensor]) -> Any:
    path = tmp_path / "run.zarr"
    capture.capture(net(), images, store=path, layers=["0"], progress=False)
    return path


def test_store__holds_what_was_returned_and_is_whole(stored: Any, images: tuple[Tensor, Tensor]) -> None:
    found = measure(net(), images, ["*"], store=stored)
    assert found.attrs["left_out"] == []
    store = open_store(stored)
    xr.testing.assert_equal(store.experiment("receptive_fields").load(), found)
    assert verify(store, read_data=True).ok
    plain = xr.open_datatree(stored, engine="zarr")
    np.testing.assert_array_equal(plain["experiments/receptive_fields"]["size"], found["size"])


def test_store__that_holds_the_same_is_read_and_others_are_refused_or_replaced(
    stored: Any, images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure(net(), images, ["0", "4"], store=stored)
    with pytest.raises(AlreadyExistsError, match=r"holds receptive fields of other layers, units.*--replace"):
        measure(net(), images, ["0", "4"], store=stored, units=2)
    replaced = measure(net(), images, ["0", "4"], store=stored, units=2, replace=True)
    assert replaced.sizes["unit"] == 2
    measure(net(), images, ["0", "4"], store=stored, replace=True)

    def never(*_args: Any, **_options: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("capture.fields.effective_maps", never)
    xr.testing.assert_equal(measure(net(), images, ["0", "4"], store=stored), found)


def test_store__of_other_weights_is_refused_before_anything_is_measured(
    stored: Any, images: tuple[Tensor, Tensor]
) -> None:
    other = net()
    with torch.no_grad():
        other[0].weight += 1
    with pytest.raises(ResumeMismatchError, match="weights of checkpoint 0"):
        measure(other, images, ["0"], store=stored)
    assert open_store(stored).experiments == ()


def test_no_store__is_an_error_before_anything_is_measured(tmp_path: Any, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(NotFoundError):
        measure(net(), images, ["0"], store=tmp_path / "none.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_examples": 0}, "n_examples is 0: expected a whole number"),
        ({"n_groups": 1.5}, "n_groups is 1.5: expected a whole number"),
        ({"batch_size": -1}, "batch_size is -1: expected a whole number"),
        ({"units": 0}, "units is 0: expected a number of units"),
        ({"units": {"9": [0]}}, "units names layer '9': the layers are 0"),
        ({"units": {"0": [5]}}, r"units of layer '0' are \[5\]: expected some of 0 to 4"),
        ({"units": {"0": [1, 1]}}, r"units of layer '0' are \[1, 1\]"),
        ({"units": {"0": []}}, r"units of layer '0' are \[\]"),
    ],
)
def test_options__that_are_not_possible(images: tuple[Tensor, Tensor], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        measure(net(), images, ["0"], **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.rand(4, 9), r"The inputs have shape \(4, 9\): receptive fields are those of images"),
        (torch.zeros(4, 2, 12, 12, dtype=torch.int64), "The inputs are torch.int64: receptive fields need gradients"),
    ],
)
def test_inputs__that_have_no_fields(inputs: Tensor, message: str) -> None:
    class Floating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    with pytest.raises(InvalidInputError, match=message):
        measure(nn.Sequential(Floating()), (inputs, torch.zeros(4)), ["0"])


def test_layers_of_tokens__are_left_out_or_refused(images: tuple[Tensor, Tensor]) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.flatten(2).transpose(1, 2)).mean(1)

    model = nn.Sequential(nn.Conv2d(2, 5, 3), Tokens())
    assert measure(model, images, ["**"]).attrs["left_out"] == ["1.norm"]
    with pytest.raises(CaptureError, match=r"None of the layers 1.norm has units over positions \(y, x\)"):
        measure(model, images, ["1.norm"])


def test_gradients_that_are_no_numbers__are_refused(images: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 5, 3))
    with torch.no_grad():
        model[0].weight[1] = float("inf")
    with pytest.raises(CaptureError, match="The gradient of layer '0', unit 0 with respect to the input is not finite"):
        measure(model, images, ["0"])


def test_a_gradient_outside_of_the_field__is_refused(images: tuple[Tensor, Tensor]) -> None:
    class Sly(nn.Module):
        """Looks at its neighbours only where gradients are asked for."""

        def forward(self, x: Tensor) -> Tensor:
            return x + x.roll(3, -1) if torch.is_grad_enabled() else x

    with pytest.raises(CaptureError, match=r"Layer '1', unit 0, has \d+\.\d% of its gradient outside of the field"):
        measure(nn.Sequential(nn.Conv2d(2, 3, 3), Sly()), images, ["1"])
