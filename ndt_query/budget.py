"""How much memory a query will take, as arithmetic that can be read, and what it may take.

The projection of one query is::

    threads x (2 x source chunk + working factor x piece) + states x state size + result size

A *source chunk* is what one task reads at a time, a block where that is enough; a *piece* is what one kernel call is
given of it, the *working factor* counts the kernel's temporaries against the piece, and *states* counts the partial
results that are alive at the same time. Source chunks count twice: beside the one in work, each thread may hold its
compressed form, or may leave a finished one that the scheduler or the allocator has yet to give back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import dask
import numpy as np
from dask.system import CPU_COUNT
from dask.utils import format_bytes, parse_bytes

from ndt_store.errors import InvalidInputError, MemoryBudgetError
from ndt_store.nbytes import memory_nbytes

__all__ = ["MEMORY_VARIABLE", "Projection", "allowed_nbytes", "check", "n_threads", "projected_nbytes"]

MEMORY_VARIABLE: Final = "NDT_MEMORY"
RAM_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Projection:
    """The terms of one query's projection, in bytes except for the counts.

    Parameters
    ----------
    source_nbytes, piece_nbytes : int
        Largest chunk that a task reads, and largest part of it that a kernel is given.
    working_factor : float
        Kernel temporaries over `piece_nbytes`.
    n_threads : int
        Tasks that run at the same time.
    state_nbytes, n_states : int
        Size of a partial result, and how many are alive at the same time.
    result_nbytes : int
        Size of the answer.
    """

    source_nbytes: int
    piece_nbytes: int
    working_factor: float
    n_threads: int
    state_nbytes: int
    n_states: int
    result_nbytes: int


def projected_nbytes(terms: Projection) -> int:
    """Peak memory that a query is projected to take beyond the interpreter, in bytes.

    Examples
    --------
    >>> projected_nbytes(Projection(1000, 1000, 1.5, 4, 100, 8, 50))
    14850
    """
    working = terms.n_threads * (2 * terms.source_nbytes + terms.working_factor * terms.piece_nbytes)
    return int(working) + terms.n_states * terms.state_nbytes + terms.result_nbytes


def n_threads() -> int:
    """Return how many tasks dask's local scheduler would run at the same time."""
    if dask.config.get("scheduler", None) in ("synchronous", "sync", "single-threaded"):
        return 1
    configured = dask.config.get("num_workers", None) or dask.config.get("pool", None)
    if configured is None:
        return int(CPU_COUNT)
    return int(configured if isinstance(configured, int) else getattr(configured, "_max_workers", CPU_COUNT))


def allowed_nbytes(memory: int | str | None = None) -> int:
    """Bytes that one query may take.

    Parameters
    ----------
    memory : int or str, optional
        A number of bytes or a text like ``"4 GiB"``. Without it the environment variable ``NDT_MEMORY`` counts, and
        without that half of the memory of the machine or of the process's control group.

    Raises
    ------
    InvalidInputError
        The text is not a size.
    """
    wanted = memory if memory is not None else os.environ.get(MEMORY_VARIABLE)
    if wanted is None:
        return int(RAM_SHARE * memory_nbytes())
    try:
        if isinstance(wanted, bool) or not isinstance(wanted, int | float | np.number | str) or wanted == "":
            raise ValueError
        nbytes = int(parse_bytes(wanted if isinstance(wanted, str) else float(wanted)))
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"memory={wanted!r} is not a size: give bytes, or a text such as '4 GiB'.") from error
    if nbytes <= 0:
        raise InvalidInputError(f"memory={wanted!r} is not a size: expected more than 0 bytes.")
    return nbytes


def check(what: str, terms: Projection, allowed: int, advice: str) -> None:
    """Raise when a projection exceeds what is allowed.

    Raises
    ------
    MemoryBudgetError
        With both numbers in it.
    """
    projected = projected_nbytes(terms)
    if projected > allowed:
        raise MemoryBudgetError(
            f"{what} is projected to take {format_bytes(projected)} where {format_bytes(allowed)} are allowed "
            f"({terms.n_threads} threads with chunks of {format_bytes(terms.source_nbytes)}, {terms.n_states} states "
            f"of {format_bytes(terms.state_nbytes)}): {advice}, use fewer threads, or raise memory= "
            f"or {MEMORY_VARIABLE}.",
            projected,
            allowed,
        )
