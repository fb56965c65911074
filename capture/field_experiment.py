"""Receptive fields as a dataset, and as the experiment of a store that may hold them already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from capture.effective_fields import EffectiveMaps, Probing
from capture.field_theory import AXES
from ndt_store.dims import LAYER, STEP, UNIT
from ndt_store.errors import AlreadyExistsError
from ndt_store.reader import open_store
from ndt_store.storage import Storage

__all__ = ["EXPERIMENT", "Frame", "as_dataset", "held_fields"]

EXPERIMENT: Final = "receptive_fields"
MAP_DIMS: Final[Mapping[int, tuple[str, ...]]] = {1: ("column",), 2: ("row", "column")}

_NAMES: Final = {
    "size": ("size of the theoretical receptive field, padding included", "pixel"),
    "stride": ("distance of the fields of neighbouring units", "pixel"),
    "offset": ("centre of the field of unit (0, 0)", "pixel"),
    "kind": ("sliding, global or unknown", ""),
    "reason": ("what is not known of the theoretical field, and why", ""),
    "position": ("position of the central unit in the layer; -1 in a layer without positions", "1"),
    "first": ("first input position that the central unit sees", "pixel"),
    "last": ("last input position that the central unit sees", "pixel"),
    "crop_start": ("first input position that the maps hold", "pixel"),
    "crop_size": ("input positions that the maps hold", "pixel"),
    "unit_index": ("which unit of the layer it is; -1 where the layer has no more", "1"),
    "effective": ("mean over examples of the absolute gradient of the central unit, summed over input channels", ""),
    "row_mass": ("the same over a group of examples, summed over columns", ""),
    "column_mass": ("the same over a group of examples, summed over rows", ""),
    "group_size": ("examples of the group", "1"),
    "input_size": ("size of the input", "pixel"),
    "weights_digest": ("SHA-256 of the weights", ""),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """What is measured, before it is.

    Parameters
    ----------
    steps : tuple of int
    digests : tuple of str
        Of the weights at each step.
    probings : tuple of Probing
    groups : ndarray (example,)
        To which group each example belongs.
    shape : tuple of int
        Of the input, over its spatial axes.
    """

    steps: tuple[int, ...]
    digests: tuple[str, ...]
    probings: tuple[Probing, ...]
    groups: NDArray[np.int64]
    shape: tuple[int, ...]


def as_dataset(frame: Frame, maps: Sequence[Mapping[str, EffectiveMaps]], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Put measured maps, one mapping of layer to maps for each step, beside theory; see `capture.receptive_fields`."""
    dataset = _theory(frame)
    n_units = max(len(one.units) for one in frame.probings)
    n_groups = int(frame.groups.max()) + 1
    dims, names = MAP_DIMS[len(frame.shape)], [one.site.name for one in frame.probings]
    shape = (len(frame.steps), len(names), n_units)
    largest = [max(one.crop.size[axis] for one in frame.probings) for axis in range(len(frame.shape))]
    effective = np.full((*shape, *largest), np.nan, np.float32)
    margins = [np.full((*shape, n_groups, size), np.nan) for size in largest]
    for s, of_step in enumerate(maps):
        for n, one in enumerate(frame.probings):
            found, k = of_step[one.site.name], len(one.units)
            place: tuple[Any, ...] = (s, n, slice(k), *map(slice, one.crop.size))
            effective[place] = found.mean
            for margin, values, size in zip(margins, found.margins, one.crop.size, strict=True):
                margin[s, n, :k, :, :size] = values
    measured = (STEP, LAYER, UNIT)
    dataset["effective"] = ((*measured, *dims), effective)
    for dim, margin in zip(dims, margins, strict=True):
        dataset[f"{dim}_mass"] = ((*measured, "group", dim), margin)
    dataset["group_size"] = ("group", np.bincount(frame.groups))
    dataset["weights_digest"] = (STEP, np.array(frame.digests, object))
    dataset = dataset.assign_coords({STEP: np.array(frame.steps)})
    for name, (text, unit) in _NAMES.items():
        if name in dataset:
            dataset[name].attrs = {"long_name": text, **({"units": unit} if unit else {})}
    dataset.attrs = {"what": "receptive fields, theoretical and effective", **attrs}
    return dataset


def _theory(frame: Frame) -> xr.Dataset:
    """Return all that does not depend on weights."""
    fields = [one.field for one in frame.probings]
    n_axes = len(frame.shape)
    units = np.full((len(fields), max(len(one.units) for one in frame.probings)), -1)
    for n, one in enumerate(frame.probings):
        units[n, : len(one.units)] = one.units
    by_axis = {name: [getattr(field, name) for field in fields] for name in ("size", "stride", "offset")}
    by_axis |= {end: [getattr(field, end) for field in fields] for end in ("first", "last")}
    by_axis["position"] = [field.position or (-1,) * n_axes for field in fields]
    by_axis["crop_start"] = [one.crop.start for one in frame.probings]
    by_axis["crop_size"] = [one.crop.size for one in frame.probings]
    return xr.Dataset(
        {
            **{name: ((LAYER, "axis"), np.array(values)) for name, values in by_axis.items()},
            "kind": (LAYER, np.array([field.kind for field in fields], object)),
            "reason": (LAYER, np.array([field.reason for field in fields], object)),
            "input_size": ("axis", np.array(frame.shape)),
        },
        {
            LAYER: np.array([one.site.name for one in frame.probings], object),
            "axis": np.array(AXES[n_axes], object),
            "unit_index": ((LAYER, UNIT), units),
        },
    )


def held_fields(store: str | os.PathLike[str] | Storage, frame: Frame, attrs: Mapping[str, Any]) -> xr.Dataset | None:
    """Return what a store holds of the same fields, None where it holds none.

    Raises
    ------
    AlreadyExistsError
        It holds others.
    """
    opened = open_store(store)
    if EXPERIMENT not in opened.experiments:
        return None
    held = opened.experiment(EXPERIMENT).load()
    theory = _theory(frame)
    same = (
        held[STEP].values.tolist() == list(frame.steps)
        and held["weights_digest"].values.tolist() == list(frame.digests)
        and np.array_equal(held["group_size"].values, np.bincount(frame.groups))
        and all(held.attrs.get(name) == value for name, value in attrs.items())
        and all(name in held and held[name].equals(theory[name]) for name in theory.variables)
    )
    if not same:
        raise AlreadyExistsError(
            f"{opened.path} holds receptive fields of other layers, units, steps or examples already: replace them "
            "(replace=True, --replace), or take another store."
        )
    return held
