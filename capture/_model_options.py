"""What the builders of models are given, and how their options are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ndt_store.errors import InvalidInputError

__all__ = ["InputShape", "positive_ints"]

InputShape: TypeAlias = tuple[int, int, int]
"""(channel, y, x) of one image."""


def positive_ints(option: str, values: Sequence[int]) -> list[int]:
    """Return the numbers of an option that lists whole numbers above 0.

    Raises
    ------
    InvalidInputError
        It is something else; the message names the option.
    """
    numbers = list(values) if isinstance(values, Sequence) else []
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise InvalidInputError(f"Model option {option} is {values!r}, expected whole numbers above 0.")
    return numbers
