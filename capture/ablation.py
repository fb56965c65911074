"""Ablate every head of every layer and checkpoint, and write down what each example makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import nn

from capture.checkpoints import check_weights
from capture.given_weights import Weights, digests_of, given_checkpoints, kept_apart, load_given, weights_kept
from capture.head_edits import HeadReplaced
from capture.head_passes import HeadPasses
from capture.modelstate import as_device, model_device
from capture.naming import Site
from capture.objective import class_count
from capture.probe import Probe, as_probe
from capture.sites import discover_with_logits
from ndt_store.dims import ATTENTIONS, EXAMPLE, HEAD, LAYER, STEP
from ndt_store.errors import AlreadyExistsError, CaptureError, InvalidInputError
from ndt_store.experiments import write_experiment
from ndt_store.progress import progress_bar
from ndt_store.reader import open_store
from ndt_store.storage import Storage

__all__ = ["EXPERIMENT", "METHODS", "ablate_heads"]

EXPERIMENT: Final = "head_ablation"
METHODS: Final = ("zero", "mean")
METHOD: Final = "ablation"


def ablate_heads(
    model: nn.Module,
    data: Any,
    *,
    layers: Sequence[str] = ("**",),
    store: str | os.PathLike[str] | Storage | None = None,
    checkpoints: Sequence[tuple[int, Weights]] | str | os.PathLike[str] | None = None,
    methods: Sequence[str] = METHODS,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    output: Callable[[Any], torch.Tensor] | None = None,
    replace: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Run the model without each head of attention in turn, and keep what becomes of each example.

    Parameters
    ----------
    model : torch.nn.Module
        Gives class scores, (example, class). Its weights and all else about it are afterwards as they were before.
    data : pair of arrays, dataset or ImageData
        As in `capture.Session`; for a store, the probe set that it was captured on.
    layers : sequence of str
        Globs over the paths of modules that attend; by default all of them.
    store : str, PathLike or Storage, optional
        A store to write the result into, as the experiment ``head_ablation``.
    checkpoints : sequence of (step, state dict or file), or folder, optional
        By default the model as it is, as step 0; as in `capture.capture`.
    methods : sequence of str
        ``"zero"``: the head puts out 0. ``"mean"``: it puts out its mean over the examples, token by token, so that
        what it says of every example alike stays.
    batch_size : int
    device : torch.device or str, optional
        Where batches go; by default where the model is.
    output : callable, optional
        From what the model returns to its class scores.
    replace : bool
        Put the result in the place of another that the store holds.
    progress : bool
        Draw a bar on stderr.

    Returns
    -------
    Dataset
        ``correct`` and ``margin`` (step, ablation, layer, head, example): whether the largest score is the label's, 0
        or 1, and the label's score less the largest other, with ``ablation`` the methods; ``whole_correct`` and
        ``whole_margin`` (step, example) of the whole model; ``gradient_importance`` (step, layer, head, example): |dL /
        d xi|, L the cross-entropy of the example and xi a factor of what the head puts out, at 1 (Michel et al. 2019).
        Layers with fewer heads than others have NaN, and -1 in ``correct``; ``n_heads`` (layer) says how many there
        are. ``weights_digest`` (step).

    Raises
    ------
    InvalidInputError
        A method is unknown, or the labels are no classes of the model.
    CaptureError
        Nothing attends, or the model gives no class scores.
    AlreadyExistsError
        The store holds another ablation of heads.
    ResumeMismatchError
        A step is committed in the store with other weights.
    NdtError
        As `capture.capture` does for checkpoints and data.

    Notes
    -----
    For each checkpoint one forward pass of all examples for each head and method, two more, and one with gradients. A
    head of ``nn.MultiheadAttention`` is taken out at the output projection, whose bias stays.

    References
    ----------
    P. Michel, O. Levy, G. Neubig, "Are sixteen heads really better than one?", NeurIPS 2019.

    Examples
    --------
    >>> net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(32, 3))
    >>> data = torch.rand(6, 4, 8), torch.arange(6) % 3
    >>> ablate_heads(net, data, progress=False)["correct"].dims
    ('step', 'ablation', 'layer', 'head', 'example')
    """
    chosen = _methods(methods)
    steps = given_checkpoints(checkpoints)
    for _, weights in steps:
        if weights is not None:
            check_weights(model, weights)
    place = model_device(model) if device is None else as_device(device)
    probe = as_probe(data)
    inputs, labels = next(probe.batches(batch_size))
    sites, logits = discover_with_logits(model, layers, [ATTENTIONS], inputs, labels, device=place, output=output)
    if logits is None or class_count(logits, probe.contents.labels, needed=True) is None:
        raise CaptureError(
            f"{type(model).__name__} gives no class scores (example, class), which ablation compares; pass output= to "
            "take them from what it returns"
        )
    steps = [(step, kept_apart(model, weights)) for step, weights in steps]
    with weights_kept(model, any(weights is not None for _, weights in steps)):
        digests = digests_of(model, steps, store)
        attrs = {"data": probe.name, "data_digest": probe.digest}
        held = None if store is None or replace else _held(store, digests, sites, chosen, attrs)
        if held is not None:
            return held
        passes = HeadPasses(model, probe, batch_size, place, output)
        rows, done = [], 0
        total = len(steps) * (3 + len(chosen) * sum(site.shape[0] for site in sites))
        with progress_bar("ablating heads", show=progress) as bar:

            def told() -> None:
                nonlocal done
                done += 1
                bar(done, total)

            for _, weights in steps:
                load_given(model, weights)
                rows.append(_ablated(passes, sites, chosen, told))
    found = _assembled(rows, [step for step, _ in steps], digests, sites, chosen, probe, attrs)
    if store is not None:
        write_experiment(store, EXPERIMENT, found, replace=replace)
    return found


