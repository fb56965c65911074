"""What a store holds, as plain frozen values with a JSON round trip.

A `Schema` is the whole truth about the shape of a store: the checkpoints that are planned, and one `ArraySpec` for
each array. An array whose first dimension is ``checkpoint`` is a *cube*: it is written block by block, one checkpoint
at a time, and the commit records list its blocks. Every other array is *static*: it describes the probe set, is
written once when the store is made, and never changes.

All invariants are checked on construction, so that a schema which exists is one that can be laid out on disk. That
includes schemas read from a store that somebody else made: names, ranks and sizes are bounded here, before anything
is joined to a path or allocated.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Self

from ndt_store.dims import CHECKPOINT, EXAMPLE, LAYER_ARRAYS, LAYERS_GROUP
from ndt_store.errors import FormatVersionError, SchemaError

__all__ = ["DTYPES", "FORMAT_VERSION", "ArraySpec", "Schema", "as_step", "check_name", "layer_path"]

FORMAT_VERSION: Final = 1
DTYPES: Final = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool", "string")
MAX_RANK: Final = 16
MAX_NAME_BYTES: Final = 200
MAX_BLOCK_NBYTES: Final = (1 << 31) - 64
MAX_BLOCKS: Final = 1 << 24
MAX_SIZE: Final = 1 << 26

# Zarr reserves names that start with two underscores, and its own file's; control characters, surrogates, slashes and a
# lone dot never reach a path.
_NAME = re.compile(r"(?!__)(?!\.+$)(?!zarr\.json$)[^\x00-\x1f\x7f/\\\ud800-\udfff]+")

_ITEMSIZES: Final = {"float64": 8, "int64": 8, "float16": 2, "uint8": 1, "bool": 1}

JsonAttrs = Mapping[str, Any]


def check_name(name: str, what: str) -> str:
    """Return `name` when it can stand as one component of a path inside a store."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name.encode()) > MAX_NAME_BYTES:
        raise SchemaError(
            f"{what} {name!r} cannot name a part of a store: expected 1 to {MAX_NAME_BYTES} bytes without slashes or "
            "control characters, not only dots, not 'zarr.json', not starting with '__'; rename it."
        )
    return name


def as_step(value: Any) -> int:
    """Return a training step as a Python integer; numpy integers pass, booleans and floats do not.

    Raises
    ------
    SchemaError
        It is no whole number from 0 to 2^63 - 1.
    """
    try:
        step = operator.index(value)
    except TypeError:
        step = -1
    if isinstance(value, bool) or not 0 <= step < 1 << 63:
        raise SchemaError(f"Checkpoints are training steps, whole numbers from 0 to 2^63 - 1: got {value!r}.")
    return step


