"""How gradients flow: their size in each parameter, between modules, and in the outputs of layers, over training."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from ndt_query.intervals import mean_ci, require_level
from ndt_query.layers import each_layer, software
from ndt_store.dims import CHECKPOINT, EXAMPLE, GRADIENTS, LAYER, PARAMETER, PARAMETER_ARRAYS
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["MODULE", "gradient_flow", "module_of"]

F64 = NDArray[np.float64]

MODULE: Final = "module"
SIZE: Final = "size"


def gradient_flow(store: Store | xr.Dataset, *, confidence: float = 0.95) -> xr.Dataset:
    """Say how large gradients are in each parameter, in each module against the last, and in the outputs of layers.

    Parameters
    ----------
    store : Store or Dataset (checkpoint, parameter)
        With gradients of parameters, the kind ``parameters``; or ``store.parameters`` itself. Norms in the outputs of
        layers need a store with the kind ``gradients``.
    confidence : float
        Level of the intervals.

    Returns
    -------
    Dataset
        Of the gradient of the mean loss over the probe set, in evaluation mode:

        (checkpoint, parameter)
            ``gradient_mean_abs``, ``gradient_std``, ``gradient_max_abs``, ``gradient_norm`` (L2) and
            ``gradient_zero_fraction``, ``weight_norm``, and ``relative_norm``, gradient over weight; NaN where a
            parameter is 0. ``size`` (parameter) is the number of its values.
        (checkpoint)
            ``total_norm``, L2 over all parameters.
        (checkpoint, module)
            ``module_rms``, the root mean square over the parameters of a module, and ``flow_ratio``, that over the same
            of the last module: below 1 where gradients vanish on their way to the input, above where they explode. A
            module is what a parameter's name says before its last dot, in the order of the model.

        (checkpoint, layer), where the store holds gradients of outputs
            ``output_norm``, mean over examples of the L2 norm of the gradient of one example's scalar with respect to
            the output of the layer, with ``output_norm_low`` and ``output_norm_high``, Student's t over examples. The
            scalar is the store's ``gradient_of``.

    Raises
    ------
    NotFoundError
        The store holds no gradients of parameters.
    DimensionError
        The Dataset is another one.

    Notes
    -----
    Numbers of parameters are read as they were captured; they are exact for the probe set and have no intervals. Output
    norms are one pass over the gradients, chunk by chunk, at once for all layers.

    Examples
    --------
    >>> import tempfile
    >>> from ndt_store.testing import simulate_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = gradient_flow(simulate_store(folder + "/run.zarr", n_parameters=4).store)
    ...     found["flow_ratio"].dims, found["module"].values.tolist(), found["flow_ratio"][0, -1].item()
    (('checkpoint', 'module'), ['0', '1'], 1.0)
    """
    level = require_level(confidence)
    if not isinstance(store, Store | xr.Dataset):
        raise InvalidInputError(f"Gradients are those of a Store, or its .parameters: got {type(store).__name__}.")
    given = (store.parameters if isinstance(store, Store) else store).compute()
    missing = [name for name in PARAMETER_ARRAYS if name not in given or given[name].dims != (CHECKPOINT, PARAMETER)]
    if missing or SIZE not in given.variables:
        raise DimensionError(
            f"The Dataset has no {(missing or [SIZE])[0]} (checkpoint, parameter): pass a store with the kind "
            "'parameters', or its .parameters."
        )
    norms, sizes = given["gradient_norm"].values, given[SIZE].values
    names = [module_of(str(name)) for name in given[PARAMETER].values]
    modules = list(dict.fromkeys(names))
    of = np.array([modules.index(name) for name in names])
    belongs = (of[:, None] == np.arange(len(modules))).astype(np.float64)
    rms = np.sqrt(norms**2 @ belongs / (sizes @ belongs))
    found = given.assign(
        relative_norm=given["gradient_norm"] / given["weight_norm"].where(given["weight_norm"] > 0),
        total_norm=(CHECKPOINT, np.sqrt((norms**2).sum(axis=1))),
        module_rms=((CHECKPOINT, MODULE), rms),
        flow_ratio=((CHECKPOINT, MODULE), _ratio(rms, rms[:, -1:])),
    ).assign_coords({MODULE: modules})
    if isinstance(store, Store):
        found = found.assign(_output_norms(store, level))
    found.attrs = {
        "what": "gradients of the mean loss over the probe set",
        "parameters": json.dumps({"confidence": confidence}),
        **({"store": store.path} if isinstance(store, Store) else {}),
        "software": software(),
    }
    return found


def module_of(parameter: str) -> str:
    """Return the module that holds a parameter, "" for the model itself."""
    return parameter.rpartition(".")[0]


def _ratio(above: F64, below: F64) -> F64:
    found: F64 = np.full(above.shape, math.nan)
    np.divide(above, below, out=found, where=np.broadcast_to(below > 0, above.shape))
    return found


def _output_norms(store: Store, level: float) -> dict[str, xr.DataArray]:
    """Norms of the gradients of outputs over (checkpoint, layer), nothing where there are none."""
    try:
        layers = dict(each_layer(store, GRADIENTS))
    except NotFoundError:
        return {}
    asked = {name: _norm_of_each(one) for name, one in layers.items()}
    norms = dict(zip(asked, compute(*asked.values()), strict=True))
    made = [mean_ci(one.transpose(CHECKPOINT, EXAMPLE).values, axis=1, confidence=level) for one in norms.values()]
    coords = {CHECKPOINT: store.checkpoints, LAYER: list(norms)}
    ends = {"": "estimate", "_low": "low", "_high": "high"}
    return {
        f"output_norm{end}": xr.DataArray(
            np.stack([getattr(one, part) for one in made], axis=1), coords, (CHECKPOINT, LAYER)
        )
        for end, part in ends.items()
    }


def _norm_of_each(gradients: xr.DataArray) -> xr.DataArray:
    """L2 norm over all dimensions but checkpoint and example, chunk by chunk."""
    inner = [dim for dim in gradients.dims if dim not in (CHECKPOINT, EXAMPLE)]
    found: xr.DataArray = xr.apply_ufunc(
        _norm, gradients, input_core_dims=[inner], dask="parallelized", output_dtypes=[np.float64]
    )
    return found


def _norm(values: NDArray[Any], /) -> F64:
    # Row by row of examples: squares of a whole chunk in float64 would take twice the chunk.
    flat = values.reshape(-1, math.prod(values.shape[2:]))
    found = np.array([math.sqrt(np.dot(wide, wide)) for row in flat for wide in [row.astype(np.float64)]])
    return found.reshape(values.shape[:2])
