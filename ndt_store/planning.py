"""From a probe set and a list of taps to the schema and the static values of a store.

This is the one description of what format version 1 holds where: the probe set and the model's outputs at the root,
one group a layer below ``layers/``. `capture` fills it from a model, `ndt_store.testing.simulate_store` from a random
generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.codecs import DEFAULT_PROFILE, profile
from ndt_store.dims import (
    ATTENTIONS,
    CHECKPOINT,
    CLASS,
    EXAMPLE,
    GRADIENTS,
    LAYER_ARRAYS,
    LAYERS_GROUP,
    MEAN_PATTERN,
    PARAMETER,
    PARAMETER_ARRAYS,
    PARAMETERS_GROUP,
)
from ndt_store.errors import InvalidInputError
from ndt_store.layout import BLOCK_NBYTES, rows_per_block
from ndt_store.schema import ArraySpec, Schema, layer_path

__all__ = ["ProbeSet", "Tap", "plan_store"]

_LONG_NAMES: Final = {
    "activations": "output of the module",
    "gradients": "gradient of one scalar per example with respect to the output of the module",
    "attentions": "attention probabilities",
    "attention_entropy": "entropy of attention over the logarithm of the number of keys, mean over queries",
    "attention_hoyer": "Hoyer sparsity of attention, mean over queries",
    "attention_gini": "Gini index of attention, mean over queries",
    "attention_share": "share of keys with a probability above 0.1, mean over queries",
    "attention_distance": "mean distance from query to key, in tokens",
    "attention_mean": "attention probabilities, mean over examples",
}


@dataclass(frozen=True, slots=True)
class Tap:
    """One kind of data captured of one layer.

    Parameters
    ----------
    layer : str
        Module path.
    kind : str
        ``activations``, ``gradients``, ``attentions``, or a summary of attention, one of `SUMMARY_KINDS`.
    dims : tuple of str
        Dimensions of one batch, ``example`` first; ``attention_mean`` has no examples.
    sizes : tuple of int
        Extents of the dimensions but ``example``.
    dtype : str
        As stored.
    module : str
        Type of the module, for the reader.
    """

    layer: str
    kind: str
    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str = "float32"
    module: str = ""

    def __post_init__(self) -> None:
        begins = self.dims[:1] == (EXAMPLE,) or self.kind == MEAN_PATTERN
        if self.kind not in LAYER_ARRAYS or not begins or len(self.sizes) != len(self.inner):
            raise InvalidInputError(
                f"A tap of {self.layer!r} has kind {self.kind!r}, dims {self.dims} and sizes {self.sizes}: expected "
                f"one of {', '.join(LAYER_ARRAYS)}, dims that begin with 'example', and one size for each other dim."
            )

    @property
    def inner(self) -> tuple[str, ...]:
        """Dimensions but ``example``."""
        return tuple(dim for dim in self.dims if dim != EXAMPLE)


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The inputs that every checkpoint is asked about.

    Parameters
    ----------
    inputs : ndarray or Rows
        What the model sees, shape (example, ...); float or integer. Anything with a shape and a dtype whose slices
        give rows will do, so that a large probe set need not be in memory.
    labels : ndarray
        Class of each example, whole numbers, shape (example,).
    examples : ndarray, optional
        Index of each example in its data set, shape (example,); 0, 1, ... by default.
    split : sequence of str, optional
        Part of the data set each example comes from.
    class_names : tuple of str
        Names of the classes, in order.
    input_dims : tuple of str
        Names of the dimensions of `inputs` after ``example``.
    """

    inputs: Any
    labels: NDArray[Any]
    examples: NDArray[Any] | None = None
    split: Sequence[str] | None = None
    class_names: tuple[str, ...] = ()
    input_dims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = self.inputs.shape[0]
        if n == 0:
            raise InvalidInputError("The probe set is empty: give at least one example.")
        labels = np.asarray(self.labels)
        if labels.dtype.kind == "f" and not np.isfinite(labels).all():
            at = int(np.flatnonzero(~np.isfinite(labels))[0])
            raise InvalidInputError(f"labels[{at}] is {labels[at]}: every label has to be a class number; remove it.")
        if labels.shape != (n,) or not np.array_equal(labels, labels.astype(np.int64)) or (labels < 0).any():
            raise InvalidInputError(
                f"labels have shape {labels.shape} and dtype {labels.dtype}: expected one class number from 0 on for "
                f"each of {n} examples."
            )
        for name, given in (("examples", self.examples), ("split", self.split)):
            if given is not None and len(given) != n:
                raise InvalidInputError(f"{name} has {len(given)} entries where the probe set has {n} examples.")
        if self.examples is not None and len(np.unique(self.examples)) != n:
            raise InvalidInputError("examples names an index twice: every example of a probe set is there once.")


@dataclass(frozen=True, slots=True)
class _Plan:
    arrays: list[ArraySpec] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def static(self, path: str, dims: tuple[str, ...], array: Any, codec: str = "none", **attrs: Any) -> None:
        dtype = "string" if array.dtype.kind in "OUT" else array.dtype.name
        rows = rows_per_block(array.shape, dtype)
        self.arrays.append(ArraySpec(path, dims, array.shape, dtype, rows, codec, attrs))
        self.values[path] = array

    def index(self, path: str, size: int) -> None:
        if path not in self.values:
            self.static(path, (path.rpartition("/")[2],), np.arange(size, dtype=np.int64))

    def cube(
        self, path: str, dims: tuple[str, ...], sizes: tuple[int, ...], dtype: str, codec: str, rows: int, **attrs: Any
    ) -> None:
        self.arrays.append(ArraySpec(path, (CHECKPOINT, *dims), sizes, dtype, rows, codec, attrs))


