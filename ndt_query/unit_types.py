"""What kind of thing drives each unit, by a rule that is stated, with how often it says so of an untrained network.

The rule looks at a unit's preferred patch, the mean of what it saw when it was driven most, and at its selectivity for
classes. It is an operational rule: names are those of the literature on convolutional features (Olah et al. 2017,
"Feature visualization"), and that a unit gets one does not say that it detects such things. So the same rule is asked
of the network before training, whose units detect nothing, and a share counts by how far it exceeds that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ndt_query.firing import dead_units
from ndt_query.inputs import require_count, require_number, require_steps
from ndt_query.kernels.patches import orientation_coherence, spatial_frequency
from ndt_query.layers import described
from ndt_query.profile import cut_patches, field_of, images_of
from ndt_query.proportions import clopper_pearson, paired_shares
from ndt_query.ranking import top_examples
from ndt_query.selectivity import selectivity_index
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, EXAMPLE, UNIT, X, Y
from ndt_store.errors import DimensionError, NotFoundError
from ndt_store.reader import Store

__all__ = ["TYPES", "TypeRule", "type_shares", "unit_types"]

TYPES: Final = ("edge", "texture", "part", "object", "unclassified")
UNKNOWN: Final = ""
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TypeRule:
    """Limits of the rule; the first that holds counts.

    1. A unit that fires in fewer than `least_rate` of examples is unclassified.
    2. It is an object when its AUROC for its preferred class is `object_auroc` or more, with q <= `max_q`, and its
       field spans `object_field` of the input or more.
    3. It is a part when its AUROC is `part_auroc` or more, with q <= `max_q`, and its field spans `part_field` or more.
    4. It is an edge when its preferred patch has an orientation coherence of `edge_coherence` or more.
    5. It is a texture when its preferred patch has a spatial frequency of `texture_frequency` or more.
    6. Else it is unclassified.
    """

    least_rate: float = 0.01
    max_q: float = 0.05
    object_auroc: float = 0.9
    object_field: float = 0.5
    part_auroc: float = 0.75
    part_field: float = 0.25
    edge_coherence: float = 0.6
    texture_frequency: float = 0.2

    def of(self, scores: xr.Dataset) -> NDArray[Any]:
        """Return the type of each unit of `scores` (checkpoint, unit)."""
        fires = scores["firing_rate"].values >= self.least_rate
        selective = fires & (scores["q_value"].values <= self.max_q)
        auroc, field = scores["auroc"].values, scores["field"].values
        found = np.full(fires.shape, "unclassified", object)
        # From the last to the first, so that the first that holds is what is left.
        found[fires & (scores["frequency"].values >= self.texture_frequency)] = "texture"
        found[fires & (scores["coherence"].values >= self.edge_coherence)] = "edge"
        found[selective & (auroc >= self.part_auroc) & (field >= self.part_field)] = "part"
        found[selective & (auroc >= self.object_auroc) & (field >= self.object_field)] = "object"
        found[np.isnan(scores["firing_rate"].values)] = UNKNOWN
        return found


def unit_types(
    store: Store,
    layer: str,
    *,
    checkpoints: Sequence[int] | None = None,
    rule: TypeRule | None = None,
    selective: xr.Dataset | None = None,
    k: int = 9,
    n_permutations: int = 500,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Say what kind of thing drives each unit of a conv layer, by a stated rule, with the scores behind it.

    Parameters
    ----------
    store : Store
        With activations of the layer, labels, and inputs that are images; with the experiment ``receptive_fields``
        patches are cut to the layer's theoretical field, without it a patch is the whole input.
    layer : str
    checkpoints : sequence of int, optional
        Training steps; all without it. Let the first be that of the untrained network.
    rule : TypeRule, optional
        Limits of the rule.
    selective : Dataset (checkpoint, unit), optional
        What `selectivity_index` says of the layer at these checkpoints, where it is known already; it is asked without
        it.
    k : int
        Examples whose patches are averaged to the preferred patch; those at which the unit is 0 are left out.
    n_permutations, seed : int
        Of the labels, for the q values.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over (checkpoint, unit): ``type``, one of "edge", "texture", "part", "object" and "unclassified"; the scores it
        follows from: ``coherence`` of orientation and ``frequency`` in cycles a pixel of the preferred patch,
        ``auroc``, held out, and ``q_value`` of class selectivity, ``firing_rate``; ``field``, the share of the input
        that the layer's field spans, by the smaller of both axes. NaN scores fulfil no condition; a unit
        whose activations hold NaN has the type "".

    Raises
    ------
    NotFoundError
        There is no such layer or checkpoint.
    DimensionError
        The layer has no positions y and x, or the inputs are no images.

    Notes
    -----
    One pass over the layer for selectivity; ranks and rates come from views where there are some. The images that drive
    its units are held in memory. `type_shares` counts types against the first checkpoint.
    """
    require_count("k", k, 1)
    acts = store[layer].get(ACTIVATIONS)
    if acts is None or not {Y, X} <= set(acts.dims):
        raise DimensionError(f"Layer {layer} has no activations over y and x: types are of conv layers.")
    if checkpoints is not None:
        require_steps(acts, checkpoints)
        acts = acts.sel({CHECKPOINT: list(checkpoints)})
    if selective is None:
        selective = selectivity_index(acts, n_permutations=n_permutations, seed=seed, memory=memory)
    top, firing, selective = compute(top_examples(acts, k, memory=memory), dead_units(acts, memory=memory), selective)
    for dim in (CHECKPOINT, UNIT):
        if dim not in selective.coords or not np.array_equal(selective[dim].values, acts[dim].values):
            raise DimensionError(
                f"selective has sizes {dict(selective.sizes)} and not the {dim} labels of layer {layer}: ask "
                f"selectivity_index about the same {acts.sizes[CHECKPOINT]} checkpoints and {acts.sizes[UNIT]} units."
            )
    coherence, frequency, field = _pictured(store, layer, top)
    over = (CHECKPOINT, UNIT)
    scores = xr.Dataset(
        {
            "coherence": (over, coherence),
            "frequency": (over, frequency),
            "auroc": selective["auroc_held_out"].variable,
            "q_value": selective["q_value"].variable,
            "firing_rate": firing["firing_rate"].variable,
            "field": ((), field),
        },
        {CHECKPOINT: acts[CHECKPOINT].values, UNIT: acts[UNIT].values},
    )
    chosen = rule or TypeRule()
    found = scores.assign(type=(over, chosen.of(scores)))
    limits = {name: getattr(chosen, name) for name in TypeRule.__dataclass_fields__}
    asked = json.loads(selective.attrs.get("parameters", "{}"))
    parameters = {**limits, "k": k, **{name: asked.get(name) for name in ("n_permutations", "seed")}}
    found.attrs = described({}, acts, "what kind of thing drives each unit", parameters, squeeze=False).attrs
    return found


