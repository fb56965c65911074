"""capture(): a model, its checkpoints and a probe set into one store, in one call."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from capture._suggest import expected_one_of
from capture.checkpoints import check_weights, weights_digest
from capture.forecast import Forecast
from capture.given_weights import Weights, given_checkpoints, kept_apart, load_given, weights_kept
from capture.hashing import WeightsHash
from capture.provenance import require_same_weights
from capture.session import Session
from ndt_store.catalogue import Catalogue
from ndt_store.errors import InvalidInputError
from ndt_store.reader import Store
from ndt_store.root import has_store
from ndt_store.storage import Storage, open_storage

__all__ = ["capture", "plan"]


def capture(
    model: nn.Module,
    data: Any,
    *,
    store: str | os.PathLike[str] | Storage,
    checkpoints: Sequence[tuple[int, Weights]] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Store:
    """Capture a model at its checkpoints; run the same call again to resume.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. Its weights and everything else about it are afterwards as they were before.
    data : pair of arrays, dataset or ImageData
        The probe set, see `Session`.
    store : str, PathLike or Storage
        Where the store is made, or found and resumed.
    checkpoints : sequence of (step, state dict or file), or folder, optional
        By default the model as it is, as step 0. Files are safetensors, or ``.pt`` read with ``weights_only``. A
        folder is one that `ndt train` filled.
    **options
        As in `Session`: layers, kinds, gradient_of, dtype, batch_size, device, compression, output, dims, model_name,
        identity, block_nbytes, memory, check_disk, progress.

    Returns
    -------
    Store
        Open for reading, with every checkpoint committed.

    Raises
    ------
    InvalidInputError, CaptureError, ResumeMismatchError, StorageError, MemoryBudgetError, IntegrityError
        As in `Session`, and for weights that do not fit the model or cannot be read. Names and shapes of every
        checkpoint, and whether its file is whole, are looked at before the first byte is written.

    Notes
    -----
    Given weights are loaded into the model and its own are put back afterwards. That writes into the parameters, so a
    graph that was recorded before the call cannot be differentiated after it; inside a training loop use
    `Session.capture`, which loads nothing. In-memory weights that are the model's own tensors are copied first.

    Examples
    --------
    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> data = torch.ones(6, 4), torch.zeros(6, dtype=torch.int64)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = capture(net, data, store=folder + "/run.zarr", layers=["*"], progress=False)
    ...     made["0"].activations.shape
    (1, 6, 3)
    """
    _check_options(options)
    steps = given_checkpoints(checkpoints)
    storage = open_storage(store)
    planned = [step for step, _ in steps]
    own = WeightsHash(model) if checkpoints is None else None
    session = Session(model, data, store=storage, checkpoints=planned, **options)
    for _, weights in steps:
        if weights is not None:
            check_weights(model, weights)
    steps = [(step, kept_apart(model, weights)) for step, weights in steps]
    with weights_kept(model, any(weights is not None for _, weights in steps)):
        compared = _check_committed(storage, model, steps)
        with session:
            for step, weights in steps:
                # Another process may have made or filled the store since: what was not compared is, under the lock.
                if step not in compared or step not in session.committed:
                    load_given(model, weights)
                    session._capture_hashed(step, own.digest() if own else weights_digest(model.state_dict()))
            return session.store


def plan(
    model: nn.Module,
    data: Any,
    *,
    store: str | os.PathLike[str] | Storage,
    checkpoints: Sequence[tuple[int, Weights]] | str | os.PathLike[str] | None = None,
    **options: Any,
) -> Forecast:
    """Forecast what the same call of `capture` would take; nothing is written.

    Parameters
    ----------
    model, data, store, checkpoints, **options
        As in `capture`.

    Returns
    -------
    Forecast
        Bytes by array, memory of the pipeline, room on the disk.
    """
    _check_options(options)
    planned = [step for step, _ in given_checkpoints(checkpoints)]
    return Session(model, data, store=store, checkpoints=planned, **options).forecast


def _check_options(options: Mapping[str, Any]) -> None:
    known = set(inspect.signature(Session).parameters) - {"model", "data", "store", "checkpoints"}
    for name in options:
        if name not in known:
            raise InvalidInputError(f"capture has no option {name!r}: {expected_one_of(name, sorted(known))}.")
    if "layers" not in options:
        raise InvalidInputError("capture needs layers=: globs over module paths, for example layers=['conv*'].")


def _check_committed(storage: Storage, model: nn.Module, steps: Sequence[tuple[int, Weights | None]]) -> set[int]:
    """Refuse other weights for what is committed, before anything is written; return the steps that were compared."""
    if not has_store(storage):
        return set()
    catalogue = Catalogue.read(storage)
    compared = set()
    for step, weights in steps:
        if step in catalogue.committed:
            load_given(model, weights)
            require_same_weights(catalogue, step, weights_digest(model.state_dict()))
            compared.add(step)
    return compared
