"""Attention of every kind of model, by way of a store, is what the model's own modules would return."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ndt_store import open_store

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[capture]'")
capture = pytest.importorskip("capture")
torchvision = pytest.importorskip("capture._torchvision")
nn = torch.nn

N, TOKENS, WIDTH, HEADS = 10, 6, 16, 4


class Body(nn.Module):
    """Something on tokens, the mean of which is classified; `call` says how it is called."""

    def __init__(self, body: Any, call: Callable[[Any, Any], Any] | None = None) -> None:
        super().__init__()
        self.body, self.out, self.call = body, nn.Linear(WIDTH, 3), call

    def forward(self, tokens: Any) -> Any:
        hidden = self.body(tokens) if self.call is None else self.call(self.body, tokens)
        return self.out(hidden.mean(1))


class Decoder(nn.Module):
    """A decoder layer stack that attends to itself, causally, and to a memory of another length."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.decoder, self.memory, self.out = (
            nn.TransformerDecoder(layer, 2),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 3),
        )

    def forward(self, tokens: Any) -> Any:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.out(self.decoder(tokens, self.memory(tokens)[:, :4], tgt_mask=causal, tgt_is_causal=True).mean(1))


@dataclass(frozen=True)
class Source:
    """A model, its inputs, which modules attend, and the weights that these would return, by layer."""

    make: Callable[[], Any]
    layers: str
    expected: Callable[[Any, Any], dict[str, Any]]
    inputs: Callable[[], Any] = lambda: torch.randn(N, TOKENS, WIDTH)


def own_weights(model: Any, inputs: Any) -> dict[str, Any]:
    """Ask every `nn.MultiheadAttention` for its weights while a copy of the model runs."""
    found: dict[str, Any] = {}
    model = copy.deepcopy(model).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):

            def asked(self: Any, args: Any, kwargs: dict[str, Any]) -> Any:
                return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

            def kept(self: Any, args: Any, output: Any, name: str = name) -> None:
                found[name] = output[1]

            module.register_forward_pre_hook(asked, with_kwargs=True)
            module.register_forward_hook(kept)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model(inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return found


def attend(module: Any, tokens: Any) -> Any:
    """Self-attention of a module that takes tokens first or second."""
    if module.batch_first:
        return module(tokens, tokens, tokens, need_weights=False)[0]
    turned = tokens.transpose(0, 1)
    return module(turned, turned, turned, need_weights=False)[0].transpose(0, 1)


class Causal(nn.Module):
    """scaled_dot_product_attention with fewer key heads than query heads, causal."""

    def __init__(self, key_heads: int) -> None:
        super().__init__()
        self.key_heads = key_heads
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH // HEADS * key_heads)
        self.value = nn.Linear(WIDTH, WIDTH // HEADS * key_heads)

    def split(self, tokens: Any) -> list[Any]:
        parts = ((self.query, HEADS), (self.key, self.key_heads), (self.value, self.key_heads))
        return [layer(tokens).unflatten(-1, (count, -1)).transpose(1, 2) for layer, count in parts]

    def forward(self, tokens: Any) -> Any:
        mixed = nn.functional.scaled_dot_product_attention(
            *self.split(tokens), is_causal=True, enable_gqa=self.key_heads != HEADS
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


def by_softmax(model: Any, inputs: Any) -> dict[str, Any]:
    query, key, _ = (part.double() for part in model.body.split(inputs))
    scores = query @ key.repeat_interleave(HEADS // key.shape[1], 1).transpose(-2, -1) / key.shape[-1] ** 0.5
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return {"body": scores.masked_fill(hidden, -torch.inf).softmax(-1)}


def of_transformers(kind: str) -> Source:
    """A model of the library transformers, from a configuration, with random weights."""

    def build(attention: str) -> Any:
        transformers = pytest.importorskip("transformers", reason="needs the extra dev: pip install '.[dev]'")
        if kind == "bert":
            config = transformers.BertConfig(
                vocab_size=50,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                num_labels=3,
            )
            return transformers.BertForSequenceClassification._from_config(config, attn_implementation=attention)
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, num_labels=3, pad_token_id=0, bos_token_id=1,
            eos_token_id=2,
        )  # fmt: skip
        return transformers.GPT2ForSequenceClassification._from_config(config, attn_implementation=attention)

    def expected(model: Any, inputs: Any) -> dict[str, Any]:
        eager = build("eager").eval()
        eager.load_state_dict(model.state_dict())
        stem = "bert.encoder.layer.{}.attention.self" if kind == "bert" else "transformer.h.{}.attn"
        weights = eager(inputs, output_attentions=True).attentions
        return {stem.format(place): one for place, one in enumerate(weights)}

    layers = "bert.encoder.layer.*.attention.self" if kind == "bert" else "transformer.h.*.attn"
    return Source(lambda: build("sdpa"), layers, expected, lambda: torch.randint(1, 50, (N, 9)))


def encoder() -> Any:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True), 2)


def vit() -> Any:
    return torchvision.import_torchvision().models.VisionTransformer(16, 8, 2, HEADS, WIDTH, 32, num_classes=3)


def multihead(batch_first: bool) -> Source:
    return Source(
        lambda: Body(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first), attend), "body", own_weights
    )