def type_shares(types: xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Count types at each checkpoint, and how far each share exceeds that of the first one.

    Parameters
    ----------
    types : Dataset (checkpoint, unit)
        From `unit_types`.
    confidence : float
        Nominal level of the intervals.

    Returns
    -------
    Dataset
        Over (checkpoint, type): ``count``, ``share`` of the units of known type with ``share_low`` and ``share_high``,
        Clopper and Pearson's; ``excess``, the share less that of the first checkpoint, the rule's base rate, with
        ``excess_low`` and ``excess_high``, Bonett and Price's for the same units twice, NaN where the type of a unit is
        not known. The limits treat units as a sample of those that other seeds would give, which units of one network
        are at best roughly.

    Raises
    ------
    NotFoundError
        The Dataset has no types.
    """
    if "type" not in types or set(types["type"].dims) != {CHECKPOINT, UNIT}:
        raise NotFoundError("The Dataset has no type over checkpoint and unit: pass that of unit_types.")
    require_number("confidence", confidence, below=1.0)
    names = types["type"].transpose(CHECKPOINT, UNIT).values
    counts = np.stack([(names == one).sum(axis=1) for one in TYPES], axis=1)
    known = names != UNKNOWN
    n = known.sum(axis=1, keepdims=True)
    low, high = clopper_pearson(np.where(n, counts, np.nan), np.maximum(n, 1), confidence=confidence)
    over = (CHECKPOINT, "type")
    share = np.divide(counts, n, out=np.full(counts.shape, np.nan), where=n > 0)
    is_type = np.stack([np.where(known, names == one, np.nan) for one in TYPES], axis=1)
    excess = paired_shares(is_type[1:] - is_type[0], confidence=confidence)
    none = np.where(known[0].all(), np.zeros((1, len(TYPES))), np.nan)  # of the first checkpoint against itself
    return xr.Dataset(
        {
            "count": (over, counts),
            "share": (over, share),
            "share_low": (over, low),
            "share_high": (over, high),
            "excess": (over, np.concatenate([none, excess.estimate])),
            "excess_low": (over, np.concatenate([none, excess.low])),
            "excess_high": (over, np.concatenate([none, excess.high])),
        },
        {CHECKPOINT: types[CHECKPOINT].values, "type": list(TYPES)},
        {**types.attrs, "what": "shares of types, and what exceeds the first checkpoint"},
    )


def _pictured(store: Store, layer: str, top: xr.Dataset) -> tuple[F64, F64, float]:
    """Score preferred patches (checkpoint, unit), and return the share of the input that the field spans."""
    ordered = top.transpose(CHECKPOINT, UNIT, "rank")
    examples = np.unique(ordered[EXAMPLE].values)
    images = images_of(store, examples)
    if images is None:
        raise DimensionError(f"The inputs of {store.path} are no images: types are of units that see images.")
    grey, field = images.mean(axis=1, keepdims=True), field_of(store, layer)
    place = np.searchsorted(examples, ordered[EXAMPLE].values)
    y, x, drives = ordered[Y].values, ordered[X].values, ordered["value"].values != 0
    coherence, frequency = np.full((2, *place.shape[:2]), np.nan)
    for unit in np.ndindex(place.shape[:2]):  # one picture at a time: all of them may be as large as the layer
        some = drives[unit]
        if some.any():
            patches = cut_patches(grey[place[unit][some]], field, y[unit][some], x[unit][some])[0][:, 0]
            n = np.isfinite(patches).sum(axis=0)
            picture = np.divide(np.nansum(patches, axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)
            coherence[unit], frequency[unit] = orientation_coherence(picture), spatial_frequency(picture)
    shape = images.shape[2:]
    known = field is not None and str(field["kind"].values) != "unknown"
    sizes = field["size"].values if known and field is not None else np.array(shape, float)
    return coherence, frequency, float(np.min(np.minimum(sizes, shape) / shape))
