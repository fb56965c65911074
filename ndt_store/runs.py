"""Several runs as one: seeds of a recipe, or any stores that asked the same examples, along a dimension ``run``."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ndt_store.dims import EXAMPLE, LAYERS_GROUP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.layout import CHUNK_NBYTES
from ndt_store.reader import Store, open_store

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RunView", "Runs", "named_stores", "open_runs"]


def open_runs(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Store],
    *,
    names: Sequence[str] | None = None,
    chunk_nbytes: int = CHUNK_NBYTES,
) -> Runs:
    """Open several stores as one object with a dimension ``run``.

    Parameters
    ----------
    paths : str, PathLike or sequence
        A glob such as ``"runs/cnn_deep-seed*.zarr"``, or stores, opened or by path, in the order they are to stand.
    names : sequence of str, optional
        What the runs are called; by default their files, without the extension.
    chunk_nbytes : int
        As in `open_store`.

    Returns
    -------
    Runs
        Layers, checkpoints and the training are those that all runs have.

    Raises
    ------
    NotFoundError
        The glob finds nothing, a path holds no store, or the runs share no layer or no checkpoint.
    DimensionError
        The runs asked other examples, or a layer has another shape in one of them.
    InvalidInputError
        Names are not as many, or not different; without names, a store is there twice.
    """
    return Runs(named_stores(paths, names, chunk_nbytes=chunk_nbytes))


def named_stores(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Store],
    names: Sequence[str] | None = None,
    *,
    chunk_nbytes: int = CHUNK_NBYTES,
) -> dict[str, Store]:
    """Open stores by the names of their runs; parameters and errors are those of `open_runs`.

    Raises
    ------
    NotFoundError
        The glob finds nothing, or a path holds no store.
    InvalidInputError
        Names are not as many, or not different; without names, a store is there twice.
    """
    if isinstance(paths, str | os.PathLike):
        # A glob may begin anywhere, which Path.glob does not know.
        given: list[Any] = sorted(glob.glob(os.fspath(paths)))  # noqa: PTH207
    else:
        given = list(paths) if isinstance(paths, Iterable) else []
        wrong = next((one for one in given if not isinstance(one, Store | str | os.PathLike)), None)
        if not isinstance(paths, Iterable) or wrong is not None:
            strange = paths if wrong is None else wrong
            raise InvalidInputError(f"{strange!r} is no run: give a glob, or a list of paths or of Stores.")
    if isinstance(names, str):
        raise InvalidInputError(f"names are {names!r}: give a list, with a name for each run.")
    if not given:
        raise NotFoundError(f"There is no run at {paths!r}: give a glob that finds stores, or a list of them.")
    stores = [one if isinstance(one, Store) else open_store(one, chunk_nbytes=chunk_nbytes) for one in given]
    where = [one.path for one in stores]
    twice = next((path for path in where if where.count(path) > 1), None)
    if names is None and twice is not None:
        raise InvalidInputError(f"{twice} is given twice: give each run once.")
    called = _names(where) if names is None else [str(name) for name in names]
    if len(called) != len(stores) or len(set(called)) != len(called):
        raise InvalidInputError(f"names are {called} for {len(stores)} runs: expected one different name for each.")
    return dict(zip(called, stores, strict=True))


class Runs:
    """Stores side by side. Make one with `open_runs`.

    Indexing with a layer's name gives that layer of all runs as a lazy `xarray.Dataset` with a dimension ``run``.
    Questions of `ndt_query` about activations, such as `dimensionality`, `dead_units` or `disentanglement`, are asked
    of each run, and their answers stacked along ``run``; others take the `stores` one by one.

    Parameters
    ----------
    stores : mapping of str to Store
        By the name of the run.
    """

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = dict(stores)
        if not self._stores:
            raise NotFoundError("There is no run: give at least one store.")
        first_name, first = next(iter(self._stores.items()))
        for name, one in self._stores.items():
            same = np.array_equal(one.examples, first.examples) and np.array_equal(one.labels, first.labels)
            digests = {_digest(first), _digest(one)} - {""}
            if not same or len(digests) > 1:
                raise DimensionError(
                    f"Run {name!r} has other examples than {first_name!r}: runs are compared on the same probe set."
                )
        self._layers = tuple(name for name in first.layers if all(name in one for one in self._stores.values()))
        if not self._layers:
            raise NotFoundError(f"The runs {', '.join(self._stores)} have no layer in common.")
        for layer in self._layers:
            shapes = {name: _shapes(one, layer) for name, one in self._stores.items()}
            other = next((name for name, shape in shapes.items() if shape != shapes[first_name]), None)
            if other is not None:
                raise DimensionError(
                    f"Layer {layer!r} of run {other!r} has {shapes[other]} where that of {first_name!r} has "
                    f"{shapes[first_name]}: open runs of one architecture, or compare them with compare_runs."
                )
        steps = [set(one.checkpoints.tolist()) for one in self._stores.values()]
        self._steps = np.array(sorted(set.intersection(*steps)), np.int64)
        if not self._steps.size:
            raise NotFoundError(f"The runs {', '.join(self._stores)} have no checkpoint in common.")

    def __repr__(self) -> str:
        return (
            f"<ndt_store.Runs {', '.join(self._stores)}: {len(self.layers)} layers, {len(self._steps)} checkpoints in "
            "common>"
        )

    def __len__(self) -> int:
        return len(self._stores)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stores)

    def __contains__(self, layer: object) -> bool:
        return layer in self._layers

    @property
    def stores(self) -> Mapping[str, Store]:
        """The stores by the names of the runs."""
        return dict(self._stores)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that all runs have, in the order of the first."""
        return self._layers

    @property
    def checkpoints(self) -> NDArray[np.int64]:
        """Training steps that are committed in every run, shape (checkpoint,)."""
        return self._steps.copy()

    @property
    def examples(self) -> NDArray[np.int64]:
        """Dataset indices of the probe set, shape (example,)."""
        return next(iter(self._stores.values())).examples

    @property
    def root(self) -> xr.Dataset:
        """Probe set and what the models put out, (run, checkpoint, example, ...); the probe set itself once."""
        return self._stacked(lambda store: store.root)

    @property
    def training(self) -> xr.Dataset:
        """The series tracked while training, (run, step, ...), at the steps that all runs measured."""
        from ndt_store.stacking import stacked

        return stacked({name: one.training for name, one in self._stores.items()})

    def __getitem__(self, layer: str) -> xr.Dataset:
        if layer not in self._layers:
            raise NotFoundError(f"The runs share no layer {layer!r}: they share {', '.join(self._layers)}.")
        return self._stacked(lambda store: store[layer])

    def select(self, run: str) -> RunView:
        """Return one run at the layers and checkpoints that all share."""
        if run not in self._stores:
            raise NotFoundError(f"There is no run {run!r}: there are {', '.join(self._stores)}.")
        return RunView(self._stores[run], self._layers, self._steps)

    def _stacked(self, part: Callable[[Store], xr.Dataset]) -> xr.Dataset:
        from ndt_store.stacking import stacked

        return stacked({name: part(one).sel(checkpoint=self._steps) for name, one in self._stores.items()})


