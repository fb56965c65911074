"""Checkpoints as callers give them: steps with weights in memory or in files, loaded into a model that is put back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from capture._describe import described
from capture.checkpoints import list_checkpoints, load_into, load_weights, weights_digest
from capture.provenance import require_same_weights
from ndt_store.catalogue import Catalogue
from ndt_store.errors import InvalidInputError
from ndt_store.schema import as_step
from ndt_store.storage import Storage, open_storage

__all__ = ["Weights", "digests_of", "given_checkpoints", "kept_apart", "load_given", "weights_kept"]

Weights = Mapping[str, torch.Tensor] | str | os.PathLike[str]


def given_checkpoints(
    given: Sequence[tuple[int, Weights]] | str | os.PathLike[str] | None,
) -> list[tuple[int, Weights | None]]:
    """Return checkpoints sorted by step; None for the weights stands for the model as it is, which is step 0.

    Raises
    ------
    InvalidInputError
        They are no pairs of a step and weights, a step is given twice, or a file is not there.
    """
    if given is None:
        return [(0, None)]
    if not isinstance(given, Iterable):
        raise InvalidInputError(f"checkpoints is {described(given)}: expected pairs of (step, weights), or a folder.")
    pairs = list_checkpoints(given) if isinstance(given, str | os.PathLike) else list(given)
    if not pairs:
        raise InvalidInputError(f"checkpoints is {described(given)} and holds none: give pairs of (step, weights).")
    for pair in pairs:
        good = isinstance(pair, tuple | list) and len(pair) == 2
        if not good or not isinstance(pair[1], Mapping | str | os.PathLike):
            raise InvalidInputError(
                f"A checkpoint is {described(pair)}: expected a pair of (step, state dict or file); to capture the "
                "model as it is, leave checkpoints out or use capture.Session."
            )
    known = [(as_step(step), weights) for step, weights in pairs]
    steps = [step for step, _ in known]
    if len(set(steps)) != len(steps):
        twice = next(step for step in steps if steps.count(step) > 1)
        raise InvalidInputError(f"Checkpoint {twice} is given twice: each step has one set of weights.")
    missing = [str(w) for _, w in known if isinstance(w, str | os.PathLike) and not Path(w).is_file()]
    if missing:
        raise InvalidInputError(f"{len(missing)} checkpoint files are not there, the first is {missing[0]}.")
    return sorted(known, key=lambda pair: pair[0])


def kept_apart(model: nn.Module, weights: Weights | None) -> Weights | None:
    """Copy weights that lie in the model's own memory, as `state_dict` gives them: loading others overwrites them."""
    if not isinstance(weights, Mapping):
        return weights
    own = {_memory(tensor) for tensor in model.state_dict().values()}
    return {name: tensor.detach().clone() if _memory(tensor) in own else tensor for name, tensor in weights.items()}


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def load_given(model: nn.Module, weights: Weights | None) -> None:
    """Load weights into a model, or leave it as it is."""
    if weights is not None:
        load_into(model, weights if isinstance(weights, Mapping) else load_weights(weights))


@contextmanager
def weights_kept(model: nn.Module, changed: bool) -> Iterator[None]:
    """Put a model's own weights back in the end, where others are loaded meanwhile."""
    if not changed:
        yield
        return
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(before)


def digests_of(
    model: nn.Module, steps: Sequence[tuple[int, Weights | None]], store: str | os.PathLike[str] | Storage | None
) -> tuple[str, ...]:
    """Return the digest of each step's weights, which are those of the store where it has the step.

    Raises
    ------
    ResumeMismatchError
        The store has the step with other weights.
    """
    catalogue = None if store is None else Catalogue.read(open_storage(store))
    found = []
    for step, weights in steps:
        load_given(model, weights)
        found.append(weights_digest(model.state_dict()))
        if catalogue is not None and step in catalogue.committed:
            require_same_weights(catalogue, step, found[-1])
    return tuple(found)
