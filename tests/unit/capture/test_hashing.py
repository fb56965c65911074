"""Weights hashed beside other work have the digest they would have had before it."""

import pytest
import torch
from torch import nn

import capture
from capture.checkpoints import weights_digest
from capture.hashing import WeightsHash
from ndt_store.errors import InvalidInputError


class Counting(nn.Module):
    """Writes into a buffer whenever it runs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.tied = self.head
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        return self.head(x)


def test_digest_is_that_of_the_state_dict_when_it_was_begun():
    model = Counting().half()
    expected = weights_digest(model.state_dict())
    begun = WeightsHash(model)
    model(torch.ones(2, 4).half())
    assert begun.digest() == expected != weights_digest(model.state_dict())


def test_digest__raises_what_hashing_raises():
    model = Counting()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(InvalidInputError, match=r"sparse.* expected a dense tensor"):
        WeightsHash(model).digest()


def test_a_capture_of_a_model_that_writes_into_its_buffers_records_its_weights_as_they_were(tmp_path):
    model = Counting()
    expected = weights_digest(model.state_dict())
    data = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    store = capture.capture(model, data, store=tmp_path / "s", layers=["head"], batch_size=2, progress=False)
    assert store.catalogue.record(0).weights_digest == expected == weights_digest(model.state_dict())


@pytest.mark.parametrize("kinds", [["activations"], ["activations", "gradients"]])
def test_a_model_with_lazy_modules_is_captured_with_the_weights_that_it_gives_itself(tmp_path, kinds):
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    x = torch.arange(24.0).reshape(6, 4)
    data = x, torch.arange(6) % 3
    store = capture.capture(model, data, store=tmp_path / "s", layers=["0"], kinds=kinds, progress=False)
    assert store.catalogue.record(0).weights_digest == weights_digest(model.state_dict())
    with torch.no_grad():
        assert store.root.logits.values[0].tobytes() == model(x).numpy().tobytes()


def test_a_lazy_model_is_hashed_once_it_has_run():
    model = nn.Sequential(nn.LazyLinear(3))
    begun = WeightsHash(model)
    model(torch.ones(2, 4))
    assert begun.digest() == weights_digest(model.state_dict())
