import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from capture.modelstate import as_device, borrowed, refuse_wrapped
from capture.sites import discover_sites
from capture.taps import Tapper
from ndt_store.errors import CaptureError, InvalidInputError

from .model_zoo import MLP, Noisy, SelfAttention, TokenClassifier, seeded

torch.set_num_threads(1)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    kinds += ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return [(name, kind, dict(getattr(module, kind))) for name, module in model.named_modules() for kind in kinds]


@contextmanager
def left_as_found(model):
    """Fail if anything about the model or the process differs afterwards."""

    def attributes():
        bare = ("training", "_parameters", "_buffers", "_modules")
        return [sorted(key for key in vars(module) if key not in bare) for module in model.modules()]

    def snapshot():
        return {
            "training": [module.training for module in model.modules()],
            "flags": [parameter.requires_grad for parameter in model.parameters()],
            "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            "state": {name: tensor.tolist() for name, tensor in model.state_dict().items()},
            "versions": [p._version for p in model.parameters()],
            "hooks": hooks_of(model),
            "attributes": attributes(),
            "rng": torch.get_rng_state().tolist(),
            "fastpath": torch.backends.mha.get_fastpath_enabled(),
            "grad mode": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "modes": torch.overrides._get_current_function_mode_stack(),
        }

    before = snapshot()
    yield
    assert snapshot() == before


def mixed_model():
    """A model with something in every state: training and not, frozen and not, with and without a gradient."""
    model = seeded(Noisy).train()
    model.norm.eval()
    model.linear.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    return model


X, LABELS = torch.linspace(-1, 1, 20).view(5, 4), torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("kinds", [["activations"], ["activations", "gradients"]])
def test_tapper__leaves_the_model_as_found(kinds):
    model = mixed_model()
    with left_as_found(model):
        sites = discover_sites(model, ["linear", "norm"], kinds, X)
        with Tapper(model, sites) as tapper:
            tapper.run(X, LABELS)
            tapper.run(X, LABELS)


@pytest.mark.parametrize("kinds", [["activations"], ["activations", "gradients"]])
def test_tapper__leaves_the_model_as_found_after_the_model_raised(kinds):
    model = mixed_model()
    sites = discover_sites(model, ["linear", "norm"], kinds, X)
    model.fail = True
    with left_as_found(model):
        with pytest.raises(RuntimeError, match="gave up"), Tapper(model, sites) as tapper:
            tapper.run(X, LABELS)
        with pytest.raises(CaptureError, match="gave up"):
            discover_sites(model, ["linear"], kinds, X)


def test_tapper__can_go_on_after_the_model_raised():
    model = mixed_model()
    sites = discover_sites(model, ["linear"], ["activations", "gradients"], X)
    with Tapper(model, sites) as tapper:
        expected = tapper.run(X, LABELS).tensors
        model.fail = True
        with pytest.raises(RuntimeError, match="gave up"):
            tapper.run(X, LABELS)
        model.fail = False
        again = tapper.run(X, LABELS).tensors
    assert all(torch.equal(again[key], expected[key]) for key in expected)


def test_tapper__leaves_attending_models_as_found_also_after_an_exception():
    model = TokenClassifier(SelfAttention(dropout=0.3)).train()
    x = torch.randn(3, 5, 8)
    sites = discover_sites(model, ["body.attn"], ["activations", "gradients", "attentions"], x)

    def run_and_raise():
        with Tapper(model, sites) as tapper:
            tapper.run(x, torch.zeros(3, dtype=torch.int64))
            raise KeyError("someone else's error")

    with left_as_found(model), pytest.raises(KeyError):
        run_and_raise()
    with (
        left_as_found(model),
        pytest.raises(AssertionError, match="embedding dimension"),
        Tapper(model, sites) as tapper,
    ):
        tapper.run(torch.randn(3, 5, 7), torch.zeros(3, dtype=torch.int64))


def test_tapper__keeps_hooks_of_the_caller():
    model = seeded(MLP)
    calls = []
    model.net[0].register_forward_hook(lambda *_: calls.append(1))
    sites = discover_sites(model, ["net.0"], ["activations"], torch.randn(3, 6))
    calls.clear()
    with left_as_found(model), Tapper(model, sites) as tapper:
        tapper.run(torch.randn(3, 6))
    assert calls == [1]


def test_tapper__computes_what_it_computes_without_the_callers_autocast():
    model, x = seeded(MLP), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.net[0](x).dtype == torch.bfloat16
        sites = discover_sites(model, ["net.0"], ["activations"], x)
        with left_as_found(model), Tapper(model, sites) as tapper:
            tensor = tapper.run(x).tensors["net.0", "activations"]
    assert sites[0].dtype == "float32"
    assert torch.equal(tensor, model.net[0](x).detach())


