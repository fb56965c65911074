"""Whether early training tells which heads will specialise, on heads and on runs that were held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention import attention_distance, attention_entropy, attention_sparsity
from ndt_query.attention_data import attention_layers
from ndt_query.inputs import require_count, require_steps
from ndt_query.intervals import null_p_value
from ndt_query.layers import software
from ndt_query.specialisation import head_specialisation
from ndt_store.dims import ATTENTIONS, CHECKPOINT, HEAD
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = ["FEATURES", "predict_specialisation"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

FEATURES: Final = ("entropy", "hoyer", "gini", "distance", "divergence")
"""Of each head, early: measures of its attention, and how far it is from the layer's other heads already."""

SCHEMES: Final = ("heads", "runs")
ALPHA: Final = 1.0
N_FOLDS: Final = 5


def predict_specialisation(
    runs: Mapping[str, Any] | Sequence[Any],
    early: int,
    late: int | None = None,
    *,
    n_permutations: int = 199,
    seed: int = 0,
) -> xr.Dataset:
    """Predict how specialised each head is late in training from what it is like early.

    Parameters
    ----------
    runs : mapping of name to Store, or sequence of Store
        Trainings of one architecture, such as several seeds; DataTrees and mappings of layers will do.
    early, late : int
        Checkpoints; the last of each run where `late` is None.
    n_permutations, seed : int
        Of the targets, over the heads of each run and layer.

    Returns
    -------
    Dataset
        Over ``member``, one for each head, labelled by ``run``, ``layer_of`` and ``head_of``: ``observed``, the mean
        divergence from the layer's other heads at `late` (`head_specialisation`), and ``features`` (member, feature) at
        `early`. Over ``scheme``: ``predicted`` (scheme, member), held out: ``heads`` deals heads to five folds,
        ``runs`` leaves out one run at a time, NaN where there is one run; ``r2``, and ``layer_r2`` of the mean of each
        layer in the training part alone; ``null_95`` and ``p_value``, of shuffled targets. Two heads of a layer are as
        far from each other: where no layer has more, all of ``heads`` is NaN, and what is of shuffled targets.

    Raises
    ------
    NotFoundError
        A run holds no attention patterns or not the checkpoints.
    InvalidInputError
        There are fewer than ten heads in all, or `early` is not before `late`.

    Notes
    -----
    Ridge regression (scikit-learn's, penalty 1 on standardised features) on the features and on which layer it is. The
    null shuffles targets within layers, so that ``p_value`` is about what early training says beyond the layer. R2 is
    against the mean of the training part. Two passes over the patterns of each run.
    """
    require_count("n_permutations", n_permutations, 1)
    named = dict(runs) if isinstance(runs, Mapping) else {_name(run, place): run for place, run in enumerate(runs)}
    _require_apart(named)
    tables = [_heads(name, run, early, late) for name, run in named.items()]
    if not tables:
        raise InvalidInputError("There is no run: give one or more stores.")
    table = {key: np.concatenate([one[key] for one in tables]) for key in tables[0]}
    n = len(table["observed"])
    if n < 2 * N_FOLDS:
        raise InvalidInputError(f"There are {n} heads in all: expected {2 * N_FOLDS} or more, give more runs.")
    layers = np.unique(table["layer"], return_inverse=True)[1]
    of_run = np.unique(table["run"], return_inverse=True)[1]
    design = np.concatenate([table["features"], np.eye(layers.max() + 1)[layers]], axis=1)
    rng = np.random.default_rng(seed)
    folds = {"heads": rng.permutation(np.arange(n) % N_FOLDS), "runs": of_run}
    blocks = of_run * (layers.max() + 1) + layers
    # Two heads of a layer share one divergence: each tells its partner's, and shuffling them changes nothing.
    alike = bool(np.bincount(blocks).max() <= 2)
    orders = [] if alike else [_within(blocks, rng) for _ in range(n_permutations)]
    found: dict[str, list[Any]] = {name: [] for name in ("predicted", "r2", "layer_r2", "null_95", "p_value")}
    for scheme in SCHEMES:
        part = folds[scheme]
        if part.max() == 0 or (alike and scheme == "heads"):
            for name, values in found.items():
                values.append(np.full(n, np.nan) if name == "predicted" else np.nan)
            continue
        predicted = _held_out(design, table["observed"], part)
        r2 = _r2(table["observed"], predicted, part)
        null = [_r2(y, _held_out(design, y, part), part) for y in (table["observed"][order] for order in orders)]
        of_layer = _held_out(np.eye(layers.max() + 1)[layers], table["observed"], part, alpha=1e-9)
        found["predicted"].append(predicted)
        found["r2"].append(r2)
        found["layer_r2"].append(_r2(table["observed"], of_layer, part))
        reached = null_p_value(sum(one >= r2 - 1e-12 for one in null), n_permutations)
        found["null_95"].append(float(np.quantile(null, 0.95)) if null else np.nan)
        found["p_value"].append(float(reached) if null else np.nan)
    parameters = {"early": early, "late": late, "n_permutations": n_permutations, "seed": seed, "alpha": ALPHA}
    return xr.Dataset(
        {
            "observed": ("member", table["observed"]),
            "features": (("member", "feature"), table["features"]),
            "predicted": (("scheme", "member"), np.stack(found.pop("predicted"))),
            **{name: ("scheme", np.array(values)) for name, values in found.items()},
        },
        {
            "run": ("member", table["run"]),
            "layer_of": ("member", table["layer"]), "head_of": ("member", table["head"]),
            "feature": list(FEATURES), "scheme": list(SCHEMES),
        },
        {
            "what": "specialisation of heads, predicted from early training", "parameters": json.dumps(parameters),
            "software": software(),
        },
    )  # fmt: skip


