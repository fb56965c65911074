"""A schema that exists can be laid out; everything else is refused with a sentence."""

import json

import numpy as np
import pytest

from ndt_store.errors import SchemaError
from ndt_store.schema import ArraySpec, Schema, layer_path


def _cube(path="layers/fc/activations", sizes=(6, 4), **changes):
    return ArraySpec(path, ("checkpoint", "example", "unit"), sizes, "float32", **changes)


def test_schema_survives_a_json_round_trip():
    schema = Schema((0, 5), (_cube(attrs={"a": [1]}), ArraySpec("label", ("example",), (6,), "int64")), {"": {"t": 1}})
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize(
    "name", ["../up", "", "zarr.json", "\ud800", ".", "..", "__x", "a\x00b", "x" * 300, "back\\slash"]
)
def test_array_spec__raises_on_a_name_that_could_leave_the_store(name):
    with pytest.raises(SchemaError, match="cannot name a part"):
        ArraySpec(f"layers/{name}/activations", ("example",), (3,), "float32")
    with pytest.raises(SchemaError, match="cannot name a part"):
        Schema((0,), (_cube(),), {f"layers/{name}": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (0, 4)}, "whole numbers of at least 1"),
        ({"sizes": (6,)}, "one size for each dim"),
        ({"dtype": "complex64"}, "dtype 'complex64'"),
        ({"dims": ("checkpoint", "example", "example")}, "twice"),
        ({"dims": ("example", "checkpoint", "unit")}, "first of them"),
        ({"rows": 0}, "rows a block"),
        ({"sizes": (1 << 40, 1 << 20)}, "expected at most"),
        ({"sizes": (1 << 40, 1)}, "expected at most"),
        ({"rows": 7}, "7 rows a block of 6"),
        ({"sizes": (8, 1 << 28), "rows": 4}, "expected at most"),
        ({"attrs": [1, 2]}, "expected a mapping"),
    ],
)
def test_array_spec__raises_on_what_cannot_be_stored(change, message):
    values = {"path": "a", "dims": ("checkpoint", "example", "unit"), "sizes": (6, 4), "dtype": "float32", **change}
    with pytest.raises(SchemaError, match=message):
        ArraySpec(**values)


@pytest.mark.parametrize("steps", [(5, 0), (1, 1), (-1, 2), (0.5,), (True, 2), (1 << 63,), ("1",)])
def test_schema__raises_on_checkpoints_that_do_not_increase(steps):
    with pytest.raises(SchemaError, match=r"[Cc]heckpoints"):
        Schema(steps, (_cube(),))


def test_schema__raises_on_a_dimension_with_two_sizes_in_one_group():
    gradients = _cube(layer_path("fc", "gradients"), sizes=(6, 5))
    with pytest.raises(SchemaError, match="'unit' of layers/fc/gradients has size 5 where its group has 4"):
        Schema((0,), (_cube(), gradients))


def test_schema__raises_on_two_numbers_of_examples():
    with pytest.raises(SchemaError, match="'example'"):
        Schema((0,), (_cube(), _cube(layer_path("conv", "activations"), sizes=(7, 4))))


def test_schema__raises_on_an_array_that_is_also_a_group():
    with pytest.raises(SchemaError, match="both an array and a group"):
        Schema((0,), (_cube("layers/fc"), _cube("layers/fc/activations")))


def test_layers_and_kinds_are_told_from_other_groups():
    training = ArraySpec("training/loss", ("step",), (9,), "float32")
    schema = Schema((0,), (_cube(), _cube(layer_path("conv", "gradients")), training))
    assert schema.layers == ("fc", "conv")
    assert schema.kinds("conv") == ("gradients",)


def test_numpy_steps_become_plain_integers():
    schema = Schema(tuple(np.unique(np.geomspace(1, 100, 4).astype(int))), (_cube(),))
    assert schema.checkpoints == (1, 4, 21, 100)
    assert {type(step) for step in schema.checkpoints} == {int}


def test_a_dimension_longer_than_any_probe_set_is_refused():
    ArraySpec("a", ("checkpoint", "example"), (1 << 26,), "uint8", rows=1 << 20)
    with pytest.raises(SchemaError, match="67108864 entries of one dimension"):
        ArraySpec("a", ("checkpoint", "example"), ((1 << 26) + 1,), "uint8", rows=1 << 20)
