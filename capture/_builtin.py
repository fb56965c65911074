"""The recipes that come with the package, by name; needs no torch, so that a command's help can list them."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

__all__ = ["recipe_names", "recipe_source"]


def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    found = (entry.name for entry in (files("capture") / "recipes").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def recipe_source(name: str) -> Traversable:
    """Return the TOML file of a built-in recipe."""
    return files("capture") / "recipes" / f"{name}.toml"
