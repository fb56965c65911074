"""Receptive fields: how far the units of a layer could see by theory, and how far they do, with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.intervals import jackknife, require_level
from ndt_query.kernels.widths import central_width
from ndt_query.layers import software
from ndt_store.dims import LAYER, STEP, UNIT, X, Y
from ndt_store.errors import DimensionError, NotFoundError
from ndt_store.reader import Store

__all__ = ["SHARE", "receptive_field"]

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]

EXPERIMENT: Final = "receptive_fields"
SHARE: Final = 0.9545
"""Of the mass of a field, what two standard deviations of a normal distribution hold to either side."""

AXIS: Final = "axis"
GROUP: Final = "group"
MAP_DIMS: Final = {Y: "field_row", X: "field_column"}
"""Dims of maps; `row` and `column` are those of the inputs that a store holds."""
MASSES: Final = {Y: "row_mass", X: "column_mass"}
_THEORY: Final = ("size", "stride", "offset", "position", "first", "last", "crop_start", "crop_size", "kind", "reason")
_WIDTHS: Final = {
    "width": ("length that holds 95.45% of the effective field", "pixel"),
    "ratio": ("width of the effective field over size of the theoretical one", "1"),
    "layer_width": ("width of the effective field, mean over units", "pixel"),
    "layer_ratio": ("width over theoretical size, mean over units", "1"),
    "change": ("layer_width at the last step less that at the first", "pixel"),
}


def receptive_field(
    data: Store | xr.Dataset, layer: str | Sequence[str] | None = None, *, confidence: float = 0.95
) -> xr.Dataset:
    """Say how large the receptive fields of layers are by theory, how wide the effective ones, and how that changes.

    The width of an effective field along an axis is the length of the shortest interval about the centre of the
    theoretical field that holds 95.45% of the field's mass, added up over the other axis; each pixel's mass lies evenly
    over that pixel. Of a normal distribution it is four standard deviations. It needs no fit and no threshold, and a
    field that used all of the theoretical one evenly would have 95.45% of its size.

    Parameters
    ----------
    data : Store or Dataset
        A store with the experiment ``receptive_fields``, or what ``capture.receptive_fields`` returned.
    layer : str or sequence of str, optional
        One layer, whose result has no dimension ``layer``, or some; by default all.
    confidence : float
        Nominal level of all intervals.

    Returns
    -------
    Dataset
        ``axis`` is "y" and "x", or "x" for series; all lengths are in input pixels.

        ``size``, ``stride``, ``offset`` (layer, axis)
            The theoretical field: how many pixels, how far from neighbour to neighbour, and where the centre of that of
            unit (0, 0) lies. NaN where ``reason`` (layer) says why. ``kind`` (layer) is "sliding", "global" (all units
            see the same, the stride is 0) or "unknown".
        ``effective`` (step, layer, unit, field_row, field_column)
            Mean over examples of the absolute gradient of the central unit with respect to the input, summed over
            channels. Row 0 is input row ``crop_start`` (layer, axis), of which ``crop_size`` are kept; NaN beyond.
        ``width``, ``ratio`` (step, layer, unit, axis)
            Of each unit that was measured, which ``unit_index`` (layer, unit) names; ``ratio`` is width over size.
        ``layer_width``, ``layer_ratio`` (step, layer, axis)
            Means over the ``n_units`` (step, layer) of the units that two groups of examples or more do not leave
            silent.
        ``change`` (layer, axis)
            Only with two steps or more: ``layer_width`` at the last less that at the first, over the ``n_units_both``
            (layer) units that count at both.

        All but the theory have ``_low`` and ``_high``. They come from leaving out one group of examples at a time, so
        that they say what other examples would give for the same units and weights; the change is paired by examples.
        They say nothing of other units or other trainings. NaN where there is one group alone, where a unit is silent,
        and where a field is not known.

        ``position`` of the central unit, the ``first`` and ``last`` input position that it sees, and ``input_size``
        are handed on. Attributes name the numbers of examples and groups.

    Raises
    ------
    NotFoundError
        The store has no such experiment, or the experiment no such layer.
    DimensionError
        The Dataset is no result of `capture.receptive_fields`.
    InvalidInputError
        `confidence` is no level.

    Notes
    -----
    Reads the experiment once into memory. A map is of the one unit at the centre of the layer; where the theoretical
    field is larger than the image, the effective one is cut off by the image, as every real unit's is, and so is its
    width: look at ``size`` beside ``input_size`` before a small ratio is taken for a small field.

    References
    ----------
    W. Luo, Y. Li, R. Urtasun, R. Zemel, "Understanding the effective receptive field in deep convolutional neural
    networks", NeurIPS 2016, for the field and the share of 95.45%.

    Examples
    --------
    >>> row = np.array([[0.0, 1, 2, 1, 0]] * 4)  # of four groups of examples
    >>> fields = xr.Dataset(
    ...     {
    ...         "size": (("layer", "axis"), [[5.0]]), "stride": (("layer", "axis"), [[1.0]]),
    ...         "offset": (("layer", "axis"), [[0.0]]), "position": (("layer", "axis"), [[4]]),
    ...         "first": (("layer", "axis"), [[2.0]]), "last": (("layer", "axis"), [[6.0]]),
    ...         "crop_start": (("layer", "axis"), [[2]]), "crop_size": (("layer", "axis"), [[5]]),
    ...         "kind": ("layer", ["sliding"]), "reason": ("layer", [""]), "input_size": ("axis", [9]),
    ...         "effective": (("step", "layer", "unit", "field_column"), [[row[:1]]]),
    ...         "column_mass": (("step", "layer", "unit", "group", "field_column"), [[[row]]]),
    ...         "group_size": ("group", [8, 8, 8, 8]),
    ...     },
    ...     {"step": [0], "layer": ["conv"], "axis": ["x"], "unit_index": (("layer", "unit"), [[0]])},
    ... )
    >>> found = receptive_field(fields, "conv")
    >>> found["width"].round(3).values.tolist(), found["ratio"].round(3).values.tolist()
    ([[[2.818]]], [[[0.564]]])
    """
    require_level(confidence)
    fields = _fields(data, layer)
    widths, left_out = _widths(fields)  # (step, layer, unit, axis), and with a group in front
    sizes = fields["size"].values
    several = len(left_out) > 1
    counted: Bools = np.asarray(np.isfinite(left_out if several else widths[None]).all((0, -1)))
    by_unit, by_layer = (STEP, LAYER, UNIT, AXIS), (STEP, LAYER, AXIS)
    found: dict[str, tuple[tuple[str, ...], Any]] = {"n_units": ((STEP, LAYER), counted.sum(-1))}

    def add(name: str, dims: tuple[str, ...], estimate: F64, parts: F64) -> None:
        bounds = [np.full_like(estimate, np.nan)] * 2
        if several:
            made = jackknife(parts, estimate, confidence=confidence)
            bounds = [made.low, made.high]
        for end, values in zip(("", "_low", "_high"), (estimate, *bounds), strict=True):
            found[f"{name}{end}"] = (dims, values)

    add("width", by_unit, widths, left_out)
    add("ratio", by_unit, widths / sizes[:, None], left_out / sizes[:, None])
    means, parts = _mean(widths, counted), _mean(left_out, counted)
    add("layer_width", by_layer, means, parts)
    add("layer_ratio", by_layer, means / sizes, parts / sizes)
    if len(widths) > 1:
        both = counted[0] & counted[-1]
        found["n_units_both"] = ((LAYER,), both.sum(-1))
        add(
            "change",
            (LAYER, AXIS),
            *(_mean(w[..., -1, :, :, :] - w[..., 0, :, :, :], both) for w in (widths, left_out)),
        )
    result = fields[[*_THEORY, "input_size", "effective"]].assign(found)
    for name, (text, unit) in _WIDTHS.items():
        if name in result:
            result[name].attrs = {"long_name": text, "units": unit}
    result.attrs = {
        "what": "receptive fields, theoretical and effective, with intervals over examples",
        "parameters": json.dumps({"confidence": confidence, "share": SHARE}, sort_keys=True),
        "n_examples": int(fields["group_size"].sum()),
        "n_groups": fields.sizes[GROUP],
        **({"store": data.path} if isinstance(data, Store) else {}),
        "software": software(),
    }
    return result.sel({LAYER: layer}) if isinstance(layer, str) else result


def _fields(data: Store | xr.Dataset, layer: str | Sequence[str] | None) -> xr.Dataset:
    if isinstance(data, Store):
        if EXPERIMENT not in data.experiments:
            raise NotFoundError(
                f"{data.path} has no experiment {EXPERIMENT!r}: make it with `ndt receptive-fields` or "
                "capture.receptive_fields first."
            )
        data = data.experiment(EXPERIMENT)
    missing = [name for name in (*_THEORY, "effective", "column_mass", "group_size") if name not in data.variables]
    if missing or not {STEP, LAYER, UNIT, AXIS, GROUP} <= set(data.dims):
        what = f"no variable {missing[0]!r}" if missing else f"dims {tuple(map(str, data.dims))}"
        raise DimensionError(f"The Dataset has {what}: expected what capture.receptive_fields gives.")
    if layer is not None:
        wanted = [layer] if isinstance(layer, str) else list(layer)
        held = data[LAYER].values.tolist()
        unknown = [name for name in wanted if name not in held]
        if unknown or not wanted:
            raise NotFoundError(
                f"The receptive fields are those of {', '.join(held)}: got {(unknown or ['no layer'])[0]!r}."
            )
        data = data.sel({LAYER: wanted})
    return data.compute()


def _widths(fields: xr.Dataset) -> tuple[F64, F64]:
    """Return widths (step, layer, unit, axis), and (group, step, layer, unit, axis) with each group left out."""
    weights = fields["group_size"].values.astype(np.float64)
    whole, parts = [], []
    for axis in fields[AXIS].values:
        dim = MAP_DIMS[str(axis)]
        margins = fields[MASSES[str(axis)]].transpose(GROUP, STEP, LAYER, UNIT, dim)
        masses = margins.values * weights[:, None, None, None, None]
        total = masses.sum(0)
        of_axis = fields.sel({AXIS: axis})
        centres = ((of_axis["first"] + of_axis["last"]) / 2 - of_axis["crop_start"]).values
        sizes = of_axis["crop_size"].values
        both = np.concatenate([total[None], total - masses])
        widths = np.full(both.shape[:-1], np.nan)
        for n, (centre, size) in enumerate(zip(centres, sizes, strict=True)):
            if math.isfinite(centre):
                widths[:, :, n] = central_width(both[:, :, n, :, :size], float(centre), SHARE)
        whole.append(widths[0])
        parts.append(widths[1:])
    return np.stack(whole, -1), np.stack(parts, -1)


def _mean(values: F64, counted: Bools) -> F64:
    """Average (..., unit, axis) over the units that count, NaN where none does."""
    weights = counted[..., None]
    n = weights.sum(-2)
    total = np.where(weights, values, 0.0).sum(-2)
    means: F64 = np.full(total.shape, np.nan)
    np.divide(total, n, out=means, where=np.broadcast_to(n > 0, total.shape))
    return means