def _require_apart(runs: Mapping[str, Any]) -> None:
    """Refuse stores of the same training: what is held out of one would be trained on in the other."""
    seen: dict[str, str] = {}
    for name, run in runs.items():
        root = getattr(run, "root", None)
        if root is None or "weights_digest" not in root or not root.sizes.get(CHECKPOINT):
            continue
        digest = str(root["weights_digest"].values[-1])
        if digest and digest in seen:
            raise InvalidInputError(f"Runs {seen[digest]!r} and {name!r} hold the same weights: give other trainings.")
        seen[digest] = name


def _name(run: Any, place: int) -> str:
    return str(getattr(run, "path", f"run {place}"))


def _heads(name: str, run: Any, early: int, late: int | None) -> dict[str, Any]:
    """Return features at `early` and the divergence at `late` of each head of a run."""
    layers = {layer: one[ATTENTIONS] for layer, one in attention_layers(run) if ATTENTIONS in one}
    if not layers:
        raise NotFoundError(f"Run {name!r} holds no attention patterns: capture the kind {ATTENTIONS}.")
    rows: dict[str, list[Any]] = {key: [] for key in ("observed", "features", "run", "layer", "head")}
    for layer, patterns in layers.items():
        last = int(patterns[CHECKPOINT].values[-1]) if late is None else late
        require_steps(patterns, [early, last])
        if early >= last:
            raise InvalidInputError(f"early={early} is not before late={last}: name two checkpoints in order.")
        first = patterns.sel({CHECKPOINT: early})
        measures = attention_entropy(first).merge(attention_sparsity(first), compat="override")
        measures = measures.merge(attention_distance(first), compat="override").compute()
        apart = head_specialisation(patterns.sel({CHECKPOINT: [early, last]}), n_permutations=1)["of_head"]
        then, now = (apart.sel({CHECKPOINT: step}).values for step in (early, last))
        values = [*(measures[one].values for one in FEATURES[:-1]), then]
        heads = patterns[HEAD].values.tolist() if HEAD in patterns.coords else list(range(patterns.sizes[HEAD]))
        rows["observed"] += now.tolist()
        rows["features"] += np.stack(values, axis=1).tolist()
        rows["run"] += [name] * len(heads)
        rows["layer"] += [layer] * len(heads)
        rows["head"] += heads
    return {key: np.array(values) for key, values in rows.items()}


def _within(blocks: I64, rng: np.random.Generator) -> I64:
    """Return an order that shuffles members within each block."""
    order = np.arange(len(blocks))
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        order[members] = rng.permutation(members)
    return order


def _held_out(design: F64, y: F64, folds: I64, alpha: float = ALPHA) -> F64:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    found = np.empty(len(y))
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        scaler = StandardScaler().fit(design[rest])
        found[held] = Ridge(alpha).fit(scaler.transform(design[rest]), y[rest]).predict(scaler.transform(design[held]))
    return found


def _r2(y: F64, predicted: F64, folds: I64) -> float:
    """1 - squared errors over those of the training part's mean."""
    mean = np.array([y[folds != fold].mean() for fold in folds])
    total = ((y - mean) ** 2).sum()
    return float(1 - ((y - predicted) ** 2).sum() / total) if total > 0 else float("nan")