def plan_store(
    checkpoints: Sequence[int],
    probe: ProbeSet,
    taps: Sequence[Tap],
    *,
    n_classes: int | None = None,
    logits_dtype: str = "float32",
    parameters: Mapping[str, int] | None = None,
    codec: str = DEFAULT_PROFILE,
    block_nbytes: int = BLOCK_NBYTES,
    attrs: Mapping[str, Any] | None = None,
) -> tuple[Schema, dict[str, Any]]:
    """Plan a store.

    Parameters
    ----------
    checkpoints : sequence of int
        Planned training steps, increasing; more can be added later.
    probe : ProbeSet
        What goes in.
    taps : sequence of Tap
        What comes out, at least one.
    n_classes : int, optional
        Width of the model's logits; None where the model has none to store.
    logits_dtype : str
        As stored, of logits and loss.
    parameters : mapping of str to int, optional
        Number of values of each parameter of the model, where gradients of parameters are kept.
    codec : str
        Compression profile of the taps and the inputs.
    block_nbytes : int
        Size in bytes at which blocks aim.
    attrs : mapping, optional
        Attributes of the root, for example a title.

    Returns
    -------
    schema : Schema
    static : dict
        Values of the static arrays, for `StoreWriter.open`.
    """
    profile(codec)
    if not taps:
        raise InvalidInputError("There is nothing to capture: name at least one layer and one kind.")
    n = probe.inputs.shape[0]
    plan = _Plan()
    examples = np.arange(n) if probe.examples is None else np.asarray(probe.examples)
    plan.static("example", (EXAMPLE,), examples.astype(np.int64), long_name="index in the data set")
    names: dict[str, Any] = {"class_names": list(probe.class_names)} if probe.class_names else {}
    plan.static("label", (EXAMPLE,), np.asarray(probe.labels).astype(np.int64), long_name="class", **names)
    labelled = "label"
    if probe.split is not None:
        plan.static("split", (EXAMPLE,), np.asarray(list(probe.split), dtype=object), long_name="part of the data set")
        labelled = "label split"
    input_dims = probe.input_dims or tuple(f"input_{n}" for n in range(len(probe.inputs.shape) - 1))
    plan.static("input", (EXAMPLE, *input_dims), probe.inputs, codec, long_name="what the model saw")
    plan.cube("weights_digest", (), (), "string", "none", 1, long_name="SHA-256 of the weights")
    if n_classes is not None:
        rows = rows_per_block((n, n_classes), logits_dtype, block_nbytes)
        plan.cube("logits", (EXAMPLE, CLASS), (n, n_classes), logits_dtype, "none", rows, long_name="class scores")
        plan.cube("loss", (EXAMPLE,), (n,), logits_dtype, "none", n, long_name="cross-entropy", units="nat")
        plan.cube("prediction", (EXAMPLE,), (n,), "int64", "none", n, long_name="class with the highest score", **names)
    groups: dict[str, dict[str, Any]] = {"": {"Conventions": "CF-1.11", **(attrs or {}), "coordinates": labelled}}
    for tap in taps:
        _plan_tap(plan, tap, n, codec, block_nbytes)
        groups[f"{LAYERS_GROUP}/{tap.layer}"] = {"module": tap.module}
    if parameters:
        _plan_parameters(plan, parameters)
        groups[PARAMETERS_GROUP] = {"what": "gradient of the mean loss over the probe set", "coordinates": "size"}
    return Schema(tuple(checkpoints), tuple(plan.arrays), groups), plan.values


def _plan_parameters(plan: _Plan, parameters: Mapping[str, int]) -> None:
    n, over = len(parameters), (PARAMETER,)
    plan.static(f"{PARAMETERS_GROUP}/{PARAMETER}", over, np.asarray(list(parameters), dtype=object))
    sizes = np.asarray(list(parameters.values()), dtype=np.int64)
    plan.static(f"{PARAMETERS_GROUP}/size", over, sizes, long_name="number of values of the parameter")
    for name, text in PARAMETER_ARRAYS.items():
        plan.cube(f"{PARAMETERS_GROUP}/{name}", over, (n,), "float64", "none", n, long_name=text)


def _plan_tap(plan: _Plan, tap: Tap, n: int, codec: str, block_nbytes: int) -> None:
    attrs: dict[str, Any] = {"long_name": _LONG_NAMES[tap.kind]}
    if tap.kind == ATTENTIONS:
        attrs["valid_range"] = [0.0, 1.0]
    if tap.kind == GRADIENTS:
        attrs["of"] = "one example's own scalar; examples do not mix"
    if tap.kind == MEAN_PATTERN:
        attrs["n_examples"] = n
    sizes = tap.sizes if tap.kind == MEAN_PATTERN else (n, *tap.sizes)
    rows = sizes[0] if tap.kind == MEAN_PATTERN else rows_per_block(sizes, tap.dtype, block_nbytes)
    plan.cube(layer_path(tap.layer, tap.kind), tap.dims, sizes, tap.dtype, codec, rows, **attrs)
    for dim, size in zip(tap.inner, tap.sizes, strict=True):
        plan.index(f"{LAYERS_GROUP}/{tap.layer}/{dim}", size)
