"""At which training steps to keep the weights.

A schedule is a sorted tuple of steps. Step 0 is the initialised model before any update; step n is the model
after n updates. Written as a list of steps, as ``{every = N}`` or as ``{log = N}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ndt_store.errors import InvalidInputError

__all__ = ["checkpoint_steps"]

_FORMS = "a list of steps, {every = N} or {log = N}"


def checkpoint_steps(n_steps: int, spec: Sequence[int] | Mapping[str, int]) -> tuple[int, ...]:
    """Return the steps at which to keep the weights.

    Parameters
    ----------
    n_steps : int
        Number of updates in the training.
    spec : sequence of int, or mapping
        Steps from 0 to `n_steps` in any order, kept as they are; ``{"every": N}``: 0, N, 2N, ... and the
        last; ``{"log": N}``: N steps, 0, 1 and the last among them, the ones between evenly spaced on a
        logarithmic axis as far as whole numbers allow.

    Raises
    ------
    InvalidInputError
        `spec` has another form, or a step outside the training.

    Examples
    --------
    >>> checkpoint_steps(100, {"log": 6})
    (0, 1, 3, 10, 32, 100)
    >>> checkpoint_steps(100, {"every": 40})
    (0, 40, 80, 100)
    """
    if isinstance(spec, Mapping):
        if len(spec) != 1:
            raise InvalidInputError(f"A schedule is {dict(spec)!r}, expected {_FORMS}.")
        form, number = next(iter(spec.items()))
        if form not in ("every", "log") or not _is_whole(number) or number < (1 if form == "every" else 2):
            raise InvalidInputError(
                f"A schedule is {dict(spec)!r}, expected {_FORMS}, with N at least 1 for every and 2 for log."
            )
        return (*range(0, n_steps, number), n_steps) if form == "every" else _log_steps(n_steps, number)
    if not isinstance(spec, Sequence) or not spec or not all(map(_is_whole, spec)):
        raise InvalidInputError(f"A schedule is {spec!r}, expected {_FORMS}.")
    outside = [step for step in spec if not 0 <= step <= n_steps]
    if outside:
        raise InvalidInputError(f"A schedule holds step {outside[0]}, expected steps from 0 to {n_steps}, the last.")
    return tuple(sorted(set(spec)))


def _log_steps(n_steps: int, n_kept: int) -> tuple[int, ...]:
    if n_kept > n_steps:
        return tuple(range(n_steps + 1))
    if n_kept == 2:
        return 0, n_steps
    steps = [0, 1]
    while len(steps) < n_kept:
        # Where the geometric stride is below 1 the next whole number is taken, and the rest spreads anew.
        ideal = steps[-1] * (n_steps / steps[-1]) ** (1 / (n_kept - len(steps)))
        steps.append(max(steps[-1] + 1, round(ideal)))
    return tuple(steps)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
