"""The part of a report that is the study of its kind of network: of a transformer, a CNN, or any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ndt_query.layers import Whole
from ndt_query.mlp_study import mlp_study
from ndt_query.performance import NEEDED
from ndt_query.study import cnn_study
from ndt_query.study_pages import kind_of, study_files
from ndt_query.transformer_study import transformer_study
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, X, Y
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError
from ndt_store.reader import Store

__all__ = ["studied"]

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
    """Study what a store holds of a network, and write figures and numbers to a folder beside a report.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        Studied if it is a Store with two checkpoints or more, labels of more than one class and predictions: as a
        transformer where it holds attention patterns, as a CNN where activations have positions y and x, else by how
        its representations change.
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
        ``words``, what was studied or why it was not, "" where there is nothing to study; ``section``, its heading; and
        what `study_files` gives.
    """
    found: dict[str, Any] = {"words": "", "section": "The study of the network", "figures": []}
    if not isinstance(store, Store) or not _can_be_studied(store):
        return found
    given: dict[str, Any] = {"progress": progress, "memory": memory}
    try:
        if _holds(store, ATTENTIONS, set()):
            study = transformer_study(store, **given)
        elif _holds(store, ACTIVATIONS, {Y, X}):
            study = cnn_study(store, selective=selective, n_permutations=n_permutations, **given)
        else:
            study = mlp_study(store, **given)
    except (DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError) as error:
        return {**found, "words": f"It is left out. {error}"}
    kind = kind_of(study)
    shown = study_files(study, out_dir / kind.name)
    steps, accuracy = shown["steps"], shown["accuracy"]
    words = (
        f"From step {steps[0]}, where {accuracy[0]} of the examples are right, to step {steps[1]} with {accuracy[1]}. "
        "What a random network has at the first checkpoint is the measure of everything later. The figures as PDF and "
        f"PNG, and all numbers as arrays, lie in the folder {kind.name} beside this page."
    )
    return {"words": words, "section": kind.section, **shown}


def _can_be_studied(store: Store) -> bool:
    if len(store.checkpoints) < 2 or not all(name in store.root for name in NEEDED):
        return False
    return len(np.unique(store.root["label"].values)) > 1


def _holds(store: Store, kind: str, dims: set[str]) -> bool:
    """Whether some layer has an array of a kind with these dimensions among others."""
    layers = (store[name] for name in store.layers)
    return any(kind in one and dims <= set(one[kind].dims) for one in layers)
