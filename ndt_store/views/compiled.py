"""Compiled kernels that sum a block without the interpreter lock.

Importing this module imports numba, so it is imported inside the functions that run a kernel. Kernels that call each
other stand in one file because numba's cache looks at the time of the file of the outermost one alone. Arguments are
not checked here: callers hand over C-contiguous float32 or float64 and codes within their bounds.

A slab is (example, token, unit, position), seen also as a matrix of ``example * token`` rows and ``unit * position``
columns. Three forms reduce it to the same parts:

`reduce_columns`
    One value an example: each column keeps its own sums, which is vector code without a horizontal step.
`reduce_short`
    Few positions: sums by column as above, and while those rows are in cache the sum, maximum and active values of
    each example.
`reduce_long`
    Many positions: the run of each unit is reduced along itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.views.blocks import Array
from ndt_store.views.jit import jit

if TYPE_CHECKING:
    from ndt_store.views.sums import Parts

__all__ = ["add_positions", "reduce_columns", "reduce_long", "reduce_short"]

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_GROUP_NBYTES: Final = 1 << 17
"""Rows taken together while they are in a core's own cache."""

_TILE: Final = 1024
"""Columns whose sums, 44 bytes each, are taken together."""


@jit("contract")
def _four_rows(
    a: Array, b: Array, c: Array, d: Array, limit: Any, shift: F64, sums: F64, low: Array, high: Array, active: I32
) -> None:
    """Add four rows to the sums of their columns: four at once, because the sums cost more to load than the values.

    Rows come as arrays of their own: indexed in their matrix they do not become vector code.
    """
    difference, square, magnitude = sums[0], sums[1], sums[2]
    for j in range(a.size):
        least = a[j] if a[j] < b[j] else b[j]
        other = c[j] if c[j] < d[j] else d[j]
        least = least if least < other else other
        low[j] = least if least < low[j] else low[j]
        most = a[j] if a[j] > b[j] else b[j]
        other = c[j] if c[j] > d[j] else d[j]
        most = most if most > other else other
        high[j] = most if most > high[j] else high[j]
        active[j] += np.int32(abs(a[j]) > limit) + np.int32(abs(b[j]) > limit)
        active[j] += np.int32(abs(c[j]) > limit) + np.int32(abs(d[j]) > limit)
        w, x, y, z = np.float64(a[j]), np.float64(b[j]), np.float64(c[j]), np.float64(d[j])
        magnitude[j] += (abs(w) + abs(x)) + (abs(y) + abs(z))
        w, x, y, z = w - shift[j], x - shift[j], y - shift[j], z - shift[j]
        difference[j] += (w + x) + (y + z)
        square[j] += (w * w + x * x) + (y * y + z * z)


@jit("contract")
def _one_row(row: Array, limit: Any, shift: F64, sums: F64, low: Array, high: Array, active: I32) -> None:
    difference, square, magnitude = sums[0], sums[1], sums[2]
    for j in range(row.size):
        low[j] = row[j] if row[j] < low[j] else low[j]
        high[j] = row[j] if row[j] > high[j] else high[j]
        active[j] += np.int32(abs(row[j]) > limit)
        value = np.float64(row[j])
        magnitude[j] += abs(value)
        value -= shift[j]
        difference[j] += value
        square[j] += value * value


@jit()
def _add_rows(
    rows: Array, first: int, last: int, limit: Any, shift: F64, sums: F64, low: Array, high: Array, active: I32
) -> None:
    """Add rows ``first:last`` of a matrix to the sums (tile, sum, column of the tile) of its columns."""
    fours = last - (last - first) % 4
    for tile in range(len(sums)):
        x = tile * _TILE
        y = min(rows.shape[1], x + _TILE)
        k, s, lo, hi, n = shift[x:y], sums[tile], low[x:y], high[x:y], active[x:y]
        for r in range(first, fours, 4):
            _four_rows(rows[r, x:y], rows[r + 1, x:y], rows[r + 2, x:y], rows[r + 3, x:y], limit, k, s, lo, hi, n)
        for r in range(fours, last):
            _one_row(rows[r, x:y], limit, k, s, lo, hi, n)


