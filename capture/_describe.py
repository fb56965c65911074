"""What an argument is, in a few words: types and shapes, never the numbers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Final

__all__ = ["described"]

_MAX_SHOWN: Final = 60


def described(value: Any) -> str:
    """Return a short description that is safe to put into an error, however large the value.

    Examples
    --------
    >>> described((3, {"w": [1.0] * 1000})), described("abc")
    ('tuple (3, dict of 1)', "'abc'")
    """
    shape = getattr(value, "shape", None)
    if shape is not None:
        dtype = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{type(value).__name__}{dtype} with shape {tuple(shape)}"
    if isinstance(value, tuple) and 0 < len(value) <= 3:
        return f"{type(value).__name__} ({', '.join(described(part) for part in value)})"
    if value is None or isinstance(value, str | bytes | bool | int | float):
        text = repr(value)
        return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
    if isinstance(value, Mapping | list | tuple | set) and isinstance(value, Sized):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
