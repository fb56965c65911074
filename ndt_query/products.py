"""Products of the samples of one checkpoint with each other, of all of them or of batches, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ndt_query.asked import Asked, asked_of
from ndt_query.budget import allowed_nbytes, n_threads
from ndt_query.inputs import canonical
from ndt_store.dims import CHECKPOINT, EXAMPLE, UNIT
from ndt_store.errors import InvalidInputError, StorageError
from ndt_store.views.blocks import as_block, as_float
from ndt_store.views.gram import SampleGram, add_products, finished
from ndt_store.views.gram_build import RUN_NBYTES, TILE_NBYTES, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, too_large
from ndt_store.views.samples import on_samples, packed, sample_mean, sample_rows, unpacked
from ndt_store.views.shelf import keep, load

__all__ = [
    "ADVICE",
    "BATCH_SIZE",
    "LEAST_BATCH",
    "POSITIONS",
    "batch_products",
    "block_rows",
    "one_blas_thread",
    "require_enough",
    "sample_products",
    "samples_nbytes",
]

F64 = NDArray[np.float64]

POSITIONS: Final = ("flatten", "mean")
BATCH_SIZE: Final = 1024
LEAST_BATCH: Final = 16
"""Batches of about equal size are larger than half of this: the debiased estimate needs eight samples of each."""

ADVICE: Final = "select fewer examples, layers or checkpoints, or give a smaller batch_size="


def require_enough(n: int) -> None:
    """Raise where there are too few examples for the debiased estimate."""
    if n < 8:
        raise InvalidInputError(f"There are {n} examples: the debiased estimate needs eight or more.")


def block_rows(arrays: Iterable[xr.DataArray]) -> int:
    """Return how many consecutive examples are read together of the array whose blocks hold least; 1 in memory."""
    rows = [max(one.chunksizes[EXAMPLE]) for one in arrays if EXAMPLE in one.chunksizes]
    return min(rows, default=1)


def samples_nbytes(arrays: Iterable[xr.DataArray], n: int) -> int:
    """Return the bytes that n samples take while they are multiplied, of the array where they take most.

    Those of an array in memory are there already, and those of a store are multiplied in parts of the budget.
    """
    lazy = [one for one in arrays if one.chunks is not None and asked_of(one)[0] is None]
    lead = (CHECKPOINT, EXAMPLE)
    widths = [one.dtype.itemsize * math.prod(one.sizes[dim] for dim in one.dims if dim not in lead) for one in lazy]
    return n * max(widths, default=0)


def sample_products(acts: xr.DataArray, positions: str, memory: int | str | None) -> F64:
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


def batch_products(acts: xr.DataArray, rows: NDArray[np.intp], positions: str, memory: int | str | None) -> F64:
    """Products of some samples of one checkpoint about their mean, from blocks: an upper triangle.

    A view holds the products of all samples with each other, which grow with the square of their number.
    """
    batch = acts.isel({EXAMPLE: rows})
    asked = _wide(batch, positions, every=False)
    if asked is not None:
        view = make_gram(
            asked.catalogue, asked.spec, asked.steps[0], positions, rows=np.asarray(asked.rows),
            nbytes=min(TILE_NBYTES, allowed_nbytes(memory) // 4), n_threads=n_threads(),
        )  # fmt: skip
        if isinstance(view.state, SampleGram):
            return view.state.products
    return _of_values(batch, positions)


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
    samples = rows.reshape(rows.shape[1], -1)
    about, products, with_about = sample_mean(samples), np.zeros((len(samples),) * 2), np.zeros(len(samples))
    with ThreadPoolExecutor(n_threads(), thread_name_prefix="ndt-gram") as pool:
        nan_count = add_products(products, samples, None, about, with_about, pool)
    return finished(products, with_about, about, nan_count).products


def one_blas_thread() -> AbstractContextManager[Any]:
    """Limit BLAS to one thread: products have threads of their own, and what follows is too small for more.

    More threads than idle cores wait for each other, for ten times as long as all the work takes.
    """
    return cast("AbstractContextManager[Any]", ThreadpoolController().limit(limits=1, user_api="blas"))
