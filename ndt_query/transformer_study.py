"""The study of a transformer as one call: how heads attend, when they specialise, what kinds there are, what flows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr

from ndt_query.attention import attention_distance, attention_entropy, attention_sparsity, mean_pattern
from ndt_query.attention_data import attention_layers
from ndt_query.emerging import half_risen
from ndt_query.flow import flow_metrics
from ndt_query.heads import cluster_evolution, cluster_heads
from ndt_query.images import as_images
from ndt_query.importance import EXPERIMENT, head_importance
from ndt_query.inputs import as_names, require_steps
from ndt_query.layers import described, software
from ndt_query.moments import spread_places, training_checkpoints
from ndt_query.performance import performance
from ndt_query.probing import HEADS, head_categories, probe_heads
from ndt_query.specialisation import attention_selectivity, head_specialisation
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, CHECKPOINT, EXAMPLE, LAYER, TOKEN
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["transformer_study"]

N_MOMENTS: Final = 8
MOST_IMAGES: Final = 100
LEFT_OUT: Final = "left_out"
NEEDS: Final = {"evolution": "clusters", "probes": "measures", "categories": "probes"}
"""Questions that begin with the answer to another."""

Progress = Callable[[int, int], None]


def transformer_study(
    store: Store,
    *,
    layers: str | Sequence[str] | None = None,
    checkpoints: Sequence[int] | None = None,
    k: int = 3,
    n_permutations: int = 199,
    seed: int = 0,
    progress: Progress | None = None,
    memory: int | str | None = None,
) -> xr.DataTree:
    """Ask everything that the study asks of a transformer's heads, at some moments of its training.

    Parameters
    ----------
    store : Store
        With attention patterns, labels and predictions. Probes need layers of what heads put out (``@heads``), and
        importance the experiment ``head_ablation``; both are left out where they are not there.
    layers : sequence of str, optional
        Of those that attend, in order of depth; all of them without it.
    checkpoints : sequence of int, optional
        Moments; by default at most eight that span training, the first among them: let it be that of the untrained
        network, which everything is compared with.
    k : int
        Clusters of heads, see `ndt_query.cluster_heads`.
    n_permutations, seed : int
        Of the nulls.
    progress : callable, optional
        Called as ``progress(done, total)`` after each part.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    DataTree
        ``performance`` as of `ndt_query.performance`; ``measures`` (checkpoint, layer, head): entropy, Hoyer, Gini,
        share and distance with intervals, as of `attention_entropy`, `attention_sparsity` and `attention_distance`;
        ``patterns`` as of `mean_pattern`; ``selectivity`` as of `attention_selectivity`; ``specialisation`` as of
        `head_specialisation`, with ``half`` and ``half_after`` (layer), the two checkpoints between which half of its
        rise happened, NaN where nothing has risen for sure; ``clusters`` and ``evolution`` as of `cluster_heads` and
        `cluster_evolution`; ``flow`` as of `flow_metrics`, and ``image``, the mean input, where tokens are patches of
        square images; ``importance`` as of `head_importance`; ``probes`` and
        ``categories`` as of `probe_heads` and `head_categories`. The attribute ``left_out`` says what is not there
        and why.

    Raises
    ------
    NotFoundError
        A layer or checkpoint is not there, or there are no attention patterns.
    InvalidInputError
        There is one checkpoint only.

    Notes
    -----
    Some five passes over the patterns at the moments, and one over what heads put out. Memory is that of the largest
    query.
    """
    held = training_checkpoints(store)
    chosen = _layers(store, layers)
    steps = (
        sorted(set(checkpoints)) if checkpoints is not None else [held[n] for n in spread_places(len(held), N_MOMENTS)]
    )
    if not steps:
        raise InvalidInputError("checkpoints=[] names none: give training steps, or leave it out.")
    require_steps(next(iter(chosen.values()))[ATTENTIONS], steps)
    at = {name: one.sel({CHECKPOINT: steps}) for name, one in chosen.items()}
    left_out: dict[str, str] = {}
    nodes: dict[str, xr.Dataset] = {}
    questions: dict[str, Callable[[], xr.Dataset]] = {
        "performance": lambda: performance(store).sel({CHECKPOINT: steps}),
        "measures": lambda: _measures(at),
        "patterns": lambda: mean_pattern(at).compute(),
        "selectivity": lambda: attention_selectivity(at, n_permutations=n_permutations, seed=seed),
        "specialisation": lambda: _specialised(at, n_permutations, seed, memory),
        "clusters": lambda: cluster_heads(at, k, seed=seed, memory=memory),
        "evolution": lambda: cluster_evolution(nodes["clusters"], seed=seed),
        "flow": lambda: flow_metrics(at),
        "importance": lambda: head_importance(store, seed=seed),
        "probes": lambda: probe_heads(_outputs(store, chosen, steps), seed=seed, memory=memory).assign(
            entropy=nodes["measures"]["entropy"]
        ),
        "categories": lambda: head_categories(nodes["probes"]),
    }
    if EXPERIMENT not in store.experiments:
        left_out["importance"] = f"the store has no experiment {EXPERIMENT}"
        questions.pop("importance")
    if not any(f"{name}{HEADS}" in store.layers for name in chosen):
        left_out["probes"] = f"no layer of what heads put out ({HEADS}) was captured"
        questions.pop("probes")
        questions.pop("categories")
    for done, (name, ask) in enumerate(questions.items(), 1):
        if NEEDS.get(name, name) in left_out:
            continue
        try:
            nodes[name] = ask().compute()
        except (DimensionError, InvalidInputError) as error:
            # Networks differ: cross-attention has no rollout, and a single head nothing to be compared with.
            left_out[name] = str(error)
        if progress is not None:
            progress(done, len(questions))
    nodes |= _image(store, nodes.get("flow"))
    tree = xr.DataTree.from_dict(nodes)
    parameters: dict[str, Any] = {
        "layers": list(chosen),
        "checkpoints": steps,
        "k": k,
        "n_permutations": n_permutations,
    }
    source = next(iter(at.values()))[ATTENTIONS]
    tree.attrs = described({}, source, "study of a transformer", parameters, squeeze=False).attrs
    tree.attrs.pop("layer", None)
    tree.attrs |= {LEFT_OUT: "; ".join(f"{name}: {why}" for name, why in left_out.items()), "software": software()}
    return tree


def _image(store: Store, flow: xr.Dataset | None) -> dict[str, xr.Dataset]:
    """Return the mean input where tokens are square patches of square images, perhaps after one of another kind."""
    if flow is None or "input" not in store.root:
        return {}
    some = store.root["input"].isel({EXAMPLE: slice(MOST_IMAGES)})
    images = as_images(np.asarray(some.values, dtype=np.float64))
    n_tokens = flow.sizes[TOKEN]
    for n_prefix in (0, 1):
        side = math.isqrt(n_tokens - n_prefix)
        if side > 1 and side * side == n_tokens - n_prefix and images is not None and len(set(images.shape[2:])) == 1:
            attrs = {"rows": side, "columns": side, "n_prefix": n_prefix, "what": "mean of some inputs"}
            mean = images.mean(axis=(0, 1))
            return {"image": xr.Dataset({"image": (("row", "column"), mean)}, attrs=attrs)}
    return {}


def _layers(store: Store, layers: str | Sequence[str] | None) -> dict[str, xr.Dataset]:
    able = {name: one for name, one in attention_layers(store) if ATTENTIONS in one}
    wanted = as_names(layers)
    missing = [name for name in wanted or [] if name not in able]
    if missing or not able:
        held = ", ".join(able) or "none"
        raise NotFoundError(
            f"{store.path} has no attention patterns of {', '.join(missing) or 'any layer'}: it has {held}."
        )
    return {name: able[name] for name in (able if wanted is None else wanted)}


def _measures(at: dict[str, xr.Dataset]) -> xr.Dataset:
    asked = [attention_entropy(at), attention_sparsity(at), attention_distance(at)]
    found = xr.merge(asked, compat="override", combine_attrs="drop").compute()
    return found.assign_attrs({**asked[0].attrs, "what": "measures of attention"})


def _specialised(at: dict[str, xr.Dataset], n_permutations: int, seed: int, memory: int | str | None) -> xr.Dataset:
    found = head_specialisation(at, n_permutations=n_permutations, seed=seed, memory=memory)
    one = found["specialisation"]
    values = [
        found[name].transpose(CHECKPOINT, LAYER).values for name in (one.name, f"{one.name}_low", f"{one.name}_high")
    ]
    half, after = half_risen(found[CHECKPOINT].values, *values)
    return found.assign(half=(LAYER, half), half_after=(LAYER, after))


def _outputs(store: Store, chosen: dict[str, xr.Dataset], steps: Sequence[int]) -> dict[str, xr.DataArray]:
    names = [name for name in chosen if f"{name}{HEADS}" in store.layers]
    return {name: store[f"{name}{HEADS}"][ACTIVATIONS].sel({CHECKPOINT: list(steps)}) for name in names}
