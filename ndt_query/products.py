"""Products of the samples of one checkpoint with each other, from a Gram view where there is one."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.asked import asked_of
from ndt_query.budget import allowed_nbytes, n_threads
from ndt_query.inputs import canonical
from ndt_store.dims import UNIT
from ndt_store.errors import InvalidInputError, StorageError
from ndt_store.views.blocks import as_block, as_float
from ndt_store.views.gram import SampleGram, sample_gram
from ndt_store.views.gram_build import RUN_NBYTES, make_gram
from ndt_store.views.gram_view import GRAM_VIEWS, too_large
from ndt_store.views.samples import on_samples, sample_rows, unpacked
from ndt_store.views.shelf import keep, load

__all__ = ["ADVICE", "POSITIONS", "require_enough", "sample_products"]

F64 = NDArray[np.float64]

POSITIONS: Final = ("flatten", "mean")
ADVICE: Final = "select fewer examples, layers or checkpoints"


def require_enough(n: int) -> None:
    """Raise where there are too few examples for the debiased estimate."""
    if n < 8:
        raise InvalidInputError(f"There are {n} examples: the debiased estimate needs eight or more.")


def sample_products(acts: xr.DataArray, positions: str, memory: int | str | None) -> F64:
    """Products of the samples of one checkpoint about their mean, (sample, sample): from a view where there is one."""
    asked, _ = asked_of(acts)
    ordered, _ = canonical(acts)
    if asked is not None and asked.in_order and len(asked.units) == asked.frame.n_units:
        kind = GRAM_VIEWS[positions]
        shape = asked.frame.n_examples, asked.frame.n_units * (asked.frame.n_positions if positions == "flatten" else 1)
        if on_samples(*shape):
            step = asked.steps[0]
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
                kept = None if asked.all_examples else np.asarray(asked.rows)
                return unpacked(view.state.products, view.state.n, kept)
    axes = [str(dim) for dim in ordered.dims]
    values = np.asarray(ordered.compute().values)
    rows = sample_rows(as_float(as_block(values, axes.index(UNIT) - 2)), positions)
    samples = rows.reshape(rows.shape[1], -1)
    return unpacked(sample_gram(samples).products, len(samples))
