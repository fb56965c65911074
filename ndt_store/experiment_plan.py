"""How the dataset of an experiment is kept: its variables as arrays, and what of it could not be read back as it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_store.blocks import SLACK_NBYTES, BlockArray
from ndt_store.catalogue import Catalogue
from ndt_store.codecs import DEFAULT_PROFILE
from ndt_store.dims import CHECKPOINT, EXAMPLE, EXPERIMENTS_GROUP, STEP
from ndt_store.errors import DimensionError, InvalidInputError
from ndt_store.layout import Rows, rows_per_block
from ndt_store.resume import json_mapping
from ndt_store.schema import DTYPES, ArraySpec, Schema, check_name

__all__ = ["plan_experiment", "require_examples"]


class _Lazy:
    """Values of a variable, read a run of rows at a time."""

    def __init__(self, variable: xr.Variable) -> None:
        self._variable = variable
        self.shape = variable.shape

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        return np.asarray(self._variable[rows].values)


def require_examples(catalogue: Catalogue, dataset: xr.Dataset) -> None:
    """Check that a dataset's examples are the store's, and that it leaves the checkpoints to the store.

    Raises
    ------
    DimensionError
        They are others; says what to rename.
    """
    where = catalogue.storage.path
    if CHECKPOINT in dataset.dims:
        raise DimensionError(
            f"The dataset has the dimension {CHECKPOINT!r}, which belongs to the cubes of {where} and grows with them: "
            f"rename it, for example rename({CHECKPOINT}={STEP!r})."
        )
    spec = catalogue.schema.find(EXAMPLE)
    if EXAMPLE not in dataset.dims or spec is None:
        return
    stored = BlockArray(catalogue, spec)[...]
    labels = dataset[EXAMPLE].values if EXAMPLE in dataset.coords else stored
    if dataset.sizes[EXAMPLE] != len(stored) or not np.array_equal(labels, stored):
        raise DimensionError(
            f"The dataset has other examples than {where}, which has {len(stored)}: give all of them in their order, "
            f"or rename the dimension, for example rename({EXAMPLE}='probe')."
        )


def plan_experiment(group: str, dataset: xr.Dataset) -> tuple[Schema, dict[str, Rows]]:
    """Return the arrays of a dataset, and their values by path.

    Raises
    ------
    InvalidInputError
        Plain readers would not get back what the dataset holds; names variable or attribute.
    DimensionError
        A dimension is empty.
    """
    name = group.removeprefix(f"{EXPERIMENTS_GROUP}/")
    specs, values = [], {}
    for variable_name, variable in dataset.variables.items():
        variable_name = check_name(str(variable_name), f"variable of experiment {name!r}")
        spec, values[spec.path] = _plan_variable(group, variable_name, variable)
        specs.append(spec)
    attrs = json_mapping(_without_numpy(dataset.attrs), f"attrs of {name!r}")
    labels = [str(label) for label in dataset.coords if (str(label),) != dataset[label].dims]
    if "coordinates" in attrs or any(" " in label for label in labels):
        raise InvalidInputError(
            f"Experiment {name!r} has an attribute 'coordinates' or a coordinate with a space in its name: rename it, "
            "because plain readers learn from that attribute, word by word, which variables are coordinates."
        )
    if labels:
        attrs["coordinates"] = " ".join(labels)
    return Schema((), tuple(specs), {group: attrs}), values


def _plan_variable(group: str, name: str, variable: xr.Variable) -> tuple[ArraySpec, Rows]:
    where = f"Variable {name!r} of {group}"
    if 0 in variable.shape:
        empty = variable.dims[variable.shape.index(0)]
        raise DimensionError(f"{where} has no entries along {empty!r}: leave it out, or give at least one.")
    values: Rows
    if variable.dtype.kind in "OUT":
        dtype, codec, values = "string", "none", np.asarray(variable.values, object)
        rows = _rows_of_strings(where, values)
    else:
        dtype, codec = variable.dtype.name, DEFAULT_PROFILE
        values = _Lazy(variable) if variable.ndim else np.asarray(variable.values)
        if dtype not in DTYPES:
            raise InvalidInputError(f"{where} has dtype {dtype}: expected one of {', '.join(DTYPES)}; cast it first.")
        rows = rows_per_block(variable.shape, dtype)
    attrs = json_mapping(_without_numpy(variable.attrs), f"attrs of {name!r}")
    _require_plain(where, dtype, variable.ndim, attrs)
    dims = tuple(str(dim) for dim in variable.dims)
    return ArraySpec(f"{group}/{name}", dims, variable.shape, dtype, rows, codec, attrs), values


def _rows_of_strings(where: str, values: NDArray[Any]) -> int:
    """Choose how many entries of strings make a block, so that a reader takes it for one."""
    if not all(isinstance(text, str) for text in values.flat):
        wrong = next(text for text in values.flat if not isinstance(text, str))
        raise InvalidInputError(f"{where} holds {type(wrong).__name__} {wrong!r}: expected numbers or strings.")
    longest = max(len(text.encode()) for text in values.flat) + 4
    n_each = values.size // values.shape[0] if values.ndim else 1
    if longest * n_each > SLACK_NBYTES:
        raise InvalidInputError(
            f"{where} holds strings of up to {longest} bytes, {n_each} in an entry of its first dimension: expected at "
            f"most {SLACK_NBYTES} bytes together; keep long texts in files of their own."
        )
    return min(values.shape[0], SLACK_NBYTES // (longest * n_each)) if values.ndim else 1


def _require_plain(where: str, dtype: str, n_dims: int, attrs: Mapping[str, Any]) -> None:
    """Check that xarray, which takes some attributes for an encoding, shows the variable as it is kept."""
    stand_in = np.zeros((1,) * n_dims, object if dtype == "string" else dtype)
    stored = xr.Variable([f"dim_{n}" for n in range(n_dims)], stand_in, attrs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shown = xr.conventions.decode_cf_variable("stored", stored)
    except (Warning, ValueError, TypeError, KeyError) as error:
        raise InvalidInputError(f"{where} has attributes that xarray cannot decode ({error}): rename them.") from error
    lost = sorted(key for key in attrs if key not in shown.attrs or key == "coordinates")
    if lost or shown.dtype != stored.dtype:
        named = lost[0] if lost else "units"
        raise InvalidInputError(
            f"{where} has the attribute {named!r}, which xarray takes for an encoding of the values: rename it."
        )


def _without_numpy(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's, also inside mappings and lists, as attributes often hold them."""
    if isinstance(value, Mapping):
        return {str(key): _without_numpy(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_numpy(entry) for entry in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
