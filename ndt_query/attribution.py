"""Grad-CAM from stored activations and gradients: where a layer speaks for the class, and how that changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, overload

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.budget import Projection, allowed_nbytes, check, n_threads
from ndt_query.inputs import LabelsLike, as_classes, canonical, one_of, require_count, require_steps
from ndt_query.layers import RootLike, Whole, described, each_layer, root_dataset
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, CLASS, EXAMPLE, GRADIENTS, POSITION_DIMS, UNIT
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

__all__ = ["cam_difference", "class_cams", "correct_examples", "grad_cam"]

CAM: Final = "cam"
SCALES: Final = ("none", "joint")
STRIPE_NBYTES: Final = 8 << 20
"""Size of the float64 temporaries of a map."""


# A Dataset is a mapping of names to arrays too; the first match is the one that holds.
@overload
def grad_cam(  # type: ignore[overload-overlap]
    data: xr.Dataset, *, signed: bool = False, memory: int | str | None = None
) -> xr.DataArray: ...
@overload
def grad_cam(data: Whole, *, signed: bool = False, memory: int | str | None = None) -> xr.DataTree: ...
def grad_cam(
    data: xr.Dataset | Whole, *, signed: bool = False, memory: int | str | None = None
) -> xr.DataArray | xr.DataTree:
    """Map where a layer's units speak for the class of each example: ``ReLU(sum_k mean(g_k) a_k)``, raw.

    Parameters
    ----------
    data : Dataset of one layer, Store, DataTree or mapping of layers to Datasets
        With ``activations`` and ``gradients`` (checkpoint, example, unit, y, x), (checkpoint, example, unit, x) or
        (checkpoint, example, token, unit), after any selection of either's checkpoints, examples and units. Gradients
        are of one scalar of each example, which decides what the map is about: captured with ``gradient_of`` =
        ``label_logit`` it is Grad-CAM of the true class, with ``prediction_logit`` of the predicted one.
    signed : bool
        Without the ReLU: where units speak against the class too.
    memory : int or str, optional
        Budget of the query, see `ndt_query.budget`.

    Returns
    -------
    DataArray or DataTree
        ``cam`` (checkpoint, example, y, x) in units of the scalar, float64, lazy where the layer is: never scaled, so
        that maps of different checkpoints and examples can be compared and subtracted. For a store one node a layer;
        layers without positions are left out. A NaN in an example's activations or gradients is a NaN in its map.

    Raises
    ------
    NotFoundError
        There are no gradients, or no layer has them and positions.
    DimensionError
        The layer has no positions, or activations and gradients differ in dims.
    InvalidInputError
        The store's gradients are of the loss, which falls where the class's score rises.
    MemoryBudgetError
        The projection exceeds the budget.

    Notes
    -----
    Selvaraju et al. 2017, "Grad-CAM". One pass over activations and gradients, in chunks as they are stored, with
    products summed in float64; a chunk of each is held by each thread.

    Examples
    --------
    >>> acts = xr.DataArray(np.ones((1, 2, 3, 4, 4)), dims=("checkpoint", "example", "unit", "y", "x"))
    >>> layer = xr.Dataset({"activations": acts, "gradients": 0.5 * acts})
    >>> cam = grad_cam(layer)
    >>> cam.dims, float(cam[0, 0, 0, 0])
    (('checkpoint', 'example', 'y', 'x'), 1.5)
    """
    if isinstance(data, xr.Dataset):
        return _of_layer(data, signed, memory)
    require_scores(data)
    found = {name: _of_layer(layer, signed, memory) for name, layer in _spatial(data)}
    if not found:
        raise NotFoundError("No layer has gradients and positions: capture both kinds of a conv layer.")
    return xr.DataTree.from_dict({name: cam.to_dataset(name=CAM) for name, cam in found.items()})


def cam_difference(cam: xr.DataArray, before: int, after: int, *, scale: str = "none") -> xr.Dataset:
    """Subtract the maps of two checkpoints: where a layer came to speak for the class, and where it ceased to.

    Parameters
    ----------
    cam : DataArray (checkpoint, example, y, x)
        From `grad_cam`.
    before, after : int
        Training steps.
    scale : {"none", "joint"}
        Raw; or both maps of an example divided by the largest magnitude that either has, one number for both. Maps are
        never scaled each by itself, which would make a difference of two that are alike.

    Returns
    -------
    Dataset
        ``before``, ``after`` and ``difference`` = after - before (example, y, x), lazy where the maps are; ``limit``
        (example,), the largest magnitude of all three, which makes one colour scale for them.

    Raises
    ------
    NotFoundError
        A step is no checkpoint of the maps; names the nearest ones.
    InvalidInputError
        Both steps are the same.
    """
    one_of("scale", scale, SCALES)
    require_steps(cam, (before, after))
    if before == after:
        raise InvalidInputError(f"before and after are both {before}: give two checkpoints.")
    first, second = (cam.sel({CHECKPOINT: step}, drop=True) for step in (before, after))
    places = [dim for dim in first.dims if dim != EXAMPLE]
    largest = xr.apply_ufunc(np.fmax, abs(first).max(places), abs(second).max(places), dask="allowed")
    if scale == "joint":
        divisor = largest.where(largest > 0, 1.0)
        first, second = first / divisor, second / divisor
        largest = largest / divisor
    difference = second - first
    limit = xr.apply_ufunc(np.fmax, largest, abs(difference).max(places), dask="allowed")
    found = xr.Dataset({"before": first, "after": second, "difference": difference, "limit": limit})
    asked = json.loads(cam.attrs.get("parameters", "{}"))
    parameters = {**asked, "before": before, "after": after, "scale": scale}
    found.attrs = {**cam.attrs, "what": "Grad-CAM after less before", "parameters": json.dumps(parameters)}
    return found


def class_cams(cam: xr.DataArray, labels: LabelsLike | None = None) -> xr.Dataset:
    """Average maps, or differences of maps, over the examples of each class.

    Parameters
    ----------
    cam : DataArray ([checkpoint,] example, y, x)
        From `grad_cam`, or a variable of `cam_difference`.
    labels : array-like or DataArray (example,), optional
        Class of each example; the coordinate ``label`` without it.

    Returns
    -------
    Dataset
        ``mean`` and ``standard_error`` ([checkpoint,] class, y, x) over the examples of the class, and ``n_examples``
        (class,); the error is NaN for a class of one example. Lazy where the maps are.

    Raises
    ------
    DimensionError, InvalidInputError, NotFoundError
        The labels are missing, too few or too many, or all the same.
    """
    if EXAMPLE not in cam.dims:
        raise DimensionError(f"The maps have dims {cam.dims}: expected example and positions.")
    classes = as_classes(cam, labels)
    counts = np.bincount(classes.codes)
    rows = [cam.isel({EXAMPLE: np.flatnonzero(classes.codes == code)}) for code in range(len(counts))]
    names = xr.Variable(CLASS, classes.names)
    means = xr.concat([part.mean(EXAMPLE, skipna=False) for part in rows], dim=names)
    errors = [part.std(EXAMPLE, ddof=1, skipna=False) / np.sqrt(part.sizes[EXAMPLE]) if part.sizes[EXAMPLE] > 1
              else xr.full_like(part.isel({EXAMPLE: 0}, drop=True), np.nan) for part in rows]  # fmt: skip
    found = xr.Dataset({"mean": means, "standard_error": xr.concat(errors, dim=names)})
    found = found.transpose(*[dim for dim in (CHECKPOINT, CLASS) if dim in found.dims], ...)
    found["n_examples"] = (CLASS, counts)
    source = labels if isinstance(labels, xr.DataArray) else cam.coords.get("label", xr.DataArray())
    found[CLASS].attrs = {name: one for name, one in source.attrs.items() if name == "class_names"}
    found.attrs = {**cam.attrs, "what": "mean map of each class"}
    return found


def correct_examples(
    data: RootLike, checkpoints: Sequence[int] | None = None, *, n_per_class: int | None = None
) -> xr.DataArray:
    """Choose the examples that the network has right, at every checkpoint named.

    Parameters
    ----------
    data : Store, DataTree or Dataset
        With ``prediction`` (checkpoint, example) and ``label`` (example,), as at the root of a store.
    checkpoints : sequence of int, optional
        Training steps; all without it.
    n_per_class : int, optional
        At most so many of each class, the first by example.

    Returns
    -------
    DataArray (example,)
        The labels of the chosen examples, whose coordinate selects them: ``layer.sel(example=chosen.example)``. Empty
        where the network has none right.

    Raises
    ------
    NotFoundError
        There are no predictions or labels, or no such checkpoint.
    InvalidInputError
        No checkpoint is named.
    """
    root = root_dataset(data)
    missing = [name for name in ("prediction", "label") if name not in root.variables]
    if missing:
        raise NotFoundError(f"There is no {missing[0]} at the root: capture a model of class scores and its labels.")
    prediction = root["prediction"]
    if checkpoints is not None:
        if not len(checkpoints):
            raise InvalidInputError("checkpoints is empty: give at least one, or leave it out for all.")
        require_steps(prediction, checkpoints)
        prediction = prediction.sel({CHECKPOINT: list(checkpoints)})
    right = (prediction == root["label"]).all(CHECKPOINT).values
    labels = root["label"].values[right]
    keep = np.flatnonzero(right)
    if n_per_class is not None:
        require_count("n_per_class", n_per_class, 1)
        first = [np.flatnonzero(labels == name)[:n_per_class] for name in np.unique(labels)]
        keep = keep[np.sort(np.concatenate(first))] if first else keep
    return root["label"].reset_coords(drop=True).isel({EXAMPLE: keep})


def _spatial(data: Any) -> Iterator[tuple[str, xr.Dataset]]:
    """Yield the layers that have gradients and positions."""
    gradients = dict(each_layer(data, GRADIENTS))
    for name, acts in each_layer(data, ACTIVATIONS):
        if name in gradients and any(dim in acts.dims for dim in POSITION_DIMS):
            yield name, xr.Dataset({ACTIVATIONS: acts, GRADIENTS: gradients[name]})


def require_scores(data: Any) -> None:
    asked = dict(getattr(data, "provenance", {}).get("identity", {})).get("gradient_of")
    if asked == "loss":
        raise InvalidInputError(
            "The store's gradients are of the loss: Grad-CAM asks for those of a class's score; capture with "
            "gradient_of='label_logit', or negate the gradients of a layer yourself."
        )


def _of_layer(layer: xr.Dataset, signed: bool, memory: int | str | None) -> xr.DataArray:
    missing = [name for name in (ACTIVATIONS, GRADIENTS) if name not in layer]
    if missing:
        raise NotFoundError(f"The layer has no {missing[0]}: capture kinds=['activations', 'gradients'].")
    acts, squeeze = canonical(layer[ACTIVATIONS])
    grads, _ = canonical(layer[GRADIENTS])
    places = [dim for dim in acts.dims if dim in POSITION_DIMS]
    if not places:
        raise DimensionError(f"The layer has dims {acts.dims} and no positions: Grad-CAM maps over y and x, or token.")
    if set(acts.dims) != set(grads.dims):
        raise DimensionError(f"Activations have dims {acts.dims} and gradients {grads.dims}: expected the same.")
    order = (CHECKPOINT, EXAMPLE, UNIT, *places)
    inner = (UNIT, *places)
    both = [one.transpose(*order) for one in (acts, grads)]
    if acts.chunks is not None:
        chunks = dict(zip(acts.dims, acts.chunks, strict=True))
        both = [one.chunk({**chunks, **dict.fromkeys(inner, -1)}) for one in both]
        _require_budget(both[0], memory)
    cam: xr.DataArray = xr.apply_ufunc(
        _weighted,
        *both,
        kwargs={"signed": signed},
        input_core_dims=[inner, inner],
        output_core_dims=[places],
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    cam = cam.isel({CHECKPOINT: 0}) if squeeze else cam
    found = described({CAM: cam.variable}, acts, "Grad-CAM", {"signed": signed}, squeeze=False)
    return cam.rename(CAM).assign_attrs(found.attrs)


def _require_budget(acts: xr.DataArray, memory: int | str | None) -> None:
    assert acts.chunks is not None
    chunk = int(np.prod([max(sizes) for sizes in acts.chunks])) * acts.dtype.itemsize
    # Two arrays are read at once, which the piece stands for.
    terms = Projection(chunk, chunk, 2.0, n_threads(), STRIPE_NBYTES, 2 * n_threads(), 0)
    check("grad_cam", terms, allowed_nbytes(memory), "select fewer examples")


def _weighted(acts: NDArray[Any], grads: NDArray[Any], *, signed: bool) -> NDArray[np.float64]:
    """Return maps (..., *positions) of arrays (..., unit, *positions), a stripe of examples after the other."""
    n_units, places = acts.shape[2], acts.shape[3:]
    flat_acts, flat_grads = (one.reshape(-1, n_units, int(np.prod(places))) for one in (acts, grads))
    found = np.empty((len(flat_acts), flat_acts.shape[2]))
    step = max(1, STRIPE_NBYTES // (8 * max(1, flat_acts[:1].size)))
    for start in range(0, len(found), step):
        rows = slice(start, start + step)
        weights = flat_grads[rows].mean(axis=2, dtype=np.float64)
        # No product of BLAS, which would start threads inside dask's.
        found[rows] = np.einsum("eu,eup->ep", weights, flat_acts[rows].astype(np.float64))
    if not signed:
        np.maximum(found, 0, out=found)
    return found.reshape(*acts.shape[:2], *places)
