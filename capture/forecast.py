"""What a capture will take, before it takes anything: bytes by layer and kind, memory, room on the disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from capture.pipeline import projected_nbytes
from ndt_store.cliparts import human_nbytes
from ndt_store.dims import EXAMPLE, KINDS, LAYERS_GROUP
from ndt_store.errors import StorageError
from ndt_store.layout import forecast
from ndt_store.schema import Schema

__all__ = ["Forecast", "forecast_capture"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a capture is going to need.

    Parameters
    ----------
    arrays : dict of str to int
        Bytes by array path, all planned checkpoints together, before compression.
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
        rest = 0
        for path, nbytes in self.arrays.items():
            layer, _, kind = path.removeprefix(f"{LAYERS_GROUP}/").rpartition("/")
            if path.startswith(f"{LAYERS_GROUP}/") and kind in KINDS:
                rows.append({"layer": layer, "kind": kind, "bytes": nbytes})
            else:
                rest += nbytes
        return [*rows, {"layer": "", "kind": "probe set, outputs, labels", "bytes": rest}]

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
                "pass check_disk=False if compression will make it fit."
            )


def forecast_capture(schema: Schema, path: str | os.PathLike[str], batch_size: int) -> Forecast:
    """Forecast what writing `schema` at `path` takes; nothing is written."""
    tapped = [spec for spec in schema.cubes if EXAMPLE in spec.dims]
    return Forecast(
        forecast(schema), len(schema.checkpoints), projected_nbytes(tapped, batch_size), _free_nbytes(Path(path))
    )


def _free_nbytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free
