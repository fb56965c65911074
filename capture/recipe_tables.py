"""The tables of a recipe: their keys, types, defaults and bounds.

Every mistake becomes one sentence in the words of the recipe's author (`capture._recipe_errors`). What the keys mean to
a user is in docs/reference/recipes.md, which a test compares with these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from capture._suggest import expected_one_of
from capture.data import DATASET_NAMES
from capture.models import model_names
from capture.schedule import checkpoint_steps
from ndt_store.codecs import DEFAULT_PROFILE, PROFILES
from ndt_store.layout import BLOCK_NBYTES
from ndt_store.views.spectrum import MEASURES

__all__ = [
    "CaptureRecipe",
    "DataRecipe",
    "ModelRecipe",
    "ProbeRecipe",
    "Table",
    "TrackingRecipe",
    "TrainingRecipe",
]

DEFAULT_N_EXAMPLES: Final = 120
"""Of a validation set: what lets a measurement every 5 steps stay within a fifth of cnn_deep's training time."""


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(expected_one_of(value, names))
        return value

    return AfterValidator(check)


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("expected each entry once")
    return values


def _as_list(value: object) -> object:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


Count = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(ge=0)]
# TOML has lists only; strictness is lifted for the container and holds for its entries.
PerChannel = Annotated[tuple[float, ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)]
PerChannelPositive = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=1), BeforeValidator(_as_list)
]
Kind = Literal["activations", "gradients", "attentions", "attention_summaries", "parameters"]
Measure = Annotated[str, _one_of(MEASURES)]
Globs = Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(_unique)]


class Table(BaseModel):
    """A table of a recipe: frozen, of these keys and no others, each of its type as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelRecipe(Table):
    """Table ``[model]``: a name that `capture.models.build_model` knows, and its options."""

    name: str
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in model_names():
            raise ValueError(expected_one_of(name, model_names()))
        return name


class DataRecipe(Table):
    """Table ``[data]``: the images to train on, and the mean and std that standardise them.

    ``mean`` and ``std`` are in units of [0, 1] pixels, one number or one a channel.
    """

    name: Annotated[str, _one_of(DATASET_NAMES)]
    n_examples: Count | None = None
    mean: PerChannel = (0.0,)
    std: PerChannelPositive = (1.0,)


class TrainingRecipe(Table):
    """Table ``[training]``: optimiser, number of updates, batch size, and the steps whose weights are kept.

    ``checkpoints`` is written as `capture.schedule.checkpoint_steps` describes and held as the steps
    themselves.
    """

    steps: Count
    batch_size: Count = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Number = 0.0
    log_every: Count = 1
    checkpoints: Annotated[tuple[int, ...], Field(strict=False)] = Field({"log": 12}, validate_default=True)

    @field_validator("momentum")
    @classmethod
    def _momentum_is_for_sgd(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("optimizer") == "adam":
            raise ValueError("expected none, because adam has its own; leave it out or set optimizer = 'sgd'")
        return momentum

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _schedule(cls, spec: Any, info: ValidationInfo) -> tuple[int, ...]:
        steps = info.data.get("steps")
        if steps is None:  # already an error of its own
            return ()
        return checkpoint_steps(steps, spec)


class ProbeRecipe(Table):
    """Table ``[probe]``: the images that every checkpoint is captured on."""

    split: Literal["train", "test"] = "test"
    n_examples: Count | None = None
    selection: Literal["balanced", "first"] = "balanced"


class CaptureRecipe(Table):
    """Table ``[capture]``: what `capture.capture` is asked for."""

    layers: Globs
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1), AfterValidator(_unique)] = ("activations",)
    gradient_of: Literal["label_logit", "prediction_logit", "loss"] = "label_logit"
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: Count = 256
    compression: Annotated[str, _one_of(tuple(PROFILES))] = DEFAULT_PROFILE
    block_nbytes: Count = BLOCK_NBYTES


class TrackingRecipe(Table):
    """Table ``[tracking]``: what is measured while training, every so many steps, on a fixed validation set.

    ``layers`` are globs; by default those of ``[capture]``. The validation set holds the first images of each class.
    """

    every: Count = 5
    layers: Globs | None = None
    n_examples: Count = DEFAULT_N_EXAMPLES
    split: Literal["train", "test"] = "test"
    positions: Literal["flatten", "mean"] = "flatten"
    measures: Annotated[tuple[Measure, ...], Field(strict=False, min_length=1), AfterValidator(_unique)] = MEASURES
