"""Weights on disk: digest, save, load, list, and put into a model.

A training folder holds one file a checkpoint, ``step-000100.safetensors``. Files appear whole or not at all:
each is written under a temporary name, flushed to the disk and renamed. Nothing is ever unpickled: ``.pt``
and ``.pth`` files are read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from capture.files import replace_file
from ndt_store.errors import IntegrityError, InvalidInputError, NotFoundError, StorageError

__all__ = [
    "check_weights",
    "checkpoint_path",
    "list_checkpoints",
    "load_into",
    "load_weights",
    "save_weights",
    "weights_digest",
    "weights_fingerprint",
]

StateDict = Mapping[str, Tensor]
PathLike = str | os.PathLike[str]

_CHECKPOINT_NAME = re.compile(r"step-(\d{6,})\.safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_N_NAMED = 3


def weights_digest(state_dict: StateDict) -> str:
    """Hash weights so that equal digests mean equal bits.

    SHA-256, in hex, over the entries in order of their names: a JSON line ``[name, dtype, shape]`` (dtype as
    in ``"float32"``) and the values' little-endian bytes in C order. Device, memory layout and whether
    tensors share storage do not enter.

    Parameters
    ----------
    state_dict : mapping of str to torch.Tensor

    Raises
    ------
    InvalidInputError
        An entry is not a dense tensor.

    Examples
    --------
    >>> weights_digest({"w": torch.zeros(2)})[:16]
    '958fa745ba8382d5'
    """
    sha = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = _dense(name, state_dict[name])
        dtype = str(tensor.dtype).removeprefix("torch.")
        sha.update(json.dumps([name, dtype, list(tensor.shape)]).encode() + b"\n")
        # Through uint8 because numpy has no bfloat16.
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def weights_fingerprint(digest: str) -> int:
    """Return the first 63 bits of a digest of weights, which a column of whole numbers can hold."""
    return int(digest[:16], 16) >> 1


def save_weights(path: PathLike, state_dict: StateDict, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights as safetensors; the file is whole or absent, whatever happens meanwhile.

    Tensors that share storage (tied weights) are written once per name, so every name is there when it is
    read.

    Parameters
    ----------
    path : path
        Ends in ``.safetensors``; an existing file is replaced.
    state_dict : mapping of str to torch.Tensor
        On any device, in any memory layout.
    metadata : mapping of str to str, optional
        Goes into the file's header. With at most one entry, equal weights give equal files; safetensors writes
        several in random order.

    Raises
    ------
    InvalidInputError
        Another suffix, or an entry that is not a dense tensor.
    StorageError
        The file system refuses.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InvalidInputError(f"Cannot save weights to {target}, expected a file name that ends in .safetensors.")
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in state_dict:
        tensor = _dense(name, state_dict[name])
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses two names on one storage.
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    replace_file(target, safetensors.torch.save(tensors, dict(metadata) if metadata else None))


def load_weights(path: PathLike) -> dict[str, Tensor]:
    """Read weights onto the CPU.

    Parameters
    ----------
    path : path
        ``.safetensors``; or ``.pt`` / ``.pth``, which must hold nothing but tensors: a state dict, alone or
        under the key ``state_dict``, ``model_state_dict`` or ``model``.

    Returns
    -------
    dict of str to torch.Tensor

    Raises
    ------
    NotFoundError
        No such file.
    InvalidInputError
        Another suffix, or content that is not a state dict.
    IntegrityError
        The file is truncated or damaged.
    """
    source = Path(path)
    if source.suffix not in (".safetensors", ".pt", ".pth"):
        raise InvalidInputError(f"Cannot load weights from {source}, expected a .safetensors, .pt or .pth file.")
    if not source.is_file():
        raise NotFoundError(f"No weights at {source}, expected a file; check the path.")
    try:
        if source.suffix == ".safetensors":
            return safetensors.torch.load_file(source)
        # Outside a zip, torch.load falls back to its legacy format; both go through the restricted unpickler.
        content = torch.load(source, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise IntegrityError(
            f"{source} cannot be read as weights ({_first_line(error)}), expected a whole {source.suffix} file; "
            "copy or save it again.",
            str(source),
        ) from error
    except pickle.UnpicklingError as error:
        raise InvalidInputError(
            f"{source} is no plain state dict: it is damaged, or holds Python objects, which are never unpickled; "
            "save model.state_dict() instead, best as .safetensors."
        ) from error
    except OSError as error:
        raise StorageError(f"{source} cannot be read ({error}); check its permissions and the disk.") from error
    return _plain_state_dict(content, source)


def load_into(model: nn.Module, weights: StateDict) -> None:
    """Load weights into a model, all of them or none.

    Values are converted to the dtype of the model's own tensors.

    Raises
    ------
    InvalidInputError
        Names or shapes differ; one sentence lists what is missing, unexpected and of another shape.
    """
    _require_fit(model, {name: tuple(value.shape) for name, value in weights.items()}, "These weights")
    model.load_state_dict(dict(weights), strict=True)


def check_weights(model: nn.Module, weights: StateDict | PathLike) -> None:
    """Check that `load_into` will take these weights, without loading them.

    Of a ``.safetensors`` file only the header is read, which also tells whether the file is whole; a ``.pt`` file is
    read throughout. Errors are those of `load_weights` and `load_into`.
    """
    if isinstance(weights, Mapping):
        for name, value in weights.items():
            _require_dense(name, value)
        what, shapes = "These weights", {name: tuple(value.shape) for name, value in weights.items()}
    else:
        what, shapes = f"The weights in {os.fspath(weights)}", _shapes(Path(weights))
    _require_fit(model, shapes, what)


def _shapes(source: Path) -> dict[str, tuple[int, ...]]:
    if source.suffix != ".safetensors" or not source.is_file():
        return {name: tuple(value.shape) for name, value in load_weights(source).items()}
    try:
        with safetensors.safe_open(source, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        # Says what is wrong with the file, in the words of every other reader.
        load_weights(source)
        raise


def _require_fit(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    own = model.state_dict()
    missing = [name for name in own if name not in shapes]
    unexpected = [name for name in shapes if name not in own]
    reshaped = [
        f"{name} {shapes[name]} instead of {tuple(own[name].shape)}"
        for name in own
        if name in shapes and isinstance(own[name], Tensor) and shapes[name] != tuple(own[name].shape)
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:_N_NAMED])}{', ...' if len(names) > _N_NAMED else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if found:
        raise InvalidInputError(
            f"{what} do not fit {type(model).__name__}: {'; '.join(found)}, "
            f"expected its {len(own)} entries; build the model with the options it was trained with."
        )


def checkpoint_path(folder: PathLike, step: int) -> Path:
    """Return the path of the checkpoint of `step` in a training folder."""
    return Path(folder) / f"step-{step:06d}.safetensors"


def list_checkpoints(folder: PathLike) -> list[tuple[int, Path]]:
    """List the checkpoints of a training folder as (step, path), by step; other files are ignored.

    Raises
    ------
    NotFoundError
        No such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotFoundError(f"No training folder at {root}, expected one with step-*.safetensors files; train first.")
    matches = ((_CHECKPOINT_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _require_dense(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        kind = value.layout if isinstance(value, Tensor) else type(value).__name__
        raise InvalidInputError(f"Weights entry {name!r} is {kind}, expected a dense tensor; leave it out.")
    return value


def _dense(name: str, value: object) -> Tensor:
    return _require_dense(name, value).detach().cpu().contiguous()


def _plain_state_dict(content: object, source: Path) -> dict[str, Tensor]:
    candidate = content
    if isinstance(content, Mapping):
        candidate = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if (
        not isinstance(candidate, Mapping)
        or not candidate
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in candidate.items())
    ):
        raise InvalidInputError(
            f"{source} holds {type(content).__name__}, expected a state dict (names to tensors), alone or under "
            f"one of the keys {', '.join(_WRAPPERS)}; save model.state_dict()."
        )
    return dict(candidate)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
