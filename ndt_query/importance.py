"""What heads of attention are worth: what ablating them costs, and whether gradients could have told."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from ndt_query.inference import fdr
from ndt_query.inputs import require_count
from ndt_query.intervals import mean_ci, null_p_value, require_level
from ndt_query.layers import software
from ndt_query.proportions import paired_shares
from ndt_store.dims import CLASS, EXAMPLE, HEAD, LAYER, STEP
from ndt_store.errors import NotFoundError
from ndt_store.reader import Store

__all__ = ["EXPERIMENT", "head_importance"]

F64 = NDArray[np.float64]

EXPERIMENT: Final = "head_ablation"
METHOD: Final = "ablation"
_HEADS: Final = (LAYER, HEAD)


def head_importance(
    store: Store | xr.Dataset, *, confidence: float = 0.95, n_permutations: int = 999, seed: int = 0
) -> xr.Dataset:
    """Say what the model loses without each head, from an ablation that was made beside the capture.

    Parameters
    ----------
    store : Store or Dataset
        With the experiment ``head_ablation``, or that itself: what `capture.ablate_heads` makes.
    confidence : float
        Level of the intervals.
    n_permutations, seed : int
        Of the heads, for the p value of the rank correlation.

    Returns
    -------
    Dataset
        Over (step, ablation, layer, head): ``accuracy_drop`` and ``margin_drop``, the whole model less the one without
        the head, mean over examples, with ``_low`` and ``_high``: of margins Student's t over examples, of
        accuracies Bonett and Price's limits for paired shares, which are not 0 where no example changed;
        ``p_value``, the exact McNemar test of the examples that change sides, and ``q_value``, Benjamini-Hochberg's
        over the heads of a step and ablation. ``class_accuracy_drop`` (..., class), the same of each class's examples,
        with limits.
        Over (step, layer, head): ``gradient_importance``, the mean of |dL / d xi|, with ``_low`` and ``_high``. Over
        (step, ablation): ``rank_correlation``, Spearman's between gradient importance and margin drop over all heads,
        with ``rank_p_value`` of shuffled heads. ``whole_accuracy`` (step).

    Raises
    ------
    NotFoundError
        The store has no such experiment, or the Dataset is another.

    Notes
    -----
    Intervals are over examples of one trained network: another seed is not in them. NaN where a layer has fewer heads
    than others. Heads back each other up, so that what each costs alone does not add up.

    References
    ----------
    D. Bonett and R. Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 37, 2012.
    """
    level = require_level(confidence)
    require_count("n_permutations", n_permutations, 1)
    given = _experiment(store)
    there = given["correct"].isel({EXAMPLE: 0}).transpose(STEP, METHOD, *_HEADS).values >= 0
    correct = given["correct"].transpose(STEP, METHOD, *_HEADS, EXAMPLE).values.astype(np.float64)
    margin = given["margin"].transpose(STEP, METHOD, *_HEADS, EXAMPLE).values.astype(np.float64)
    whole = given["whole_correct"].transpose(STEP, EXAMPLE).values.astype(np.float64)
    lost = np.where(there[..., None], whole[:, None, None, None] - correct, np.nan)
    fallen = given["whole_margin"].transpose(STEP, EXAMPLE).values.astype(np.float64)[:, None, None, None] - margin
    gradients = given["gradient_importance"].transpose(STEP, *_HEADS, EXAMPLE).values.astype(np.float64)
    over = (STEP, METHOD, *_HEADS)
    found: dict[str, Any] = {}
    found |= _with_limits("accuracy_drop", lost, over, level)
    for name, values, dims in (
        ("margin_drop", fallen, over),
        ("gradient_importance", gradients, (STEP, *_HEADS)),
    ):
        one = mean_ci(values, axis=-1, confidence=level)
        found |= {name: (dims, one.estimate), f"{name}_low": (dims, one.low), f"{name}_high": (dims, one.high)}
    p_value = _mcnemar(lost)
    found["p_value"], found["q_value"] = (over, p_value), (over, _over_heads(p_value))
    labels = given["label"].values
    classes = np.unique(labels)
    parts = [_with_limits("class_accuracy_drop", lost[..., labels == one], over, level) for one in classes]
    found |= {name: ((*over, CLASS), np.stack([part[name][1] for part in parts], axis=-1)) for name in parts[0]}
    correlation, rank_p = _ranks(found["gradient_importance"][1], found["margin_drop"][1], n_permutations, seed)
    found["rank_correlation"], found["rank_p_value"] = ((STEP, METHOD), correlation), ((STEP, METHOD), rank_p)
    found["whole_accuracy"] = (STEP, whole.mean(axis=-1))
    coords = {name: given[name] for name in (STEP, METHOD, LAYER)} | {CLASS: classes, HEAD: np.arange(lost.shape[3])}
    parameters = {"confidence": confidence, "n_permutations": n_permutations, "seed": seed}
    attrs = {"what": "importance of heads", "n_examples": len(labels), "parameters": json.dumps(parameters)}
    if isinstance(store, Store):
        attrs["store"] = store.path
    return xr.Dataset(found, coords, {**attrs, "software": software()})


def _experiment(store: Store | xr.Dataset) -> xr.Dataset:
    if isinstance(store, xr.Dataset):
        if "whole_margin" not in store or "gradient_importance" not in store:
            raise NotFoundError("The Dataset has no whole_margin and gradient_importance: pass that of ablate_heads.")
        return store
    if EXPERIMENT not in store.experiments:
        raise NotFoundError(
            f"{store.path} has no experiment {EXPERIMENT!r}: make it beside the model with `ndt ablate-heads` or "
            "capture.ablate_heads."
        )
    return store.experiment(EXPERIMENT)


def _with_limits(name: str, lost: F64, over: tuple[str, ...], level: float) -> dict[str, tuple[tuple[str, ...], F64]]:
    one = paired_shares(lost, confidence=level)
    return {name: (over, one.estimate), f"{name}_low": (over, one.low), f"{name}_high": (over, one.high)}


def _mcnemar(lost: F64) -> F64:
    """Two-sided exact test of as many examples lost as won, (..., example) of -1, 0 and 1; NaN stays."""
    down, up = (lost == 1).sum(axis=-1), (lost == -1).sum(axis=-1)
    n = down + up
    tail = stats.binom.cdf(np.minimum(down, up), n, 0.5)
    found: F64 = np.where(np.isnan(lost).any(axis=-1), np.nan, np.minimum(1.0, 2 * tail))
    return found


def _over_heads(p_value: F64) -> F64:
    """Correct over all heads of a step and ablation, (step, ablation, layer, head)."""
    flat = p_value.reshape(*p_value.shape[:2], -1)
    return fdr(flat).reshape(p_value.shape)


def _ranks(gradients: F64, drops: F64, n_permutations: int, seed: int) -> tuple[F64, F64]:
    """Spearman's correlation over heads for each step and method, and how often shuffled heads reach it in size."""
    rng = np.random.default_rng(seed)
    correlation, p_value = np.full(drops.shape[:2], np.nan), np.full(drops.shape[:2], np.nan)
    for step, method in np.ndindex(drops.shape[:2]):
        a, b = gradients[step].ravel(), drops[step, method].ravel()
        known = np.isfinite(a) & np.isfinite(b)
        x, y = stats.rankdata(a[known]), stats.rankdata(b[known])
        if known.sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            continue
        correlation[step, method] = np.corrcoef(x, y)[0, 1]
        shuffled = np.stack([rng.permutation(y) for _ in range(n_permutations)])
        centred = x - x.mean()
        null = shuffled @ centred / np.sqrt((centred**2).sum() * ((y - y.mean()) ** 2).sum())
        reached = (np.abs(null) >= abs(correlation[step, method]) - 1e-12).sum()
        p_value[step, method] = float(null_p_value(reached, n_permutations))
    return correlation, p_value
