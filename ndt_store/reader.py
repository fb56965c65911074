"""open_store and Store: what a researcher holds in hand.

Opening reads one JSON document and one directory listing, nothing else, and imports neither xarray nor dask; both come
with the first labelled object that is asked for.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.blocks import BlockArray, read_block
from ndt_store.catalogue import Catalogue
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, EXAMPLE, EXPERIMENTS_GROUP, PARAMETERS_GROUP, TRAINING_GROUP
from ndt_store.errors import NotFoundError
from ndt_store.layout import CHUNK_NBYTES, block, block_shape, n_blocks, numpy_dtype
from ndt_store.schema import Schema
from ndt_store.storage import Storage, open_storage
from ndt_store.supplements import experiment_group

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Store", "nearest_steps", "open_store", "open_training"]


def open_store(path: str | os.PathLike[str] | Storage, *, chunk_nbytes: int = CHUNK_NBYTES) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    path : str, PathLike or Storage
        The store's directory.
    chunk_nbytes : int
        Size in bytes at which the dask chunks of labelled objects aim; lower it where memory is short.

    Returns
    -------
    Store
        A snapshot of what is committed now; `Store.refresh` looks again.

    Raises
    ------
    NotFoundError
        There is no store at `path`.
    FormatVersionError
        It was written in a format this version does not read.
    IntegrityError
        Its metadata are damaged.
    """
    return Store(Catalogue.read(open_storage(path)), chunk_nbytes)


def open_training(path: str | os.PathLike[str] | Storage) -> xr.Dataset:
    """Read the series that was tracked while training, which may still grow.

    Parameters
    ----------
    path : str, PathLike or Storage
        Where the training was tracked; there need not be a capture yet.

    Returns
    -------
    xarray.Dataset
        In memory, with the coordinate ``step`` and what was tracked at each step: as many rows as were safe when it was
        read. Read it again to see more.

    Raises
    ------
    NotFoundError
        Nothing was tracked there.
    IntegrityError
        Record or blocks are damaged; names array and block.
    """
    from ndt_store import labelled

    return labelled.supplement_dataset(open_storage(path), TRAINING_GROUP)


