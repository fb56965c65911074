"""An update that is left out leaves no trace but the place in the data and the random state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from capture._training_state import TrainingState
from capture.checkpoints import weights_digest
from capture.data import load_digits
from capture.recipe import TrainingRecipe
from capture.updates import Updates, make_optimizer

SETTINGS = TrainingRecipe(steps=9, batch_size=64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def fresh() -> TrainingState:
    """A model with everything that a forward pass leaves behind: running means, and draws of a dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 10)
        )
    return TrainingState(model, make_optimizer(SETTINGS, model), {})


@pytest.fixture
def updates() -> Updates:
    return Updates(SETTINGS, load_digits("train").first(300), 0, torch.device("cpu"))


def everything(state: TrainingState, folder: Path) -> bytes:
    """Weights, buffers and the optimiser's state as training keeps them, without step and random state."""
    state = TrainingState(state.model, state.optimizer, {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state.save(folder)
    return (folder / "training-state.safetensors").read_bytes()


def test_leave_out__changes_neither_weights_nor_buffers_nor_the_optimisers_state(
    updates: Updates, tmp_path: Path
) -> None:
    state = fresh()
    for _ in range(3):
        updates.make(state)
    before = everything(state, tmp_path)
    for _ in range(2):
        updates.leave_out(state)
    assert everything(state, tmp_path) == before
    assert state.step == 5
    updates.make(state)
    assert everything(state, tmp_path) != before


def test_leave_out__goes_on_with_batches_and_random_state_as_a_made_one_does(updates: Updates) -> None:
    after = []
    for leave_out in (False, True):
        torch.manual_seed(1)
        state = fresh()
        move = updates.leave_out if leave_out else updates.make
        move(state)
        after.append(torch.get_rng_state())
        seen = updates.make(state)
        after.append(seen.targets)
    assert torch.equal(after[0], after[2])
    assert torch.equal(after[1], after[3])


def test_make__hands_the_gradients_to_a_change_before_the_step(updates: Updates) -> None:
    def silence(model: nn.Module) -> None:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    state = fresh()
    digest = weights_digest(dict(state.model.named_parameters()))
    update = updates.make(state, silence)
    assert weights_digest(dict(state.model.named_parameters())) == digest
    assert 0 <= update.accuracy <= 1
    assert update.accuracy == pytest.approx((update.logits.argmax(1) == update.targets).double().mean().item())
    updates.make(state)
    assert weights_digest(dict(state.model.named_parameters())) != digest
