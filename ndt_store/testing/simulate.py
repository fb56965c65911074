"""simulate_store: a whole, small, valid store without a model, and the dense arrays it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ndt_store.dims import ATTENTIONS, EXAMPLE, HEAD, KEY, LAYER, PARAMETER, PARAMETERS_GROUP, QUERY, TOKEN, UNIT, X, Y
from ndt_store.layout import blocks
from ndt_store.planning import ProbeSet, Tap, plan_store
from ndt_store.reader import Store, open_store
from ndt_store.series import SeriesWriter
from ndt_store.series_plan import Column
from ndt_store.storage import Storage
from ndt_store.writer import StoreWriter

__all__ = ["LAYERS", "Simulated", "simulate_store"]

LAYERS: Final[Mapping[str, tuple[int, ...]]] = {"conv1": (4, 6, 5), "blocks.0": (7, 8), "fc": (10,)}
"""Default layers by the shape of one example: (unit, y, x), (token, unit) or (unit,)."""

_DIMS: Final = {1: (UNIT,), 2: (TOKEN, UNIT), 3: (UNIT, Y, X)}


@dataclass(frozen=True, slots=True)
class Simulated:
    """A simulated store and what went into it: `arrays` by path, each (checkpoint, example, ...)."""

    store: Store
    arrays: Mapping[str, NDArray[Any]]


def simulate_store(
    path: str | os.PathLike[str] | Storage,
    *,
    checkpoints: Sequence[int] = (0, 10, 100),
    n_examples: int = 12,
    n_classes: int = 3,
    layers: Mapping[str, tuple[int, ...]] = LAYERS,
    kinds: Sequence[str] = ("activations", "gradients"),
    attention: Mapping[str, tuple[int, int]] | None = None,
    planted: Mapping[str, NDArray[Any]] | None = None,
    dtype: str = "float32",
    codec: str = "fast",
    block_nbytes: int = 2048,
    n_committed: int | None = None,
    n_tracked: int = 0,
    n_parameters: int = 0,
    seed: int = 0,
) -> Simulated:
    """Write a store of random data, or of planted data where given.

    Parameters
    ----------
    path : str, PathLike or Storage
        Where; an interrupted simulation with the same arguments is resumed.
    checkpoints, n_examples, n_classes : sequence of int, int, int
        Extents.
    layers : mapping of str to tuple of int
        Shape of one example by layer: (unit,), (token, unit) or (unit, y, x).
    kinds : sequence of str
        ``activations`` and ``gradients``, for every layer.
    attention : mapping of str to (heads, tokens), optional
        Layers with attention probabilities.
    planted : mapping of str to ndarray, optional
        Values by array path, shape (checkpoint, example, ...), in place of random ones.
    dtype, codec, block_nbytes
        As in `ndt_store.planning.plan_store`. The small default makes several blocks of little data.
    n_committed : int, optional
        Stop after this many checkpoints, as a capture that was killed would.
    n_tracked : int
        Rows of a series of the training, at steps 0, 5, 10 and so on; 0 makes none.
    n_parameters : int
        Parameters of whose gradients there are numbers, also in the series of the training.
    seed : int
        Of the random generator; equal arguments give equal stores.

    Returns
    -------
    Simulated
        Activations are ReLU-like, with exact zeros; gradients are signed; rows of attentions sum to 1.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     simulate_store(folder + "/run.zarr").store.layers
    ('conv1', 'blocks.0', 'fc')
    """
    rng = np.random.default_rng(seed)
    taps = [
        Tap(name, kind, (EXAMPLE, *_DIMS[len(shape)]), shape, dtype, "simulated")
        for name, shape in layers.items()
        for kind in kinds
    ]
    taps += [
        Tap(name, ATTENTIONS, (EXAMPLE, HEAD, QUERY, KEY), (heads, tokens, tokens), dtype, "simulated")
        for name, (heads, tokens) in (attention or {}).items()
    ]
    labels = np.arange(n_examples) % n_classes
    inputs = rng.random((n_examples, 1, 4, 4), dtype=np.float32)
    probe = ProbeSet(
        inputs,
        labels,
        examples=np.arange(n_examples) * 2 + 5,
        split=["test"] * n_examples,
        class_names=tuple(f"class {c}" for c in range(n_classes)),
        input_dims=("channel", "row", "column"),
    )
    parameters = {f"{n // 2}.{'weight' if n % 2 == 0 else 'bias'}": 10 * (n + 1) for n in range(n_parameters)}
    schema, static = plan_store(
        checkpoints,
        probe,
        taps,
        n_classes=n_classes,
        parameters=parameters,
        codec=codec,
        block_nbytes=block_nbytes,
        attrs={"title": "simulated"},
    )
    arrays = _values(rng, schema.cubes, len(checkpoints), labels)
    for name, values in (planted or {}).items():
        arrays[name] = np.asarray(values, dtype=arrays[name].dtype).reshape(arrays[name].shape)
    provenance = {"identity": {"model": "simulated", "seed": seed}, "environment": {}}
    with StoreWriter.open(path, schema, static=static, provenance=provenance) as writer:
        for position, step in enumerate(checkpoints[:n_committed]):
            if step in writer.committed:
                continue
            for spec in schema.cubes:
                for block in blocks(spec):
                    entries = (slice(block.start, block.stop),) if spec.sizes else ()
                    writer.write_block(
                        step, spec.path, block.index, np.asarray(arrays[spec.path][(position, *entries)])
                    )
            writer.commit(step, str(arrays["weights_digest"][position]))
    if n_tracked:
        _track(path, tuple(layers), tuple(parameters), n_tracked, seed)
    return Simulated(open_store(path), {**static, **arrays})


def _track(
    path: str | os.PathLike[str] | Storage, layers: Sequence[str], parameters: Sequence[str], n_rows: int, seed: int
) -> None:
    """Append a loss that falls and a dimension that grows, with noise that is the same whenever it is resumed."""
    rows = {"loss": Column(), "participation_ratio": Column((LAYER,))}
    coords = {LAYER: layers}
    if parameters:
        rows["gradient_norm"], coords[PARAMETER] = Column((PARAMETER,)), parameters
    with SeriesWriter.open(path, rows=rows, coords=coords, identity={"seed": seed}) as writer:
        for n in range(n_rows):
            rng = np.random.default_rng((seed, n))
            if writer.last_step is None or 5 * n > writer.last_step:
                grown = 2.0 + 8.0 * n / n_rows + rng.random(len(layers))
                loss = 2.0 / (1 + n) + 0.1 * rng.random()
                norms = {"gradient_norm": np.exp(0.2 * rng.standard_normal(len(parameters)))} if parameters else {}
                writer.append(5 * n, loss=loss, participation_ratio=grown, **norms)


def _values(
    rng: np.random.Generator, cubes: Sequence[Any], n_checkpoints: int, labels: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    for spec in cubes:
        shape = (n_checkpoints, *spec.sizes)
        if spec.dtype == "string":
            digests = [sha256(str(n).encode()).hexdigest() for n in range(n_checkpoints)]
            values[spec.path] = np.asarray(digests, dtype=object)
        elif spec.dtype == "int64":
            values[spec.path] = np.broadcast_to(labels, shape).copy()
        elif spec.name == ATTENTIONS:
            raw = rng.random(shape)
            values[spec.path] = (raw / raw.sum(-1, keepdims=True)).astype(spec.dtype)
        else:
            drawn = rng.standard_normal(shape)
            drawn = np.abs(drawn) if spec.group == PARAMETERS_GROUP else drawn
            values[spec.path] = (np.maximum(drawn, 0) if spec.name == "activations" else drawn).astype(spec.dtype)
    return values