def _methods(methods: Sequence[str]) -> tuple[str, ...]:
    asked = (methods,) if isinstance(methods, str) else tuple(dict.fromkeys(methods))
    unknown = [one for one in asked if one not in METHODS]
    if unknown or not asked:
        found = repr(unknown[0]) if unknown else "none"
        raise InvalidInputError(f"methods has {found}: expected one or more of {', '.join(METHODS)}.")
    return asked


def _ablated(
    passes: HeadPasses, sites: Sequence[Site], methods: Sequence[str], told: Callable[[], None]
) -> dict[str, NDArray[Any]]:
    """Ablate one checkpoint."""
    n, most = len(passes.probe), max(site.shape[0] for site in sites)
    whole = passes.scores()
    told()
    means = passes.means() if "mean" in methods else {}
    told()
    gradients = passes.importance()
    told()
    shape = (len(methods), len(sites), most, n)
    correct, margin = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    importance = np.full(shape[1:], np.nan, np.float32)
    for place, site in enumerate(sites):
        call = site.path, site.call
        n_heads = site.shape[0]
        importance[place, :n_heads] = gradients[call].T
        for head in range(n_heads):
            for which, method in enumerate(methods):
                value = means[call][:, head] if method == "mean" else None
                found = passes.scores(partial(HeadReplaced, call=call, head=head, value=value))
                correct[which, place, head], margin[which, place, head] = found
                told()
    return {
        "correct": correct, "margin": margin, "gradient_importance": importance,
        "whole_correct": whole[0], "whole_margin": whole[1],
    }  # fmt: skip


def _assembled(
    rows: Sequence[dict[str, NDArray[Any]]],
    steps: Sequence[int],
    digests: Sequence[str],
    sites: Sequence[Site],
    methods: Sequence[str],
    probe: Probe,
    attrs: dict[str, Any],
) -> xr.Dataset:
    heads = (LAYER, HEAD, EXAMPLE)
    over = {
        "correct": (METHOD, *heads), "margin": (METHOD, *heads), "gradient_importance": heads,
        "whole_correct": (EXAMPLE,), "whole_margin": (EXAMPLE,),
    }  # fmt: skip
    found = xr.Dataset({name: ((STEP, *dims), np.stack([row[name] for row in rows])) for name, dims in over.items()})
    for name in ("correct", "whole_correct"):
        found[name] = found[name].fillna(-1).astype(np.int32)
    examples = probe.contents.examples
    found = found.assign_coords(
        {
            STEP: np.array(steps), METHOD: np.array(methods, object), LAYER: np.array([s.name for s in sites], object),
            EXAMPLE: np.arange(len(probe)) if examples is None else np.asarray(examples, np.int64),
        }
    )  # fmt: skip
    found["n_heads"] = (LAYER, np.array([site.shape[0] for site in sites]))
    found["label"] = (EXAMPLE, np.asarray(probe.contents.labels, np.int64))
    found["weights_digest"] = (STEP, np.array(digests, object))
    found.attrs = {"what": "what becomes of each example without each head", **attrs}
    return found


def _held(
    store: str | os.PathLike[str] | Storage,
    digests: Sequence[str],
    sites: Sequence[Site],
    methods: Sequence[str],
    attrs: dict[str, Any],
) -> xr.Dataset | None:
    """Return what a store holds of the same ablation, None where it holds none."""
    opened = open_store(store)
    if EXPERIMENT not in opened.experiments:
        return None
    held = opened.experiment(EXPERIMENT).load()
    same = (
        held["weights_digest"].values.tolist() == list(digests)
        and held[LAYER].values.tolist() == [site.name for site in sites]
        and held[METHOD].values.tolist() == list(methods)
        and all(held.attrs.get(name) == value for name, value in attrs.items())
    )
    if not same:
        raise AlreadyExistsError(
            f"{opened.path} holds an ablation of other heads, steps, methods or examples already: replace it "
            "(replace=True, --replace), or take another store."
        )
    return held
