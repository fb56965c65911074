"""Gradients of parameters: against a direct backward pass, and the model left as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import capture
from capture.parameter_gradients import gradient_statistics, held_norms
from capture.probe import as_probe
from ndt_store import open_store, open_training
from ndt_store.dims import PARAMETER_ARRAYS
from ndt_store.errors import CaptureError, InvalidInputError, NotFoundError, ResumeMismatchError
from ndt_store.verify import verify

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two linear maps with one weight, dropout, batch norm, and a parameter that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.last = nn.Linear(6, 3)
        self.unused = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.drop(self.norm(self.first(x).relu()))))


@pytest.fixture
def model() -> Tied:
    torch.manual_seed(0)
    return Tied()


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(50, 6), torch.arange(50) % 3


def direct(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss, in float64, from a copy in evaluation mode."""
    other = copy.deepcopy(model).double().eval().requires_grad_()
    nn.functional.cross_entropy(other(data[0].double()), data[1]).backward()
    return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in other.named_parameters()}


@pytest.mark.parametrize("batch_size", [50, 16, 7])
def test_statistics__are_those_of_a_direct_backward_pass(model, data, batch_size):
    found = gradient_statistics(model, as_probe(data), batch_size=batch_size, device=CPU)
    gradients = direct(model, data)
    assert list(gradients) == [name for name, _ in model.named_parameters()]
    expected = {
        "gradient_mean_abs": [g.abs().mean() for g in gradients.values()],
        "gradient_std": [g.std(correction=0) for g in gradients.values()],
        "gradient_max_abs": [g.abs().max() for g in gradients.values()],
        "gradient_norm": [g.norm() for g in gradients.values()],
        "gradient_zero_fraction": [(g == 0).double().mean() for g in gradients.values()],
        "weight_norm": [p.norm().item() for p in model.parameters()],
    }
    assert set(found) == set(expected) == set(PARAMETER_ARRAYS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], [float(v) for v in values], rtol=2e-5, atol=1e-8, err_msg=name)
    assert found["gradient_zero_fraction"][list(gradients).index("unused")] == 1


def test_statistics__leave_the_model_as_it_was(model, data):
    model.train()
    model.first.bias.requires_grad_(False)
    model.last.bias.grad = torch.full((3,), 7.0)
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    with torch.inference_mode():
        gradient_statistics(model, as_probe(data), batch_size=16, device=CPU)
    assert model.training
    assert model.drop.training
    assert not model.first.bias.requires_grad
    assert model.first.weight.requires_grad
    assert model.first.weight.grad is None
    assert (model.last.bias.grad == 7).all()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert model.second.weight is model.first.weight


def test_held_norms__are_of_what_the_last_backward_pass_left(model, data):
    assert np.isnan(held_norms(model)).all()
    nn.functional.cross_entropy(model(data[0]), data[1]).backward()
    expected = [np.nan if one.grad is None else one.grad.norm().item() for one in model.parameters()]
    np.testing.assert_allclose(held_norms(model), expected, rtol=1e-6)


def test_capture__keeps_them_at_every_checkpoint_and_resumes(model, data, tmp_path):
    path = tmp_path / "r.zarr"
    options = {"layers": ["last"], "kinds": ["activations", "parameters"], "batch_size": 20, "progress": False}
    expected = []
    with capture.Session(model, data, store=path, checkpoints=[0, 1], **options) as session:
        for step in (0, 1):
            expected.append({name: float(one.norm()) for name, one in direct(model, data).items()})
            session.capture(step)
            with torch.no_grad():
                model.last.weight.add_(0.5)
    found = open_store(path).parameters
    assert found["gradient_norm"].dims == ("checkpoint", "parameter")
    assert found["parameter"].values.tolist() == [name for name, _ in model.named_parameters()]
    assert found["size"].values.tolist() == [one.numel() for one in model.parameters()]
    np.testing.assert_allclose(found["gradient_norm"], [list(row.values()) for row in expected], rtol=2e-5, atol=1e-8)
    assert verify(open_store(path), read_data=True).ok
    with capture.Session(model, data, store=path, checkpoints=[0, 1], **options) as session:
        session.capture(2)
    assert open_store(path).parameters["checkpoint"].values.tolist() == [0, 1, 2]
    with pytest.raises(ResumeMismatchError, match="kinds"):
        capture.Session(model, data, store=path, **{**options, "kinds": ["activations"]}).__enter__()


