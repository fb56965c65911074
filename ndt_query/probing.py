"""What heads know: the class or the position that a linear probe reads off what they put out, on held-out examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attention import attention_entropy
from ndt_query.budget import Projection, allowed_nbytes, check
from ndt_query.inputs import as_classes, require_count
from ndt_query.intervals import mean_ci
from ndt_query.layers import StoreLike, of_heads, software
from ndt_query.proportions import clopper_pearson
from ndt_query.reduce import ADVICE
from ndt_store.dims import ACTIVATIONS, ATTENTIONS, CHECKPOINT, EXAMPLE, HEAD, LAYER, MEAN_PATTERN, TOKEN, UNIT
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["CATEGORIES", "HeadRule", "head_categories", "probe_heads"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

HEADS: Final = "@heads"
MOST_ROWS: Final = 8192
N_SHUFFLES: Final = 20
ALPHA: Final = 1.0
TASKS: Final = ("class", "position")
KIND: Final = "kind"
CATEGORIES: Final = ("class", "position", "both", "uniform", "unclassified")


@dataclass(frozen=True)
class HeadRule:
    """What a head is called; `head_categories` applies it in this order.

    Parameters
    ----------
    least_gain : float
        A head tells classes, or positions, when the accuracy of its probe closes this share of the gap between the
        control's accuracy and 1. Both is ``"both"``, one of them ``"class"`` or ``"position"``.
    uniform_entropy : float
        A head that tells neither is ``"uniform"`` from this entropy of its attention on.
    """

    least_gain: float = 0.5
    uniform_entropy: float = 0.95


def probe_heads(
    store: StoreLike | Mapping[str, xr.DataArray],
    *,
    labels: Any = None,
    n_folds: int = 5,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Probe what each head puts out for the class of the example and for the position of the token.

    Parameters
    ----------
    store : Store, or mapping of layers to DataArray ([checkpoint,] example, token, head, unit)
        With layers that end in ``@heads``.
    labels : array_like (example,), optional
        Classes; the coordinate ``label`` without it.
    n_folds : int
        Of cross-validation.
    seed : int
        Of the folds and of the shuffled labels.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    Dataset ([checkpoint,] layer, head)
        For ``class``, from the mean over tokens, and ``position``, from each token, one of which a row is:
        ``TASK_accuracy`` on held-out examples, with ``TASK_low`` and ``TASK_high``; ``TASK_control``, the accuracy of
        the same probe for shuffled labels (control task, Hewitt and Liang 2019), of classes the mean over 20 shuffles;
        ``TASK_gain``, ``(accuracy - control)
        / (1 - control)``. ``entropy`` of the head's attention, where the store holds it. ``class_chance`` and
        ``position_chance`` (layer) are the shares of the most frequent label. Heads that others have more of are NaN.

    Raises
    ------
    NotFoundError
        No layer holds what heads put out, or there are no labels.
    DimensionError
        An array has other dimensions.
    InvalidInputError
        A class has fewer examples than there are folds.
    MemoryBudgetError
        One checkpoint of one layer does not fit the budget.

    Notes
    -----
    The probe is a ridge classifier (penalty 1 on standardised features). Folds hold whole examples, so that no token of
    a held-out example is trained on. Classes are shuffled within folds, positions within examples; positions are taken
    of so many examples that there are some 8,000 rows. Intervals of classes are Clopper and Pearson's over examples;
    those of positions are Student's t over examples, whose tokens are not independent. One pass; memory is that of one
    checkpoint of one layer.
    """
    require_count("n_folds", n_folds, 2)
    layers = _head_layers(store)
    found: dict[str, xr.Dataset] = {}
    allowed = allowed_nbytes(memory)
    for name, acts in layers.items():
        at_once = 8 * acts.size // acts.sizes.get(CHECKPOINT, 1)
        check(f"probe_heads of {name}", Projection(0, 0, 0.0, 1, at_once, 2, 0), allowed, ADVICE)
        classes = as_classes(acts, labels)
        if np.bincount(classes.codes).min() < n_folds:
            raise InvalidInputError(
                f"A class has {np.bincount(classes.codes).min()} examples and n_folds={n_folds}: expected one a fold."
            )
        lead = CHECKPOINT in acts.dims
        rows = []
        for place in range(acts.sizes[CHECKPOINT] if lead else 1):
            one = acts.isel({CHECKPOINT: place}) if lead else acts
            values = np.asarray(one.transpose(EXAMPLE, TOKEN, HEAD, UNIT).compute().values, dtype=np.float64)
            rows.append(_probed(values, classes.codes, n_folds, seed))
        over = (CHECKPOINT, HEAD) if lead else (HEAD,)
        arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        part = xr.Dataset({key: (over, values if lead else values[0]) for key, values in arrays.items()})
        chance = {"class": np.bincount(classes.codes).max() / len(classes.codes), "position": 1 / acts.sizes[TOKEN]}
        part = part.assign({f"{task}_chance": ((), float(share)) for task, share in chance.items()})
        found[name] = part.assign_coords({dim: acts[dim] for dim in over if dim in acts.coords})
    entropies = _entropies(store, found)
    found = {name: part.assign(entropy=entropies[name]) if name in entropies else part for name, part in found.items()}
    parts = [part.drop_vars([c for c in part.coords if c not in part.dims]) for part in found.values()]
    result = xr.concat(parts, xr.Variable(LAYER, list(found)), data_vars="all", coords="minimal", compat="override",
                       join="outer", combine_attrs="drop")  # fmt: skip
    result = result.transpose(..., LAYER, HEAD)
    parameters = {"n_folds": n_folds, "seed": seed, "alpha": ALPHA}
    result.attrs = {"what": "probes of heads", "parameters": json.dumps(parameters), "software": software()}
    return result


