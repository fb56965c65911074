"""Small models for the tests of capture, each with one habit that real models have."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention


def seeded(build, seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x):
        return self.net(x)


class ResidualCNN(nn.Module):
    """Convolution, batch norm, in-place ReLU that fires twice, an in-place sum with the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)
        self.norm.running_mean.normal_()

    def forward(self, x):
        out = self.relu(self.stem(x))
        shortcut = out
        out = self.norm(self.conv(out))
        out += shortcut
        out = self.relu(out)
        return self.head(self.pool(out).flatten(1))


class Conv1dNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(-1))


class SDPABlock(nn.Module):
    """Attention by scaled_dot_product_attention, imported by name; fewer key heads than query heads if asked."""

    def __init__(self, width: int = 8, heads: int = 4, key_heads: int = 4, **options) -> None:
        super().__init__()
        self.heads, self.key_heads, self.options = heads, key_heads, options
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width // heads * key_heads)
        self.value = nn.Linear(width, width // heads * key_heads)
        self.out = nn.Linear(width, width)

    def projected(self, x):
        split = [(self.query, self.heads), (self.key, self.key_heads), (self.value, self.key_heads)]
        return [layer(x).unflatten(-1, (count, -1)).transpose(1, 2) for layer, count in split]

    def forward(self, x):
        query, key, value = self.projected(x)
        grouped = {"enable_gqa": True} if self.key_heads != self.heads else {}
        mixed = scaled_dot_product_attention(query, key, value, **self.options, **grouped)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TokenClassifier(nn.Module):
    """Any module on tokens, then the mean over tokens and a linear layer."""

    def __init__(self, body: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, 3)

    def forward(self, x, **masks):
        hidden = self.body(x, **masks)
        return self.head((hidden[0] if isinstance(hidden, tuple) else hidden).mean(1))


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on one input, as its caller chooses to call it."""

    def __init__(self, batch_first: bool = True, call: dict | None = None, **options) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
        self.call = call or {}

    def forward(self, x, **masks):
        x = x if self.attn.batch_first else x.transpose(0, 1)
        out = self.attn(x, x, x, **self.call, **masks)[0]
        return out if self.attn.batch_first else out.transpose(0, 1)


class TokensFirst(nn.Module):
    """Works on (token, example, unit) inside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16)
        self.rnn = nn.LSTM(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(self.encoder(x.transpose(0, 1)))[0].mean(0))


class EmbeddingNet(nn.Module):
    """Integer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        return self.head(self.embed(tokens).mean(1))


class Detour(nn.Module):
    """A branch that the output does not depend on, and an identity beside a use of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.same = nn.Identity()
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        self.unused(x)
        return self.head(self.same(x) * 3 + x)


@dataclass
class Answer:
    hidden: torch.Tensor
    logits: torch.Tensor


class Structured(nn.Module):
    """Returns a dataclass, and inside it a module that returns an ordered mapping."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return OrderedDict(nothing=None, state=self.linear(x))

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        state = self.inner(x)["state"]
        return Answer(hidden=state, logits=self.head(torch.tanh(state)))


class Noisy(nn.Module):
    """Everything a pass must not leave behind: dropout, random numbers in evaluation, a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)
        self.register_buffer("passes", torch.zeros(()))
        self.fail = False

    def forward(self, x):
        self.passes += 1
        noise = 0.0 * torch.rand(x.shape[0], 4)
        hidden = self.norm(self.drop(self.linear(x))) + noise
        if self.fail:
            raise RuntimeError("the model gave up")
        return self.head(functional.relu(hidden))
