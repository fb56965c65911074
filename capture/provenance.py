"""What is said about a capture: its environment, whose weights, what came out that is not finite, what is rounded."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import torch

from capture.naming import Site
from ndt_store.catalogue import Catalogue
from ndt_store.resume import mismatch

__all__ = ["environment", "report_nonfinite", "require_same_weights", "warn_of_narrowing"]

_LOG: Final = logging.getLogger(__name__)


def require_same_weights(catalogue: Catalogue, step: int, digest: str) -> None:
    """Compare the weights of a committed checkpoint with those that are offered for it.

    Raises
    ------
    ResumeMismatchError
        They differ.
    """
    stored = catalogue.record(step).weights_digest
    if stored != digest:
        raise mismatch(catalogue.storage.path, f"weights of checkpoint {step}", stored, digest)


def report_nonfinite(catalogue: Catalogue, step: int, overflowed: Mapping[str, int]) -> None:
    """Log which arrays of a committed checkpoint hold NaN or infinite values, how many, and why.

    Parameters
    ----------
    catalogue : Catalogue
    step : int
        A committed checkpoint.
    overflowed : mapping of str to int
        By array path, how many finite values became infinite in the type they are stored as.
    """
    for path, entry in catalogue.record(step).arrays.items():
        lost = overflowed.get(path, 0)
        if lost:
            spec = catalogue.schema.find(path)
            _LOG.warning(
                "checkpoint %d: %d finite values of %s overflowed %s and are stored as infinite; capture with "
                "dtype='native' to keep them",
                step,
                lost,
                path,
                spec.dtype if spec is not None else "their type",
            )
        if entry.nan or entry.inf > lost:
            _LOG.warning(
                "checkpoint %d: %s holds %d NaN and %d infinite values; they are stored as they are",
                step,
                path,
                entry.nan,
                entry.inf - lost,
            )


def warn_of_narrowing(sites: Sequence[Site]) -> None:
    """Log that layers which compute in float64 are about to be stored as float32."""
    wide = sorted({site.name for site in sites if site.dtype == "float64"})
    if wide:
        _LOG.warning(
            "%d layers compute in float64 and are stored as float32, the first is %s; pass dtype='native' to keep "
            "float64",
            len(wide),
            wide[0],
        )


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device, for the reader of a store; never compared."""
    packages = {name: version(name) for name in ("ndt-activations", "torch", "numpy", "zarr", "xarray", "numcodecs")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"python": platform.python_version(), "packages": packages, "device": f"{device.type}: {name}"}