def test_tapper__keeps_autocast_of_the_models_own():
    class Mixed(MLP):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    model, x = seeded(Mixed), torch.randn(3, 6)
    with Tapper(model, discover_sites(model, ["net.0"], ["activations"], x)) as tapper:
        tensor = tapper.run(x).tensors["net.0", "activations"]
    assert torch.equal(tensor, tensor.bfloat16().float())
    assert not torch.equal(tensor, model.net[0](x).detach())


@pytest.mark.parametrize("device", ["bogus", "cuda:99", "meta", 3.5])
def test_as_device__raises_one_sentence_on_what_is_not_there(device):
    with pytest.raises(InvalidInputError, match=rf"^device is '{device}', which cannot be used here") as caught:
        as_device(device)
    assert "\n" not in str(caught.value)


def test_tapper__computes_no_gradient_of_a_parameter():
    model = seeded(MLP)
    computed = []
    for parameter in model.parameters():
        parameter.register_hook(computed.append)
    sites = discover_sites(model, ["net.*"], ["gradients"], torch.randn(3, 6))
    with Tapper(model, sites) as tapper:
        tapper.run(torch.randn(3, 6), torch.zeros(3, dtype=torch.int64))
    assert computed == []


def test_tapper__does_not_write_into_the_inputs_of_a_model_that_does():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3))
    x = X.clone()
    sites = discover_sites(model, ["0"], ["activations", "gradients"], x)
    with Tapper(model, sites) as tapper:
        result = tapper.run(x, LABELS)
    assert torch.equal(x, X)
    assert torch.equal(result.tensors["0", "activations"], X.clamp_min(0))
    assert torch.equal(result.tensors["0", "gradients"], model[1].weight[LABELS].detach())


def test_borrowed__puts_back_buffers_that_were_replaced_or_added():
    model = seeded(Noisy)
    original = model.passes
    with borrowed(model):
        model.passes = torch.ones(3)
        model.register_buffer("cache", torch.ones(2))
    assert model.passes is original
    assert "cache" not in dict(model.named_buffers())


def test_borrowed__does_not_call_an_overridden_train():
    class Merging(MLP):
        merges = 0

        def train(self, mode=True):
            self.merges += 1
            return super().train(mode)

    model = Merging()
    with borrowed(model):
        assert not model.training
    assert (model.training, model.merges) == (True, 0)


def compiled_in_place():
    model = MLP()
    model.net.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.DataParallel(MLP()), r"DataParallel.*its \.module"),
        (lambda: nn.Sequential(nn.DataParallel(MLP())), "module '0' is wrapped in DataParallel"),
        (lambda: torch.compile(MLP(), backend="eager"), "_orig_mod"),
        (compiled_in_place, "module 'net' was compiled in place"),
        (lambda: torch.jit.trace(MLP(), torch.ones(1, 6)), "TorchScript"),
    ],
    ids=["parallel", "parallel-inside", "compiled", "compiled-in-place", "script"],
)
def test_refuse_wrapped__names_what_to_pass_instead(build, message):
    model = build()
    with pytest.raises(CaptureError, match=message):
        refuse_wrapped(model)
    with pytest.raises(CaptureError, match=message):
        discover_sites(model, ["**"], ["activations"], torch.randn(3, 6))


def test_tapper__refuses_gradients_of_inference_weights_but_not_activations():
    with torch.inference_mode():
        model = MLP()
    x = torch.randn(3, 6)
    assert discover_sites(model, ["net.0"], ["activations"], x)
    with pytest.raises(CaptureError, match=r"'net\.0\.weight' was made under"):
        discover_sites(model, ["net.0"], ["gradients"], x)


def test_tapper__training_goes_on_as_if_nothing_had_happened():
    """A step of training with captures between its parts equals the same step without."""

    def step(model, capture):
        torch.manual_seed(5)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            capture(model)
            loss = nn.functional.cross_entropy(model(X), LABELS)
            capture(model)
            optimiser.zero_grad()
            loss.backward()
            capture(model)
            optimiser.step()
        return copy.deepcopy(model.state_dict())

    def capture(model):
        sites = discover_sites(model, ["linear", "norm"], ["activations", "gradients"], X)
        with Tapper(model, sites) as tapper:
            tapper.run(X, LABELS)

    plain = step(seeded(Noisy).train(), lambda model: None)
    captured = step(seeded(Noisy).train(), capture)
    assert all(torch.equal(plain[name], captured[name]) for name in plain)
