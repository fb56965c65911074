"""What the codecs are measured on: values that three recipes' networks emit, as initialised and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from capture.from_recipe import capture_recipe
from capture.recipe import Recipe, load_recipe, parse_recipe
from capture.training import train_recipe
from ndt_store import Store
from ndt_store.errors import NotFoundError

__all__ = ["KINDS", "RELU_LAYERS", "captured_runs", "sample"]

Values = NDArray[np.float32]

RELU_LAYERS: Final = tuple(f"layers/relu{n}/activations" for n in range(1, 5))

# By recipe: layers, kinds, examples. The stream's two layers and their attention are all that the transformer has.
CAPTURES: Final = {
    "cnn_deep": (["conv*", "relu*", "pool*"], ["activations", "gradients"], 250),
    "transformer_shallow": (
        ["encoder.layers.*", "encoder.layers.*.self_attn"],
        ["activations", "gradients", "attentions"],
        1000,
    ),
    "mlp_narrow": (["relu*"], ["activations"], 5000),
}

# What a kind of data is: recipe, start of the layers' names, array. Attention probabilities have no gradients in a
# store; those of the attention modules' outputs stand in.
KINDS: Final = {
    "conv": ("cnn_deep", "conv", "activations"),
    "relu": ("cnn_deep", "relu", "activations"),
    "max-pool": ("cnn_deep", "pool", "activations"),
    "residual": ("transformer_shallow", "encoder.layers.", "activations"),
    "attention": ("transformer_shallow", "encoder.layers.", "attentions"),
    "mlp relu": ("mlp_narrow", "relu", "activations"),
    "grad conv": ("cnn_deep", "conv", "gradients"),
    "grad relu": ("cnn_deep", "relu", "gradients"),
    "grad residual": ("transformer_shallow", "encoder.layers.", "gradients"),
    "grad attention output": ("transformer_shallow", "self_attn", "gradients"),
}


def _recipe(name: str, steps: int) -> Recipe:
    """Shorten a built-in recipe; where its data are not there, train on the images that come with the package."""
    layers, kinds, n_examples = CAPTURES[name]
    tables = load_recipe(name).model_dump(mode="json")
    try:
        load_recipe(name).probe_data()
    except NotFoundError:
        tables["data"] = load_recipe("demo").model_dump(mode="json")["data"]
        n_examples = min(n_examples, 1000)
    tables["training"] |= {"steps": steps, "checkpoints": [0, steps], "log_every": steps}
    tables["probe"]["n_examples"] = n_examples
    tables["capture"] |= {"layers": layers, "kinds": kinds, "compression": "none"}
    return parse_recipe(tables)


def captured_runs(folder: Path, names: Sequence[str] = tuple(CAPTURES), *, steps: int) -> dict[str, Store]:
    """Train and capture recipes in `folder`; what is there already is taken over."""
    stores = {}
    n_threads = torch.get_num_threads()
    # With one thread for each core, a machine that does other things too lets them wait for each other.
    torch.set_num_threads(1)
    try:
        for name in names:
            recipe, trained = _recipe(name, steps), folder / f"{name}.training"
            train_recipe(recipe, trained)
            stores[name] = capture_recipe(recipe, folder / f"{name}.zarr", trained, progress=False)
    finally:
        torch.set_num_threads(n_threads)
    return stores


def sample(stores: Mapping[str, Store], kind: str, step: int, nbytes: int) -> list[Values]:
    """Return rows of the first block of each layer, `nbytes` in all, each layer with its share of the store's bytes."""
    recipe, start, array = KINDS[kind]
    store = stores[recipe]
    # The attention modules' outputs are no residual stream, though their names begin like its layers'.
    outputs_only = start == "encoder.layers." and array != "attentions"
    specs = [
        spec
        for spec in store.schema.arrays
        if spec.is_cube
        and spec.path.endswith(f"/{array}")
        and start in spec.path
        and not (outputs_only and "self_attn" in spec.path)
    ]
    sizes = {spec.path: int(np.prod(spec.sizes, dtype=np.int64)) * 4 for spec in specs}
    share = min(1.0, nbytes / sum(sizes.values()))
    pieces = []
    for spec in specs:
        rows = max(1, round(share * spec.sizes[0]))
        pieces.append(np.ascontiguousarray(store.read_block(spec.path, step, 0)[:rows]))
    return pieces
