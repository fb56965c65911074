"""Turns pydantic's errors about a recipe into one sentence each, in the words of the recipe's author."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from pydantic import BaseModel, ValidationError

from capture._suggest import expected_one_of

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["explain"]

_MAX_SHOWN = 60
_EXPECTED = {
    "too_short": "at least one entry",
    "tuple_type": "a list",
    "model_type": "a table",
    "dict_type": "a table",
    "string_type": "text in quotes",
    "string_too_short": "at least one character",
    "int_type": "a whole number",
    "float_type": "a number",
}


def explain(error: ValidationError, source: str, schema: type[BaseModel]) -> str:
    """Say in one sentence what is wrong with a recipe.

    Parameters
    ----------
    error : pydantic.ValidationError
        Raised for `schema`.
    source : str
        File name or other name of the recipe.
    schema : type of pydantic.BaseModel
        Its fields are what the recipe may hold, for suggestions.
    """
    found = error.errors(include_url=False)
    inside = {detail["loc"][:-1] for detail in found}
    # A list whose entries fail is reported as too short as well.
    details = [detail for detail in found if detail["type"] != "too_short" or detail["loc"] not in inside]
    # A misspelt key comes before the key that is missing because of it.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    rest = len(details) - 1
    more = f" (and {rest} more {'mistake' if rest == 1 else 'mistakes'})" if rest else ""
    return f"Recipe {source}: {_sentence(details[0], schema)}{more}."


def _sentence(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    key, kind = _key(detail["loc"]), detail["type"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(detail["loc"], schema)
    if kind == "missing":
        return f"{key} is missing, expected it to be given"
    if kind == "value_error":
        # Our own validators say what they expected; what stands there is said here, once.
        expected = "expected " + str(context["error"]).partition("expected ")[2]
    elif kind in _EXPECTED:
        expected = "expected " + _EXPECTED[kind]
    elif kind.startswith(("greater_than", "less_than")):
        expected = "expected a number " + detail["msg"].removeprefix("Input should be ")
    else:
        expected = "expected " + detail["msg"].removeprefix("Input should be ")
    return f"{key} is {_shown(detail['input'])}, {expected.rstrip('.')}"


def _unknown_key(loc: Sequence[int | str], schema: type[BaseModel]) -> str:
    *tables, key = (str(part) for part in loc)
    table = schema
    for name in tables:
        table = _table_in(table, name) or table
    prefix = ".".join([*tables, ""])
    known = list(table.model_fields)
    elsewhere = [home for home in _tables_with(key, schema) if home != prefix + key]
    hint = expected_one_of(key, known)
    if "did you mean" not in hint and elsewhere:
        hint += f"; did you mean {elsewhere[0]}"
    return f"unknown key {prefix}{key}, {hint}"


def _tables_with(key: str, schema: type[BaseModel]) -> list[str]:
    found = [key] if key in schema.model_fields else []
    tables = {name: _table_in(schema, name) for name in schema.model_fields}
    return found + [f"{name}.{key}" for name, table in tables.items() if table and key in table.model_fields]


def _table_in(schema: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the table at this key, also where it may be left out; None for a plain key."""
    annotation = schema.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _key(loc: Sequence[int | str]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "it"


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
