"""Which examples drive a unit most: exactly, and with no more read than is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize

from ndt_query.answers import Answer, answer
from ndt_query.asked import Asked, asked_of
from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import canonical, example_ids, require_count
from ndt_query.layers import described, per_unit
from ndt_query.pruned import Blocks, kept_ranks, top_of_blocks, without_zones
from ndt_query.reduce import ADVICE
from ndt_query.reductions import RANK, TopReduction
from ndt_query.threads import TASK_PREFIX
from ndt_query.viewed import FromTop
from ndt_store.dims import CHECKPOINT, EXAMPLE, POSITION_DIMS
from ndt_store.layout import block_nbytes, n_blocks
from ndt_store.views.blocks import Array
from ndt_store.views.topk import TopK

__all__ = ["places", "top_examples"]


@per_unit
def top_examples(
    acts: xr.DataArray,
    k: int = 20,
    *,
    memory: int | str | None = None,
    views: bool = True,
    explain: bool = False,
) -> xr.Dataset:
    """Find the examples that drive each unit most.

    Parameters
    ----------
    acts : DataArray (checkpoint, example, [token,] unit[, y, x]), layer Dataset, Store or DataTree
        Activations.
    k : int
        Examples for each unit; all of them where there are fewer.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.
    views, explain : bool
        Whether views may answer, and whether the attribute ``explain`` says where the answer comes from, see
        `ndt_query.answers`.

    Returns
    -------
    Dataset or DataTree
        Over (checkpoint, unit, rank): ``value``, the example's largest over positions; ``example``, its identifier; and
        where it is largest, ``y`` and ``x`` or ``token``, by coordinate label, at the first such place. Exact: larger
        values first, equal ones by identifier. NaN counts as the largest value, as in `numpy.max`, so that it shows at
        rank 0.

    Notes
    -----
    The ``topk`` view answers up to 64 ranks over all examples, and over some of them where enough of those are among
    its ranks. For more ranks or other selections of examples, blocks are read from the most promising on, and none
    whose zone map shows that it cannot hold one of the first k; where zone maps are missing and all blocks are read,
    they are made on the way. Without views: one pass; states of k entries a unit,
    merged exactly, so that any chunking gives the same answer.

    Examples
    --------
    >>> acts = xr.DataArray([[0.5], [2.0], [1.0]], dims=("example", "unit"), coords={"example": [7, 8, 9]})
    >>> top_examples(acts, k=2)["example"].values.tolist()
    [[8, 9]]
    """
    given = acts
    acts, squeeze = canonical(given)
    k = min(require_count("k", k, 1), acts.sizes[EXAMPLE])
    dtype = acts.dtype.name if acts.dtype in (np.float32, np.float64) else "float64"
    ids = example_ids(acts)
    reduction, viewed = TopReduction(ids, k, dtype), FromTop(ids, k)
    asked, _ = asked_of(given) if views else (None, "")
    if asked is not None and viewed.refusal(asked) and np.array_equal(ids, asked.frame.examples[asked.rows]):
        answered = _ranked(asked, reduction, viewed, memory)
    else:
        answered = answer(given, acts, reduction, viewed, what="top_examples", memory=memory, views=views)
    found = answered.variables
    found |= places(acts, found.pop("position"))
    what, source = "examples that drive each unit most", answered.source if explain else ""
    ranks = {RANK: np.arange(k)}
    return described(found, acts, what, {"k": k}, squeeze=squeeze, explain=source, coords=ranks)


def places(acts: xr.DataArray, position: xr.Variable) -> dict[str, xr.Variable]:
    """Turn flat positions within an example into labels of ``token``, ``z``, ``y`` and ``x``."""
    dims: list[str] = [dim for dim in POSITION_DIMS if dim in acts.dims]
    found = dict.fromkeys(dims, position)  # y before x, though the last is divided off first
    for dim in reversed(dims):
        place, position = position % acts.sizes[dim], position // acts.sizes[dim]
        labels = np.asarray(acts[dim].values)
        found[dim] = xr.apply_ufunc(labels.__getitem__, place, dask="parallelized", output_dtypes=[labels.dtype])
    return found


def _ranked(asked: Asked, reduction: TopReduction, viewed: FromTop, memory: int | str | None) -> Answer:
    """Rank by what is kept and by the blocks that can matter, lazily, one task for each checkpoint."""
    k, steps = reduction.k, asked.steps
    known = {step: kept_ranks(asked, step, k) for step in dict.fromkeys(steps)}
    sources = {step: ranks or Blocks(asked, step) for step, ranks in known.items()}
    searched = [source for source in sources.values() if isinstance(source, Blocks)]
    n, nbytes, workers = n_blocks(asked.spec), block_nbytes(asked.spec), n_threads()
    state_nbytes = reduction.state_nbytes(1, len(asked.rows), len(asked.units))
    # Beside the answer, the bounds of every block are held from the question to the answer.
    held_nbytes = len(steps) * state_nbytes + 8 * len(searched) * n * len(asked.units)
    if any(blocks.makes_views for blocks in searched):
        state_nbytes += viewed.state_nbytes(asked)
    terms = Projection(nbytes, nbytes, 1.5, workers, state_nbytes, 2 * workers, held_nbytes)
    check("top_examples", terms, allowed_nbytes(memory), ADVICE)
    threads = max(1, workers // len(steps))
    token = tokenize(asked.catalogue.storage.path, asked.catalogue.stamp, asked.spec.path, asked.rows, asked.units, k)
    chunks = ((1,) * len(steps), (len(asked.units),), (k,))
    variables = {}
    for name, output in reduction.outputs().items():
        key, shared = f"{TASK_PREFIX}ranked-{name}-{token}", f"{TASK_PREFIX}ranked-{token}"
        graph: dict[Any, Any] = {(shared, step): (_rank, source, k, threads) for step, source in sources.items()}
        graph |= {(key, c, 0, 0): (_field, (shared, step), name, output.dtype) for c, step in enumerate(steps)}
        data = da.Array(graph, key, chunks=chunks, dtype=np.dtype(output.dtype))
        variables[name] = xr.Variable((CHECKPOINT, *output.dims), data)
    line = f"{asked.spec.path}: view topk suffices at {len(sources) - len(searched)} of {len(sources)} checkpoints"
    if searched:
        line += f", at the others those of {n} blocks each that zone maps do not rule out"
    return Answer(variables, line + without_zones({blocks.step: blocks.note for blocks in searched}))


def _rank(source: TopK | Blocks, k: int, threads: int) -> Mapping[str, Array]:
    state = source if isinstance(source, TopK) else top_of_blocks(source, k, threads)
    return {"value": state.value, "example": state.example, "position": state.position}


def _field(found: Mapping[str, Array], name: str, dtype: str) -> Array:
    # Views keep values in fewer bytes than a pass hands on.
    return found[name].astype(dtype, copy=False)
