"""Recipes: one TOML file that names the model, the data, the training, the probe set and what to capture.

A recipe is read, checked and then frozen. Every mistake in the file is one sentence that names the file, the
key as ``table.key``, what stands there and what was expected. The digest is taken of the checked content with
its defaults filled in, so comments, order and defaults written out do not change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from torch import nn

from capture._recipe_errors import explain
from capture._suggest import expected_one_of
from capture.data import DATASET_NAMES, ImageData, load_data
from capture.models import build_model, model_names
from capture.schedule import checkpoint_steps
from ndt_store.codecs import DEFAULT_PROFILE, PROFILES
from ndt_store.errors import InvalidInputError, NotFoundError, StorageError
from ndt_store.layout import BLOCK_NBYTES
from ndt_store.schema import check_name

__all__ = [
    "CaptureRecipe",
    "DataRecipe",
    "ModelRecipe",
    "ProbeRecipe",
    "Recipe",
    "TrainingRecipe",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
]

MAX_RECIPE_NBYTES = 1 << 20


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(expected_one_of(value, names))
        return value

    return AfterValidator(check)


def _file_name(value: str) -> str:
    # The store and the training folder are called after the recipe.
    return check_name(value, "name")


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
Kind = Literal["activations", "gradients", "attentions"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelRecipe(_Table):
    """Table ``[model]``: a name that `capture.models.build_model` knows, and its options."""

    name: str
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in model_names():
            raise ValueError(expected_one_of(name, model_names()))
        return name


class DataRecipe(_Table):
    """Table ``[data]``: the images to train on, and the mean and std that standardise them.

    ``mean`` and ``std`` are in units of [0, 1] pixels, one number or one a channel.
    """

    name: Annotated[str, _one_of(DATASET_NAMES)]
    n_examples: Count | None = None
    mean: PerChannel = (0.0,)
    std: PerChannelPositive = (1.0,)


class TrainingRecipe(_Table):
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


class ProbeRecipe(_Table):
    """Table ``[probe]``: the images that every checkpoint is captured on."""

    split: Literal["train", "test"] = "test"
    n_examples: Count | None = None
    selection: Literal["balanced", "first"] = "balanced"


class CaptureRecipe(_Table):
    """Table ``[capture]``: what `capture.capture` is asked for."""

    layers: Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(_unique)]
    kinds: Annotated[tuple[Kind, ...], Field(strict=False, min_length=1), AfterValidator(_unique)] = ("activations",)
    gradient_of: Literal["label_logit", "prediction_logit", "loss"] = "label_logit"
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: Count = 256
    compression: Annotated[str, _one_of(tuple(PROFILES))] = DEFAULT_PROFILE
    block_nbytes: Count = BLOCK_NBYTES


class Recipe(_Table):
    """A whole recipe; see `load_recipe`."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_file_name)]
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    probe: ProbeRecipe = ProbeRecipe()
    capture: CaptureRecipe

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the content as JSON with sorted keys and no spaces, defaults filled in."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def training_data(self, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
        """Load the training images, standardised; errors as in `capture.data.load_data`."""
        data = load_data(self.data.name, "train", data_dir)
        if self.data.n_examples is not None:
            data = data.first(self.data.n_examples)
        return data.standardised(self.data.mean, self.data.std)

    def probe_data(self, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
        """Load the probe images, standardised as in training; errors as in `capture.data.load_data`."""
        data = load_data(self.data.name, self.probe.split, data_dir)
        if self.probe.n_examples is not None:
            choose = data.balanced if self.probe.selection == "balanced" else data.first
            data = choose(self.probe.n_examples)
        return data.standardised(self.data.mean, self.data.std)

    def build_model(self, data: ImageData) -> nn.Module:
        """Build the model for these images with the weights that the recipe's seed gives."""
        return build_model(
            self.model.name,
            input_shape=data.input_shape,
            n_classes=data.n_classes,
            seed=self.seed,
            **self.model.options,
        )


def parse_recipe(content: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Check a recipe given as nested mappings.

    Parameters
    ----------
    content : mapping
        As TOML gives it: tables ``model``, ``data``, ``training``, ``probe``, ``capture``, keys ``name``,
        ``seed``.
    source : str
        What to call it in an error.

    Raises
    ------
    InvalidInputError
        One sentence on the first mistake, and how many more there are.
    """
    try:
        return Recipe.model_validate(dict(content))
    except ValidationError as error:
        raise InvalidInputError(explain(error, source, Recipe)) from error


def load_recipe(path_or_name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path_or_name : str or path
        A TOML file, or the name of a built-in recipe (`recipe_names`). A string is taken for a name unless it
        ends in ``.toml`` or holds a path separator.

    Raises
    ------
    NotFoundError
        No such file or built-in recipe.
    InvalidInputError
        The file is no TOML (the message gives the line) or no recipe (it gives the key).
    StorageError
        The file cannot be read.

    Examples
    --------
    >>> load_recipe("demo").model.name
    'cnn_deep'
    """
    text = os.fspath(path_or_name)
    source: Traversable
    if isinstance(path_or_name, str) and not text.endswith(".toml") and os.sep not in text:
        names = recipe_names()
        if text not in names:
            raise NotFoundError(
                f"No built-in recipe is called {text!r}, {expected_one_of(text, names)}, or the path of a .toml file."
            )
        source = files("capture") / "recipes" / f"{text}.toml"
    else:
        source = Path(text)
        if not source.is_file():
            raise NotFoundError(f"No recipe at {text}, expected a TOML file; check the path.")
    return parse_recipe(_read_toml(source), str(source))


def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    found = (entry.name for entry in (files("capture") / "recipes").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def _read_toml(source: Traversable) -> dict[str, Any]:
    try:
        with source.open("rb") as file:
            raw = file.read(MAX_RECIPE_NBYTES + 1)
    except OSError as error:
        raise StorageError(f"Recipe {source} cannot be read ({error}); check its permissions.") from error
    if len(raw) > MAX_RECIPE_NBYTES:
        raise InvalidInputError(
            f"Recipe {source} is larger than {MAX_RECIPE_NBYTES} bytes, expected a short TOML file."
        )
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(f"Recipe {source} is not valid TOML: {error or 'nested too deeply'}.") from error
