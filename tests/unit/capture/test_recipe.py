"""Recipes: what they default to, what their digest sees, and one helpful sentence for every mistake."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import math
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ndt_store
from capture.checkpoints import weights_digest
from capture.data import ImageData, load_data, load_digits
from capture.from_recipe import plan_recipe
from capture.models import build_model
from capture.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from capture.schedule import checkpoint_steps
from capture.training import train_recipe
from ndt_store.errors import InvalidInputError, NotFoundError

MINIMAL = """
name = "small"
[model]
name = "mlp"
options = { hidden = [8] }
[data]
name = "digits"
mean = 0.3
std = [0.4]
[training]
steps = 10
[capture]
layers = ["relu1"]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(MINIMAL)
    return path


def broken(**changes: Any) -> dict[str, Any]:
    content = tomllib.loads(MINIMAL)
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) and key in content else value
    return content


def test_load_recipe__fills_in_the_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert (recipe.seed, recipe.training.batch_size, recipe.training.optimizer) == (0, 128, "adam")
    assert recipe.training.learning_rate == 1e-3
    assert recipe.data.mean == (0.3,)
    assert (recipe.probe.split, recipe.probe.n_examples, recipe.probe.selection) == ("test", None, "balanced")
    assert recipe.capture.kinds == ("activations",)
    assert (recipe.capture.gradient_of, recipe.capture.dtype) == ("label_logit", "float32")
    assert load_recipe(str(recipe_file)) == recipe


