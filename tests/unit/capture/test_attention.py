"""Attention probabilities against nn.MultiheadAttention's own, and against softmax written out in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from capture._torchvision import import_torchvision
from capture.attention import sdpa_probabilities
from capture.sites import discover_sites
from capture.taps import Tapper
from ndt_store.errors import CaptureError

from .model_zoo import SDPABlock, SelfAttention, TokenClassifier, seeded

torch.set_num_threads(1)

ALL = ["activations", "gradients", "attentions"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(2)


def attentions(model, patterns, inputs, kinds=("attentions",)):
    sites = discover_sites(model, patterns, kinds, inputs)
    with Tapper(model, sites) as tapper:
        result = tapper.run(inputs, torch.zeros(3, dtype=torch.int64))
    return {name: tensor for (name, kind), tensor in result.tensors.items() if kind == "attentions"}


def one(model, inputs, pattern="body.**"):
    (weights,) = attentions(model, [pattern], inputs).values()
    return weights


def assert_rows(weights):
    sums = weights.sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)


def direct(attn, x, **masks):
    """What nn.MultiheadAttention says of itself when it is asked, off the fast path; inputs (example, token, unit)."""
    x = x if attn.batch_first else x.transpose(0, 1)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return attn.eval()(x, x, x, need_weights=True, average_attn_weights=False, **masks)[1].detach()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
MASKS = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(3))
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("call", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"attn_mask": CAUSAL},
        {"attn_mask": torch.zeros(5, 5).masked_fill(CAUSAL, -math.inf)},
        {"attn_mask": MASKS},
        {"key_padding_mask": PADDING},
        {"key_padding_mask": PADDING, "attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True},
    ],
    ids=["none", "bool", "float", "per-head", "padding", "padding-and-bool", "causal-hint"],
)
def test_multihead__equals_its_own_weights_to_the_bit(batch_first, call, masks):
    body = SelfAttention(batch_first, call)
    x = torch.randn(3, 5, 8)
    # The probing batches have three and two examples, and masks per example go with them.
    per_example = {key: value for key, value in masks.items() if key == "key_padding_mask"}
    body.call = {**call, **{key: value for key, value in masks.items() if key not in per_example}}
    model = TokenClassifier(body)
    if masks.get("attn_mask", CAUSAL).ndim == 3:
        body.register_forward_pre_hook(per_head_mask, with_kwargs=True)
    weights = one(model, {"x": x, **per_example})
    assert torch.equal(weights, direct(body.attn, x, **masks))
    assert weights.shape == (3, 2, 5, 5)
    assert_rows(weights)
    masked = masks.get("attn_mask")
    if masked is not None and masked.dtype == torch.bool:
        assert weights[..., masked].abs().max() == 0


def per_head_mask(module, args, kwargs):
    """Cut the mask of 3 examples x 2 heads to the batch at hand."""
    module.call["attn_mask"] = MASKS[: 2 * args[0].shape[0]]
    return args, kwargs


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"bias": False}, 5),
        ({"add_bias_kv": True}, 6),
        ({"add_zero_attn": True}, 6),
        ({"add_bias_kv": True, "add_zero_attn": True}, 7),
        ({"dropout": 0.5}, 5),
    ],
    ids=["no-bias", "bias-kv", "zero-attn", "both", "dropout"],
)
def test_multihead__options_equal_its_own_weights(options, keys):
    body, x = SelfAttention(**options), torch.randn(3, 5, 8)
    weights = one(TokenClassifier(body), x)
    assert torch.equal(weights, direct(body.attn, x))
    assert weights.shape == (3, 2, 5, keys)
    assert_rows(weights)


def test_multihead__cross_attention_has_other_keys_than_queries():
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, query, key, value):
            return self.head(self.attn(query, key, value, need_weights=False)[0].mean(1))

    model, inputs = Cross(), (torch.randn(3, 5, 8), torch.randn(3, 7, 6), torch.randn(3, 7, 4))
    weights = one(model, inputs, "attn")
    expected = model.attn.eval()(*inputs, average_attn_weights=False)[1]
    assert torch.equal(weights, expected.detach())
    assert weights.shape == (3, 2, 5, 7)


@pytest.mark.parametrize("call", [{"need_weights": False}, {"need_weights": True}])
def test_multihead__rows_masked_throughout_are_zero(call):
    body, x = SelfAttention(call={**call, "attn_mask": ~torch.eye(5, dtype=torch.bool)}), torch.randn(3, 5, 8)
    body.call["attn_mask"][2] = True
    (weights,) = attentions_of_one_pass(TokenClassifier(body), x)
    assert weights[:, :, 2].abs().max() == 0
    assert torch.equal(weights[:, :, [0, 1, 3, 4]], torch.eye(5)[[0, 1, 3, 4]].expand(3, 2, 4, 5))


def attentions_of_one_pass(model, x):
    """Probabilities of a model whose own logits may be NaN."""
    return attentions(model, ["body.attn"], x).values()


def test_multihead__nan_in_the_input_stays_nan():
    model, x = TokenClassifier(SelfAttention(call={"attn_mask": CAUSAL})), torch.randn(3, 5, 8)
    sites = discover_sites(model, ["body.attn"], ["attentions"], x)
    x[1, 0, 0] = math.nan
    with Tapper(model, sites) as tapper:
        weights = tapper.run(x).tensors["body.attn", "attentions"]
    assert weights[1].isnan().any()
    assert not weights[[0, 2]].isnan().any()


def softmax_in_float64(query, key, additive=0.0, scale=None):
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.einsum("nhqe,nhke->nhqk", query.double(), key.double()) * scale + additive
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("options", "additive"),
    [
        ({}, 0.0),
        ({"is_causal": True}, torch.zeros(5, 5).masked_fill(CAUSAL, -math.inf)),
        ({"attn_mask": ~CAUSAL}, torch.zeros(5, 5).masked_fill(CAUSAL, -math.inf)),
        ({"attn_mask": 3 * torch.eye(5)}, 3 * torch.eye(5)),
        ({"scale": 0.7}, 0.0),
    ],
    ids=["plain", "causal", "bool", "float", "scale"],
)
def test_scaled_dot_product__equals_softmax_in_float64(key_heads, options, additive):
    block, x = SDPABlock(key_heads=key_heads, **options), torch.randn(3, 5, 8)
    weights = one(TokenClassifier(block), x, "body")
    query, key, _ = block.projected(x)
    key = key[:, [head * key_heads // 4 for head in range(4)]]
    expected = softmax_in_float64(query, key, additive, options.get("scale"))
    torch.testing.assert_close(weights.double(), expected.detach(), rtol=0, atol=1e-6)
    assert_rows(weights)
    if isinstance(additive, torch.Tensor):
        assert weights[..., additive == -math.inf].sum() == 0


def test_scaled_dot_product__is_seen_under_every_name():
    class Named(SDPABlock):
        def __init__(self, function) -> None:
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.out(self.function(*self.projected(x)).transpose(1, 2).flatten(2))

    x = torch.randn(3, 5, 8)
    names = [
        functional.scaled_dot_product_attention,
        torch._C._nn.scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention.default,
    ]
    seen = [one(seeded(lambda name=name: TokenClassifier(Named(name))), x, "body") for name in names]
    assert all(torch.equal(weights, seen[0]) for weights in seen)


def test_scaled_dot_product__three_axes_are_one_head():
    class Single(nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(x, x, x)

    x = torch.randn(3, 5, 8)
    weights = one(TokenClassifier(Single()), x, "body")
    torch.testing.assert_close(weights.double(), softmax_in_float64(x[:, None], x[:, None]), rtol=0, atol=1e-6)


def test_sdpa_probabilities__rows_masked_throughout_are_zero():
    query, key = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    for given in (mask, torch.zeros(3, 3).masked_fill(~mask, -math.inf)):
        weights = sdpa_probabilities(query, key, attn_mask=given)
        assert weights[:, :, 1].abs().max() == 0
        assert_rows(weights[:, :, [0, 2]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sdpa_probabilities__half_precision_is_computed_in_float32(dtype):
    query, key = torch.randn(2, 2, 5, 8).to(dtype), torch.randn(2, 2, 5, 8).to(dtype)
    weights = sdpa_probabilities(query, key)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), softmax_in_float64(query, key), rtol=0, atol=1e-6)


def encoder(enable_nested_tensor, layers=2):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return TokenClassifier(nn.TransformerEncoder(layer, layers, enable_nested_tensor=enable_nested_tensor))


def fast_path_calls(run):
    """How often PyTorch's fused inference kernels run during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::_transformer_encoder_layer_fwd")


