"""One update of a training after the other: the batch that follows from seed and step, its gradient, the step.

Training calls it over and over; an intervention changes what one update does and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture._training_state import TrainingState
from capture.batches import as_tensor, batch_positions
from capture.data import ImageData
from capture.recipe_tables import TrainingRecipe

__all__ = ["Update", "Updates", "make_optimizer"]


@dataclass(frozen=True, slots=True)
class Update:
    """What an update saw before it changed the weights.

    Parameters
    ----------
    loss : Tensor
        Mean cross-entropy of the batch in nats, on the model's device: reading it waits for the device.
    logits : Tensor (example, class)
    targets : Tensor (example,)
    """

    loss: Tensor
    logits: Tensor
    targets: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the batch whose largest score was its label's."""
        return (self.logits.argmax(dim=1) == self.targets).float().mean().item()


class Updates:
    """The updates of one training.

    Parameters
    ----------
    settings : TrainingRecipe
    data : ImageData
        Copied once to where the model is.
    seed : int
        Orders the batches.
    device : torch.device
        The model's.
    """

    def __init__(self, settings: TrainingRecipe, data: ImageData, seed: int, device: torch.device) -> None:
        self._settings, self._seed, self._device = settings, seed, device
        self._inputs, self._labels = as_tensor(data.inputs, device), as_tensor(data.labels, device)

    def make(self, state: TrainingState, change: Callable[[nn.Module], None] | None = None) -> Update:
        """Make the next update of a state.

        Parameters
        ----------
        state : TrainingState
            With its model in training mode.
        change : callable of the model, optional
            Called between the gradient and the optimiser's step.
        """
        state.optimizer.zero_grad(set_to_none=True)
        update = self._forward(state)
        update.loss.backward()  # type: ignore[no-untyped-call]
        if change is not None:
            change(state.model)
        state.optimizer.step()
        state.step += 1
        return Update(update.loss.detach(), update.logits.detach(), update.targets)

    def leave_out(self, state: TrainingState) -> None:
        """Go past the next update without making it.

        The batch runs forward, so that later batches meet the random state that they would have met: what a dropout
        draws. Weights, buffers and the optimiser's state stay as they are.
        """
        kept = [buffer.detach().clone() for buffer in state.model.buffers()]
        self._forward(state)
        with torch.no_grad():
            for buffer, before in zip(state.model.buffers(), kept, strict=True):
                buffer.copy_(before)
        state.step += 1

    def _forward(self, state: TrainingState) -> Update:
        where = batch_positions(self._seed, state.step, len(self._labels), self._settings.batch_size)
        batch = as_tensor(where, self._device)
        targets = self._labels[batch]
        logits = state.model(self._inputs[batch])
        return Update(nn.functional.cross_entropy(logits, targets), logits, targets)


def make_optimizer(settings: TrainingRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser that the settings ask for, of the parameters that are trained."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(trainable, lr=rate, weight_decay=decay)
    return torch.optim.SGD(trainable, lr=rate, momentum=settings.momentum, weight_decay=decay)
