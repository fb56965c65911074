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

SUMMARIES: Final = "attention_summaries"
"""Asked for as a kind: what stands in for attention patterns that are too large to keep, `SUMMARY_KINDS`."""

MEAN_PATTERN: Final = "attention_mean"
"""Mean over examples of the attention pattern: (checkpoint, head, query, key)."""

EXAMPLE_SUMMARIES: Final = (
    "attention_entropy", "attention_hoyer", "attention_gini", "attention_share", "attention_distance",
)  # fmt: skip
"""Means over the queries of one example: (checkpoint, example, head)."""

SUMMARY_KINDS: Final = (*EXAMPLE_SUMMARIES, MEAN_PATTERN)
LAYER_ARRAYS: Final = (*KINDS, *SUMMARY_KINDS)
"""Names of the arrays that a layer may have."""

STEP: Final = "step"
RUN: Final = "run"

PARAMETERS: Final = "parameters"
"""Asked for as a kind: what the loss of the whole probe set says to each parameter, `PARAMETER_ARRAYS`."""

PARAMETER: Final = "parameter"
PARAMETER_ARRAYS: Final = {
    "gradient_mean_abs": "mean of the absolute gradient",
    "gradient_std": "standard deviation of the gradient over the values of the parameter",
    "gradient_max_abs": "largest absolute gradient",
    "gradient_norm": "L2 norm of the gradient",
    "gradient_zero_fraction": "share of the gradient that is exactly 0",
    "weight_norm": "L2 norm of the parameter",
}
"""Arrays (checkpoint, parameter) of the group ``parameters``; gradients are of the mean loss over the probe set."""

LAYERS_GROUP: Final = "layers"
PARAMETERS_GROUP: Final = "parameters"
TRAINING_GROUP: Final = "training"
EXPERIMENTS_GROUP: Final = "experiments"

POSITION_DIMS: Final = (TOKEN, Z, Y, X)
"""Dimensions over which one unit is evaluated at several places of the same example."""

LABEL_COORDS: Final = ("label", "split")
"""What labels examples beside their index; every layer carries it as coordinates."""