def layer_path(layer: str, kind: str) -> str:
    """Path of one layer's array inside the store, ``layers/<layer>/<kind>``."""
    return f"{LAYERS_GROUP}/{layer}/{kind}"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store.

    Parameters
    ----------
    path : str
        Where it lies, for example ``layers/conv1/activations``.
    dims : tuple of str
        Dimension names; a leading ``checkpoint`` makes the array a cube.
    sizes : tuple of int
        Extents of every dimension but ``checkpoint``, whose extent is the schema's.
    dtype : str
        One of `DTYPES`, little-endian on disk.
    rows : int
        Entries of the first dimension after ``checkpoint`` in one block.
    codec : str
        Name of a compression profile, see `ndt_store.codecs`.
    attrs : mapping
        JSON attributes that xarray shows on the variable.
    """

    path: str
    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str
    rows: int = 1
    codec: str = "none"
    attrs: JsonAttrs = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in self.path.split("/"):
            check_name(part, "array path component")
        for dim in self.dims:
            check_name(dim, f"dimension of {self.path}")
        if len(set(self.dims)) != len(self.dims):
            raise SchemaError(f"Array {self.path} names a dimension twice: got {self.dims}; give each its own name.")
        if CHECKPOINT in self.dims[1:]:
            raise SchemaError(f"Array {self.path} has dims {self.dims}: checkpoint has to be the first of them.")
        if len(self.dims) > MAX_RANK or len(self.sizes) != len(self.dims) - self.is_cube:
            raise SchemaError(
                f"Array {self.path} has {len(self.dims)} dims {self.dims} and sizes {self.sizes}: expected one size "
                f"for each dim but checkpoint, and at most {MAX_RANK} dims."
            )
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in (*self.sizes, self.rows)):
            raise SchemaError(
                f"Array {self.path} has sizes {self.sizes} and {self.rows} rows a block: expected whole numbers of "
                "at least 1; capture at least one example and one unit."
            )
        if self.dtype not in DTYPES:
            raise SchemaError(f"Array {self.path} has dtype {self.dtype!r}: expected one of {', '.join(DTYPES)}.")
        if not isinstance(self.attrs, Mapping):
            raise SchemaError(f"Attributes of {self.path} are {type(self.attrs).__name__}: expected a mapping.")
        self._check_blocks()

    def _check_blocks(self) -> None:
        """Bound what reading one block, or labels of one dimension, may allocate, and what a record may list."""
        if not self.sizes:
            return
        if self.rows > self.sizes[0]:
            raise SchemaError(f"Array {self.path} has {self.rows} rows a block of {self.sizes[0]}: expected no more.")
        nbytes = math.prod((self.rows, *self.sizes[1:])) * _ITEMSIZES.get(self.dtype, 4)
        if nbytes > MAX_BLOCK_NBYTES or self.sizes[0] // self.rows > MAX_BLOCKS or max(self.sizes) > MAX_SIZE:
            raise SchemaError(
                f"Array {self.path} of sizes {self.sizes} with {self.rows} rows a block has blocks of {nbytes} bytes: "
                f"expected at most {MAX_BLOCK_NBYTES} bytes, {MAX_BLOCKS} blocks, {MAX_SIZE} entries of one dimension."
            )

    @property
    def is_cube(self) -> bool:
        """Whether there is one slice of this array at each checkpoint."""
        return self.dims[:1] == (CHECKPOINT,)

    @property
    def group(self) -> str:
        """Path of the group that holds the array, "" for the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Name within its group."""
        return self.path.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal spec."""
        return {
            "path": self.path,
            "dims": list(self.dims),
            "sizes": list(self.sizes),
            "dtype": self.dtype,
            "rows": self.rows,
            "codec": self.codec,
            "attrs": dict(self.attrs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a spec; a missing field is a `SchemaError`, an unknown one a `FormatVersionError`."""
        unknown = set(data) - {field.name for field in fields(cls)} if isinstance(data, Mapping) else set()
        if unknown:
            raise FormatVersionError(
                f"arrays are described by {', '.join(sorted(unknown))}, which this version does not know"
            )
        try:
            values = dict(data)
            values["dims"], values["sizes"] = tuple(values["dims"]), tuple(values["sizes"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise SchemaError(f"The store's schema describes an array in a way we cannot read ({error}).") from error


@dataclass(frozen=True, slots=True)
class Schema:
    """Everything a store is planned to hold.

    Parameters
    ----------
    checkpoints : tuple of int
        Planned training steps, strictly increasing.
    arrays : tuple of ArraySpec
        All arrays except the ``checkpoint`` coordinate, which follows from `checkpoints`.
    groups : mapping of str to mapping
        Attributes of groups by path; groups without attributes need not be named. "" is the root.
    """

    checkpoints: tuple[int, ...]
    arrays: tuple[ArraySpec, ...]
    groups: Mapping[str, JsonAttrs] = field(default_factory=dict)
    _by_path: Mapping[str, ArraySpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoints", tuple(as_step(step) for step in self.checkpoints))
        object.__setattr__(self, "_by_path", {spec.path: spec for spec in self.arrays})
        if any(b <= a for a, b in zip(self.checkpoints, self.checkpoints[1:], strict=False)):
            raise SchemaError(f"Checkpoints have to increase strictly: got {self.checkpoints}; sort and deduplicate.")
        self._check_paths()
        self._check_sizes()

    def _check_paths(self) -> None:
        paths = [spec.path for spec in self.arrays]
        nodes = {CHECKPOINT, *paths}
        if len(nodes) != len(paths) + 1:
            twice = sorted({p for p in paths if paths.count(p) > 1 or p == CHECKPOINT})
            raise SchemaError(f"Arrays are described twice: {', '.join(twice)}; each path holds one array.")
        for group in self.group_paths():
            for part in group.split("/") if group else ():
                check_name(part, "group path component")
            if group in nodes:
                raise SchemaError(f"{group!r} is both an array and a group: rename one of them.")

    def _check_sizes(self) -> None:
        sizes: dict[tuple[str, str], int] = {}
        for spec in self.arrays:
            for dim, size in zip(spec.dims[spec.is_cube :], spec.sizes, strict=True):
                # Children inherit the root's example coordinate, so that one size rules the whole hierarchy.
                scope = "" if dim == EXAMPLE else spec.group
                if sizes.setdefault((scope, dim), size) != size:
                    raise SchemaError(
                        f"Dimension {dim!r} of {spec.path} has size {size} where its group has {sizes[scope, dim]}: "
                        "arrays that share a group share their dimensions."
                    )

    @property
    def cubes(self) -> tuple[ArraySpec, ...]:
        """Arrays with a checkpoint axis, in order."""
        return tuple(spec for spec in self.arrays if spec.is_cube)

    @property
    def static(self) -> tuple[ArraySpec, ...]:
        """Arrays that describe the probe set and the labels of dimensions."""
        return tuple(spec for spec in self.arrays if not spec.is_cube)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the captured layers, in the order of capture."""
        prefix = LAYERS_GROUP + "/"
        named = (spec.group.removeprefix(prefix) for spec in self.cubes if spec.group.startswith(prefix))
        return tuple(dict.fromkeys(named))

    def kinds(self, layer: str) -> tuple[str, ...]:
        """Names of the arrays that were captured of one layer."""
        return tuple(kind for kind in LAYER_ARRAYS if self.find(layer_path(layer, kind)) is not None)

    def find(self, path: str) -> ArraySpec | None:
        """Return the array at `path`, or None."""
        return self._by_path.get(path)

    def group_paths(self) -> tuple[str, ...]:
        """Paths of every group, parents before children; "" is the root."""
        paths = {""}
        for start in (*(spec.group for spec in self.arrays), *self.groups):
            parts = start.split("/") if start else []
            paths.update("/".join(parts[:n]) for n in range(1, len(parts) + 1))
        return tuple(sorted(paths))

    def with_checkpoints(self, checkpoints: tuple[int, ...]) -> Schema:
        """Return the same schema at other planned checkpoints."""
        return replace(self, checkpoints=checkpoints)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal schema."""
        return {
            "checkpoints": list(self.checkpoints),
            "arrays": [spec.to_json() for spec in self.arrays],
            "groups": {path: dict(attrs) for path, attrs in self.groups.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a schema; an unknown field is a `FormatVersionError`, anything else amiss a `SchemaError`."""
        try:
            unknown = set(data) - {"checkpoints", "arrays", "groups"}
            if unknown:
                raise FormatVersionError(
                    f"the schema has {', '.join(sorted(unknown))}, which this version does not know"
                )
            return cls(
                tuple(data["checkpoints"]),
                tuple(ArraySpec.from_json(spec) for spec in data["arrays"]),
                {str(path): dict(attrs) for path, attrs in data["groups"].items()},
            )
        except SchemaError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SchemaError(f"The store's schema cannot be read ({error}).") from error