SOURCES = {
    "MultiheadAttention": multihead(True),
    "MultiheadAttention, tokens first": multihead(False),
    "TransformerEncoder": Source(lambda: Body(encoder()), "body.layers.*.self_attn", own_weights),
    "TransformerDecoder": Source(Decoder, "decoder.layers.*.*attn", own_weights),
    "scaled_dot_product_attention, causal": Source(lambda: Body(Causal(HEADS)), "body", by_softmax),
    "scaled_dot_product_attention, grouped": Source(lambda: Body(Causal(2)), "body", by_softmax),
    "torchvision's ViT": Source(vit, "encoder.layers.*.self_attention", own_weights, lambda: torch.randn(N, 3, 16, 16)),
    "transformers' BERT": of_transformers("bert"),
    "transformers' GPT-2": of_transformers("gpt2"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_attention__is_what_the_modules_return(tmp_path: Path, name: str) -> None:
    source = SOURCES[name]
    torch.manual_seed(0)
    model, inputs, labels = source.make().eval(), source.inputs(), torch.arange(N) % 3
    with torch.no_grad():
        said = model(inputs)
        said = said if isinstance(said, torch.Tensor) else said.logits
        expected = {layer: weights.double().numpy() for layer, weights in source.expected(model, inputs).items()}
    capture.capture(
        model, (inputs, labels), store=tmp_path / "r.zarr", layers=[source.layers], kinds=["attentions"], batch_size=4,
        progress=False,
    )  # fmt: skip
    store = open_store(tmp_path / "r.zarr")
    assert set(store.layers) == set(expected)
    for layer, weights in expected.items():
        found = store[layer].attentions.sel(checkpoint=0).values
        np.testing.assert_allclose(found, weights, atol=1e-6, rtol=0)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
        assert (found[weights == 0] == 0).all()  # what is masked is exactly 0
    np.testing.assert_allclose(store.root["logits"].sel(checkpoint=0), said, atol=1e-5)
    with torch.no_grad():
        again = model(inputs)
    torch.testing.assert_close(again if isinstance(again, torch.Tensor) else again.logits, said, rtol=0, atol=0)


@pytest.mark.parametrize("name", SOURCES)
def test_heads_and_summaries__come_out_of_the_same_calls(tmp_path: Path, name: str) -> None:
    source = SOURCES[name]
    torch.manual_seed(0)
    model, inputs, labels = source.make().eval(), source.inputs(), torch.arange(N) % 3
    store = capture.capture(
        model, (inputs, labels), store=tmp_path / "r.zarr", layers=[source.layers, f"{source.layers}@heads"],
        kinds=["activations", "attentions", "attention_summaries"], batch_size=4, progress=False,
    )  # fmt: skip
    for layer in [one for one in store.layers if not one.endswith("@heads")]:
        one = store[layer].sel(checkpoint=0)
        np.testing.assert_allclose(one["attention_mean"], one["attentions"].mean("example"), atol=1e-6)
        heads = store[f"{layer}@heads"].activations.sel(checkpoint=0)
        assert heads.sizes["head"] == one.sizes["head"]
        assert heads.sizes["token"] == one.sizes["query"]
    worth = capture.ablate_heads(model, (inputs, labels), methods=["zero"], progress=False)
    assert worth["margin"].notnull().all()
