"""What makes a capture the one it is, beside its probe set and its weights: the model's structure, and callables.

Both are digests of what can be seen without running anything, so that a resumed capture with another activation
function or another ``gradient_of`` is refused. They are not proofs: a ``forward`` that was edited, or a function that
reads a changed global, keeps its digest.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from hashlib import sha256
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, Final

from torch import nn

from capture.objective import GradientOf

__all__ = ["callable_name", "structure_digest"]

_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")
_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def structure_digest(model: nn.Module) -> str:
    """Hash what a model is built of.

    SHA-256, in hex, over ``repr(model)`` without memory addresses, and for each module over the functions it holds as
    attributes and, where its class is PyTorch's own, its plain attributes: ``nn.TransformerEncoderLayer`` shows neither
    its activation function nor ``norm_first``. Weights, buffers, devices and the training flag do not enter.

    Examples
    --------
    >>> structure_digest(nn.Sequential(nn.ReLU())) == structure_digest(nn.Sequential(nn.Tanh()))
    False
    """
    sha = sha256(_ADDRESS.sub("", repr(model)).encode())
    for path, module in model.named_modules():
        ours = type(module).__module__.partition(".")[0] == "torch"
        for name, value in sorted(vars(module).items()):
            if name.startswith("_") or name == "training":
                continue
            if ours and isinstance(value, _PLAIN):
                sha.update(json.dumps([path, name, repr(value)]).encode())
            elif callable(value) and hasattr(value, "__qualname__"):
                sha.update(json.dumps([path, name, _value(value)]).encode())
    return sha.hexdigest()


def callable_name(function: GradientOf | Callable[..., Any] | None) -> str | None:
    """Return a name that tells a callable from another one; strings and None stand for themselves.

    That is ``module.qualname``, and for Python functions the first 16 hex digits of a SHA-256 over bytecode, constants,
    names, defaults and the plain values it closes over or, as a method, finds in its object. Another Python version
    compiles to another digest.

    Examples
    --------
    >>> callable_name("loss"), callable_name(len)
    ('loss', 'builtins.len')
    >>> callable_name(lambda out, labels: out[:, 0]) == callable_name(lambda out, labels: out[:, 1])
    False
    """
    if function is None or isinstance(function, str):
        return function
    content = _content(function)
    return _name(function) if content is None else f"{_name(function)} {_sha(content)[:16]}"


def _name(value: Any) -> str:
    named: Any = value if hasattr(value, "__qualname__") else type(value)
    # Methods of C types name no module.
    return f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"


def _sha(content: Any) -> str:
    return sha256(json.dumps(content).encode()).hexdigest()


def _content(function: Any) -> Any:
    """Return what can be seen of a callable as JSON, None where its name is all."""
    if isinstance(function, nn.Module):
        return structure_digest(function)
    if isinstance(function, functools.partial):
        return [callable_name(function.func), _value(function.args), _value(function.keywords)]
    state: Any = None
    called: Any = getattr(type(function), "__call__", None)  # noqa: B004 - its code is wanted, not whether it is there
    if isinstance(function, MethodType):
        state, function = _state(function.__self__), function.__func__
    elif isinstance(called, FunctionType):
        state, function = _state(function), called
    if not isinstance(function, FunctionType):
        return None
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    return [state, *map(_value, (function.__code__, function.__defaults__, function.__kwdefaults__, cells))]


def _state(owner: Any) -> Any:
    return structure_digest(owner) if isinstance(owner, nn.Module) else _value(getattr(owner, "__dict__", {}))


def _value(value: Any) -> Any:
    """Return a constant as JSON; of what is no constant, code or container of them, its type, of a function its name.

    Functions go no deeper than their code, because one may close over itself.
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_value, value)]
    if isinstance(value, set | frozenset):
        # In an order of its own, because that of a set changes from process to process.
        return [type(value).__name__, *sorted(json.dumps(_value(part)) for part in value)]
    if isinstance(value, dict):
        return ["dict", *([_value(key), _value(part)] for key, part in value.items())]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), _value(value.co_consts), *value.co_names, *value.co_freevars]
    return [_name(value), _value(getattr(value, "__code__", None))]
