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
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from torch import nn

from capture._builtin import recipe_names, recipe_source
from capture._recipe_errors import explain
from capture._suggest import expected_one_of
from capture.data import ImageData, load_data
from capture.models import build_model
from capture.recipe_tables import (
    CaptureRecipe,
    DataRecipe,
    ModelRecipe,
    ProbeRecipe,
    Table,
    TrackingRecipe,
    TrainingRecipe,
)
from capture.schedule import checkpoint_steps
from ndt_store.errors import InvalidInputError, NotFoundError, StorageError
from ndt_store.schema import check_name

__all__ = [
    "CaptureRecipe",
    "DataRecipe",
    "ModelRecipe",
    "ProbeRecipe",
    "Recipe",
    "TrackingRecipe",
    "TrainingRecipe",
    "load_recipe",
    "parse_recipe",
    "recipe_names",
]

MAX_RECIPE_NBYTES = 1 << 20


def _file_name(value: str) -> str:
    # The store and the training folder are called after the recipe.
    return check_name(value, "name")


class Recipe(Table):
    """A whole recipe; see `load_recipe`."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_file_name)]
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    probe: ProbeRecipe = ProbeRecipe()
    capture: CaptureRecipe
    tracking: TrackingRecipe | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_asked(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A recipe without tracking has the digest, and makes the stores, that it had before there was any.
        content: dict[str, Any] = handler(self)
        if content.get("tracking", self) is None:
            del content["tracking"]
        return content

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

    def tracking_data(self, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
        """Load the images that a training is tracked on, standardised as in training, equally many of each class.

        Raises
        ------
        InvalidInputError
            The recipe has no ``[tracking]``, or the data set cannot give that many.
        NdtError
            As in `capture.data.load_data`.
        """
        if self.tracking is None:
            raise InvalidInputError(f"Recipe {self.name!r} has no table tracking, expected one; add it.")
        data = load_data(self.data.name, self.tracking.split, data_dir).balanced(self.tracking.n_examples)
        return data.standardised(self.data.mean, self.data.std)

    def with_seed(self, seed: int) -> Recipe:
        """Return the same recipe with another seed: other initial weights, another order of batches.

        Raises
        ------
        InvalidInputError
            The seed is no whole number of at least 0.
        """
        return parse_recipe({**self.model_dump(mode="json"), "seed": seed}, self.name)

    def with_checkpoints(self, schedule: Sequence[int] | Mapping[str, int]) -> Recipe:
        """Return the same recipe keeping other weights, on a schedule as `capture.schedule.checkpoint_steps` takes it.

        Raises
        ------
        InvalidInputError
            The schedule has another form, or a step outside the training.
        """
        steps = checkpoint_steps(self.training.steps, schedule)
        return self.model_copy(update={"training": self.training.model_copy(update={"checkpoints": steps})})

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
        As TOML gives it: tables ``model``, ``data``, ``training``, ``probe``, ``capture``, ``tracking``, keys
        ``name``, ``seed``.
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
        source = recipe_source(text)
    else:
        source = Path(text)
        if not source.is_file():
            raise NotFoundError(f"No recipe at {text}, expected a TOML file; check the path.")
    return parse_recipe(_read_toml(source), str(source))


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
