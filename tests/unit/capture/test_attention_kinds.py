"""What heads put out, and summaries of attention in place of patterns, are those of direct computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

import capture
import ndt_query as nq
from capture.summaries import summarised
from ndt_store import open_store, verify
from ndt_store.dims import EXAMPLE_SUMMARIES
from ndt_store.errors import CaptureError, DimensionError, InvalidInputError

from .model_zoo import SDPABlock, TokenClassifier, seeded

N, TOKENS, WIDTH, HEADS = 10, 6, 8, 2


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True) for _ in range(2))
        self.classifier = nn.Linear(WIDTH, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            tokens = layer(tokens)
        return self.classifier(tokens.mean(1))


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(N, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 3


@pytest.fixture
def model() -> nn.Module:
    return seeded(Encoder).eval()


def test_heads__projected_out_are_the_modules_output(model, data, tmp_path):
    store = capture.capture(
        model, data, store=tmp_path / "r.zarr", layers=["layers.*.self_attn", "layers.*.self_attn@heads"],
        kinds=["activations", "attentions"], batch_size=4, progress=False,
    )  # fmt: skip
    assert store.layers == (
        "layers.0.self_attn", "layers.0.self_attn@heads", "layers.1.self_attn", "layers.1.self_attn@heads",
    )  # fmt: skip
    heads = store["layers.1.self_attn@heads"].activations
    assert heads.dims == ("checkpoint", "example", "token", "head", "unit")
    assert "attentions" not in store["layers.1.self_attn@heads"]
    attention = model.layers[1].self_attn
    mixed = heads.sel(checkpoint=0).values.reshape(N, TOKENS, WIDTH)
    expected = mixed @ attention.out_proj.weight.detach().numpy().T + attention.out_proj.bias.detach().numpy()
    out = store["layers.1.self_attn"].activations.sel(checkpoint=0)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    one = capture.capture(model, data, store=tmp_path / "h.zarr", layers=["layers.1.self_attn@heads"], progress=False)
    np.testing.assert_allclose(one["layers.1.self_attn@heads"].activations.values, heads.values, atol=1e-6)
    assert verify(one, read_data=True).ok


@pytest.mark.parametrize("key_heads", [4, 2])
def test_heads__of_scaled_dot_product_are_its_output(tmp_path, key_heads):
    model = seeded(lambda: TokenClassifier(SDPABlock(key_heads=key_heads), width=8)).eval()
    inputs = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(1))
    query, key, value = model.body.projected(inputs)
    said = nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=key_heads != 4)
    store = capture.capture(
        model, (inputs, torch.arange(5) % 3), store=tmp_path / "r.zarr", layers=["**@heads"], progress=False
    )
    (name,) = store.layers
    found = store[name].activations.sel(checkpoint=0)
    np.testing.assert_allclose(found, said.detach().transpose(1, 2), atol=1e-6)


def test_heads__are_refused_where_they_make_no_sense(model, data, tmp_path):
    options = {"store": tmp_path / "r.zarr", "progress": False}
    with pytest.raises(InvalidInputError, match="which are activations, and kinds is"):
        capture.capture(model, data, layers=["layers.*.self_attn@heads"], kinds=["attentions"], **options)
    with pytest.raises(InvalidInputError, match="of which there are activations only"):
        capture.capture(model, data, layers=["layers.*.self_attn@heads"], kinds=["activations", "gradients"], **options)
    with pytest.raises(CaptureError, match=r"none of the 1 layers named attends; name some .* layers.0.self_attn"):
        capture.capture(model, data, layers=["classifier@heads"], **options)
    with pytest.raises(InvalidInputError, match="names none of"):
        capture.capture(model, data, layers=["nothing@heads"], **options)
    assert not (tmp_path / "r.zarr").exists()


def by_hand(pattern: np.ndarray) -> dict[str, float]:
    """Summaries of one example and head, (query, key), row by row."""
    found: dict[str, list[float]] = {name: [] for name in EXAMPLE_SUMMARIES}
    for query, row in enumerate(pattern):
        if row.sum() == 0:
            continue
        n = len(row)
        found["attention_entropy"].append(float(entropy(row, base=n)))
        found["attention_hoyer"].append((n**0.5 - row.sum() / (row**2).sum() ** 0.5) / (n**0.5 - 1))
        found["attention_gini"].append(float(np.abs(row[:, None] - row).sum() / (2 * n * row.sum())))
        found["attention_share"].append(float((row > 0.1).mean()))
        found["attention_distance"].append(float(sum(p * abs(query - key) for key, p in enumerate(row))))
    return {name: float(np.mean(values)) if values else np.nan for name, values in found.items()}


def test_summaries__are_those_of_each_row(rng):
    pattern = rng.dirichlet(np.full(TOKENS, 0.3), (N, HEADS, TOKENS))
    pattern[0, 0] = np.eye(TOKENS)
    pattern[1, 1] = 1 / TOKENS
    pattern[2, 0, 3] = 0  # a query that attends to nothing
    pattern[3, 1] = 0
    found = summarised(torch.from_numpy(pattern))
    for name in EXAMPLE_SUMMARIES:
        expected = [[by_hand(head)[name] for head in example] for example in pattern]
        np.testing.assert_allclose(found[name], expected, atol=1e-12, err_msg=name)
    assert found["attention_entropy"][0, 0] == 0
    assert found["attention_entropy"][1, 1] == pytest.approx(1)
    np.testing.assert_allclose(found["attention_mean"], pattern.sum(0))
    alone = summarised(torch.ones(2, 1, 3, 1))
    assert alone["attention_entropy"].isnan().all()
    assert alone["attention_hoyer"].isnan().all()
    assert (alone["attention_gini"] == 0).all()


@pytest.mark.parametrize("batch_size", [4, 100])
def test_summaries__stand_in_for_patterns(model, data, tmp_path, batch_size):
    options = {"layers": ["layers.*.self_attn"], "batch_size": batch_size, "progress": False}
    full = capture.capture(model, data, store=tmp_path / "full.zarr", kinds=["attentions"], **options)
    store = capture.capture(model, data, store=tmp_path / "few.zarr", kinds=["attention_summaries"], **options)
    for layer in full.layers:
        pattern = full[layer].attentions.sel(checkpoint=0).values
        few = store[layer].sel(checkpoint=0)
        assert "attentions" not in few
        assert few["attention_entropy"].dims == ("example", "head")
        for name in EXAMPLE_SUMMARIES:
            expected = [[by_hand(head)[name] for head in example] for example in pattern]
            np.testing.assert_allclose(few[name], expected, atol=1e-5, err_msg=name)
        assert few["attention_mean"].dims == ("head", "query", "key")
        np.testing.assert_allclose(few["attention_mean"], pattern.mean(0, dtype=np.float64), atol=1e-6)
    assert verify(store, read_data=True).ok
    assert open_store(tmp_path / "few.zarr").schema.kinds("layers.0.self_attn") == (
        *EXAMPLE_SUMMARIES,
        "attention_mean",
    )


def test_summaries__beside_patterns_and_gradients(model, data, tmp_path):
    kinds = ["activations", "gradients", "attentions", "attention_summaries"]
    store = capture.capture(
        model, data, store=tmp_path / "r.zarr", layers=["layers.*.self_attn"], kinds=kinds, progress=False
    )
    one = store["layers.0.self_attn"].sel(checkpoint=0)
    assert set(one.data_vars) == {"activations", "gradients", "attentions", *EXAMPLE_SUMMARIES, "attention_mean"}
    np.testing.assert_allclose(one["attention_mean"], one["attentions"].mean("example"), atol=1e-6)


def test_summaries__never_hold_a_pattern(model, data, tmp_path, monkeypatch):
    kept = []
    from capture import attention

    real = attention.AttentionCall

    def noting(*fields):
        kept.append(real(*fields))
        return kept[-1]

    monkeypatch.setattr(attention, "AttentionCall", noting)
    with capture.Session(
        model, data, store=tmp_path / "r.zarr", layers=["layers.*.self_attn"], kinds=["attention_summaries"],
        progress=False,
    ) as session:  # fmt: skip
        kept.clear()  # discovery looks at patterns of three examples
        session.capture(0)
    assert len(kept) == 2
    assert all(call.probabilities is None and call.heads is None for call in kept)


def test_tracking__passes_over_heads(model, data, tmp_path):
    layers = ["layers.*", "layers.*.self_attn@heads"]
    with capture.Session(model, data, store=tmp_path / "r.zarr", layers=layers, progress=False) as session:
        session.track(0)
        session.capture(0)
    assert session.store.training["layer"].values.tolist() == ["layers.0", "layers.1"]


def test_questions_of_a_store__pass_over_heads(model, data, tmp_path):
    layers = ["layers.*", "layers.*.self_attn@heads"]
    store = capture.capture(model, data, store=tmp_path / "r.zarr", layers=layers, progress=False)
    assert len(store.layers) == 4
    assert nq.dimensionality(store)["layer"].values.tolist() == ["layers.0", "layers.1"]
    assert nq.dimensionality(store.tree)["layer"].values.tolist() == ["layers.0", "layers.1"]
    assert store.cube()["layer"].values.tolist() == ["layers.0", "layers.1"]
    heads = store["layers.0.self_attn@heads"].activations
    with pytest.raises(DimensionError, match="'head'"):
        nq.unit_moments(heads)
    assert nq.unit_moments(heads.sel(head=1)).sizes["unit"] == WIDTH // HEADS