class Store:
    """One training run of one model on one probe set. Make one with `open_store`.

    Indexing with a layer's name gives that layer as a lazy `xarray.Dataset`.
    """

    def __init__(self, catalogue: Catalogue, chunk_nbytes: int) -> None:
        self._catalogue = catalogue
        self._chunk_nbytes = chunk_nbytes
        self._labels: dict[str, xr.Variable] | None = None
        self._layers: dict[str, xr.Dataset] = {}

    def __repr__(self) -> str:
        shown = f"{len(self.layers)} layers, {len(self.checkpoints)} checkpoints, {len(self.examples)} examples"
        return f"<ndt_store.Store {self.path}: {shown}>"

    @property
    def path(self) -> str:
        """Where the store lies."""
        return self._catalogue.storage.path

    @property
    def catalogue(self) -> Catalogue:
        """The metadata snapshot behind this object."""
        return self._catalogue

    @property
    def schema(self) -> Schema:
        """What the store was planned to hold."""
        return self._catalogue.schema

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the store comes from: ``identity`` and ``environment``."""
        return self._catalogue.provenance

    @property
    def is_complete(self) -> bool:
        """Whether every planned checkpoint is committed."""
        return self._catalogue.is_complete

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the captured layers, in the order of capture."""
        return self.schema.layers

    @property
    def checkpoints(self) -> NDArray[np.int64]:
        """Training steps of the committed checkpoints, shape (checkpoint,)."""
        return np.asarray(self._catalogue.committed, dtype=np.int64)

    @property
    def examples(self) -> NDArray[np.int64]:
        """Dataset indices of the probe set, shape (example,)."""
        return self._static(EXAMPLE)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each example, shape (example,)."""
        return self._static("label")

    @property
    def root(self) -> xr.Dataset:
        """Probe set and model outputs: label, split, input, logits, loss, prediction."""
        from ndt_store import labelled

        return labelled.group_dataset(self._catalogue, "", self._chunk_nbytes)

    @property
    def parameters(self) -> xr.Dataset:
        """Gradients of the parameters in a few numbers each, (checkpoint, parameter), lazy.

        Raises
        ------
        NotFoundError
            They were not captured.
        """
        from ndt_store import labelled

        if PARAMETERS_GROUP not in self.schema.group_paths():
            raise NotFoundError(f"{self.path} holds no gradients of parameters: capture the kind 'parameters'.")
        steps = {CHECKPOINT: labelled.label_coords(self._catalogue)[CHECKPOINT]}
        return labelled.group_dataset(self._catalogue, PARAMETERS_GROUP, self._chunk_nbytes, steps)

    @property
    def training(self) -> xr.Dataset:
        """The series tracked while training, in memory, as of now and not of this snapshot; see `open_training`."""
        return open_training(self._catalogue.storage)

    @property
    def experiments(self) -> tuple[str, ...]:
        """Names of the experiments beside the capture, sorted."""
        prefix = f"{EXPERIMENTS_GROUP}/"
        return tuple(g.removeprefix(prefix) for g in self._catalogue.supplements if g.startswith(prefix))

    def experiment(self, name: str) -> xr.Dataset:
        """Open the results of an experiment, lazily; each block is checked when it is read.

        Raises
        ------
        NotFoundError
            There is none of this name; names those that are there.
        IntegrityError
            Its record is damaged.
        """
        from ndt_store import labelled

        if name not in self.experiments:
            known = ", ".join(self.experiments) or "none yet"
            raise NotFoundError(f"{self.path} has no experiment {name!r}: its experiments are {known}.")
        return labelled.supplement_dataset(self._catalogue.storage, experiment_group(name), self._chunk_nbytes)

    @property
    def tree(self) -> xr.DataTree:
        """Everything, as one lazy tree that equals what plain xarray opens from a finished store."""
        from ndt_store import labelled

        return labelled.tree(self._catalogue, self._chunk_nbytes)

    def __getitem__(self, layer: str) -> xr.Dataset:
        from ndt_store import labelled

        self.require_layer(layer)
        if self._labels is None:
            self._labels = labelled.label_coords(self._catalogue)
        if layer not in self._layers:
            self._layers[layer] = labelled.layer_dataset(self._catalogue, layer, self._labels, self._chunk_nbytes)
        # A copy, whose attributes and variables are the caller's; what it reads is shared.
        return self._layers[layer].copy()

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def cube(self, kind: str = ACTIVATIONS, reduce: str = "mean") -> xr.DataArray:
        """Stack one kind of all layers.

        Parameters
        ----------
        kind : str
            ``activations`` or ``gradients``.
        reduce : {"mean", "max", "min", "sum"}
            How positions of a unit become one number.

        Returns
        -------
        xarray.DataArray
            Dims (checkpoint, layer, example, unit), lazy; units beyond a layer's own are NaN.
        """
        from ndt_store import labelled

        return labelled.cube(self._catalogue, kind, reduce, self._chunk_nbytes)

    def read_block(self, array: str, step: int, index: int) -> NDArray[Any]:
        """Read one block of a cube, checked against the commit record.

        Parameters
        ----------
        array : str
            Path, for example ``layers/conv1/activations``.
        step : int
            A committed checkpoint.
        index : int
            Which block of that checkpoint.

        Returns
        -------
        ndarray
            Shape (examples of this block, *other sizes).
        """
        spec = self.schema.find(array)
        if spec is None or not spec.is_cube:
            raise NotFoundError(f"{self.path} has no array {array!r} with a checkpoint axis.")
        self.require_step(step)
        if not 0 <= index < n_blocks(spec):
            raise NotFoundError(f"{array} has {n_blocks(spec)} blocks a checkpoint: there is no block {index}.")
        out = np.empty(block_shape(spec), numpy_dtype(spec))
        read_block(self._catalogue.storage, spec, self._catalogue.record(step).arrays[array].blocks[index], out)
        where = block(spec, index)
        return out[: where.stop - where.start] if spec.sizes else out

    def require_layer(self, layer: str) -> None:
        """Check that a layer is there; `NotFoundError` names one that is spelt like it, or all."""
        if layer not in self.layers:
            close = difflib.get_close_matches(str(layer), self.layers, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it holds {', '.join(self.layers)}."
            raise NotFoundError(f"{self.path} has no layer {layer!r}: {hint}")

    def require_step(self, step: int) -> int:
        """Return the position of a committed checkpoint.

        Raises
        ------
        NotFoundError
            It is not there; names the nearest ones.
        """
        if step in self._catalogue.committed:
            return self._catalogue.committed.index(step)
        raise NotFoundError(f"{self.path} has no checkpoint {step}: {nearest_steps(self._catalogue.committed, step)}")

    def refresh(self) -> Store:
        """Open the store again and see what was committed since; this object keeps its snapshot."""
        return Store(Catalogue.read(self._catalogue.storage), self._chunk_nbytes)

    def _static(self, path: str) -> NDArray[Any]:
        spec = self.schema.find(path)
        if spec is None:
            raise NotFoundError(f"{self.path} has no array {path!r}.")
        return BlockArray(self._catalogue, spec)[...]


def nearest_steps(steps: tuple[int, ...] | NDArray[np.int64], wanted: int, count: int = 2) -> str:
    """Say which of the checkpoints come nearest to one that is not there."""
    if not len(steps):
        return "none is committed yet."
    near = sorted(sorted((int(step) for step in steps), key=lambda step: abs(step - wanted))[:count])
    return f"the nearest are {' and '.join(str(step) for step in near)}."
