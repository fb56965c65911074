"""Units that wake up: how many at each moment of training, and what those respond to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ndt_query.firing import newly_active_units
from ndt_query.inference import clopper_pearson, fdr
from ndt_query.inputs import require_count, require_steps
from ndt_query.layers import Whole, described, each_layer
from ndt_query.moments import ROLES, Pairs, as_pair
from ndt_query.ranking import top_examples
from ndt_query.reductions import RANK
from ndt_query.selectivity import class_means, selectivity_index
from ndt_store.dims import CHECKPOINT, CLASS, EXAMPLE, LAYER, UNIT
from ndt_store.errors import InvalidInputError

__all__ = ["WOKEN", "pictured", "waking_units"]

MOMENT: Final = "moment"
WOKEN: Final = "woken_unit"
MOST_PICTURED: Final = 6
_MEASURES: Final = ("preferred_class", "selectivity_index", "auroc", "p_value")


def waking_units(
    data: Whole,
    pairs: Pairs,
    *,
    min_rate: float = 0.01,
    k: int = 5,
    n_permutations: int = 1000,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Count the units that wake up at each moment, and say which they are and what they respond to.

    A unit wakes up between two checkpoints when it is dead at the first, zero at every position of all examples, and at
    the second fires in more than `min_rate` of them.

    Parameters
    ----------
    data : Store, DataTree or mapping of layers
        Activations, with labels.
    pairs : sequence of (before, after), or mapping of role to such
        Training steps. Roles are ``"jump"`` and ``"control"``, as from `schedule_pairs`.
    min_rate : float
        See `ndt_query.newly_active_units`.
    k : int
        Preferred stimuli of each woken unit.
    n_permutations, seed : int
        Of the labels, for the p values of selectivity.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over (moment, layer): ``woken``, how many units woke up; ``dead_before``, of how many that were dead; ``share``,
        with ``share_low`` and ``share_high``, 95% Clopper-Pearson limits with n the dead units, NaN where none was.
        Units with a NaN at either checkpoint are in none of them. ``moment`` is in the order given; ``before``,
        ``after`` and ``role`` label it.

        Over ``woken_unit``, one for each unit and moment: ``unit``, ``layer_of``, ``moment_of`` (position among the
        moments), ``rate_after`` (the fraction of examples in which it fires then), and at ``after``:
        ``preferred_class``, the one with the largest mean;
        ``selectivity_index``, ``auroc``, ``p_value`` of permuted labels and ``q_value``, Benjamini-Hochberg's over all
        woken units of all moments; ``class_mean`` (woken_unit, class), its selectivity curve; ``example`` and ``value``
        (woken_unit, rank), what drives it most.

    Raises
    ------
    NotFoundError
        A step is no checkpoint.
    InvalidInputError
        A pair is not in order, a role is unknown, or there is no pair.

    Notes
    -----
    Counts come from views where there are some; p values from one pass over the layers and checkpoints at which units
    woke up. Limits treat the dead units of a layer as a sample of units that might have woken up: other seeds of the
    training are not in them. Whether more wake up at jumps than elsewhere is a comparison of roles.
    """
    require_count("k", k, 1)
    moments = _moments(pairs)
    layers = dict(each_layer(data))
    for acts in layers.values():
        require_steps(acts, {step for _, before, after in moments for step in (before, after)})
    shape = len(moments), len(layers)
    woken, dead = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    rows: list[xr.Dataset] = []
    for column, (layer, acts) in enumerate(layers.items()):
        asked = [newly_active_units(acts, before, after, min_rate, memory=memory) for _, before, after in moments]
        for row, found in enumerate(compute(*asked)):
            units = found[UNIT].values[found["newly_active"].values]
            woken[row, column] = len(units)
            dead[row, column] = int(((found["rate_before"] == 0) & found["rate_after"].notnull()).sum())
            if len(units):
                some = acts.sel({CHECKPOINT: moments[row][2], UNIT: units})
                one = _responses(some, k, {"n_permutations": n_permutations, "seed": seed}, memory)
                one["rate_after"] = (WOKEN, found["rate_after"].sel({UNIT: units}).values)
                one["layer_of"], one["moment_of"] = (WOKEN, [layer] * len(units)), (WOKEN, np.full(len(units), row))
                rows.append(one)
    low, high = clopper_pearson(np.where(dead > 0, woken, np.nan), np.maximum(dead, 1))
    over = (MOMENT, LAYER)
    counts: dict[str, Any] = {
        "woken": (over, woken),
        "dead_before": (over, dead),
        "share": (over, np.divide(woken, dead, out=np.full(shape, np.nan), where=dead > 0)),
        "share_low": (over, low),
        "share_high": (over, high),
    }
    found = xr.merge([xr.Dataset(counts), _together(rows)]).assign_coords(
        {
            LAYER: list(layers),
            "role": (MOMENT, [role for role, *_ in moments]),
            "before": (MOMENT, [before for _, before, _ in moments]),
            "after": (MOMENT, [after for *_, after in moments]),
        }
    )
    parameters = {"min_rate": min_rate, "k": k, "n_permutations": n_permutations, "seed": seed}
    source = next(iter(layers.values()))
    found.attrs = described({}, source, "units that wake up", parameters, squeeze=False).attrs
    found.attrs.pop("layer", None)
    return found


def pictured(found: xr.Dataset, most: int = MOST_PICTURED) -> NDArray[np.intp]:
    """Return the places of the woken units that fire in most examples, at most `most`, in falling order.

    Parameters
    ----------
    found : Dataset
        From `waking_units`.
    most : int
    """
    return np.argsort(-found["rate_after"].values, kind="stable")[:most]


def _moments(pairs: Pairs) -> list[tuple[str, int, int]]:
    by_role = pairs if isinstance(pairs, Mapping) else {"": pairs}
    unknown = [role for role in by_role if role not in ROLES]
    if unknown:
        raise InvalidInputError(f"{unknown[0]!r} is no role of a moment: expected jump or control.")
    found = []
    for role, some in by_role.items():
        for pair in some:
            before, after = as_pair(pair)
            if before > after:
                raise InvalidInputError(f"{pair!r} runs backwards: give the earlier checkpoint first.")
            found.append((role, before, after))
    if not found:
        raise InvalidInputError("There is no pair of checkpoints: give at least one (before, after).")
    return found


def _responses(some: xr.DataArray, k: int, permuted: dict[str, Any], memory: int | str | None) -> xr.Dataset:
    """Say what some units of one layer respond to at one checkpoint, along `WOKEN`."""
    means, selective, top = compute(
        class_means(some, memory=memory)["mean"].transpose(UNIT, CLASS),
        selectivity_index(some, **permuted, memory=memory),
        top_examples(some, k, memory=memory),
    )
    found: dict[str, Any] = {name: (WOKEN, selective[name].values) for name in _MEASURES}
    found |= {name: ((WOKEN, RANK), top[name].values) for name in ("value", EXAMPLE)}
    found |= {"unit": (WOKEN, some[UNIT].values), "class_mean": ((WOKEN, CLASS), means.values)}
    return xr.Dataset(found, {CLASS: means[CLASS].variable, RANK: top[RANK].variable})


def _together(rows: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join what was said of woken units, with q values over all of them; nothing where there are none."""
    if not rows:
        return xr.Dataset({"unit": (WOKEN, np.empty(0, np.int64)), "moment_of": (WOKEN, np.empty(0, np.int64))})
    found = xr.concat(rows, WOKEN, join="outer")
    found["q_value"] = (WOKEN, fdr(found["p_value"].values))
    return found