def test_recipe__is_frozen(recipe_file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(recipe_file).training.steps = 5


def test_recipe__digest_is_the_documented_hash(recipe_file: Path) -> None:
    content = {
        "name": "small",
        "seed": 0,
        "model": {"name": "mlp", "options": {"hidden": [8]}},
        "data": {"name": "digits", "n_examples": None, "mean": [0.3], "std": [0.4]},
        "training": {
            "steps": 10,
            "batch_size": 128,
            "optimizer": "adam",
            "learning_rate": 0.001,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "log_every": 1,
            "checkpoints": list(range(11)),
        },
        "probe": {"split": "test", "n_examples": None, "selection": "balanced"},
        "capture": {
            "layers": ["relu1"],
            "kinds": ["activations"],
            "gradient_of": "label_logit",
            "dtype": "float32",
            "batch_size": 256,
            "compression": "fast",
            "block_nbytes": 8 << 20,
        },
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert load_recipe(recipe_file).digest == hashlib.sha256(text.encode()).hexdigest()


def test_recipe__digest_does_not_see_cosmetic_edits(recipe_file: Path) -> None:
    before = load_recipe(recipe_file).digest
    edited = "# a comment\nseed = 0\n" + MINIMAL.replace("steps = 10", "checkpoints = { every = 1 }\nsteps = 10")
    recipe_file.write_text(edited.replace("mean = 0.3", "mean    = [0.30]  # per channel"))
    assert load_recipe(recipe_file).digest == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"seed": 1},
        {"model": {"options": {"hidden": [9]}}},
        {"data": {"mean": 0.31}},
        {"training": {"steps": 11}},
        {"training": {"checkpoints": [0, 10]}},
        {"probe": {"n_examples": 10}},
        {"capture": {"layers": ["relu1", "classifier"]}},
        {"tracking": {}},
    ],
)
def test_recipe__digest_sees_every_change_of_content(change: dict[str, Any]) -> None:
    assert parse_recipe(broken(**change)).digest != parse_recipe(broken()).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"stps": 3}}, r"unknown key training\.stps, .*did you mean 'steps'"),
        ({"training": {"layers": ["a"]}}, r"unknown key training\.layers, .*did you mean capture\.layers"),
        ({"steps": 10}, r"unknown key steps, .*did you mean training\.steps"),
        ({"trainin": {}}, "unknown key trainin, expected one of .*did you mean 'training'"),
        ({"training": {"zzz": 1}}, r"unknown key training\.zzz, expected one of steps, batch_size"),
        ({"training": {"steps": -3}}, r"training\.steps is -3, expected a number greater than 0\."),
        ({"training": {"steps": "10"}}, r'training\.steps is "10", expected a whole number\.'),
        ({"training": {"steps": True}}, r"training\.steps is true, expected a whole number\."),
        ({"training": {"optimizer": "adm"}}, r"training\.optimizer is \"adm\", expected 'adam' or 'sgd'\."),
        ({"training": {"momentum": 0.9}}, r"training\.momentum is 0\.9, expected none, because adam"),
        ({"training": {"learning_rate": math.nan}}, r"training\.learning_rate is NaN, expected a finite number"),
        ({"training": {"checkpoints": [0, 11]}}, r"checkpoints is \[0, 11\], expected steps from 0 to 10"),
        ({"training": {"checkpoints": {"evry": 2}}}, r"expected a list of steps, \{every = N\} or \{log = N\}"),
        ({"model": {"name": "mpl"}}, r'model\.name is "mpl", expected one of .*did you mean \'mlp\'\.'),
        ({"data": {"name": "mnits"}}, r"data\.name is \"mnits\", expected one of .*did you mean 'mnist'\."),
        ({"data": {"std": [1.0, 0.0]}}, r"data\.std\[1\] is 0\.0, expected a number greater than 0\."),
        ({"capture": {"layers": "relu*"}}, r'capture\.layers is "relu\*", expected a list\.'),
        ({"capture": {"layers": []}}, r"capture\.layers is \[\], expected at least one entry\."),
        ({"capture": {"kinds": ["weights"]}}, r"capture\.kinds\[0\] is \"weights\", expected 'activations'"),
        ({"capture": {"kinds": ["gradients"] * 2}}, "expected each entry once"),
        ({"capture": {"compression": "zip"}}, r"capture\.compression is \"zip\", expected one of none, fast"),
        ({"model": 3}, r"model is 3, expected a table\."),
        ({"tracking": 5}, r"tracking is 5, expected a table\."),
        ({"tracking": {"evry": 5}}, r"unknown key tracking\.evry, .*did you mean 'every'"),
        ({"tracking": {"batch_size": 5}}, r"unknown key tracking\.batch_size, .*did you mean training\.batch_size"),
        ({"training": {"positions": "mean"}}, r"unknown key training\.positions, .*did you mean tracking\.positions"),
        ({"tracking": {"every": 0}}, r"tracking\.every is 0, expected a number greater than 0\."),
        ({"tracking": {"measures": ["rank"]}}, r'tracking\.measures\[0\] is "rank", expected one of stable_rank'),
        ({"tracking": {"positions": "samples"}}, r"tracking\.positions is \"samples\", expected 'flatten' or 'mean'"),
    ],
)
def test_parse_recipe__says_file_key_value_and_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        parse_recipe(broken(**change), "my.toml")
    text = str(caught.value)
    assert text.startswith("Recipe my.toml: ")
    assert text.endswith(".")
    assert "more mistake" not in text
    assert "\n" not in text


def test_parse_recipe__names_the_misspelt_key_before_the_missing_one() -> None:
    content = broken()
    content["training"] = {"setps": 10}
    with pytest.raises(InvalidInputError, match=r"unknown key training\.setps.*\(and 1 more mistake\)\.$"):
        parse_recipe(content)
    content["training"] = {}
    with pytest.raises(InvalidInputError, match=r"training\.steps is missing"):
        parse_recipe(content)


def test_load_recipe__gives_the_line_of_a_syntax_error(recipe_file: Path) -> None:
    recipe_file.write_text(MINIMAL.replace("steps = 10", "steps = = 10"))
    with pytest.raises(InvalidInputError, match=r"small\.toml is not valid TOML: .*line 11"):
        load_recipe(recipe_file)
    recipe_file.write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidInputError, match="not valid TOML"):
        load_recipe(recipe_file)
    recipe_file.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(InvalidInputError, match="larger than 1048576 bytes"):
        load_recipe(recipe_file)


def test_load_recipe__says_what_there_is_when_it_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'dmeo', expected one of .*did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(NotFoundError, match=r"No recipe at .*gone\.toml"):
        load_recipe(tmp_path / "gone.toml")


