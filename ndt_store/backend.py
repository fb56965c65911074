"""The xarray engine ``ndt``: ``xr.open_datatree(path, engine="ndt")`` without importing this package by name.

What it opens equals what ``engine="zarr"`` opens from a finished store. The difference is in the reading: only
committed checkpoints are shown, and every block is checked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from ndt_store import labelled
from ndt_store.catalogue import Catalogue
from ndt_store.errors import IntegrityError, NdtError
from ndt_store.layout import ROOT_DOCUMENT
from ndt_store.storage import open_storage

__all__ = ["NdtBackendEntrypoint"]


class NdtBackendEntrypoint(BackendEntrypoint):
    """Opens activation stores for xarray; variables are lazy, and dask-backed when `chunks` is given."""

    description = "Open activation stores, checked against their commit records"
    url = ""
    open_dataset_parameters = ("filename_or_obj", "drop_variables", "group")
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether the path is a store of ours."""
        if not isinstance(filename_or_obj, str | os.PathLike) or not (Path(filename_or_obj) / ROOT_DOCUMENT).is_file():
            return False
        try:
            Catalogue.read(open_storage(filename_or_obj))
        except IntegrityError:
            return True
        except NdtError:
            return False
        return True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
        **_decoders: Any,
    ) -> xr.Dataset:
        """Open one group. Nothing in a store is encoded, so that xarray's decoding options have nothing to do."""
        catalogue = Catalogue.read(open_storage(filename_or_obj))
        dataset = labelled.group_dataset(catalogue, (group or "").strip("/"), chunk_nbytes=None)
        return _without(dataset, drop_variables)

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, group: str | None = None
    ) -> dict[str, xr.Dataset]:
        """Open every group below `group`, by absolute path."""
        catalogue = Catalogue.read(open_storage(filename_or_obj))
        base = (group or "").strip("/")
        if base:
            labelled.require_group(catalogue, base)
        below = (p for p in labelled.group_paths(catalogue) if not base or p == base or p.startswith(base + "/"))
        return {
            "/" + path[len(base) :].strip("/"): _without(
                labelled.group_dataset(catalogue, path, chunk_nbytes=None), drop_variables
            )
            for path in below
        }

    def open_datatree(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, group: str | None = None
    ) -> xr.DataTree:
        """Open the whole store as a tree."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, group=group)
        )


def _without(dataset: xr.Dataset, drop_variables: str | Iterable[str] | None) -> xr.Dataset:
    names = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
    return dataset.drop_vars(names, errors="ignore")
