"""What a series is planned to hold, whether a place and an older series agree with it, and rows that fit it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ndt_store.blocks import BlockArray
from ndt_store.commits import PREFIX
from ndt_store.dims import STEP, TRAINING_GROUP
from ndt_store.errors import AlreadyExistsError, DimensionError, InvalidInputError, SchemaError
from ndt_store.layout import BLOCK_NBYTES, CHECKPOINT_ATTRS, numpy_dtype, rows_per_block
from ndt_store.resume import check_fields, json_mapping
from ndt_store.root import read_root
from ndt_store.schema import ArraySpec, Schema, check_name
from ndt_store.storage import LOCK_KEY, TEMPORARY, Storage, of_writer
from ndt_store.supplement_data import catalogue_of
from ndt_store.supplements import SupplementRecord, record_key

__all__ = ["Column", "as_labels", "as_row", "check_place", "check_same", "plan_series"]

ROWS: Final = 512
"""Rows of a block, unless they are so large that it would pass `BLOCK_NBYTES`."""


@dataclass(frozen=True, slots=True)
class Column:
    """One variable of a series: what each row holds of it.

    Parameters
    ----------
    dims : tuple of str
        Dimensions after the growing one, each of which has a coordinate; none for one number a row.
    dtype : str
        Of the values: ``float64``, ``float32``, ``float16``, ``int64``, ``int32``, ``uint8`` or ``bool``.
    attrs : mapping
        JSON attributes that xarray shows on the variable, such as ``long_name`` and ``units``.
    """

    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    attrs: Mapping[str, Any] = field(default_factory=dict)


def as_labels(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return the labels of a dimension as they are kept, shape (n,).

    Raises
    ------
    DimensionError
        They are no list.
    """
    labels = np.asarray(values)
    if labels.ndim != 1 or not labels.size:
        raise DimensionError(f"Labels of {name!r} have shape {labels.shape}: expected one for each entry.")
    return labels.astype(object) if labels.dtype.kind in "UT" else labels


def plan_series(
    columns: Mapping[str, Column],
    labels: Mapping[str, NDArray[Any]],
    dim: str,
    attrs: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> SupplementRecord:
    """Return the record of a series that has no rows, and no blocks of its labels yet.

    Raises
    ------
    SchemaError
        A name, dimension or dtype cannot be kept.
    """
    for name in (dim, *labels, *columns):
        check_name(name, "variable of a series")
    for name, column in columns.items():
        unknown = [d for d in column.dims if d not in labels]
        if unknown:
            raise SchemaError(f"Column {name!r} has dimension {unknown[0]!r}: give its labels in coords.")
    sizes = {name: tuple(labels[d].size for d in column.dims) for name, column in columns.items()}
    widest = max((math.prod(size) for size in sizes.values()), default=1) * 8
    rows = max(1, min(ROWS, BLOCK_NBYTES // widest))
    described = dict(CHECKPOINT_ATTRS) if dim == STEP else {}
    specs = [ArraySpec(f"{TRAINING_GROUP}/{dim}", (dim,), (rows,), "int64", rows, attrs=described)]
    for name, values in labels.items():
        dtype = "string" if values.dtype.kind == "O" else values.dtype.name
        in_block = rows_per_block(values.shape, dtype)
        specs.append(ArraySpec(f"{TRAINING_GROUP}/{name}", (name,), values.shape, dtype, in_block))
    for name, column in columns.items():
        path, dims = f"{TRAINING_GROUP}/{name}", (dim, *column.dims)
        specs.append(
            ArraySpec(path, dims, (rows, *sizes[name]), column.dtype, rows, attrs=json_mapping(column.attrs, name))
        )
    schema = Schema((), tuple(specs), {TRAINING_GROUP: attrs})
    return SupplementRecord(TRAINING_GROUP, schema, {spec.path: () for spec in specs}, identity, dim)


def check_place(storage: Storage, planned: SupplementRecord) -> None:
    """Check that a path is one of ours, empty, or left by somebody like us.

    Raises
    ------
    AlreadyExistsError
        Something of somebody else lies there.
    """
    document = read_root(storage)
    if storage.size("") is not None:
        raise AlreadyExistsError(f"{storage.path} is a file: choose a path that does not exist yet.")
    if document is not None and "ndt" not in document["attributes"]:
        raise AlreadyExistsError(f"{storage.path} is a Zarr hierarchy and no activation store: choose another path.")
    if document is None:
        found = {key.split("/")[0] for key in storage.list()}
        foreign = found - {TRAINING_GROUP, of_writer(TEMPORARY, TRAINING_GROUP)}
        if foreign and not foreign & {PREFIX, LOCK_KEY, of_writer(LOCK_KEY, TRAINING_GROUP)}:
            raise AlreadyExistsError(
                f"{storage.path} is no activation store but holds {min(foreign)!r}: choose a path that does not exist "
                "yet."
            )
    if not storage.exists(record_key(TRAINING_GROUP)):
        ours = tuple(f"{path}/" for path in (spec.path for spec in planned.schema.arrays))
        for key in storage.list(TRAINING_GROUP):
            if key != f"{TRAINING_GROUP}/zarr.json" and not key.startswith(ours):
                raise AlreadyExistsError(
                    f"{storage.path} holds {key}, which is of no series that has a record: move {TRAINING_GROUP}/ away."
                )


def check_same(
    storage: Storage, record: SupplementRecord, planned: SupplementRecord, labels: Mapping[str, NDArray[Any]]
) -> None:
    """Compare identity, columns and labels with those of a series that was begun.

    Raises
    ------
    ResumeMismatchError
        Names the first field that differs, with both values.
    """
    catalogue = catalogue_of(storage, record)
    kept = {s.name: BlockArray(catalogue, s)[...].tolist() for s in record.schema.arrays if not record.grows(s)}
    where = f"The series {TRAINING_GROUP}/ of {storage.path}"
    check_fields(where, record.identity, planned.identity, what="training")
    check_fields(where, _form(record), _form(planned), what="training")
    given = {name: values.tolist() for name, values in labels.items()}
    check_fields(where, {"coords": kept}, {"coords": given}, what="training")


def _form(record: SupplementRecord) -> dict[str, Any]:
    columns = {s.name: {"dims": list(s.dims), "dtype": s.dtype} for s in record.schema.arrays if record.grows(s)}
    return {"dim": record.dim, "columns": columns}


def as_row(spec: ArraySpec, value: ArrayLike) -> NDArray[Any]:
    """Return what one row holds of a column, a copy of the column's type.

    Raises
    ------
    DimensionError
        The value has another shape.
    InvalidInputError
        The column's type cannot hold it.
    """
    given = np.asarray(value)
    if given.shape != spec.sizes[1:]:
        raise DimensionError(f"A row of {spec.path} has shape {spec.sizes[1:]}: got {given.shape}.")
    with np.errstate(invalid="ignore", over="ignore"):  # what whole numbers cannot hold is refused below
        row = given.astype(numpy_dtype(spec)) if given.dtype.kind in "biuf" else None
    if row is None or (row.dtype.kind != "f" and not np.array_equal(row, given)):
        raise InvalidInputError(f"A row of {spec.path} holds {spec.dtype}: got {value!r}; cast it first.")
    return row