def head_categories(probes: xr.Dataset, rule: HeadRule | None = None) -> xr.Dataset:
    """Call each head what a stated rule says, from what can be read off it.

    Parameters
    ----------
    probes : Dataset ([checkpoint,] layer, head)
        From `probe_heads`.
    rule : HeadRule, optional

    Returns
    -------
    Dataset
        ``category`` ([checkpoint,] layer, head), one of `CATEGORIES`, "" where there is no head; ``share``
        ([checkpoint,] kind) of the heads; with checkpoints also ``excess``, the share beyond that of the first
        checkpoint. Where that is the untrained network, only the excess speaks of learning.

    Raises
    ------
    NotFoundError
        The Dataset has no gains.
    """
    if "class_gain" not in probes or "position_gain" not in probes:
        raise NotFoundError("The Dataset has no class_gain and position_gain: pass that of probe_heads.")
    rule = rule or HeadRule()
    tells_class, tells_position = (probes[f"{task}_gain"] >= rule.least_gain for task in TASKS)
    uniform = probes["entropy"] >= rule.uniform_entropy if "entropy" in probes else xr.zeros_like(tells_class)
    there = probes["class_gain"].notnull()
    category = xr.full_like(probes["class_gain"], "unclassified", dtype=object)
    for name, holds in (
        ("uniform", uniform),
        ("class", tells_class),
        ("position", tells_position),
        ("both", tells_class & tells_position),
    ):
        category = category.where(~holds, name)
    category = category.where(there, "")
    shares = [(category == name).sum([LAYER, HEAD]) / there.sum([LAYER, HEAD]) for name in CATEGORIES]
    share = xr.concat(shares, xr.Variable(KIND, list(CATEGORIES))).transpose(..., KIND)
    found = {"category": category, "share": share}
    if CHECKPOINT in share.dims:
        found["excess"] = share - share.isel({CHECKPOINT: 0}, drop=True)
    result = xr.Dataset(found)
    result.attrs = {**probes.attrs, "what": "categories of heads by a stated rule", **asdict(rule)}
    return result


def _head_layers(store: Any) -> dict[str, xr.DataArray]:
    if isinstance(store, Mapping):
        found = {str(name).removesuffix(HEADS): one for name, one in store.items()}
    else:
        layers = {name: store[name] for name in store.layers if name.endswith(HEADS)}
        found = {name.removesuffix(HEADS): one[ACTIVATIONS] for name, one in layers.items() if ACTIVATIONS in one}
    if not found:
        where = getattr(store, "path", "The mapping")
        raise NotFoundError(
            f"{where} has no layer of what heads put out: capture layers such as 'encoder.layers.*.self_attn@heads'."
        )
    for name, acts in found.items():
        if not of_heads(acts) or not {EXAMPLE, TOKEN} <= set(acts.dims):
            raise DimensionError(f"Layer {name!r} has dims {acts.dims}: expected example, token, head and unit.")
    return found