@jit()
def reduce_columns(slab: Array, limit: Any, shift: F64, codes: I64, parts: Parts) -> None:
    """Reduce (example, 1, unit, 1), of which `Parts.best` would be the slab itself and is not written."""
    n_rows, _, n_units, _ = slab.shape
    rows = slab.reshape(n_rows, n_units)
    sums, extremes, counts, class_total, _ = parts
    by_column = np.zeros((-(-n_units // _TILE), 3, _TILE))
    active = np.zeros(n_units, np.int32)
    group = max(16, _GROUP_NBYTES // (n_units * slab.itemsize) // 4 * 4)
    for first in range(0, n_rows, group):
        last = min(n_rows, first + group)
        _add_rows(rows, first, last, limit, shift, by_column, extremes[0], extremes[1], active)
        for e in range(first, last if codes.size else first):
            row, of_class = rows[e], class_total[codes[e]]
            for u in range(n_units):
                of_class[u] += row[u]
    unknown = 0
    for u in range(n_units):
        for i in range(3):
            sums[i, u] += by_column[u // _TILE, i, u % _TILE]
        unknown += np.isnan(sums[0, u])
        counts[1, u] += active[u]
        counts[2, u] += active[u]
    if unknown:  # a NaN, or infinities of both signs
        for e in range(n_rows):
            for u in range(n_units):
                counts[0, u] += np.isnan(rows[e, u])
                counts[3, u] += np.isnan(rows[e, u])


@jit()
def _per_example(run: Array, limit: Any, total: F64, most: Array, active: I32) -> None:
    """Add one token (unit, position) of an example to each unit's sum, maximum and number of active values."""
    n_units, n_positions = run.shape
    values = run.reshape(-1)
    if n_positions == 1:
        for u in range(n_units):
            a = values[u]
            total[u] += np.float64(a)
            active[u] += np.int32(abs(a) > limit)
            most[u] = a if a > most[u] else most[u]
    elif n_positions == 4:  # a stride known beforehand makes vector code of the commonest short run, 2 by 2
        for u in range(n_units):
            a, b, c, d = values[4 * u], values[4 * u + 1], values[4 * u + 2], values[4 * u + 3]
            total[u] += (np.float64(a) + np.float64(b)) + (np.float64(c) + np.float64(d))
            active[u] += np.int32(abs(a) > limit) + np.int32(abs(b) > limit)
            active[u] += np.int32(abs(c) > limit) + np.int32(abs(d) > limit)
            a = a if a > b else b
            c = c if c > d else d
            a = a if a > c else c
            most[u] = a if a > most[u] else most[u]
    else:
        for u in range(n_units):
            of_run, high, count = 0.0, run[u, 0], 0
            for p in range(n_positions):
                a = run[u, p]
                of_run += np.float64(a)
                high = a if a > high else high
                count += abs(a) > limit
            total[u] += of_run
            active[u] += np.int32(count)
            most[u] = high if high > most[u] else most[u]


@jit()
def _end_example(e: int, slab: Array, total: F64, most: Array, active: I32, codes: I64, parts: Parts) -> None:
    """Count example `e`, of which the sum, maximum and number of active values are known."""
    _, n_tokens, n_units, n_positions = slab.shape
    _, _, counts, class_total, best = parts
    unknown = 0
    for u in range(n_units):
        unknown += np.isnan(total[u])
    if unknown:  # a NaN, or infinities of both signs
        for u in range(n_units):
            if np.isnan(total[u]):
                found = 0
                for t in range(n_tokens):
                    for p in range(n_positions):
                        found += np.isnan(slab[e, t, u, p])
                counts[0, u] += found
                counts[3, u] += found > 0
                most[u] = np.nan if found else most[u]
    for u in range(n_units):
        counts[1, u] += active[u]
        counts[2, u] += active[u] > 0
    if codes.size:
        of_class = class_total[codes[e]]
        for u in range(n_units):
            of_class[u] += total[u] / (n_tokens * n_positions)
    for u in range(n_units if len(best) else 0):
        best[e, u] = most[u]


@jit()
def reduce_short(slab: Array, limit: Any, shift: F64, codes: I64, parts: Parts) -> None:
    """Reduce (example, token, unit, position) with few positions."""
    n_examples, n_tokens, n_units, n_positions = slab.shape
    n_columns = n_units * n_positions
    rows = slab.reshape(n_examples * n_tokens, n_columns)
    sums, extremes, _, _, _ = parts
    by_column = np.zeros((-(-n_columns // _TILE), 3, _TILE))
    wide, low, high = (
        np.repeat(shift, n_positions),
        np.repeat(extremes[0], n_positions),
        np.repeat(extremes[1], n_positions),
    )
    counter = np.zeros(n_columns, np.int32)
    total, most, active = np.empty(n_units), np.empty(n_units, slab.dtype), np.empty(n_units, np.int32)
    group = max(1, _GROUP_NBYTES // (n_tokens * n_columns * slab.itemsize))
    if n_tokens < 4:
        group = (group + 3) // 4 * 4
    for first in range(0, n_examples, group):
        last = min(n_examples, first + group)
        _add_rows(rows, first * n_tokens, last * n_tokens, limit, wide, by_column, low, high, counter)
        for e in range(first, last):
            for u in range(n_units):
                total[u], most[u], active[u] = 0.0, -np.inf, 0
            for t in range(n_tokens):
                _per_example(slab[e, t], limit, total, most, active)
            _end_example(e, slab, total, most, active, codes, parts)
    for j in range(n_columns):
        u = j // n_positions
        for i in range(3):
            sums[i, u] += by_column[j // _TILE, i, j % _TILE]
        extremes[0, u] = min(extremes[0, u], low[j])
        extremes[1, u] = max(extremes[1, u], high[j])


@jit("nsz", "reassoc", "contract")
def _run_sums(run: Array, shift: float) -> tuple[float, float, float, float]:
    total, difference, square, magnitude = 0.0, 0.0, 0.0, 0.0
    for i in range(run.size):  # vector code, which an iterator does not become
        value = np.float64(run[i])
        away = value - shift
        total += value
        magnitude += abs(value)
        difference += away
        square += away * away
    return total, difference, square, magnitude


@jit()
def _run_active(run: Array, limit: Any) -> int:
    active = 0
    for i in range(run.size):
        active += abs(run[i]) > limit
    return active


@jit()
def _run_extremes(keys: NDArray[Any]) -> tuple[int, int]:
    """Extremes of floats by their bits as integers of the same order, which become vector code where floats do not."""
    flip = np.iinfo(keys.dtype).max
    low, high = flip, ~flip
    for i in range(keys.size):
        key = keys[i] ^ flip if keys[i] < 0 else keys[i]
        low, high = min(low, key), max(high, key)
    return low ^ flip if low < 0 else low, high ^ flip if high < 0 else high


@jit()
def reduce_long(slab: Array, keys: NDArray[Any], limit: Any, shift: F64, codes: I64, parts: Parts) -> None:
    """Reduce (example, token, unit, position) with many positions; `keys` are the slab's bits as integers."""
    n_examples, n_tokens, n_units, _ = slab.shape
    sums, extremes, _, _, _ = parts
    total, most, active = np.empty(n_units), np.empty(n_units, slab.dtype), np.empty(n_units, np.int32)
    bits = np.empty(2, keys.dtype)
    ends = bits.view(slab.dtype)
    for e in range(n_examples):
        for u in range(n_units):
            total[u], most[u], active[u] = 0.0, -np.inf, 0
        for t in range(n_tokens):
            for u in range(n_units):
                run = slab[e, t, u]
                of_run, difference, square, magnitude = _run_sums(run, shift[u])
                bits[0], bits[1] = _run_extremes(keys[e, t, u])
                total[u] += of_run
                sums[0, u] += difference
                sums[1, u] += square
                sums[2, u] += magnitude
                extremes[0, u] = min(extremes[0, u], ends[0])
                extremes[1, u] = max(extremes[1, u], ends[1])
                most[u] = max(most[u], ends[1])
                active[u] += _run_active(run, limit)
        _end_example(e, slab, total, most, active, codes, parts)


@jit("nsz", "reassoc")
def add_positions(slab: Array, total: F64) -> None:
    """Add up (example, token, unit, position) over positions into (example, unit)."""
    n_examples, n_tokens, n_units, n_positions = slab.shape
    for e in range(n_examples):
        for t in range(n_tokens):
            for u in range(n_units):
                of_run = 0.0
                for p in range(n_positions):
                    of_run += slab[e, t, u, p]
                total[e, u] += of_run