@pytest.mark.parametrize("frozen", [True, False])
def test_encoder__fast_path_does_not_hide_layers_or_weights(frozen):
    model, x = seeded(lambda: encoder(False)).eval().requires_grad_(not frozen), torch.randn(3, 5, 8)
    with torch.no_grad():
        assert fast_path_calls(lambda: model(x)) == 2, "the fast path has to be on offer for this to test anything"
    weights = attentions(model, ["body.layers.?.self_attn"], x, ALL)
    hidden = x
    for index, layer in enumerate(model.body.layers):
        mine, own = weights[f"body.layers.{index}.self_attn"], direct(layer.self_attn, hidden)
        assert torch.equal(mine, own) if index == 0 else torch.allclose(mine, own, rtol=0, atol=1e-6)
        hidden = layer(hidden).detach()
    assert len(weights) == 2
    with torch.no_grad():
        assert fast_path_calls(lambda: model(x)) == 2, "and it has to be on offer again"


def test_encoder__fast_path_is_off_also_for_layers_without_a_tap():
    model, x = seeded(lambda: encoder(False)).eval(), torch.randn(3, 5, 8)
    sites = discover_sites(model, ["head"], ["activations"], x)
    with Tapper(model, sites) as tapper:
        assert fast_path_calls(lambda: tapper.run(x)) == 0


