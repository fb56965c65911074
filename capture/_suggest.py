"""The words of an error about an unknown name: what is known, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["expected_one_of"]


def expected_one_of(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence, without its full stop.

    Examples
    --------
    >>> expected_one_of("tets", ["train", "test"])
    "expected one of train, test; did you mean 'test'"
    """
    names = list(known)
    near = get_close_matches(name, names, n=1)
    return f"expected one of {', '.join(names)}" + (f"; did you mean {near[0]!r}" if near else "")