def test_recipe__training_and_probe_data_are_standardised_alike() -> None:
    recipe = parse_recipe(broken(data={"n_examples": 100}, probe={"n_examples": 50}))
    train, probe = recipe.training_data(), recipe.probe_data()
    raw = load_digits("train").inputs[:100]
    np.testing.assert_allclose(train.inputs, (raw.astype(float) - 0.3) / 0.4, atol=1e-6)
    assert np.bincount(probe.labels).tolist() == [5] * 10
    position = int(np.flatnonzero(load_digits("test").examples == probe.examples[7])[0])
    np.testing.assert_allclose(probe.inputs[7] * 0.4 + 0.3, load_digits("test").inputs[position], atol=1e-6)
    first = parse_recipe(broken(probe={"n_examples": 50, "selection": "first", "split": "train"})).probe_data()
    assert first.examples.tolist() == list(range(50))


def test_recipe__model_weights_come_from_its_seed() -> None:
    data = load_digits("train")
    recipe = parse_recipe(broken(seed=4))
    reference = build_model("mlp", input_shape=(1, 8, 8), n_classes=10, hidden=[8], seed=4)
    assert torch.equal(recipe.build_model(data).linear1.weight, reference.linear1.weight)


def test_recipe_names__lists_the_built_in_files() -> None:
    cnns = ("cnn_deep", "cnn_medium", "cnn_shallow")
    mlps = ("mlp_deep_10", "mlp_medium", "mlp_medium_5", "mlp_narrow", "mlp_shallow_2", "mlp_wide")
    transformers = ("transformer_deep", "transformer_medium", "transformer_narrow", "transformer_shallow")
    assert recipe_names() == (*cnns, "demo", *mlps, "resnet18", *transformers, "vit_small")


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes__tap_modules_that_are_there(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    model = build_model(recipe.model.name, input_shape=(1, 28, 28), n_classes=10, **recipe.model.options)
    modules = [path for path, _ in model.named_modules()]
    for pattern in recipe.capture.layers:
        stem = pattern.removesuffix("@heads")
        assert [m for m in modules if fnmatch.fnmatchcase(m, stem) and m.count(".") == stem.count(".")]
    assert recipe.training.checkpoints[0] == 0
    assert recipe.training.checkpoints[-1] == recipe.training.steps


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes__train_a_step_and_plan_a_capture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = rng.random((40, 1, 28, 28), dtype=np.float32)
    tiny = ImageData(images, np.arange(40) % 10, tuple("abcdefghij"), "tiny", np.arange(40))
    monkeypatch.setattr("capture.recipe.load_data", lambda *_: tiny)
    recipe = load_recipe(name)
    assert (recipe.training.steps, recipe.training.batch_size) == (300 if name == "demo" else 2000, 128)
    assert (recipe.training.optimizer, recipe.training.learning_rate, recipe.seed) == ("adam", 1e-3, 0)
    assert recipe.tracking is not None
    assert recipe.tracking.every == 5
    content = recipe.model_dump(mode="json")
    content["training"] |= {"steps": 1, "batch_size": 8, "checkpoints": [0, 1]}
    content["probe"]["n_examples"] = content["tracking"]["n_examples"] = 10
    small = parse_recipe(content)
    store = tmp_path / "run.zarr"
    result = train_recipe(small, tmp_path / "weights", store=store)
    assert result.n_trained == 1
    series = ndt_store.open_training(store)
    assert series.sizes["layer"] == len(set(series["layer"].values.tolist())) > 1
    assert np.isfinite(series["participation_ratio"].values[0, :-1]).all()
    forecast = plan_recipe(small, store)
    assert forecast.n_checkpoints == 2
    assert {kind for row in forecast.rows() for kind in [row["kind"]]} >= set(recipe.capture.kinds)


def test_with_seed__changes_the_seed_and_nothing_else() -> None:
    recipe = load_recipe("demo")
    other = recipe.with_seed(3)
    assert (recipe.seed, other.seed) == (0, 3)
    assert other.with_seed(0) == recipe
    assert other.digest != recipe.digest
    data = recipe.probe_data()
    weights = [weights_digest(r.build_model(data).state_dict()) for r in (recipe, other)]
    assert weights[0] != weights[1]
    with pytest.raises(InvalidInputError, match="seed is -1, expected a number greater than or equal to 0"):
        recipe.with_seed(-1)


def test_tracking_data__is_balanced_and_standardised_as_in_training() -> None:
    recipe = parse_recipe(broken(tracking={"n_examples": 30, "split": "train"}))
    data = recipe.tracking_data()
    assert np.bincount(data.labels).tolist() == [3] * 10
    assert data.split == "train"
    raw = load_digits("train").balanced(30).inputs
    np.testing.assert_allclose(data.inputs, (raw.astype(float) - 0.3) / 0.4, atol=1e-6)
    with pytest.raises(InvalidInputError, match="'small' has no table tracking"):
        parse_recipe(broken()).tracking_data()


def test_demo_recipe__standardises_with_the_mean_and_std_of_its_data() -> None:
    recipe = load_recipe("demo")
    inputs = load_data(recipe.data.name, "train").standardised(recipe.data.mean, recipe.data.std).inputs
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01


def captured_nbytes(recipe: Recipe) -> int:
    """Bytes of the cubes, counted from one forward pass."""
    model = build_model(recipe.model.name, input_shape=(1, 28, 28), n_classes=10, **recipe.model.options)
    counts = dict.fromkeys(("activations", "gradients", "attentions"), 0)

    def count(module: nn.Module, _inputs: object, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        counts["activations"] += out.numel()
        counts["gradients"] += out.numel()
        if isinstance(module, nn.MultiheadAttention):
            counts["attentions"] += module.num_heads * out.shape[1] ** 2

    def count_heads(_module: nn.Module, _inputs: object, output: Any) -> None:
        counts["activations"] += output[0].numel()  # each head has its share of the width

    for path, module in model.named_modules():
        for pattern in recipe.capture.layers:
            stem = pattern.removesuffix("@heads")
            if fnmatch.fnmatchcase(path, stem) and path.count(".") == stem.count("."):
                module.register_forward_hook(count if stem == pattern else count_heads)
    model(torch.zeros(1, 1, 28, 28))
    values = sum(counts.get(kind, 0) for kind in recipe.capture.kinds)  # of parameters there are few
    assert recipe.probe.n_examples is not None
    return 4 * values * recipe.probe.n_examples * len(recipe.training.checkpoints)


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes__say_how_much_they_capture(name: str) -> None:
    text = (files("capture") / "recipes" / f"{name}.toml").read_text()
    stated = re.search(r"([0-9.]+) GB in all", text)
    assert stated is not None
    decimals = len(stated[1].partition(".")[2])
    assert round(captured_nbytes(load_recipe(name)) / 1e9, decimals) == float(stated[1])
    assert captured_nbytes(load_recipe("demo")) < 700e6


@given(n_steps=st.integers(1, 500), n_kept=st.integers(2, 60))
def test_checkpoint_steps__log_gives_the_number_asked_for(n_steps: int, n_kept: int) -> None:
    steps = checkpoint_steps(n_steps, {"log": n_kept})
    assert len(steps) == min(n_kept, n_steps + 1)
    assert (steps[0], steps[-1]) == (0, n_steps)
    assert all(a < b for a, b in itertools.pairwise(steps))


def test_checkpoint_steps__log_is_geometric_where_whole_numbers_allow() -> None:
    steps = np.array(checkpoint_steps(10**6, {"log": 8})[1:])
    np.testing.assert_array_equal(steps, 10 ** np.arange(7))


def test_checkpoint_steps__every_and_lists() -> None:
    assert checkpoint_steps(10, {"every": 4}) == (0, 4, 8, 10)
    assert checkpoint_steps(8, {"every": 4}) == (0, 4, 8)
    assert checkpoint_steps(10, [7, 3, 3]) == (3, 7)


@pytest.mark.parametrize(
    "spec", [{}, {"log": 1}, {"every": 0}, {"log": 3, "every": 2}, [], [1.0], [True], "12", 5, [-1]]
)
def test_checkpoint_steps__refuses_other_forms(spec: Any) -> None:
    with pytest.raises(InvalidInputError, match="A schedule"):
        checkpoint_steps(10, spec)