class RunView:
    """One of several runs, at the layers and checkpoints that all share. `Runs.select` makes it."""

    def __init__(self, store: Store, layers: tuple[str, ...], steps: NDArray[np.int64]) -> None:
        self._store, self._steps = store, steps
        self.layers = layers

    @property
    def root(self) -> xr.Dataset:
        """Probe set and what the model put out."""
        return self._store.root.sel(checkpoint=self._steps)

    def __getitem__(self, layer: str) -> xr.Dataset:
        return self._store[layer].sel(checkpoint=self._steps)


def _digest(store: Store) -> str:
    """Digest of the probe set, "" where the store was not captured from one."""
    return str(dict(store.provenance.get("identity", {})).get("dataset_digest", ""))


def _shapes(store: Store, layer: str) -> dict[str, dict[str, int]]:
    """Sizes of what was captured of a layer, but for the examples, which all runs share."""
    found = {}
    for kind in store.schema.kinds(layer):
        spec = store.schema.find(f"{LAYERS_GROUP}/{layer}/{kind}")
        if spec is not None:
            found[kind] = {d: n for d, n in zip(spec.dims[1:], spec.sizes, strict=True) if d != EXAMPLE}
    return found


def _names(paths: Sequence[str]) -> list[str]:
    """Names of files without extension; whole paths where those are not different."""
    stems = [Path(path).name.removesuffix(".zarr") for path in paths]
    return stems if len(set(stems)) == len(stems) else list(paths)