def test_encoder__nested_tensors_of_the_fast_path_do_not_hide_weights():
    model, x = seeded(lambda: encoder(True)).eval(), torch.randn(3, 5, 8)
    inputs = {"x": x, "src_key_padding_mask": PADDING}

    def run():
        with torch.no_grad():
            model(**inputs)

    with pytest.warns(UserWarning, match="nested tensors"):
        assert fast_path_calls(run) == 2
    weights = attentions(model, ["body.layers.?.self_attn"], inputs)
    first = weights["body.layers.0.self_attn"]
    assert torch.equal(first, direct(model.body.layers[0].self_attn, x, key_padding_mask=PADDING))
    assert first[PADDING[:, None, None].expand_as(first)].sum() == 0


def test_vit__every_block_attends():
    vit = import_torchvision().models.VisionTransformer
    model, x = seeded(lambda: vit(32, 8, 2, 2, 32, 64, num_classes=3)), torch.randn(3, 3, 32, 32)
    weights = attentions(model, ["encoder.layers.*.self_attention"], x)
    assert [tuple(tensor.shape) for tensor in weights.values()] == [(3, 2, 17, 17)] * 2
    for tensor in weights.values():
        assert_rows(tensor)


@pytest.mark.parametrize("kinds", [["attentions"], ALL])
def test_recorder__does_not_change_what_the_model_says(kinds):
    model, x = seeded(lambda: TokenClassifier(nn.Sequential(SDPABlock(), SDPABlock(key_heads=2)))), torch.randn(3, 5, 8)
    sites = discover_sites(model, ["body.*"], kinds, x)
    with Tapper(model, sites) as tapper:
        logits = tapper.run(x, torch.zeros(3, dtype=torch.int64)).logits
    with torch.set_grad_enabled(len(kinds) > 1):
        assert torch.equal(logits, model.eval()(x).detach())


def test_recorder__two_calls_in_one_module_are_kept_apart():
    class Twice(SDPABlock):
        def forward(self, x):
            return super().forward(super().forward(x))

    block, x = seeded(Twice), torch.randn(3, 5, 8)
    weights = attentions(TokenClassifier(block), ["body"], x)
    assert list(weights) == ["body#0", "body#1"]
    for name, hidden in (("body#0", x), ("body#1", SDPABlock.forward(block, x))):
        query, key, _ = block.projected(hidden)
        torch.testing.assert_close(weights[name].double(), softmax_in_float64(query, key).detach(), rtol=0, atol=1e-6)


def test_recorder__a_module_that_catches_an_exception_keeps_its_name():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    class Catching(SDPABlock):
        def __init__(self) -> None:
            super().__init__()
            self.failing = Failing()

        def forward(self, x):
            try:
                self.failing(x)
            except ValueError:
                return super().forward(x)

    assert list(attentions(TokenClassifier(Catching()), ["body"], torch.randn(3, 5, 8))) == ["body"]


def test_recorder__raises_on_dropout_in_evaluation():
    with pytest.raises(CaptureError, match=r"module 'body' drops out 0\.5"):
        attentions(TokenClassifier(SDPABlock(dropout_p=0.5)), ["body"], torch.randn(3, 5, 8))


def test_recorder__raises_on_axes_it_cannot_name():
    class Windowed(SDPABlock):
        def forward(self, x):
            windows = x.unflatten(1, (3, 2)).flatten(0, 1)
            return super().forward(windows).unflatten(0, (-1, 3)).flatten(1, 2)

    with pytest.raises(CaptureError, match=r"\(9, 4, 2, 2\) for 3 examples and \(6, 4, 2, 2\) for 2"):
        attentions(TokenClassifier(Windowed()), ["body"], torch.randn(3, 6, 8))


def test_recorder__raises_where_probabilities_do_not_give_back_the_output(monkeypatch):
    wrong = sdpa_probabilities
    monkeypatch.setattr(
        "capture.probabilities.sdpa_probabilities", lambda *args, **kwargs: wrong(*args, **kwargs).flip(-1)
    )
    with pytest.raises(CaptureError, match="reproduce its output to"):
        attentions(TokenClassifier(SDPABlock()), ["body"], torch.randn(3, 5, 8))


def test_recorder__raises_when_attention_is_not_called_as_at_discovery():
    model, x = TokenClassifier(SDPABlock()), torch.randn(3, 5, 8)
    sites = discover_sites(model, ["body"], ["attentions"], x)
    model.body.forward = lambda x: x
    with Tapper(model, sites) as tapper, pytest.raises(CaptureError, match="attended 0 times .* saw 1"):
        tapper.run(x)
