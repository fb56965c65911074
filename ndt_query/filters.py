"""Which examples drive units beyond a threshold: every one of them, from the blocks that can hold one."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.asked import Asked, asked_of
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import canonical, example_ids, require_count
from ndt_query.layers import described, per_unit
from ndt_query.pruned import Blocks, needed, without_zones
from ndt_query.ranking import places
from ndt_query.reduce import ADVICE
from ndt_query.viewed import UnitPass
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.layout import block_nbytes, n_blocks, numpy_dtype
from ndt_store.views.blocks import Block, as_block, as_float, spans
from ndt_store.views.fused import summarise

__all__ = ["HitLimit", "examples_above", "hits_above"]

HIT: Final = "hit"
_PIECE_NBYTES: Final = 16 << 20
_HIT_NBYTES: Final = 120
"""Five numbers of a hit: as found, joined, and in order."""


@dataclass(frozen=True, slots=True)
class _Hits:
    """Positions on the axes of the array asked about, values, and flat positions within the example."""

    checkpoint: NDArray[np.intp]
    example: NDArray[np.intp]
    unit: NDArray[np.intp]
    value: NDArray[Any]
    position: NDArray[np.intp]


@per_unit
def examples_above(
    acts: xr.DataArray,
    threshold: float,
    *,
    limit: int = 1_000_000,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Find every example in which a unit exceeds a threshold.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations; select units, examples and checkpoints first to ask about them alone.
    threshold : float
        A unit's largest value over positions has to exceed this, compared in float64; any finite number.
    limit : int
        The most hits that are collected, of each layer; 120 bytes each count towards the budget.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether zone maps may rule blocks out, and whether the attribute ``explain`` says how many they did.

    Returns
    -------
    Dataset or DataTree
        Over (hit,), in memory, ordered by checkpoint, unit and falling value, equal values by example: ``checkpoint``,
        ``unit`` and ``example``, by label; ``value``, the largest over positions, and where it is, ``y`` and ``x`` or
        ``token``. A NaN counts as larger than every number. The attributes ``blocks_read`` and ``blocks`` count what
        was read of a store.

    Raises
    ------
    InvalidInputError
        There are more hits than `limit`, or the threshold is not finite.

    Notes
    -----
    Computed at once. Blocks whose zone map shows no selected unit beyond the threshold are not read: with few units or
    rare events that is nearly all of them, and with many units or a low threshold none. Where zone maps are missing and
    all blocks are read, they are made on the way. Other arrays are read chunk by chunk, each once.

    Examples
    --------
    >>> acts = xr.DataArray([[0.5], [2.0], [1.0]], dims=("example", "unit"), coords={"example": [7, 8, 9]})
    >>> examples_above(acts, 0.7)["example"].values.tolist()
    [8, 9]
    """
    allowed = HitLimit(require_count("limit", limit, 1))
    return hits_above(acts, threshold, allowed, memory=memory, views=views, explain=explain)


class HitLimit:
    """The most hits that may be collected, of one array or of several together.

    Parameters
    ----------
    most : int
        Number of hits.
    option : str
        What the user raises, for messages.
    """

    def __init__(self, most: int, option: str = "limit=") -> None:
        self.most = most
        self.option = option
        self._n = 0
        self._guard = threading.Lock()

    def add(self, n: int, threshold: float) -> None:
        """Count `n` more; any thread may call."""
        with self._guard:
            self._n += n
            if self._n > self.most:
                raise InvalidInputError(
                    f"More than {self.most} hits lie beyond the threshold {threshold:g}: raise the threshold, "
                    f"select fewer units or checkpoints, or raise {self.option}."
                )


