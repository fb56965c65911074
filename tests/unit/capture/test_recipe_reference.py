"""The reference of recipes says what the tables of a recipe are, and cannot go stale."""

from __future__ import annotations

import inspect
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from capture.data import DATASET_NAMES
from capture.models import _REGISTRY, model_names
from capture.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from capture.recipe_tables import (
    CaptureRecipe,
    DataRecipe,
    ModelRecipe,
    ProbeRecipe,
    TrackingRecipe,
    TrainingRecipe,
)
from ndt_store.codecs import PROFILES
from ndt_store.views.spectrum import MEASURES

REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "recipes.md").read_text()
TABLES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "`[model]`": (ModelRecipe, {"name": "mlp"}),
    "`[data]`": (DataRecipe, {"name": "digits"}),
    "`[training]`": (TrainingRecipe, {"steps": 100}),
    "`[probe]`": (ProbeRecipe, {}),
    "`[capture]`": (CaptureRecipe, {"layers": ["relu1"]}),
    "`[tracking]`": (TrackingRecipe, {}),
}
CHOICES = {("`[data]`", "name"): DATASET_NAMES, ("`[capture]`", "compression"): tuple(PROFILES)} | {
    ("`[tracking]`", "measures"): MEASURES
}


def section(title: str) -> str:
    return re.split(r"\n## ", REFERENCE.partition(f"\n## {title}\n")[2])[0]


def keys(title: str) -> dict[str, tuple[str, str]]:
    """What the section's table of keys says: by key, the whole row and the cell of the default."""
    found = {}
    table = section(title).partition("| key |")[2].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        key_cell, _, default_cell = (cell.strip() for cell in row.strip("|").split(" | "))
        names, defaults = re.findall(r"`(\w+)`", key_cell), default_cell.split(", ")
        for name, default in zip(names, defaults if len(names) > 1 else [default_cell], strict=True):
            found[name] = (row, default.rstrip(" |"))
    return found


def choices(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*(choices(part) for part in get_args(annotation)))


@pytest.mark.parametrize("title", TABLES)
def test_reference__has_every_key_of_a_table_and_no_other(title: str) -> None:
    schema, _ = TABLES[title]
    assert set(keys(title)) == set(schema.model_fields)


@pytest.mark.parametrize("title", TABLES)
def test_reference__gives_the_defaults_and_choices_of_a_table(title: str) -> None:
    schema, required = TABLES[title]
    for name, (row, default) in keys(title).items():
        field = schema.model_fields[name]
        given = re.fullmatch(r"`(.*)`", default)
        if field.is_required():
            assert default == "required", (name, default)
        elif given is not None:
            value = tomllib.loads(f"value = {given[1]}")["value"]
            assert schema.model_validate(required | {name: value}) == schema.model_validate(required), (name, default)
        else:
            assert field.default is None or set(field.default) == set(CHOICES[title, name]), (name, default)
        for choice in (*choices(field.annotation), *CHOICES.get((title, name), ())):
            assert f'`"{choice}"`' in row, (name, choice)


def test_reference__has_every_table_and_top_level_key() -> None:
    tables = {title.strip("`[]") for title in TABLES}
    assert set(keys("Top level")) | tables == set(Recipe.model_fields)
    assert keys("Top level")["seed"][1] == f"`{Recipe.model_fields['seed'].default}`"


def test_reference__lists_every_model_and_option() -> None:
    text = section("`[model]`")
    assert not [name for name in model_names() if f"`{name}`" not in text]
    builders = {builder for builder, _ in _REGISTRY.values()}
    options = {option for builder in builders for option in list(inspect.signature(builder).parameters)[2:]}
    assert not [option for option in options if f"`{option}`" not in text]


def test_reference__lists_the_built_in_recipes_with_their_data_and_size() -> None:
    rows = dict(re.findall(r"\| `(\w+)` \| (.*) \|", section("Built in")))
    assert sorted(rows) == list(recipe_names())
    for name, row in rows.items():
        stated = re.search(r"([0-9.]+ GB) in all", (files("capture") / "recipes" / f"{name}.toml").read_text())
        assert stated is not None
        assert row.endswith(stated[1])
        data = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}.get(load_recipe(name).data.name, "the part of")
        assert row.startswith(data)


def test_reference__example_is_a_recipe() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", REFERENCE, re.DOTALL)
    assert parse_recipe(tomllib.loads(text)).tracking == TrackingRecipe()