def _entropies(store: Any, found: Mapping[str, Any]) -> dict[str, xr.DataArray]:
    """Entropy of attention in the layers whose heads are probed, as far as the store holds attention."""
    if isinstance(store, Mapping):
        return {}
    held = {name: store[name] for name in found if name in store.layers}
    able = {name: one for name, one in held.items() if ATTENTIONS in one or MEAN_PATTERN in one}
    return {name: attention_entropy(one)["entropy"].compute() for name, one in able.items()}


@dataclass(frozen=True)
class _Tasks:
    """Labels and folds of classes (example,) and positions (example drawn, token); shuffled (shuffle, example)."""

    codes: I64
    shuffled: I64
    folds: I64
    drawn: I64
    positions: I64
    mixed: I64

    @classmethod
    def of(cls, codes: I64, n_tokens: int, n_folds: int, seed: int) -> _Tasks:
        """Deal examples to folds, shuffle labels, and draw the examples whose tokens are rows."""
        from sklearn.model_selection import StratifiedKFold

        rng = np.random.default_rng(seed)
        folds, turn = np.empty(len(codes), np.int64), np.empty(len(codes), np.int64)
        dealt = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(codes, codes)
        for fold, (_, held) in enumerate(dealt):
            folds[held], turn[held] = fold, rng.permutation(len(held))
        # Within folds, so that every fold holds as many of each class, as it does of the true labels.
        shuffled = np.tile(codes, (N_SHUFFLES, 1))
        for fold in range(n_folds):
            shuffled[:, folds == fold] = rng.permuted(shuffled[:, folds == fold], axis=1)
        # From each fold in turn, so that none is left without.
        drawn = np.argsort(turn, kind="stable")[: max(n_folds, MOST_ROWS // n_tokens)]
        positions = np.tile(np.arange(n_tokens), (len(drawn), 1))
        return cls(codes, shuffled, folds, drawn, positions, rng.permuted(positions, axis=1))


def _probed(values: F64, codes: I64, n_folds: int, seed: int) -> dict[str, F64]:
    """Probe the heads of one checkpoint, (example, token, head, unit)."""
    tasks = _Tasks.of(codes, values.shape[1], n_folds, seed)
    rows = [_of_head(values[:, :, head], tasks) for head in range(values.shape[2])]
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def _of_head(values: F64, tasks: _Tasks) -> dict[str, float]:
    """Probe one head, (example, token, unit)."""
    names = [f"{task}_{part}" for task in TASKS for part in ("accuracy", "low", "high", "control", "gain")]
    if not np.isfinite(values).all():
        return dict.fromkeys(names, np.nan)
    mean = values.mean(axis=1)
    sets = np.concatenate([tasks.codes[None], tasks.shuffled])
    told = _held_out(mean, sets, tasks.folds) == sets
    right, control = told[0], told[1:].mean()
    low, high = clopper_pearson(right.sum(), len(right))
    tokens = values[tasks.drawn].reshape(tasks.positions.size, -1)
    folds = np.repeat(tasks.folds[tasks.drawn], tasks.positions.shape[1])
    places = np.stack([tasks.positions, tasks.mixed])
    found_places = _held_out(tokens, places.reshape(2, -1), folds).reshape(places.shape)
    placed, by_chance = (found_places == places).mean(axis=2)
    of_position = mean_ci(placed)
    found = [right.mean(), low, high, control, _gain(right.mean(), control)]
    found += [of_position.estimate, of_position.low, of_position.high, by_chance.mean()]
    found.append(_gain(placed.mean(), by_chance.mean()))
    return dict(zip(names, map(float, found), strict=True))


def _gain(accuracy: float, control: float) -> float:
    return (accuracy - control) / (1 - control) if control < 1 else np.nan


def _held_out(features: F64, labels: I64, folds: I64) -> I64:
    """Predict every fold from the others, for several sets of labels (set, row) of 0, 1, ... at once."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    found = np.empty_like(labels)
    # One column a class, 1 or -1, as scikit-learn's RidgeClassifier has it; sets share what is solved for.
    targets = 2.0 * (labels.T[:, :, None] == np.arange(labels.max() + 1)) - 1
    columns = targets.reshape(len(features), -1)
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        scaler = StandardScaler().fit(features[rest])
        probe = Ridge(ALPHA).fit(scaler.transform(features[rest]), columns[rest])
        scores = probe.predict(scaler.transform(features[held])).reshape(-1, *targets.shape[1:])
        found[:, held] = scores.argmax(axis=2).T
    return found
