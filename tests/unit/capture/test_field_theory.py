"""Theoretical receptive fields: as by hand, equal to the support of gradients, and NaN where they are not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from capture._torchvision import import_torchvision
from capture.field_theory import Field, theoretical_fields
from capture.models import build_model
from capture.reach_rules import rule_for
from capture.sites import discover_sites
from ndt_store.errors import CaptureError

CPU = torch.device("cpu")


def fields(model: nn.Module, shape: tuple[int, ...], layers: list[str]) -> dict[str, Field]:
    inputs = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    return theoretical_fields(model, inputs, discover_sites(model, layers, ["activations"], inputs), CPU)


def sizes(found: dict[str, Field], axis: int = 0) -> dict[str, tuple[float, float, float]]:
    return {name: (field.size[axis], field.stride[axis], field.offset[axis]) for name, field in found.items()}


class Parallel(nn.Module):
    """Branches whose outputs are joined along channels, or added."""

    def __init__(self, *branches: nn.Module, add: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        found = [branch(x) for branch in self.branches]
        return torch.stack(found).sum(0) if self.add else torch.cat(found, 1)


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(n_in: int, n_out: int, kernel: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, **options)


# By hand: size += (kernel - 1) * dilation * jump, jump *= stride, and the centre moves by
# ((kernel - 1) * dilation / 2 - padding before) * jump.
def test_plain_stack__by_hand() -> None:
    model = build_model("cnn_deep", input_shape=(1, 28, 28), n_classes=10, seed=0)
    found = fields(model, (1, 28, 28), ["conv*", "relu*", "pool*", "classifier"])
    assert sizes(found) == {
        **dict.fromkeys(("conv1", "relu1"), (3, 1, 0)),
        "pool1": (4, 2, 0.5),
        **dict.fromkeys(("conv2", "relu2"), (8, 2, 0.5)),
        "pool2": (10, 4, 1.5),
        **dict.fromkeys(("conv3", "relu3"), (18, 4, 1.5)),
        "pool3": (22, 8, 3.5),
        **dict.fromkeys(("conv4", "relu4"), (38, 8, 3.5)),
        "pool4": (46, 16, 7.5),
        "classifier": (28, 0, 13.5),
    }
    assert {field.kind for name, field in found.items() if name != "classifier"} == {"sliding"}
    assert (found["classifier"].kind, found["classifier"].position) == ("global", ())
    assert (found["conv4"].position, found["conv4"].first, found["conv4"].last) == ((1, 1), (-7, -7), (30, 30))


def test_resnet18__by_hand_and_as_published() -> None:
    model = import_torchvision().models.resnet18(weights=None)
    found = fields(model, (3, 96, 96), ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"])
    # 7 at 2; + 2 * 2 = 11 at 4; + 4 * 2 * 4 = 43; + 2 * 4 + 3 * 2 * 8 = 99 at 8; twice that, and again, after it.
    assert sizes(found) == {
        "conv1": (7, 2, 0),
        "maxpool": (11, 4, 0),
        "layer1": (43, 4, 0),
        "layer2": (99, 8, 0),
        "layer3": (211, 16, 0),
        "layer4": (435, 32, 0),
        "avgpool": (96, 0, 47.5),
        "fc": (96, 0, 47.5),
    }


def test_dilated_series__by_hand() -> None:
    layers = [nn.Conv1d(1, 1, 2, dilation=2**n) for n in range(4)]
    causal = nn.Sequential(*(nn.Sequential(nn.ConstantPad1d((2**n, 0), 0.0), one) for n, one in enumerate(layers)))
    found = fields(causal, (1, 40), ["?"])
    assert [field.size for field in found.values()] == [(2,), (4,), (8,), (16,)]
    # A causal unit sees itself and what is before: the centre of 16 positions that end at 0.
    assert found["3"].offset == (-7.5,)
    assert (found["3"].first, found["3"].last) == ((5,), (20,))


def test_asymmetric_padding_and_kernels__by_hand() -> None:
    model = nn.Sequential(
        nn.ZeroPad2d((0, 2, 1, 0)),  # left, right, top, bottom
        conv(1, 2, (2, 3), stride=(1, 2)),
        nn.ReLU(),
        nn.MaxPool2d((3, 2), stride=(2, 1), ceil_mode=True),
        conv(2, 2, (1, 3), padding=(0, 1), dilation=(1, 2)),
    )
    found = fields(model, (1, 20, 30), ["1", "3", "4"])
    # Rows: 2 at 1, centre 0.5 - 1; then 3 more at 2, centre + 1. Columns: 3 at 2, centre 1; + 2 at 2, centre + 1;
    # + 2 * 2 * 2, centre + (2 - 1) * 2.
    assert sizes(found, 0) == {"1": (2, 1, -0.5), "3": (4, 2, 0.5), "4": (4, 2, 0.5)}
    assert sizes(found, 1) == {"1": (3, 2, 1), "3": (5, 2, 2), "4": (13, 2, 4)}


def test_inception_block__is_the_union_of_its_branches() -> None:
    block = Parallel(
        conv(2, 2, 1),
        nn.Sequential(conv(2, 3, 1), nn.ReLU(), conv(3, 2, 3, padding=1)),
        nn.Sequential(conv(2, 3, 1), conv(3, 2, 5, padding=2)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv(2, 2, 1)),
    )
    model = nn.Sequential(conv(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), block, conv(8, 2, 3))
    found = fields(model, (1, 32, 32), ["0", "2", "3", "2.branches.1"])
    assert sizes(found) == {"0": (3, 2, 0), "2": (11, 2, 0), "3": (15, 2, 2), "2.branches.1": (7, 2, 0)}


def test_residual_branches__unite_intervals_that_are_not_centred_alike() -> None:
    # One branch looks four pixels to the left, the other four to the right.
    left = nn.Sequential(nn.ZeroPad2d((4, 0, 0, 0)), conv(1, 1, (1, 5)))
    right = nn.Sequential(nn.ZeroPad2d((0, 4, 0, 0)), conv(1, 1, (1, 5)))
    found = fields(nn.Sequential(Parallel(left, right, add=True)), (1, 9, 30), ["0"])["0"]
    assert (found.size, found.stride, found.offset) == ((1, 9), (1, 1), (0, 0))


def positive(model: nn.Module) -> nn.Module:
    """Make gradients unable to cancel or vanish: positive weights, and averages in the place of maxima."""
    for name, child in model.named_children():
        if isinstance(child, nn.MaxPool2d):
            mean = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode, True)
            setattr(model, name, mean)
        positive(child)
    with torch.no_grad():
        for parameter in model.parameters(recurse=False):
            parameter.copy_(parameter.abs() + 0.1)
    return model.double().eval()


def support(model: nn.Module, layer: str, shape: tuple[int, ...], position: tuple[int, ...]) -> list[tuple[int, int]]:
    """First and last row and column where the gradient of the units at a position is not zero."""
    taken: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _a, out: taken.append(out.clone()))
    inputs = torch.rand(1, *shape, dtype=torch.float64, requires_grad=True)
    model(inputs * 1)
    handle.remove()
    (gradient,) = torch.autograd.grad(taken[0][(0, slice(None), *position)].sum(), inputs)
    seen = np.argwhere(gradient[0].abs().sum(0).numpy() > 0)
    return list(zip(seen.min(0).tolist(), seen.max(0).tolist(), strict=True))


def random_net(seed: int) -> nn.Module:
    """Stack random layers: any kernel, stride, padding, dilation, groups, pool, shortcut, slices and permutations."""
    rng = np.random.default_rng(seed)

    def pick(*of: Any) -> Any:
        return of[rng.integers(len(of))]

    def one() -> nn.Module:
        kind = pick("conv", "conv", "pool", "mean", "branch", "pad", "depthwise", "tokens", "slice", "shuffle")
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        if kind == "conv":
            padding = (int(rng.integers(0, 3)), int(rng.integers(0, 3)))
            return conv(4, 4, kernel, stride=pick(1, 1, 2), padding=padding, dilation=pick(1, 2), groups=pick(1, 2))
        if kind in ("pool", "mean"):
            make = nn.MaxPool2d if kind == "pool" else nn.AvgPool2d
            return make(3, stride=pick(1, 2), padding=pick(0, 1), ceil_mode=pick(True, False))
        if kind == "branch":
            branches = (nn.Identity(), conv(4, 4, 3, padding=1), conv(4, 4, (1, 5), padding=(0, 2)))
            return Parallel(*branches, add=True)
        if kind == "pad":
            return nn.ZeroPad2d(tuple(int(n) for n in rng.integers(0, 3, 4)))
        if kind == "depthwise":
            return nn.Sequential(conv(4, 4, 3, padding=1, groups=4), conv(4, 4, 1), nn.BatchNorm2d(4), nn.Softplus())
        if kind == "tokens":
            mixed = nn.Linear(4, 4)
            return nn.Sequential(Apply(lambda x: x.permute(0, 2, 3, 1)), mixed, Apply(lambda x: x.permute(0, 3, 1, 2)))
        if kind == "slice":
            return Apply(lambda x: x[:, :, 1:, ::2] if x.shape[-1] > 8 else x)
        return Apply(lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2) if x.ndim == 4 else x)

    return nn.Sequential(conv(1, 4, 3, padding=1), *(one() for _ in range(int(rng.integers(2, 6)))))


@pytest.mark.parametrize("seed", range(40))
def test_field__is_where_gradients_of_a_positive_network_are(seed: int) -> None:
    torch.manual_seed(seed)
    model, shape = positive(random_net(seed)), (1, 70, 64)
    for name, field in fields(model.float(), shape, ["*"]).items():
        assert field.kind == "sliding", (name, field)
        found = support(model.double(), name, shape, field.position)
        expected = [
            (max(int(first), 0), min(int(last), extent - 1))
            for first, last, extent in zip(field.first, field.last, shape[1:], strict=True)
        ]
        if expected == list(zip(field.first, field.last, strict=True)):
            assert found == expected, name
        for (low, high), (first, last) in zip(found, expected, strict=True):
            assert first <= low <= high <= last, name
        model.float()


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_field__moves_by_its_stride(seed: int) -> None:
    torch.manual_seed(seed)
    model, shape = positive(random_net(seed)), (1, 70, 64)
    name, field = list(fields(model.float(), shape, ["*"]).items())[-1]
    model.double()
    for shift in ((-1, 0), (0, -1), (1, 1)):
        position = tuple(at + by for at, by in zip(field.position, shift, strict=True))
        moved = zip(field.first, field.last, shift, field.stride, strict=True)
        expected = [(first + by * stride, last + by * stride) for first, last, by, stride in moved]
        if all(first >= 0 and last < extent for (first, last), extent in zip(expected, shape[1:], strict=True)):
            assert support(model, name, shape, position) == expected


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.GroupNorm(2, 4), "global"),
        (nn.InstanceNorm2d(4), "global"),
        (nn.BatchNorm2d(4, track_running_stats=False), "global"),
        (nn.AdaptiveAvgPool2d(1), "global"),
        (nn.AdaptiveMaxPool2d(1), "global"),
        (Apply(lambda x: x.mean((2, 3))), "global"),
        (Apply(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))), "global"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "global"),
        (nn.BatchNorm2d(4), "sliding"),
        (nn.Dropout(), "sliding"),
        (nn.GELU(), "sliding"),
        (nn.Softmax2d(), "sliding"),
        (nn.PReLU(4), "sliding"),
        (Apply(lambda x: nn.functional.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)), "sliding"),
    ],
)
def test_field__of_what_looks_at_everything_and_of_what_looks_at_one_value(module: nn.Module, kind: str) -> None:
    model = nn.Sequential(conv(1, 4, 3), module)
    with torch.no_grad():
        model(torch.rand(2, 1, 12, 12))
    found = fields(model, (1, 12, 12), ["1"])["1"]
    expected = ((12, 12), (0, 0), (5.5, 5.5)) if kind == "global" else ((3, 3), (1, 1), (1, 1))
    assert (found.kind, found.size, found.stride, found.offset, found.reason) == (kind, *expected, "")


def test_adaptive_pool__has_a_field_where_its_bins_are_alike() -> None:
    even = fields(nn.Sequential(conv(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(4)), (1, 12, 12), ["1"])["1"]
    assert (even.size, even.stride, even.offset) == ((5, 5), (3, 3), (1, 1))
    uneven = fields(nn.Sequential(conv(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(5)), (1, 12, 12), ["1"])["1"]
    assert uneven.kind == "unknown"
    assert math.isnan(uneven.size[0])
    assert "different sizes" in uneven.reason


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (conv(4, 4, 3, padding=1, padding_mode="circular"), "different sizes"),
        (nn.ReflectionPad2d(3), "different sizes"),
        (nn.ConvTranspose2d(4, 4, 3, stride=2), "different sizes"),
        (nn.Upsample(scale_factor=2), "different sizes"),
        (nn.PixelShuffle(2), "different sizes"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "aten::upsample_bilinear2d of module '1'"),
        (Apply(lambda x: x.cumsum(-1)), "aten::cumsum"),
        (Apply(lambda x: torch.fft.fft2(x).real), "aten::_fft_c2c"),
        (Apply(lambda x: torch.gather(x, 3, x.argsort(-1))), "it is not known"),
        (Apply(lambda x: torch.from_numpy(x.detach().numpy().copy())), "nothing of the input"),
        (Apply(lambda x: torch.zeros_like(x) + 1), "nothing of the input"),
        (Apply(lambda x: torch.cat([x, torch.zeros_like(x)], -1)), "some of its positions see nothing"),
        (nn.Flatten(), "its units see different parts"),
    ],
)
def test_field__that_is_not_known_is_nan_and_says_why(module: nn.Module, reason: str) -> None:
    found = fields(nn.Sequential(conv(1, 4, 3, padding=1), module), (1, 12, 12), ["1"])["1"]
    assert found.kind == "unknown"
    assert all(map(math.isnan, (*found.size, *found.stride, *found.offset)))
    assert reason in found.reason


def test_writing_into_a_tensor_of_the_model__is_not_missed() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1, 4, 12, 12))

        def forward(self, x: Tensor) -> Tensor:
            self.last[: len(x)].copy_(x[:1])
            return self.last.expand(len(x), -1, -1, -1) + 0

    found = fields(nn.Sequential(conv(1, 4, 3, padding=1), Remembers()), (1, 12, 12), ["1"])["1"]
    assert found.kind == "unknown"
    assert "aten::copy_" in found.reason


def test_a_model_that_takes_no_single_example__is_an_error_that_says_so() -> None:
    def pairs(x: Tensor) -> Tensor:
        if len(x) < 2:
            raise ValueError("two or more, please")
        return x

    with pytest.raises(CaptureError, match=r"failed on one example of shape \(1, 1, 12, 12\).*two or more, please"):
        fields(nn.Sequential(Apply(pairs), conv(1, 2, 3)), (1, 12, 12), ["1"])


@pytest.mark.parametrize("in_place", [False, True])
def test_a_rule_that_fails__leaves_the_field_unknown(monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    def fails(func: Any) -> Any:
        def rule(_call: Any) -> Any:
            raise RuntimeError

        return rule if "relu" in func._schema.name else rule_for(func)

    monkeypatch.setattr("capture.reach_tracing.rule_for", fails)
    model = nn.Sequential(conv(1, 2, 3), nn.ReLU(inplace=in_place), conv(2, 2, 3))
    found = fields(model, (1, 12, 12), ["0", "1", "2"])
    assert [field.kind for field in found.values()] == ["sliding", "unknown", "unknown"]
    assert "aten::relu" in found["2"].reason


def test_same_padding_by_reflection__is_a_window() -> None:
    model = nn.Sequential(
        conv(1, 2, 3, padding=1, padding_mode="reflect"), conv(2, 2, 5, padding=2, padding_mode="replicate")
    )
    assert sizes(fields(model, (1, 12, 12), ["*"])) == {"0": (3, 1, 0), "1": (7, 1, 0)}


def test_writing_in_place__is_followed_through_views() -> None:
    def spread(x: Tensor) -> Tensor:
        # The middle columns are overwritten by what lies four pixels to the left.
        out = x.clone()
        out[:, :, :, 4:].copy_(x[:, :, :, :-4])
        out[:, :, :, 4:].add_(x[:, :, :, 4:])
        return out

    model = nn.Sequential(conv(1, 2, 1), Apply(spread), nn.ReLU(inplace=True), conv(2, 2, 1))
    found = fields(model, (1, 8, 24), ["3"])["3"]
    assert found.kind == "unknown"  # Columns 0 to 3 see one pixel, the others five.
    assert (found.first, found.last) == ((4, 8), (4, 12))


def test_one_position__keeps_its_stride_through_layers_that_keep_places() -> None:
    model = nn.Sequential(conv(1, 2, 4, stride=4), conv(2, 2, 2, stride=2), conv(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU())
    found = fields(model, (1, 8, 8), ["*"])
    assert sizes(found)["4"] == (8, 8, 3.5)
    assert found["4"].reason == ""


def test_module_that_runs_twice__has_a_field_each_time() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    assert sizes(fields(nn.Sequential(Twice()), (1, 9, 9), ["0.conv"])) == {
        "0.conv#0": (3, 1, 0),
        "0.conv#1": (5, 1, 0),
    }


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.functional.conv2d(x, x.mean((0, 2, 3)).reshape(1, 1, 1, 1).expand(1, 1, 3, 3)),
        lambda x: nn.functional.batch_norm(x, torch.zeros(1), torch.ones(1), weight=x.mean((0, 2, 3))),
        lambda x: nn.functional.prelu(x, x.mean((0, 2, 3))),
    ],
)
def test_field__of_parameters_that_are_made_of_the_input_is_not_known(function: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(conv(1, 1, 3), Apply(function))
    assert fields(model, (1, 9, 9), ["1"])["1"].kind == "unknown"


def test_field__of_parameters_that_a_forward_makes_of_nothing_is_known() -> None:
    model = nn.Sequential(conv(1, 1, 3), Apply(lambda x: nn.functional.conv2d(x, torch.ones(1, 1, 3, 3))))
    assert sizes(fields(model, (1, 9, 9), ["1"]))["1"] == (5, 1, 2)
