"""What makes a capture the one it is: weights, environment, and what came out that is not finite."""

from __future__ import annotations

import logging
import platform
from importlib.metadata import version
from typing import Any, Final

import torch

from capture.objective import GradientOf
from ndt_store.catalogue import Catalogue
from ndt_store.resume import mismatch

__all__ = ["environment", "name_of", "report_nonfinite", "require_same_weights"]

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


def report_nonfinite(catalogue: Catalogue, step: int) -> None:
    """Log which arrays of a committed checkpoint hold NaN or infinite values, and how many."""
    for path, entry in catalogue.record(step).arrays.items():
        if entry.nan or entry.inf:
            _LOG.warning(
                "checkpoint %d: %s holds %d NaN and %d infinite values; they are stored as they are",
                step,
                path,
                entry.nan,
                entry.inf,
            )


def name_of(gradient_of: GradientOf) -> str:
    """Name of the scalar that is differentiated, for the record."""
    return gradient_of if isinstance(gradient_of, str) else getattr(gradient_of, "__name__", "callable")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and device, for the reader of a store; never compared."""
    packages = {name: version(name) for name in ("ndt-activations", "torch", "numpy", "zarr", "xarray", "numcodecs")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"python": platform.python_version(), "packages": packages, "device": f"{device.type}: {name}"}
