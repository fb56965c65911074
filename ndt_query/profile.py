"""Everything about one unit: what drives it, how often it fires, which class it prefers, and how that came about."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ndt_query.activity import unit_moments
from ndt_query.firing import dead_units
from ndt_query.images import as_images
from ndt_query.inputs import require_count, require_steps
from ndt_query.layers import described
from ndt_query.patches import patch_span
from ndt_query.ranking import top_examples
from ndt_query.receptive import EXPERIMENT, receptive_field
from ndt_query.reductions import RANK
from ndt_query.selectivity import class_means, selectivity_index
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, CLASS, EXAMPLE, STEP, UNIT, X, Y
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["cut_patches", "field_of", "images_of", "unit_profile"]

N_BINS: Final = 40
_AT_ONCE: Final = ("selectivity_index", "d_prime", "auroc", "p_value", "preferred_class")


def unit_profile(
    store: Store,
    layer: str,
    unit: int,
    *,
    checkpoint: int | None = None,
    k: int = 9,
    n_permutations: int = 1000,
    seed: int = 0,
    memory: int | str | None = None,
) -> xr.Dataset:
    """Gather what there is to know about one unit.

    Parameters
    ----------
    store : Store
        With activations of the layer and labels.
    layer : str
    unit : int
        Label of the unit.
    checkpoint : int, optional
        Training step that is looked at closely; the last one without it.
    k : int
        Examples that drive the unit most.
    n_permutations, seed : int
        Of the labels, for the p value of selectivity.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Dataset
        Over ``checkpoint``, all of them: ``mean``, ``std``, ``min``, ``max`` and ``active_fraction`` over examples and
        positions, ``firing_rate`` over examples with ``firing_rate_upper``, and ``class_mean`` (checkpoint, class).

        At `checkpoint`, which ``at`` names: ``selectivity_index``, ``d_prime``, ``auroc``, ``preferred_class`` and
        ``p_value`` as of `selectivity_index`; ``count`` (bin), how many values other than zero over examples and
        positions lie between ``bin_edge`` (edge), ``zero_fraction``, the share of zeros, NaN where a value is not
        finite, and ``nan_count``, how many are not; over ``rank``: ``value``,
        ``example``, its ``label``, ``y`` and ``x`` or ``token``, as of `top_examples`.

        Where the store has inputs that are images, ``patch`` (rank, channel, patch_row, patch_column): what the unit
        saw when it was driven most, NaN beyond the border of the image, with ``patch_top`` and ``patch_left`` (rank),
        where that begins in the input, below 0 beyond its border. With the experiment ``receptive_fields`` it is the
        unit's theoretical field, and ``field_size`` (axis) is there too, and ``field_width`` (axis), of the layer's
        units that were measured, where they were at `checkpoint`; without, it is the whole input.

    Raises
    ------
    NotFoundError
        There is no such layer, unit or checkpoint.
    InvalidInputError
        An option is not possible.

    Notes
    -----
    Curves over checkpoints come from views where there are some. The rest is one pass over the layer at one checkpoint,
    of which the values of the unit are kept: a number for each example and position. That a unit was chosen because it
    is selective is not in its p value: for a choice among many use `ndt_query.selectivity_index` and its q values.
    """
    if not isinstance(store, Store):
        raise InvalidInputError(
            f"A profile is of a unit of a Store, which open_store gives: got {type(store).__name__}."
        )
    require_count("k", k, 1)
    acts = _unit_of(store, layer, unit)
    at = int(acts[CHECKPOINT].values[-1]) if checkpoint is None else checkpoint
    require_steps(acts, [at])
    whole: dict[str, Any] = {"memory": memory}
    moments, firing, classes = compute(
        unit_moments(acts, **whole), dead_units(acts, **whole), class_means(acts, **whole)["mean"]
    )
    values = acts.sel({CHECKPOINT: at}).compute()
    answers = selectivity_index(values, n_permutations=n_permutations, seed=seed).isel({UNIT: 0})
    top = top_examples(values, k).isel({UNIT: 0})
    names = ("mean", "std", "min", "max", "active_fraction")
    found: dict[str, xr.DataArray | tuple[Any, ...]] = {name: moments[name].isel({UNIT: 0}) for name in names}
    found |= {name: firing[name].isel({UNIT: 0}) for name in ("firing_rate", "firing_rate_upper")}
    found["class_mean"] = classes.isel({UNIT: 0})
    found |= {name: answers[name] for name in _AT_ONCE}
    found |= {str(name): one for name, one in top.data_vars.items()}
    found["label"] = (RANK, _labels(store, top[EXAMPLE].values))
    found |= _histogram(values.values)
    found |= _patches(store, layer, top, at)
    result = xr.Dataset({name: _bare(one) for name, one in found.items()})
    result = result.assign_coords({CHECKPOINT: acts[CHECKPOINT].values, CLASS: classes[CLASS].values})
    result = result.assign_coords(layer=layer, unit=unit, at=at)
    parameters = {"checkpoint": at, "k": k, "n_permutations": n_permutations, "seed": seed}
    result.attrs = described({}, acts, f"unit {unit} of {layer}", parameters, squeeze=False).attrs
    if "class_names" in acts["label"].attrs:
        result["class_mean"].attrs["class_names"] = acts["label"].attrs["class_names"]
    return result


def _unit_of(store: Store, layer: str, unit: int) -> xr.DataArray:
    held = store[layer]  # names what there is, where there is no such layer
    if ACTIVATIONS not in held:
        raise NotFoundError(f"Layer {layer} has no activations: capture them.")
    acts = held[ACTIVATIONS]
    if isinstance(unit, bool) or not isinstance(unit, int | np.integer):
        raise InvalidInputError(f"unit={unit!r} is no unit: give a whole number, a label of unit.")
    if unit not in acts[UNIT].values:
        last = acts[UNIT].values[-1]
        raise NotFoundError(f"Layer {layer} has no unit {unit}: its {acts.sizes[UNIT]} units end at {last}.")
    return acts.sel({UNIT: [unit]})


def _bare(one: xr.DataArray | tuple[Any, ...]) -> Any:
    """Return a variable without the coordinates that it was made with."""
    return one.variable if isinstance(one, xr.DataArray) else one


def _labels(store: Store, examples: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(store.root["label"].sel({EXAMPLE: examples}).values)


def _histogram(values: NDArray[Any]) -> dict[str, tuple[Any, ...]]:
    finite = values[np.isfinite(values)].astype(np.float64)
    there = finite[finite != 0]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    # Values that are nearly alike leave no room for bins between them.
    reach = max(high - low, 1e-9 * max(abs(low), abs(high)))
    counts, edges = np.histogram(there, N_BINS, (low, low + reach))
    share = float((finite == 0).mean()) if finite.size == values.size else np.nan
    missing = int(values.size - finite.size)
    return {
        "count": ("bin", counts), "bin_edge": ("edge", edges), "zero_fraction": ((), share), "nan_count": ((), missing)
    }  # fmt: skip


def _patches(store: Store, layer: str, top: xr.Dataset, at: int) -> dict[str, tuple[Any, ...]]:
    """Cut out of the inputs what the unit saw; nothing where the inputs are no images."""
    images, field = images_of(store, top[EXAMPLE].values), field_of(store, layer)
    found: dict[str, tuple[Any, ...]] = {}
    if field is not None:
        found = {"field_size": ("axis", field["size"].values)}
        if at in field[STEP].values:
            found["field_width"] = ("axis", field["layer_width"].sel({STEP: at}).values)
    if images is None:
        return found
    places = [top[name].values if name in top else None for name in (Y, X)]
    patches, starts = cut_patches(images, field, *places)
    return {
        **found,
        "patch": ((RANK, "channel", "patch_row", "patch_column"), patches),
        "patch_top": (RANK, starts[:, 0]),
        "patch_left": (RANK, starts[:, 1]),
    }


def cut_patches(
    images: NDArray[np.float64], field: xr.Dataset | None, y: NDArray[Any] | None, x: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cut out of images (example, channel, row, column) what a position of each sees.

    Parameters
    ----------
    images : ndarray
    field : Dataset, optional
        Of the layer, from `receptive_field`; the whole image where it is not known. It may exceed the image.
    y, x : ndarray (example,), optional
        Positions in the layer.

    Returns
    -------
    patches : ndarray (example, channel, patch_row, patch_column)
        NaN beyond the border of the image.
    starts : ndarray of int (example, 2)
        Row and column of the image at which each begins, below 0 where it begins beyond the border.
    """
    shape = images.shape[2:]
    spans: list[tuple[tuple[int, int], ...]] = [((0, shape[0]), (0, shape[1]))] * len(images)
    if field is not None and str(field["kind"].values) != "unknown" and y is not None and x is not None:
        spans = [patch_span(field, int(row), int(column)) for row, column in zip(y, x, strict=True)]
    rows, columns = (max(one[axis][1] - one[axis][0] for one in spans) for axis in (0, 1))
    patches = np.full((len(images), images.shape[1], rows, columns), np.nan)
    for patch, image, ((top, _), (left, _)) in zip(patches, images, spans, strict=True):
        # All patches begin where the field does, so that the same row of each is the same place in the field.
        part = image[:, max(top, 0) : max(top + rows, 0), max(left, 0) : max(left + columns, 0)]
        down, right = max(-top, 0), max(-left, 0)
        patch[:, down : down + part.shape[1], right : right + part.shape[2]] = part
    return patches, np.array([[top, left] for (top, _), (left, _) in spans])


def images_of(store: Store, examples: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return inputs as (example, channel, row, column), None where there are none or they are no images."""
    if "input" not in store.root:
        return None
    return as_images(np.asarray(store.root["input"].sel({EXAMPLE: examples}).values, dtype=np.float64))


def field_of(store: Store, layer: str) -> xr.Dataset | None:
    """Return what is known of a layer's receptive field, None where nothing is."""
    if EXPERIMENT not in store.experiments:
        return None
    return receptive_field(store, layer) if layer in store.experiment(EXPERIMENT)["layer"].values else None
