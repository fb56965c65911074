"""What a capture will take, before it takes anything: bytes by layer and kind, memory, room on the disk."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from capture.pipeline import projected_nbytes
from ndt_store.catalogue import Catalogue
from ndt_store.dims import EXAMPLE, LAYER_ARRAYS, LAYERS_GROUP, PARAMETERS, PARAMETERS_GROUP, UNIT
from ndt_store.errors import MemoryBudgetError, StorageError
from ndt_store.layout import BLOCK_NBYTES, forecast, n_blocks, rows_per_block
from ndt_store.nbytes import human_nbytes, memory_nbytes
from ndt_store.root import has_store
from ndt_store.schema import ArraySpec, Schema
from ndt_store.storage import Storage
from ndt_store.views.frame import CLASS_SHARE, FEW_CLASSES, has_views
from ndt_store.views.kinds import K

__all__ = ["Forecast", "forecast_capture", "require_memory", "require_room"]

VIEWS: Final = "views"
_MEMORY_SHARE: Final = 4
_VIEW_HEADERS_NBYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a capture is going to need.

    Parameters
    ----------
    arrays : dict of str to int
        Bytes by array path, all planned checkpoints together, before compression; `VIEWS` for what is derived.
    n_checkpoints : int
        Planned.
    memory_nbytes : int
        Host memory of the pipeline, beside the model and its passes.
    free_nbytes : int
        Room where the store will lie.
    """

    arrays: dict[str, int]
    n_checkpoints: int
    memory_nbytes: int
    free_nbytes: int

    @property
    def total_nbytes(self) -> int:
        """Bytes of the whole store before compression, an upper bound of what it takes."""
        return sum(self.arrays.values())

    def rows(self) -> list[dict[str, str | int]]:
        """Bytes by layer and kind, then of what is not a layer's, as a table's rows."""
        rows: list[dict[str, str | int]] = []
        rest = of_parameters = 0
        for path, nbytes in self.arrays.items():
            layer, _, kind = path.removeprefix(f"{LAYERS_GROUP}/").rpartition("/")
            if path.startswith(f"{LAYERS_GROUP}/") and kind in LAYER_ARRAYS:
                rows.append({"layer": layer, "kind": kind, "bytes": nbytes})
            elif path.startswith(f"{PARAMETERS_GROUP}/"):
                of_parameters += nbytes
            else:
                rest += nbytes
        if of_parameters:
            rows.append({"layer": "", "kind": PARAMETERS, "bytes": of_parameters})
        return [*rows, {"layer": "", "kind": "probe set, outputs, labels, views", "bytes": rest}]

    def require_room(self, path: str) -> None:
        """Refuse a capture that could fill the disk.

        Raises
        ------
        StorageError
            It may take more than is free.
        """
        if self.total_nbytes > self.free_nbytes:
            raise StorageError(
                f"The capture into {path} may take {human_nbytes(self.total_nbytes)} and the disk has "
                f"{human_nbytes(self.free_nbytes)} free: make room, capture fewer layers, examples or checkpoints, or "
                "pass check_disk=False (--no-disk-check) if compression will make it fit."
            )


def forecast_capture(schema: Schema, path: str | os.PathLike[str], batch_size: int) -> Forecast:
    """Forecast what writing `schema` at `path` takes; nothing is written."""
    memory_nbytes = projected_nbytes(_tapped(schema), batch_size, _n_classes(schema))
    arrays = forecast(schema) | {VIEWS: len(schema.checkpoints) * sum(map(_views_nbytes, schema.cubes))}
    return Forecast(arrays, len(schema.checkpoints), memory_nbytes, _free_nbytes(Path(path)))


def require_memory(schema: Schema, batch_size: int, allowed_nbytes: int | None) -> None:
    """Refuse a capture whose pipeline could hold more than it may.

    Blocks are not made smaller here: their size is part of what the store is, and must not depend on the machine.

    Parameters
    ----------
    schema : Schema
    batch_size : int
    allowed_nbytes : int or None
        None allows a quarter of the machine's memory.

    Raises
    ------
    MemoryBudgetError
        The message names the largest power of two for ``block_nbytes`` that would fit.
    """
    specs = _tapped(schema)
    allowed = memory_nbytes() // _MEMORY_SHARE if allowed_nbytes is None else allowed_nbytes
    n_classes = _n_classes(schema)
    projected = projected_nbytes(specs, batch_size, n_classes)
    if projected <= allowed:
        return
    block_nbytes = BLOCK_NBYTES
    while block_nbytes and projected_nbytes(_with_blocks(specs, block_nbytes), batch_size, n_classes) > allowed:
        block_nbytes //= 2
    least = projected_nbytes(_with_blocks(specs, 1), batch_size, n_classes)
    advice = (
        f"pass block_nbytes={block_nbytes}, which fits"
        if block_nbytes
        else f"even blocks of one example take {human_nbytes(least)}, so capture fewer layers or lower batch_size"
    )
    raise MemoryBudgetError(
        f"The capture of {len(specs)} arrays with batches of {batch_size} may hold {human_nbytes(projected)} beside "
        f"the model, where {human_nbytes(allowed)} are allowed: {advice}, or raise memory=.",
        projected,
        allowed,
    )


def require_room(schema: Schema, storage: Storage, batch_size: int) -> None:
    """Refuse a capture whose checkpoints that are not committed yet could take more than the disk has free.

    Raises
    ------
    StorageError
        With both numbers.
    """
    committed = Catalogue.read(storage).committed if has_store(storage) else ()
    remaining = schema.with_checkpoints(tuple(step for step in schema.checkpoints if step not in committed))
    if remaining.checkpoints:
        forecast_capture(remaining, storage.path, batch_size).require_room(storage.path)


def _tapped(schema: Schema) -> list[ArraySpec]:
    return [spec for spec in schema.cubes if EXAMPLE in spec.dims]


def _views_nbytes(spec: ArraySpec) -> int:
    """Bytes that the views of one cube take at one checkpoint, at most."""
    if not has_views(spec):
        return 0
    n_units = spec.sizes[spec.dims.index(UNIT) - 1]
    n_values = math.prod(spec.sizes) // n_units
    by_class = max(8 * FEW_CLASSES, CLASS_SHARE * 4 * n_values)
    ranked = min(K, spec.sizes[0]) * (np.dtype(spec.dtype).itemsize + 8)
    return _VIEW_HEADERS_NBYTES + int(n_units * (40 + 20 * n_blocks(spec) + by_class + ranked))


def _n_classes(schema: Schema) -> int:
    logits = schema.find("logits")
    return logits.sizes[-1] if logits is not None else 0


def _with_blocks(specs: Sequence[ArraySpec], block_nbytes: int) -> list[ArraySpec]:
    return [replace(spec, rows=rows_per_block(spec.sizes, spec.dtype, block_nbytes)) for spec in specs]


def _free_nbytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free
