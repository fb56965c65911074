"""From sites and options to what a capture will write, and what makes it the one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor, nn

from capture.identity import callable_name, structure_digest
from capture.naming import Site
from capture.objective import GradientOf
from capture.probe import Probe
from capture.provenance import warn_of_narrowing
from ndt_store.dims import SUMMARY_KINDS
from ndt_store.errors import InvalidInputError
from ndt_store.layout import Rows
from ndt_store.planning import Tap, plan_store
from ndt_store.schema import Schema, as_step

__all__ = ["capture_identity", "check_options", "plan_capture"]

_DTYPES: Final = ("float32", "float16", "native")


def check_options(dtype: str, batch_size: int) -> None:
    """Raise `InvalidInputError` unless both are possible."""
    if dtype not in _DTYPES:
        raise InvalidInputError(f"dtype is {dtype!r}: expected one of {', '.join(_DTYPES)}.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInputError(f"batch_size is {batch_size!r}: expected a whole number of at least 1.")


def plan_capture(
    probe: Probe,
    sites: Sequence[Site],
    checkpoints: Sequence[int],
    *,
    n_classes: int | None,
    wide_logits: bool,
    parameters: Mapping[str, int] | None,
    dtype: str,
    compression: str,
    block_nbytes: int,
    title: str,
) -> tuple[Schema, Mapping[str, Rows]]:
    """Return the schema of a capture, and the values of its static arrays by path.

    Parameters
    ----------
    probe : Probe
    sites : sequence of Site
    checkpoints : sequence of int
        Steps that are planned already.
    n_classes : int or None
        None leaves logits, loss and prediction out.
    wide_logits : bool
        Whether the model says float64.
    parameters : mapping of str to int or None
        Sizes of the parameters whose gradients are kept.
    dtype : {"float32", "float16", "native"}
    compression, block_nbytes, title
        As in `capture.Session`, and what the store is called.
    """
    if dtype == "float32":
        warn_of_narrowing(sites)
    taps = [
        Tap(site.name, site.kind, site.dims, site.shape, stored, site.module_type)
        for site in sites
        for stored in [_stored(site, dtype)]
    ]
    return plan_store(
        [as_step(step) for step in checkpoints],
        probe.contents,
        taps,
        n_classes=n_classes,
        logits_dtype="float64" if dtype == "native" and wide_logits else "float32",
        parameters=parameters,
        codec=compression,
        block_nbytes=block_nbytes,
        attrs={"title": title},
    )


def _stored(site: Site, dtype: str) -> str:
    if site.kind in SUMMARY_KINDS:  # a few numbers, which half precision would only spoil
        return "float32"
    return site.dtype if dtype == "native" else dtype


def capture_identity(
    model: nn.Module,
    probe: Probe,
    model_name: str,
    layers: Sequence[str],
    kinds: Sequence[str],
    gradient_of: GradientOf,
    output: Callable[[Any], Tensor] | None,
    *,
    dtype: str,
    batch_size: int,
) -> dict[str, Any]:
    """Return what is compared when a capture is resumed, as JSON values."""
    return {
        "model": model_name,
        "model_structure": structure_digest(model),
        "data": probe.name,
        "dataset_digest": probe.digest,
        "layers": list(layers),
        "kinds": list(kinds),
        "gradient_of": callable_name(gradient_of),
        "output": callable_name(output),
        "dtype": dtype,
        "batch_size": batch_size,
    }
