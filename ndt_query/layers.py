"""One question for one layer or for a whole store, and what every result says about itself.

`per_unit` and `per_layer` turn a function of one activation array into one that also takes a layer's Dataset, a store,
a DataTree, or a mapping of layers to arrays or Datasets, such as selections. Results that have a ``unit`` dimension
differ in length from layer to layer and come back as a DataTree with one node a layer; those without are stacked along
a ``layer`` dimension.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, overload, runtime_checkable

import numpy as np
import xarray as xr

from ndt_query.multirun import over_runs
from ndt_store.dims import (
    ACTIVATIONS,
    ATTENTIONS,
    CHECKPOINT,
    EXAMPLE,
    HEAD,
    LABEL_COORDS,
    LAYER,
    LAYERS_GROUP,
    UNIT,
)
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.runs import Runs

__all__ = [
    "OneLayer",
    "RootLike",
    "StoreLike",
    "Whole",
    "activations_of",
    "described",
    "each_layer",
    "node_name",
    "of_heads",
    "per_layer",
    "per_unit",
    "root_dataset",
    "software",
]

P = ParamSpec("P")


@runtime_checkable
class StoreLike(Protocol):
    """What the mapping over layers needs of a store; `ndt_store.Store` has it."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        ...

    def __getitem__(self, layer: str) -> xr.Dataset: ...


OneLayer: TypeAlias = xr.DataArray | xr.Dataset
Whole: TypeAlias = StoreLike | Runs | xr.DataTree | Mapping[str, xr.DataArray] | Mapping[str, xr.Dataset]


RootLike: TypeAlias = StoreLike | xr.DataTree | xr.Dataset


def root_dataset(data: Any) -> xr.Dataset:
    """Return what lies at the root of a store or tree: labels, inputs and what the model put out; empty for a mapping.

    Raises
    ------
    InvalidInputError
        `data` is nothing of the kind.
    """
    if isinstance(data, xr.DataTree):
        return data.to_dataset()
    if isinstance(data, xr.Dataset):
        return data
    if isinstance(getattr(data, "root", None), xr.Dataset):
        root: xr.Dataset = data.root
        return root
    if isinstance(data, Mapping):
        return xr.Dataset()
    raise InvalidInputError(f"Expected a Store, a DataTree or a Dataset: got {type(data).__name__}.")


class PerUnit(Protocol[P]):
    """A question whose answer has units."""

    # A Dataset is a mapping of names to arrays too; the first match is the one that holds.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, data: OneLayer, *args: P.args, **kwargs: P.kwargs
    ) -> xr.Dataset: ...
    @overload
    def __call__(self, data: Whole, *args: P.args, **kwargs: P.kwargs) -> xr.DataTree: ...


