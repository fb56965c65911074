"""Tracker: what it measures equals direct computation, planted dimensions are found, and the model is left alone."""

from __future__ import annotations

import doctest
import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from capture.checkpoints import weights_digest
from capture.models import build_model
from capture.second_order import measured, sample_rows, second_order
from capture.tracking import Tracker
from ndt_store.errors import CaptureError, InvalidInputError
from ndt_store.views.spectrum import MEASURES


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def direct(rows: np.ndarray, centre: bool = True) -> dict[str, float]:
    """Measures from singular values of the samples themselves."""
    x = rows.reshape(len(rows), -1).astype(np.float64)
    s = np.linalg.svd(x - x.mean(0) if centre else x, compute_uv=False)
    s = s[s > 1e-7 * s.max()]
    energy = np.cumsum(s**2) / (s**2).sum()
    p = s / s.sum()
    return {
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
        "energy_dims_90": int((energy < 0.90).sum()) + 1,
        "energy_dims_95": int((energy < 0.95).sum()) + 1,
        "nuclear_ratio": s.sum() / s[0],
        "effective_rank": math.exp(-(p * np.log(p)).sum()),
    }


def images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 1, 8, 8)).astype(np.float32), rng.integers(0, 10, n)


class Mixed(nn.Module):
    """Convolution, batch norm, dropout, tokens: every shape and every kind of state that a pass might leave behind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.tokens = nn.Linear(48, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.relu(self.norm(self.conv(x))))
        rows = self.tokens(x.permute(0, 2, 1, 3).flatten(2))
        return self.head(rows.mean(1))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("shape", [(30, 7), (30, 200), (30, 30), (120, 5000)])
def test_second_order__gives_the_measures_of_the_singular_values(shape: tuple[int, int], centre: bool) -> None:
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal(shape) * rng.exponential(1, shape[1]) + 3).astype(np.float32)
    found = measured(*second_order(torch.from_numpy(rows), centre), len(rows), centre)
    assert found == pytest.approx(direct(rows, centre), rel=1e-9)


def test_second_order__of_features_that_are_dead_counts_the_others() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 300)).astype(np.float32)
    rows[:, 12:] = 0
    found = measured(*second_order(torch.from_numpy(rows), True), 40, True)
    assert found == pytest.approx(direct(rows[:, :12]), rel=1e-9)


@pytest.mark.parametrize("fill", [0.1, 1e30, -7.3])
@pytest.mark.parametrize("n_features", [3, 90])
def test_second_order__of_samples_that_do_not_vary_is_nan(fill: float, n_features: int) -> None:
    rows = torch.full((40, n_features), fill)
    assert all(map(math.isnan, measured(*second_order(rows, True), 40, True).values()))
    assert measured(*second_order(rows, False), 40, False)["participation_ratio"] == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("n_features", [3, 90])
def test_second_order__of_samples_with_a_nan_is_nan(bad: float, n_features: int) -> None:
    rows = torch.randn(40, n_features)
    rows[39, 1] = bad
    assert all(map(math.isnan, measured(*second_order(rows, True), 40, True).values()))


def test_sample_rows__flattens_or_averages_what_is_neither_example_nor_unit() -> None:
    maps, tokens = torch.randn(4, 3, 2, 5), torch.randn(4, 6, 3)
    assert torch.equal(sample_rows(maps, ("example", "unit", "y", "x"), "flatten"), maps.reshape(4, 30))
    mean = sample_rows(maps, ("example", "unit", "y", "x"), "mean")
    torch.testing.assert_close(mean, maps.double().mean((2, 3)))
    torch.testing.assert_close(sample_rows(tokens, ("example", "token", "unit"), "mean"), tokens.double().mean(1))
    vectors = torch.randn(4, 3)
    assert torch.equal(sample_rows(vectors, ("example", "unit"), "mean"), vectors)


@pytest.mark.parametrize("positions", ["flatten", "mean"])
def test_tracker__equals_direct_computation_on_what_hooks_see(positions: str) -> None:
    net = build_model("cnn", input_shape=(1, 8, 8), n_classes=10, channels=[4, 8], seed=0)
    inputs, labels = images(60)
    tracker = Tracker(net, inputs, labels, ["conv*", "relu*", "classifier"], positions=positions)
    assert tracker.layers == ("conv1", "relu1", "conv2", "relu2", "classifier")
    found = tracker.measure()
    outputs: dict[str, np.ndarray] = {}
    for name in tracker.layers:
        net.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.update({name: out.detach().double().numpy()})
        )
    net.eval()
    logits = net(torch.from_numpy(inputs)).detach()
    truth = torch.from_numpy(labels)
    assert found.validation_loss == pytest.approx(nn.functional.cross_entropy(logits, truth).item(), rel=1e-6)
    assert found.validation_accuracy == (logits.argmax(1) == truth).double().mean().item()
    for place, name in enumerate(tracker.layers):
        acts = outputs[name]
        if positions == "mean" and acts.ndim > 2:
            acts = acts.mean((2, 3))
        expected = direct(acts)
        assert {m: found.dimensionality[m][place] for m in MEASURES} == pytest.approx(expected, rel=1e-6), name


def test_tracker__finds_a_planted_dimension_and_sees_it_grow() -> None:
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 2))
    inputs = np.random.default_rng(0).standard_normal((2000, 20)).astype(np.float32)
    tracker = Tracker(net, inputs, np.zeros(2000, int), ["0"])
    seen = []
    for rank in (1, 5, 20):
        with torch.no_grad():
            net[0].weight.copy_(torch.diag((torch.arange(20) < rank).float()))
        found = tracker.measure().dimensionality
        seen.append(found["participation_ratio"][0])
        assert found["energy_dims_95"][0] == pytest.approx(0.95 * rank, abs=1)
    assert seen == pytest.approx([1, 5, 20], rel=0.02)


def test_tracker__leaves_the_model_exactly_as_it_was() -> None:
    net = Mixed()
    net.drop.eval()
    net.train(True)
    net.norm.eval()
    inputs, labels = images(30)
    nn.functional.cross_entropy(net(torch.from_numpy(inputs)), torch.from_numpy(labels)).backward()
    modes = [module.training for module in net.modules()]
    before = weights_digest(net.state_dict())
    grads = [p.grad.clone() for p in net.parameters()]
    hooks = [len(module._forward_hooks) for module in net.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    tracker = Tracker(net, inputs, labels, ["conv", "norm", "relu", "drop", "tokens"])
    first = tracker.measure()
    again = tracker.measure()
    assert weights_digest(net.state_dict()) == before
    assert [module.training for module in net.modules()] == modes
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert first.validation_loss == again.validation_loss
    assert all(np.array_equal(first.dimensionality[m], again.dimensionality[m]) for m in MEASURES)


def test_tracker__measures_in_evaluation_mode_whatever_the_mode() -> None:
    net = Mixed()
    tracker = Tracker(net, *images(30), ["drop", "head"])
    in_training = tracker.measure()
    net.eval()
    assert in_training.validation_loss == tracker.measure().validation_loss


def test_tracker__holds_what_left_a_layer_before_something_wrote_into_it() -> None:
    net = Mixed().eval()
    inputs, labels = images(30)
    found = Tracker(net, inputs, labels, ["norm", "relu"]).measure().dimensionality["participation_ratio"]
    acts = net.norm(net.conv(torch.from_numpy(inputs))).detach()
    assert found[0] == pytest.approx(direct(acts.numpy())["participation_ratio"], rel=1e-6)
    assert found[1] == pytest.approx(direct(acts.relu().numpy())["participation_ratio"], rel=1e-6)


def test_tracker__keeps_its_own_validation_set() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    inputs, labels = images(30)
    tracker = Tracker(net, inputs, labels, ["1"])
    before = tracker.measure()
    inputs[:] = 0
    labels[:] = 0
    after = tracker.measure()
    assert before.validation_loss == after.validation_loss
    assert before.dimensionality["effective_rank"] == after.dimensionality["effective_rank"]


def test_tracker__measures_only_what_is_asked_in_one_order() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    tracker = Tracker(net, *images(30), ["1"], measures=["effective_rank", "stable_rank", "effective_rank"])
    assert tracker.measures == ("stable_rank", "effective_rank")
    assert set(tracker.measure().dimensionality) == {"stable_rank", "effective_rank"}


def test_tracker__identity_sees_everything_that_changes_values() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    inputs, labels = images(30)
    other = inputs.copy()
    other[3, 0, 1, 1] += 1
    made = [
        Tracker(net, inputs, labels, ["1"]),
        Tracker(net, other, labels, ["1"]),
        Tracker(net, inputs, 9 - labels, ["1"]),
        Tracker(net, inputs, labels, ["*"]),
        Tracker(net, inputs, labels, ["1"], positions="mean"),
        Tracker(net, inputs, labels, ["1"], centre=False),
        Tracker(net, inputs, labels, ["1"], measures=["stable_rank"]),
    ]
    assert len({repr(tracker.identity) for tracker in made}) == len(made)
    assert Tracker(net, inputs.copy(), labels.tolist(), ["1"]).identity == made[0].identity


def test_tracker__of_a_model_without_class_scores_has_no_loss() -> None:
    net = nn.Sequential(nn.Conv2d(1, 3, 3))
    found = Tracker(net, *images(30), ["0"]).measure()
    assert math.isnan(found.validation_loss)
    assert math.isnan(found.validation_accuracy)
    assert found.dimensionality["participation_ratio"][0] > 1


def test_tracker__takes_whatever_holds_the_class_scores() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"aux": x, "scores": self.body(x.flatten(1))}

    tracker = Tracker(Wrapped(), *images(30), ["body"], output=lambda raw: raw["scores"])
    assert math.isfinite(tracker.measure().validation_loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measures": ["rank"]}, "No measure is called 'rank', expected one of stable_rank"),
        ({"measures": []}, "measures is empty"),
        ({"positions": "samples"}, "positions is 'samples', expected one of flatten, mean"),
        ({"layers": ["conv*"]}, "layer pattern 'conv"),
        ({"labels": np.zeros(3, int)}, "there are 3 labels"),
    ],
)
def test_tracker__refuses_what_it_cannot_measure(change: dict[str, Any], message: str) -> None:
    inputs, labels = images(30)
    asked = {"inputs": inputs, "labels": labels, "layers": ["1"]} | change
    with pytest.raises(InvalidInputError, match=message):
        Tracker(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), **asked)


def test_tracker__refuses_a_model_whose_layers_changed() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    tracker = Tracker(net, *images(30), ["1"])
    net[1], net[2] = nn.Linear(64, 9), nn.Linear(9, 10)
    with pytest.raises(CaptureError):
        tracker.measure()


@pytest.mark.parametrize("module", ["capture.session", "capture.tracking"])
def test_examples_of_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted
    assert not found.failed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tracker__on_a_gpu_equals_the_cpu() -> None:
    net = Mixed().eval()
    inputs, labels = images(60)
    layers = ["conv", "relu", "tokens", "head"]
    cpu = Tracker(net, inputs, labels, layers).measure()
    gpu = Tracker(net.cuda(), inputs, labels, layers).measure()
    for name in MEASURES:
        np.testing.assert_allclose(gpu.dimensionality[name], cpu.dimensionality[name], rtol=1e-3)


def test_measure__keeps_numpys_blas_to_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one spins after the work, on a processor that training needs."""
    module, seen = importlib.import_module("capture.tracking"), []
    inner = module.measured

    def watched(*args: Any) -> Any:
        seen.append(blas_threads())
        return inner(*args)

    with threadpool_limits(limits=2, user_api="blas"):
        before = blas_threads()
        if 2 not in before:
            pytest.skip("this BLAS has one thread")
        tracker = Tracker(nn.Sequential(nn.Linear(4, 3)), torch.rand(20, 4), torch.zeros(20, dtype=torch.int64), ["*"])
        monkeypatch.setattr(module, "measured", watched)
        tracker.measure()
        assert seen == [{1}]
        assert blas_threads() == before


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
