"""Names of dimensions, kinds and groups: the vocabulary of the format, spelt once."""

from __future__ import annotations

from typing import Final

CHECKPOINT: Final = "checkpoint"
EXAMPLE: Final = "example"
UNIT: Final = "unit"
Z: Final = "z"
Y: Final = "y"
X: Final = "x"
TOKEN: Final = "token"  # noqa: S105 - a dimension, not a secret
HEAD: Final = "head"
QUERY: Final = "query"
KEY: Final = "key"
CLASS: Final = "class"
LAYER: Final = "layer"

ACTIVATIONS: Final = "activations"
GRADIENTS: Final = "gradients"
ATTENTIONS: Final = "attentions"
KINDS: Final = (ACTIVATIONS, GRADIENTS, ATTENTIONS)

STEP: Final = "step"

LAYERS_GROUP: Final = "layers"
TRAINING_GROUP: Final = "training"
EXPERIMENTS_GROUP: Final = "experiments"

POSITION_DIMS: Final = (TOKEN, Z, Y, X)
"""Dimensions over which one unit is evaluated at several places of the same example."""

LABEL_COORDS: Final = ("label", "split")
"""What labels examples beside their index; every layer carries it as coordinates."""