def hits_above(
    given: xr.DataArray,
    threshold: float,
    limit: HitLimit,
    *,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Answer `examples_above` for one array, under a limit that other arrays may share."""
    acts, _ = canonical(given)
    number = isinstance(threshold, int | float | np.integer | np.floating) and not isinstance(threshold, bool)
    if not number or not np.isfinite(threshold):
        raise InvalidInputError(f"threshold={threshold!r} is not possible: expected a finite number.")
    collected = _Collector(float(threshold), limit)
    hits_nbytes = _HIT_NBYTES * min(limit.most, math.prod(acts.sizes[dim] for dim in (CHECKPOINT, EXAMPLE, UNIT)))
    budget = _Budget(allowed_nbytes(memory), hits_nbytes, limit.option)
    asked, why = asked_of(given) if views else (None, "views=False")
    total = read = 0
    if asked is not None:
        read, total, missing = _from_blocks(asked, collected, budget)
        source = f"{asked.spec.path}: {read} of {total} blocks, those that zone maps do not rule out{missing}"
    else:
        _from_values(acts, collected, budget)
        source = f"a pass over the values ({why})"
    hits = collected.ordered(example_ids(acts))
    variables = _labelled(acts, hits)
    what, parameters = (
        "examples in which a unit exceeds a threshold",
        {"threshold": float(threshold), "limit": limit.most},
    )
    result = described(variables, acts, what, parameters, squeeze=False, explain=source if explain else "")
    return result.assign_attrs({"blocks_read": read, "blocks": total} if asked is not None else {})


class _Collector:
    """Gathers hits from any thread, up to a limit."""

    def __init__(self, threshold: float, limit: HitLimit) -> None:
        # numpy would round a Python float to the type of the values, which differs between a block and its zones.
        self.threshold = np.float64(threshold)
        self._limit = limit
        self._found: list[_Hits] = []
        self._guard = threading.Lock()

    def look(self, block: Block, checkpoint: int, rows: NDArray[np.intp]) -> None:
        """Find the hits of one block (1, example, token, unit, position) whose examples have the positions `rows`."""
        block = as_float(block)
        best = summarise(block, best=True).best
        assert best is not None
        example, unit = np.nonzero(~(best[0] <= self.threshold))
        if not len(example):
            return
        self._limit.add(len(example), float(self.threshold))
        position = np.zeros(len(example), np.intp)
        for part in spans(len(example), max(1, _PIECE_NBYTES // (8 * block.shape[2] * block.shape[4]))):
            chosen = block[0, example[part], :, unit[part], :]
            position[part] = chosen.reshape(len(chosen), -1).argmax(axis=1)
        value = best[0, example, unit]
        found = _Hits(np.full(len(example), checkpoint), rows[example], unit, value, position)
        with self._guard:
            self._found.append(found)

    def ordered(self, ids: NDArray[np.int64]) -> _Hits:
        """Return all hits by checkpoint, unit, falling value and example id."""
        empty = np.empty(0, np.intp)
        parts = self._found or [_Hits(empty, empty, empty, np.empty(0), empty)]
        joined = [np.concatenate([getattr(part, name) for part in parts]) for name in _Hits.__slots__]
        checkpoint, example, unit, value, _ = joined
        falling = np.where(np.isnan(value), -np.inf, -value.astype(np.float64))
        order = np.lexsort((ids[example], falling, ~np.isnan(value), unit, checkpoint))
        return _Hits(*(field[order] for field in joined))


@dataclass(frozen=True, slots=True)
class _Budget:
    """What the question may take, what its hits may take of that, and what the user lowers to have fewer of them."""

    allowed_nbytes: int
    hits_nbytes: int
    limit_option: str

    def check(self, source_nbytes: int, working_factor: float, n_threads: int, state_nbytes: int) -> None:
        """Raise `MemoryBudgetError` where the question does not fit."""
        terms = Projection(
            source_nbytes, source_nbytes, working_factor, n_threads, state_nbytes, 1, self.hits_nbytes
        )  # fmt: skip
        check("examples_above", terms, self.allowed_nbytes, f"lower {self.limit_option}, {ADVICE}")


def _float_factor(dtype: np.dtype[Any]) -> float:
    """Return the bytes of a block as floats, and again of the values where hits are, over its own."""
    return 1 if dtype in (np.float32, np.float64) else 2 * 8 / dtype.itemsize


def _from_blocks(asked: Asked, collected: _Collector, budget: _Budget) -> tuple[int, int, str]:
    """Visit the blocks that can hold a hit; how many were read, of how many, and where zone maps are missing."""
    nbytes, threads = block_nbytes(asked.spec), n_threads()
    place = np.empty(asked.frame.n_examples, np.intp)
    place[asked.rows] = np.arange(len(asked.rows))
    n_read = 0
    notes: dict[int, str] = {}
    for c, step in enumerate(asked.steps):
        blocks = Blocks(asked, step)
        making_nbytes = UnitPass().state_nbytes(asked) if blocks.makes_views else 0
        budget.check(nbytes, 1 + _float_factor(numpy_dtype(asked.spec)), threads, making_nbytes)
        wanted = needed(blocks, collected.threshold)
        n_read += len(wanted)
        notes.setdefault(step, blocks.note)

        def visit(index: int, data: NDArray[Any], blocks: Blocks = blocks, c: int = c) -> None:
            collected.look(blocks.take(index, data), c, place[blocks.rows(index)])

        blocks.each(wanted, visit, n_threads=threads)
    return n_read, n_blocks(asked.spec) * len(asked.steps), without_zones(notes)


def _from_values(acts: xr.DataArray, collected: _Collector, budget: _Budget) -> None:
    n_before = [str(dim) for dim in acts.dims].index(UNIT) - 2
    steps, runs = _runs(acts, CHECKPOINT, 1), _runs(acts, EXAMPLE, _PIECE_NBYTES)
    if acts.chunks is not None:
        _check_chunks(acts, budget)
    for checkpoints, rows in itertools.product(steps, runs):
        values = np.asarray(acts.isel({CHECKPOINT: checkpoints, EXAMPLE: rows}).data)
        for c in range(len(values)):
            block = as_block(values[c : c + 1], n_before)
            collected.look(block, checkpoints.start + c, np.arange(rows.start, rows.stop))


def _check_chunks(acts: xr.DataArray, budget: _Budget) -> None:
    """Hold one piece to the budget: the chunks of a run of checkpoints and examples, computed side by side."""
    assert acts.chunks is not None
    itemsize = acts.dtype.itemsize
    source_nbytes = math.prod(map(max, acts.chunks)) * itemsize
    n_side_by_side = math.prod(len(sizes) for sizes in acts.chunks[2:])
    one_step_nbytes = max(acts.chunks[1]) * math.prod(acts.shape[2:]) * itemsize
    joined_nbytes = max(acts.chunks[0]) * one_step_nbytes if n_side_by_side > 1 else 0
    working_nbytes = joined_nbytes + int(_float_factor(acts.dtype) * one_step_nbytes)
    budget.check(source_nbytes, 0, min(n_threads(), n_side_by_side), working_nbytes)


def _runs(acts: xr.DataArray, dim: str, nbytes: int) -> list[slice]:
    """Cut a dimension as the data are cut, or into runs of so many bytes at one checkpoint."""
    if acts.chunks is None:
        entry_nbytes = acts.nbytes // (acts.sizes[CHECKPOINT] * acts.sizes[EXAMPLE])
        return list(spans(acts.sizes[dim], nbytes // max(1, entry_nbytes)))
    ends = np.cumsum(acts.chunksizes[dim]).tolist()
    return [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if start < stop]


def _labelled(acts: xr.DataArray, hits: _Hits) -> dict[str, xr.Variable]:
    found = {}
    for dim in (CHECKPOINT, UNIT, EXAMPLE):
        labels = np.asarray(acts[dim].values)
        found[dim] = xr.Variable((HIT,), labels[getattr(hits, dim)])
    found["value"] = xr.Variable((HIT,), hits.value)
    return found | places(acts, xr.Variable((HIT,), hits.position))
