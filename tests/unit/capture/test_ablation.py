"""Ablating heads equals zeroing their projection, leaves the model as it was, and finds a head that a class needs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import capture
import ndt_query as nq
from capture import ablation
from ndt_store import open_store, verify
from ndt_store.cli import main
from ndt_store.errors import AlreadyExistsError, CaptureError, InvalidInputError, NotFoundError, ResumeMismatchError

from .model_zoo import SDPABlock, TokenClassifier, seeded

N, TOKENS, WIDTH, HEADS = 30, 5, 8, 2


class Encoder(nn.Module):
    """Two layers of heads over tokens, the mean of which is classified."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True, **options) for _ in range(2)
        )
        self.classifier = nn.Linear(WIDTH, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.classifier(tokens.mean(1))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(N, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3


def margins(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(data[0])
    right = logits.gather(1, data[1][:, None])[:, 0]
    return (right - logits.scatter(1, data[1][:, None], -torch.inf).amax(1)).numpy()


def ablate(model, data, **options):
    return capture.ablate_heads(model, data, progress=False, **options)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"norm_first": True}])
def test_zero__equals_a_model_with_that_heads_projection_zeroed(data, options):
    model = seeded(lambda: Encoder(**options))
    found = ablate(model, data, batch_size=7)
    np.testing.assert_allclose(found["whole_margin"][0], margins(model, data), atol=1e-6)
    for place, layer in enumerate(("layers.0.self_attn", "layers.1.self_attn")):
        for head in range(HEADS):
            other = copy.deepcopy(model)
            with torch.no_grad():
                own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                other.layers[place].self_attn.out_proj.weight[:, own] = 0
            expected = margins(other, data)
            one = found.sel(step=0, layer=layer, ablation="zero").isel(head=head)
            np.testing.assert_allclose(one["margin"], expected, atol=1e-6)
            np.testing.assert_array_equal(one["correct"], expected > 0)


def test_mean__puts_the_mean_over_examples_in_place_of_the_head(data):
    model = seeded(Encoder).eval()
    found = ablate(model, data, methods=["mean"], batch_size=11)
    attention = model.layers[1].self_attn
    kept = []
    handle = attention.register_forward_hook(lambda _m, args, kwargs, _out: kept.append(args[0]), with_kwargs=True)
    with torch.no_grad():
        inputs = model.layers[0](data[0])
        model.layers[1].eval()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            model(data[0])
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    handle.remove()
    with torch.no_grad():
        query, key, value = nn.functional.linear(inputs, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)  # example, token, head, unit
        mixed[:, :, 1] = mixed[:, :, 1].mean(0)
        out = nn.functional.linear(mixed.flatten(2), attention.out_proj.weight, attention.out_proj.bias)
        layer = model.layers[1]
        hidden = layer.norm1(inputs + out)
        hidden = layer.norm2(hidden + layer.linear2(torch.relu(layer.linear1(hidden))))
        logits = model.classifier(hidden.mean(1))
    right = logits.gather(1, data[1][:, None])[:, 0]
    expected = right - logits.scatter(1, data[1][:, None], -torch.inf).amax(1)
    one = found.sel(step=0, layer="layers.1.self_attn", ablation="mean").isel(head=1)
    np.testing.assert_allclose(one["margin"], expected, atol=1e-5)


@pytest.mark.parametrize("key_heads", [4, 2])
def test_scaled_dot_product__heads_are_replaced_in_its_output(data, key_heads):
    model = seeded(lambda: TokenClassifier(SDPABlock(key_heads=key_heads), width=WIDTH))
    found = ablate(model, data)
    query, key, value = model.body.projected(data[0])
    with torch.no_grad():
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=key_heads != 4)
        mean = mixed.clone()
        mixed[:, 2], mean[:, 2] = 0, mixed[:, 2].mean(0)
        for method, one in (("zero", mixed), ("mean", mean)):
            logits = model.head(model.body.out(one.transpose(1, 2).flatten(2)).mean(1))
            right = logits.gather(1, data[1][:, None])[:, 0]
            expected = right - logits.scatter(1, data[1][:, None], -torch.inf).amax(1)
            got = found.sel(step=0, ablation=method).isel(layer=0, head=2)
            np.testing.assert_allclose(got["margin"], expected, atol=1e-6)


def test_gradient_importance__is_the_derivative_by_a_factor_of_the_head(data):
    model = seeded(Encoder).double()
    inputs, labels = data[0].double(), data[1]
    found = ablate(model, (inputs, labels), methods=["zero"], batch_size=8)
    for place in range(2):
        weight = model.layers[place].self_attn.out_proj.weight
        for head in range(HEADS):
            own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            losses = []
            for factor in (1 + 1e-5, 1 - 1e-5):
                other = copy.deepcopy(model).eval()
                with torch.no_grad():
                    other.layers[place].self_attn.out_proj.weight[:, own] = factor * weight[:, own]
                    losses.append(nn.functional.cross_entropy(other(inputs), labels, reduction="none"))
            expected = ((losses[0] - losses[1]) / 2e-5).abs()
            got = found["gradient_importance"].isel(step=0, layer=place, head=head)
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_importance__of_a_half_precision_model_is_near_that_of_the_same_in_float32(data, dtype):
    model = seeded(lambda: TokenClassifier(SDPABlock(key_heads=4), width=WIDTH))
    whole = ablate(model, data)["gradient_importance"]
    half = ablate(model.to(dtype), (data[0].to(dtype), data[1]))["gradient_importance"]
    np.testing.assert_allclose(half.mean("example"), whole.mean("example"), rtol=0.1, atol=1e-3)