class PerLayer(Protocol[P]):
    """A question whose answer has no units."""

    def __call__(self, data: OneLayer | Whole, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        """Answer for one layer, or for all with a ``layer`` dimension."""
        ...


def per_unit(question: Callable[Concatenate[xr.DataArray, P], xr.Dataset]) -> PerUnit[P]:
    """Let a question about one array be asked of a store, answered by a DataTree keyed by layer."""

    @functools.wraps(question)
    def ask(data: Any, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset | xr.DataTree:
        if isinstance(data, xr.DataArray | xr.Dataset):
            return question(activations_of(data), *args, **kwargs)
        if isinstance(data, Runs):
            tree: xr.DataTree = over_runs(data, lambda run: ask(run, *args, **kwargs))
            return tree
        layers = dict(each_layer(data))
        _require_apart(layers)
        return xr.DataTree.from_dict({layer: question(acts, *args, **kwargs) for layer, acts in layers.items()})

    return ask  # type: ignore[return-value]


def per_layer(question: Callable[Concatenate[xr.DataArray, P], xr.Dataset]) -> PerLayer[P]:
    """Let a question about one array be asked of a store, answered with a ``layer`` dimension."""

    @functools.wraps(question)
    def ask(data: Any, *args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        if isinstance(data, xr.DataArray | xr.Dataset):
            return question(activations_of(data), *args, **kwargs)
        if isinstance(data, Runs):
            found: xr.Dataset = over_runs(data, lambda run: ask(run, *args, **kwargs))
            return found
        answers = {layer: question(acts, *args, **kwargs) for layer, acts in each_layer(data)}
        return _stacked(answers)

    return ask


def _require_apart(layers: Mapping[str, xr.DataArray]) -> None:
    """Raise where one layer's name continues another's, whose units its node of the DataTree would inherit."""
    for name in layers:
        above = next((other for other in layers if name.startswith(f"{other}/")), None)
        if above is not None:
            raise InvalidInputError(
                f"Layer {name!r} lies inside layer {above!r}, and each has its own units: ask about one at a time."
            )


def node_name(layer: str) -> str:
    """Return the name of a layer's node: a node below another would take its labels."""
    return layer.replace("%", "%25").replace("/", "%2F")


def _stacked(answers: Mapping[str, xr.Dataset]) -> xr.Dataset:
    names = xr.Variable(LAYER, list(answers))
    scalars = {name for one in answers.values() for name, label in one.coords.items() if not label.dims}
    parts = [one.drop_vars(scalars, errors="ignore") for one in answers.values()]
    stacked = xr.concat(parts, dim=names, data_vars="all", coords="minimal", compat="equals", join="exact",
                        combine_attrs="override")  # fmt: skip
    for name, variable in parts[0].data_vars.items():
        lead = [CHECKPOINT] if CHECKPOINT in variable.dims else []
        stacked[name] = stacked[name].transpose(*lead, LAYER, ...)
    stacked.attrs.pop("layer", None)
    if "explain" in stacked.attrs:
        stacked.attrs["explain"] = "\n".join(one.attrs["explain"] for one in answers.values())
    return stacked


def each_layer(data: Any, kind: str = ACTIVATIONS) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield the layers of a store, DataTree or mapping that hold `kind`, with the examples' labels as coordinates.

    What each head of attention puts out (layers that end in ``@heads``) is passed over: it has units for each head, and
    is asked about head by head.

    Raises
    ------
    InvalidInputError
        `data` is neither.
    NotFoundError
        No layer holds `kind`.
    """
    if isinstance(data, xr.DataTree):
        found = dict(_tree_layers(data, kind))
    elif isinstance(data, Mapping):
        arrays = {name: one if isinstance(one, xr.DataArray) else one.get(kind) for name, one in data.items()}
        found = {name: array for name, array in arrays.items() if array is not None}
    elif isinstance(data, StoreLike):
        layers = {name: data[name] for name in data.layers}
        found = {name: one[kind] for name, one in layers.items() if kind in one and not of_heads(one[kind])}
    else:
        raise InvalidInputError(
            f"Several layers are those of a Store, a DataTree or a mapping of layers: got {type(data).__name__}; a "
            "DataArray or a layer's Dataset is one layer alone."
        )
    if not found:
        raise NotFoundError(f"No layer holds {kind}: capture them, or pass the array that you mean.")
    yield from found.items()


def of_heads(array: xr.DataArray) -> bool:
    """Whether an array has units for each head of attention."""
    return {HEAD, UNIT} <= set(array.dims)


def _tree_layers(tree: xr.DataTree, kind: str) -> Iterator[tuple[str, xr.DataArray]]:
    if LAYERS_GROUP not in tree.children:
        raise NotFoundError(f"The DataTree has no group {LAYERS_GROUP!r}: pass the root of a store's tree.")
    labels = {name: tree[name].variable for name in LABEL_COORDS if name in tree.dataset.variables}
    layers = tree.children[LAYERS_GROUP]
    for node in layers.descendants:
        if kind in node.data_vars and not of_heads(node.dataset[kind]):
            name = node.relative_to(layers)
            yield name, node.to_dataset()[kind].assign_coords(labels).assign_attrs(layer=name, kind=kind)


def activations_of(data: OneLayer) -> xr.DataArray:
    """Return the activations of a layer's Dataset, and an array as it is.

    Raises
    ------
    InvalidInputError
        It is neither.
    NotFoundError
        The Dataset has none.
    """
    if isinstance(data, xr.DataArray):
        return data
    given: object = data
    if not isinstance(given, xr.Dataset):
        kind = type(given).__name__
        raise InvalidInputError(f"One layer is asked for, a DataArray or Dataset such as store['fc']: got a {kind}.")
    if ACTIVATIONS in data:
        return data[ACTIVATIONS]
    kinds = ", ".join(str(name) for name in data.data_vars if name != ATTENTIONS) or "none"
    raise NotFoundError(f"The Dataset has no {ACTIVATIONS} (it has {kinds}): pass the variable that you mean.")


def described(
    variables: Mapping[str, xr.Variable],
    acts: xr.DataArray,
    what: str,
    parameters: Mapping[str, Any],
    *,
    squeeze: bool,
    explain: str = "",
    coords: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Make the Dataset of a result: variables, and attributes that say what they are.

    Parameters
    ----------
    variables : mapping of str to Variable
        The result.
    acts : DataArray
        What was asked; its checkpoints and units label those of the result, its ``store``, ``layer`` and ``kind``
        attributes are passed on, and its examples are counted where it has any.
    what : str
        One line.
    parameters : mapping
        Options of the question, with anything else a reader needs to repeat it.
    squeeze : bool
        Drop the ``checkpoint`` dimension of size 1.
    explain : str
        Where the answer comes from; kept as an attribute where it is given.
    coords : mapping of str to array-like, optional
        Labels of dimensions that `variables` have beside those of `acts`.
    """
    used = {dim for one in variables.values() for dim in one.dims}
    labels = {dim: acts.coords[dim].variable for dim in (CHECKPOINT, UNIT) if dim in used and dim in acts.coords}
    given = {name: xr.Variable((name,), values) for name, values in (coords or {}).items()}
    result = xr.Dataset(dict(variables), labels | given)
    steps = np.atleast_1d(acts[CHECKPOINT].values) if CHECKPOINT in acts.coords else np.empty(0, np.int64)
    of_examples = EXAMPLE in acts.sizes
    if squeeze:
        result = result.isel({CHECKPOINT: 0}, drop=CHECKPOINT not in acts.coords)
    result.attrs = {
        "what": what,
        "parameters": json.dumps(dict(parameters), default=str, sort_keys=True),
        **{key: acts.attrs[key] for key in ("store", "layer", "kind") if key in acts.attrs},
        **({"commits": [int(step) for step in steps]} if of_examples or len(steps) else {}),
        **({"n_examples": int(acts.sizes[EXAMPLE])} if of_examples else {}),
        "software": software(),
        **({"explain": explain} if explain else {}),
    }
    return result


@functools.cache
def software() -> str:
    """Name the version that made a result."""
    # Looking the version up reads the installation's files, which takes longer than answering from a view.
    return f"ndt-activations {version('ndt-activations')}"
