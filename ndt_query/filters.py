"""Which examples drive units beyond a threshold: every one of them, from the blocks that can hold one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.asked import Asked, asked_of
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import canonical, example_ids, require_count
from ndt_query.layers import described, per_unit
from ndt_query.pruned import Blocks, needed, zones_of
from ndt_query.ranking import places
from ndt_query.reduce import ADVICE
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT
from ndt_store.errors import InvalidInputError
from ndt_store.layout import block_nbytes, n_blocks
from ndt_store.views.blocks import Block, as_block, as_float, spans
from ndt_store.views.build import each_block
from ndt_store.views.fused import summarise

__all__ = ["examples_above"]

HIT: Final = "hit"
_PIECE_NBYTES: Final = 16 << 20


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
        The most hits that are collected.
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
    rare events that is nearly all of them, and with many units or a low threshold none.

    Examples
    --------
    >>> acts = xr.DataArray([[0.5], [2.0], [1.0]], dims=("example", "unit"), coords={"example": [7, 8, 9]})
    >>> examples_above(acts, 0.7)["example"].values.tolist()
    [8, 9]
    """
    given = acts
    acts, _ = canonical(given)
    number = isinstance(threshold, int | float | np.integer | np.floating) and not isinstance(threshold, bool)
    if not number or not np.isfinite(threshold):
        raise InvalidInputError(f"threshold={threshold!r} is not possible: expected a finite number.")
    collected = _Collector(float(threshold), require_count("limit", limit, 1))
    asked, why = asked_of(given) if views else (None, "views=False")
    total = read = 0
    if asked is not None:
        read, total = _from_blocks(asked, collected, memory)
        source = f"{asked.spec.path}: {read} of {total} blocks, those that zone maps do not rule out"
    else:
        _from_values(acts, collected)
        source = f"a pass over the values ({why})"
    hits = collected.ordered(example_ids(acts))
    result = _labelled(acts, hits)
    variables = {str(name): values for name, values in result.data_vars.items()}
    what, parameters = "examples in which a unit exceeds a threshold", {"threshold": float(threshold), "limit": limit}
    result = described(variables, acts, what, parameters, squeeze=False, explain=source if explain else "")
    return result.assign_attrs({"blocks_read": read, "blocks": total} if asked is not None else {})


class _Collector:
    """Gathers hits from any thread, up to a limit."""

    def __init__(self, threshold: float, limit: int) -> None:
        # numpy would round a Python float to the type of the values, which differs between a block and its zones.
        self.threshold = np.float64(threshold)
        self._limit = limit
        self._found: list[_Hits] = []
        self._n = 0
        self._guard = threading.Lock()

    def look(self, block: Block, checkpoint: int, rows: NDArray[np.intp]) -> None:
        """Find the hits of one block (1, example, token, unit, position) whose examples have the positions `rows`."""
        block = as_float(block)
        best = summarise(block, best=True).best
        assert best is not None
        example, unit = np.nonzero(~(best[0] <= self.threshold))
        if not len(example):
            return
        with self._guard:
            self._n += len(example)
            if self._n > self._limit:
                raise InvalidInputError(
                    f"More than {self._limit} hits lie beyond the threshold {self.threshold:g}: raise the threshold, "
                    "select fewer units or checkpoints, or raise limit=."
                )
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


def _from_blocks(asked: Asked, collected: _Collector, memory: int | str | None) -> tuple[int, int]:
    """Visit the blocks that can hold a hit; how many were read, and of how many."""
    nbytes, threads = block_nbytes(asked.spec), n_threads()
    check("examples_above", Projection(nbytes, nbytes, 2.0, threads, 0, 0, 0), allowed_nbytes(memory), ADVICE)
    place = np.empty(asked.frame.n_examples, np.intp)
    place[asked.rows] = np.arange(len(asked.rows))
    n_read = 0
    for c, step in enumerate(asked.steps):
        blocks = Blocks(asked, zones_of(asked, step))
        wanted = needed(blocks, collected.threshold)
        n_read += len(wanted)

        def visit(index: int, data: NDArray[Any], blocks: Blocks = blocks, c: int = c) -> None:
            collected.look(blocks.take(index, data), c, place[blocks.rows(index)])

        each_block(asked.catalogue, asked.spec, step, wanted, visit, n_threads=threads)
    return n_read, n_blocks(asked.spec) * len(asked.steps)


def _from_values(acts: xr.DataArray, collected: _Collector) -> None:
    n_before = [str(dim) for dim in acts.dims].index(UNIT) - 2
    for c in range(acts.sizes[CHECKPOINT]):
        for rows in _runs(acts):
            values = np.asarray(acts.isel({CHECKPOINT: [c], EXAMPLE: rows}).data)
            collected.look(as_block(values, n_before), c, np.arange(acts.sizes[EXAMPLE])[rows])


def _runs(acts: xr.DataArray) -> Iterator[slice]:
    """Cut examples as the data are cut, or into pieces of some megabytes."""
    if acts.chunks is None:
        nbytes = acts.nbytes // (acts.sizes[CHECKPOINT] * acts.sizes[EXAMPLE])
        yield from spans(acts.sizes[EXAMPLE], _PIECE_NBYTES // max(1, nbytes))
        return
    start = 0
    for length in acts.chunksizes[EXAMPLE]:
        yield slice(start, start + length)
        start += length


def _labelled(acts: xr.DataArray, hits: _Hits) -> xr.Dataset:
    result = xr.Dataset()
    for dim in (CHECKPOINT, UNIT, EXAMPLE):
        labels = np.asarray(acts[dim].values)
        result[dim] = (HIT, labels[getattr(hits, dim)])
    result["value"] = (HIT, hits.value)
    for dim, labels_at in places(acts, xr.DataArray(hits.position, dims=HIT)).items():
        result[dim] = labels_at
    return result