def test_a_head_that_alone_carries_a_class_costs_that_class():
    """Head 1 passes on the part of the tokens that names class 2; both heads attend to all tokens alike."""

    class Planted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            with torch.no_grad():
                self.attention.in_proj_weight.zero_()
                self.attention.in_proj_weight[2 * WIDTH :] = torch.eye(WIDTH)
                self.attention.out_proj.weight.copy_(torch.eye(WIDTH))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            mixed = self.attention(tokens, tokens, tokens)[0].mean(1)
            return torch.stack([mixed[:, 0] + 0.5, mixed[:, 1] + 0.5, 2 * mixed[:, WIDTH // HEADS]], dim=1)

    labels = torch.arange(90) % 3
    tokens = 0.3 * torch.randn(90, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    tokens[torch.arange(90), :, torch.tensor([0, 1, WIDTH // HEADS])[labels]] += 1
    worth = nq.head_importance(ablate(Planted(), (tokens, labels)))
    found = worth.sel(step=0, ablation="zero", layer="attention")
    np.testing.assert_allclose(found["class_accuracy_drop"].sel(head=1), [0, 0, 1], atol=0.1)
    assert (found["q_value"] < 0.01).values.tolist() == [True, True]
    assert float(found["class_accuracy_drop"].sel({"head": 0, "class": 2})) <= 0


def test_model__is_left_as_it_was(data):
    model = seeded(Encoder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    other = {name: value + 1 for name, value in before.items()}
    ablate(model, data, checkpoints=[(0, before), (5, other)])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_store__keeps_it_once_and_refuses_another(data, tmp_path):
    model = seeded(Encoder)
    path = tmp_path / "r.zarr"
    capture.capture(model, data, store=path, layers=["layers.*.self_attn"], kinds=["attentions"], progress=False)
    found = ablate(model, data, store=path)
    store = open_store(path)
    assert store.experiments == ("head_ablation",)
    held = store.experiment("head_ablation")
    np.testing.assert_array_equal(held["margin"], found["margin"])
    assert verify(store, read_data=True).ok
    passes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "_ablated", lambda *_: passes.append(1))
        assert ablate(model, data, store=path).equals(held.load())
    assert not passes  # what is there is not made again
    with pytest.raises(AlreadyExistsError, match="other heads, steps, methods or examples"):
        ablate(model, data, store=path, methods=["zero"])
    ablate(model, data, store=path, methods=["zero"], replace=True)
    assert open_store(path).experiment("head_ablation")["ablation"].values.tolist() == ["zero"]
    with pytest.raises(ResumeMismatchError, match="weights of checkpoint 0"):
        ablate(seeded(Encoder, 1), data, store=path, replace=True)


def test_heads_of_layers_that_differ_are_padded(data):
    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
            self.second = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.out = nn.Linear(WIDTH, 3)

        def forward(self, tokens):
            tokens = self.first(tokens, tokens, tokens)[0]
            return self.out(self.second(tokens, tokens, tokens)[0].mean(1))

    found = ablate(seeded(Uneven), data)
    assert found["n_heads"].values.tolist() == [4, 2]
    assert found["margin"].isel(layer=1, head=slice(2, 4)).isnull().all()
    assert (found["correct"].isel(layer=1, head=slice(2, 4)) == -1).all()
    assert found["margin"].isel(layer=0).notnull().all()
    worth = nq.head_importance(found)
    assert worth["accuracy_drop"].isel(layer=1, head=slice(2, 4)).isnull().all()
    assert worth["q_value"].isel(layer=0).notnull().all()


def test_ablation__names_what_is_wrong(data, tmp_path):
    model = seeded(Encoder)
    with pytest.raises(InvalidInputError, match="methods has 'noise': expected one or more of zero, mean"):
        ablate(model, data, methods=["noise"])
    with pytest.raises(CaptureError, match="none of the .* layers named attends"):
        ablate(nn.Sequential(nn.Flatten(), nn.Linear(TOKENS * WIDTH, 3)), data)
    with pytest.raises(InvalidInputError, match="labels run to 5"):
        ablate(model, (data[0], data[1] + 3))
    with pytest.raises(CaptureError, match="gives no class scores"):
        ablate(model.layers[0], data)
    store = capture.capture(model, data, store=tmp_path / "r.zarr", layers=["classifier"], progress=False)
    with pytest.raises(NotFoundError, match="no experiment 'head_ablation': make it beside the model"):
        nq.head_importance(store)


RECIPE = """
name = "tiny"
model = {name = "transformer", options = {n_layers = 1, d_model = 8, n_heads = 2, d_feedforward = 16}}
data = {name = "digits"}
training = {steps = 20, batch_size = 64, learning_rate = 1e-2, checkpoints = [0, 20], log_every = 20}
probe = {n_examples = 60, selection = "balanced"}

[capture]
layers = ["encoder.layers.*.self_attn", "encoder.layers.*.self_attn@heads"]
kinds = ["activations", "attentions"]
"""


def test_command__ablates_the_heads_of_a_recipe(tmp_path, capsys):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE)
    asked = [str(recipe), "--checkpoints", str(tmp_path / "w"), "--store", str(tmp_path / "r.zarr")]
    for command in (
        ["train", *asked],
        ["capture", *asked],
        ["ablate-heads", *asked, "--step", "20", "--format", "csv"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("layer,checkpoint,head,accuracy_drop,accuracy_drop_low")
    assert len(out.splitlines()) == 3
    assert open_store(tmp_path / "r.zarr").experiment("head_ablation")["step"].values.tolist() == [20]
