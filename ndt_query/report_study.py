"""The part of a report that is the study of its kind of network: so far, of a CNN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.layers import Whole
from ndt_query.performance import NEEDED
from ndt_query.study import cnn_study
from ndt_query.study_pages import study_files
from ndt_store.dims import ACTIVATIONS, X, Y
from ndt_store.errors import InvalidInputError, MemoryBudgetError
from ndt_store.reader import Store

__all__ = ["studied"]

FOLDER: Final = "cnn"
Progress = Callable[[int, int], None]


def studied(
    store: Whole,
    out_dir: Path,
    selective: Mapping[str, xr.Dataset],
    *,
    n_permutations: int,
    progress: Progress | None = None,
    memory: int | str | None = None,
) -> dict[str, Any]:
    """Study what a store holds of a CNN, and write figures and numbers to ``cnn/`` of a report's folder.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        Studied if it is a Store with two checkpoints or more, activations with positions y and x, labels of more than
        one class and predictions.
    out_dir : Path
        Folder of the report.
    selective : mapping of layer to Dataset
        From `selectivity_index` with `n_permutations`, at all checkpoints.
    n_permutations : int
    progress, memory
        As in `cnn_study`.

    Returns
    -------
    dict
        ``words``, what was studied or why it was not, "" where there is no CNN; and what `study_files` gives.
    """
    if not isinstance(store, Store) or not _is_cnn(store):
        return {"words": "", "figures": []}
    try:
        study = cnn_study(store, selective=selective, n_permutations=n_permutations, progress=progress, memory=memory)
    except (InvalidInputError, MemoryBudgetError) as error:
        return {"words": f"The study of the CNN is left out. {error}", "figures": []}
    shown = study_files(study, out_dir / FOLDER)
    steps, accuracy = shown["steps"], shown["accuracy"]
    words = (
        f"From step {steps[0]}, where {accuracy[0]} of the examples are right, to step {steps[1]} with {accuracy[1]}. "
        f"What a random network has at the first checkpoint is the measure of everything later. The figures as PDF and "
        f"PNG, and all numbers as arrays, lie in the folder {FOLDER} beside this page."
    )
    return {"words": words, **shown}


def _is_cnn(store: Store) -> bool:
    if len(store.checkpoints) < 2 or not all(name in store.root for name in NEEDED):
        return False
    if len(np.unique(store.root["label"].values)) < 2:
        return False
    layers = (store[name] for name in store.layers if ACTIVATIONS in store[name])
    return any({Y, X} <= set(one[ACTIVATIONS].dims) for one in layers)