def test_capture__without_them_says_so(model, data, tmp_path):
    made = capture.capture(model, data, store=tmp_path / "r.zarr", layers=["last"], progress=False)
    with pytest.raises(NotFoundError, match="capture the kind 'parameters'"):
        _ = made.parameters
    scoreless = nn.Sequential(nn.Linear(6, 2))
    for net in (scoreless, nn.Sequential(nn.Identity())):
        with pytest.raises(InvalidInputError):
            capture.capture(net, data, store=tmp_path / "s.zarr", layers=["0"], kinds=["activations", "parameters"])
    with pytest.raises(InvalidInputError, match="kinds"):
        capture.capture(model, data, store=tmp_path / "s.zarr", layers=["last"], kinds=["parameters"])
    assert not (tmp_path / "s.zarr").exists()


def test_tracking__keeps_norms_of_the_batch_that_was_trained_on(model, data, tmp_path):
    with capture.Session(model, data, store=tmp_path / "r.zarr", layers=["last"], progress=False) as session:
        session.track(0)
        nn.functional.cross_entropy(model(data[0][:20]), data[1][:20]).backward()
        session.track(5)
    norms = open_training(tmp_path / "r.zarr")["gradient_norm"]
    assert norms.dims == ("step", "parameter")
    assert norms.sel(step=0).isnull().all()
    np.testing.assert_allclose(norms.sel(step=5), held_norms(model))


def test_statistics__of_half_precision_do_not_depend_on_the_batch(data):
    torch.manual_seed(0)
    half = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).half()
    inputs = (200 * data[0]).half().repeat(12, 1), data[1].repeat(12)
    whole, parts = (gradient_statistics(half, as_probe(inputs), batch_size=n, device=CPU) for n in (600, 6))
    assert np.isfinite(whole["gradient_norm"]).all()
    np.testing.assert_allclose(whole["gradient_norm"], parts["gradient_norm"], rtol=0.02)


def test_statistics__pass_over_empty_parameters_and_refuse_a_forward_without_a_graph(data):
    class Closed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return super().forward(x)

    with pytest.raises(CaptureError, match="may run under torch.no_grad"):
        gradient_statistics(Closed(6, 3), as_probe(data), batch_size=20, device=CPU)
    net = nn.Linear(6, 3)
    net.empty = nn.Parameter(torch.empty(0))
    assert gradient_statistics(net, as_probe(data), batch_size=20, device=CPU)["gradient_norm"].shape == (2,)


def test_held_norms__of_sparse_gradients_are_those_of_dense_ones():
    net = nn.Embedding(5, 3, sparse=True)
    net(torch.tensor([1, 1, 4])).sum().backward()
    np.testing.assert_allclose(held_norms(net), [net.weight.grad.to_dense().norm().item()])


def test_statistics__reach_weights_that_a_module_keeps_in_a_list(data):
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 3)
            self.kept = [self.map.weight]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.kept[0].T + self.map.bias

    torch.manual_seed(0)
    found = gradient_statistics(Listed(), as_probe(data), batch_size=20, device=CPU)
    torch.manual_seed(0)
    expected = [float(one.norm()) for one in direct(nn.Linear(6, 3), data).values()]
    np.testing.assert_allclose(found["gradient_norm"], expected, rtol=2e-5)


def test_statistics__that_fail_leave_frozen_parameters_frozen(model, data):
    model.first.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="shapes"):
        gradient_statistics(model, as_probe((data[0][:, :5], data[1])), batch_size=20, device=CPU)
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["first.bias"]
