"""Products of the samples of one checkpoint with each other, of all of them or of batches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ndt_query.asked import Asked, asked_of
from ndt_query.budget import allowed_nbytes, n_threads
from ndt_query.inputs import LABEL, canonical, require_count
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT
from ndt_store.errors import InvalidInputError, StorageError
from ndt_store.views.blocks import as_block, as_float
from ndt_store.views.gram import SampleGram, sample_gram
from ndt_store.views.gram_build import RUN_NBYTES, TILE_NBYTES, batch_grams, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, too_large
from ndt_store.views.samples import on_samples, packed, sample_rows, unpacked
from ndt_store.views.shelf import keep, load

__all__ = [
    "ADVICE",
    "BATCH_SIZE",
    "LEAST_BATCH",
    "MAX_BATCHES",
    "POSITIONS",
    "batch_products",
    "one_blas_thread",
    "other_labels",
    "read_together",
    "require_batches",
    "require_enough",
    "samples_nbytes",
]

F64 = NDArray[np.float64]

POSITIONS: Final = ("flatten", "mean")
BATCH_SIZE: Final = 1024
LEAST_BATCH: Final = 16
"""Batches of about equal size are larger than half of this: the debiased estimate needs eight samples of each."""

MAX_BATCHES: Final = 16

AT_ONCE: Final = 4
"""Most batches whose samples are read at once."""

TOGETHER_NBYTES: Final = 128 << 20
"""Most for these samples."""

HELD_NBYTES: Final = 256 << 20
"""Most that is kept of these batches until all arrays are read."""

ADVICE: Final = "select fewer examples, layers or checkpoints, or give a smaller batch_size="


def require_enough(n: int) -> None:
    """Raise where there are too few examples for the debiased estimate."""
    if n < 8:
        raise InvalidInputError(f"There are {n} examples: the debiased estimate needs eight or more.")


def other_labels(a: xr.DataArray, b: xr.DataArray) -> bool:
    """Whether two arrays say that the same examples are of other classes, which makes them others after all."""
    labelled = LABEL in a.coords and LABEL in b.coords
    return labelled and not np.array_equal(np.asarray(a[LABEL].values), np.asarray(b[LABEL].values))


def require_batches(batch_size: int, max_batches: int | None) -> tuple[int, int | None]:
    """Return both where batches are large enough for the debiased estimate, and one is allowed."""
    most = None if max_batches is None else require_count("max_batches", max_batches, 1)
    return require_count("batch_size", batch_size, LEAST_BATCH), most


def samples_nbytes(arrays: Iterable[xr.DataArray], n: int) -> int:
    """Return the bytes that n samples take while they are multiplied, of the array where they take most.

    Those of an array in memory are there already, and those of a store are multiplied in parts of the budget.
    """
    lazy = [one for one in arrays if one.chunks is not None and asked_of(one)[0] is None]
    return n * max((_example_nbytes(one, "flatten") for one in lazy), default=0)


def _example_nbytes(acts: xr.DataArray, positions: str) -> int:
    if positions == "mean":
        return 8 * acts.sizes[UNIT]
    return acts.dtype.itemsize * math.prod(acts.sizes[dim] for dim in acts.dims if dim not in (CHECKPOINT, EXAMPLE))


def read_together(
    batches: Sequence[NDArray[np.intp]],
    arrays: Iterable[xr.DataArray],
    positions: str,
    memory: int | str | None,
    held_nbytes: int = 0,
    spare_nbytes: int = 0,
) -> list[Sequence[NDArray[np.intp]]]:
    """Cut batches into runs whose samples are read at once, so that a block is read once for up to `AT_ONCE` of them.

    Parameters
    ----------
    batches : sequence of ndarray
        From `deal_batches`.
    arrays : iterable of DataArray
        What is read, one after the other.
    positions : {"flatten", "mean"}
    memory : int or str, optional
        Budget of the query, of which samples and what is held take a quarter each at most.
    held_nbytes : int
        What is kept of each batch until all arrays are read.
    spare_nbytes : int
        Memory that is left for what is kept of more than one batch.
    """
    stored = [_example_nbytes(one, positions) for one in arrays if asked_of(one)[0] is not None]
    quarter, at_once = allowed_nbytes(memory) // 4, 1
    if stored:
        at_once = min(AT_ONCE, min(TOGETHER_NBYTES, quarter) // (max(stored) * max(map(len, batches))))
    if held_nbytes:
        at_once = min(at_once, min(HELD_NBYTES, quarter) // held_nbytes, 1 + spare_nbytes // held_nbytes)
    at_once = max(1, at_once)
    return [batches[first : first + at_once] for first in range(0, len(batches), at_once)]


def _sample_products(acts: xr.DataArray, positions: str, memory: int | str | None) -> F64:
    """Products of the samples of one checkpoint about their mean, from a view where there is one: an upper triangle."""
    asked = _wide(acts, positions, every=True)
    if asked is not None:
        kind, step = GRAM_VIEWS[positions], asked.steps[0]
        view = load(asked.catalogue, asked.frame, step, kind)[0]
        if view is None and asked.all_examples:
            view = make_gram(
                asked.catalogue, asked.spec, step, positions,
                nbytes=min(RUN_NBYTES, allowed_nbytes(memory) // 4), n_threads=n_threads(),
            )  # fmt: skip
            if not too_large(kind, asked.frame):
                with suppress(StorageError):
                    keep(asked.catalogue, asked.frame, step, view)
        if view is not None and isinstance(view.state, SampleGram):
            if asked.all_examples:
                return view.state.products
            return packed(unpacked(view.state.products, view.state.n, np.asarray(asked.rows)))
    return _of_values(acts, positions)


def batch_products(
    acts: xr.DataArray, batches: Sequence[NDArray[np.intp]], positions: str, memory: int | str | None
) -> Iterator[F64]:
    """Products of the samples of one checkpoint about the mean of their batch: an upper triangle for each batch.

    A view holds the products of all samples with each other, which grow with the square of their number. Of a store the
    samples of all these batches are read at once; of one alone in as many parts as the budget asks for, and not at all
    where it has all samples and a view is there.
    """
    if len(batches[0]) == acts.sizes[EXAMPLE]:
        yield _sample_products(acts, positions, memory)
        return
    asked, _ = asked_of(acts)
    if asked is not None and asked.in_order and len(batches) > 1:
        rows, units = [np.asarray(asked.rows)[batch] for batch in batches], np.asarray(asked.units)
        grams = batch_grams(asked.catalogue, asked.spec, asked.steps[0], positions, rows, units, n_threads())
        yield from (gram.products for gram in grams)
        return
    for batch in batches:
        yield _products_of(acts.isel({EXAMPLE: batch}), positions, memory)


def _products_of(acts: xr.DataArray, positions: str, memory: int | str | None) -> F64:
    asked = _wide(acts, positions, every=False)
    if asked is not None:
        view = make_gram(
            asked.catalogue, asked.spec, asked.steps[0], positions, rows=np.asarray(asked.rows),
            nbytes=min(TILE_NBYTES, allowed_nbytes(memory) // 4), n_threads=n_threads(),
        )  # fmt: skip
        if isinstance(view.state, SampleGram):
            return view.state.products
    return _of_values(acts, positions)


def _wide(acts: xr.DataArray, positions: str, *, every: bool) -> Asked | None:
    """Tell what part of a store an array is, where its samples, or every one of the store's, are fewer than features.

    Only then does `make_gram` give their products.
    """
    asked, _ = asked_of(acts)
    if asked is None or not asked.in_order or len(asked.units) < asked.frame.n_units:
        return None
    n_features = asked.frame.n_units * (asked.frame.n_positions if positions == "flatten" else 1)
    return asked if on_samples(asked.frame.n_examples if every else len(asked.rows), n_features) else None


def _of_values(acts: xr.DataArray, positions: str) -> F64:
    ordered, _ = canonical(acts)
    axes = [str(dim) for dim in ordered.dims]
    values = np.asarray(ordered.compute().values)
    rows = sample_rows(as_float(as_block(values, axes.index(UNIT) - 2)), positions)
    with ThreadPoolExecutor(n_threads(), thread_name_prefix="ndt-gram") as pool:
        return sample_gram(rows.reshape(rows.shape[1], -1), pool).products


def one_blas_thread() -> AbstractContextManager[Any]:
    """Limit BLAS to one thread: products have threads of their own, and what follows is too small for more.

    More threads than idle cores wait for each other, for ten times as long as all the work takes.
    """
    return cast("AbstractContextManager[Any]", ThreadpoolController().limit(limits=1, user_api="blas"))
