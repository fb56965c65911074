"""Probes read off heads what was planted, on held-out examples, and nothing beyond chance where it was not."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.probing import CATEGORIES
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError

N, TOKENS, HEADS, UNITS = 150, 6, 4, 8
LABELS = np.arange(N) % 3


def outputs(rng):
    """At step 10 head 1 tells the class, head 2 the position, head 3 both; head 0 and all of step 0 are noise."""
    values = rng.standard_normal((2, N, TOKENS, HEADS, UNITS))
    classes, places = 3 * np.eye(UNITS)[LABELS], 3 * np.eye(UNITS)[np.arange(TOKENS)]
    values[1, :, :, 1] += classes[:, None]
    values[1, :, :, 2] += places
    values[1, :, :, 3] += classes[:, None] + places[None, :, ::-1]
    return xr.DataArray(
        values,
        {"checkpoint": [0, 10], "example": np.arange(N), "head": range(HEADS), "label": ("example", LABELS)},
        ("checkpoint", "example", "token", "head", "unit"),
    )


@pytest.fixture(scope="module")
def acts():
    return outputs(np.random.default_rng(2))


@pytest.fixture(scope="module")
def found(acts):
    return nq.probe_heads({"a@heads": acts})


def test_probes__read_what_was_planted(found):
    now = found.sel(checkpoint=10, layer="a")
    assert (now["class_accuracy"].values > 0.9).tolist() == [False, True, False, True]
    assert (now["position_accuracy"].values > 0.9).tolist() == [False, False, True, True]
    assert (now["class_low"] < now["class_accuracy"]).all()
    assert (now["position_low"] <= now["position_accuracy"]).all()


def test_probes__stay_at_chance_in_noise_and_on_shuffled_labels(found):
    assert found["class_chance"].values == pytest.approx(1 / 3)
    assert found["position_chance"].values == pytest.approx(1 / 6)
    before = found.sel(checkpoint=0)
    # 150 examples: three standard deviations of a share of a third are 11.5%.
    assert (np.abs(before["class_accuracy"] - 1 / 3) < 0.115).all()
    assert (np.abs(found["class_control"] - 1 / 3) < 0.125).all()
    assert (np.abs(before["position_accuracy"] - 1 / 6) < 0.04).all()
    assert (np.abs(found["position_control"] - 1 / 6) < 0.04).all()
    inside = (before["position_low"] < 1 / 6) & (before["position_high"] > 1 / 6)
    assert inside.sum() >= 3


def test_probes__are_held_out_where_training_accuracy_would_be_one(rng):
    wide = xr.DataArray(
        rng.standard_normal((40, 3, 1, 80)),
        {"label": ("example", np.arange(40) % 2)},
        ("example", "token", "head", "unit"),
    )
    found = nq.probe_heads({"a": wide})
    assert found["class_accuracy"].dims == ("layer", "head")
    assert abs(found["class_accuracy"].item() - 0.5) < 0.25


def test_tokens_of_a_held_out_example_are_not_trained_on():
    """Features name the example alone. Were tokens dealt to folds, those left out would be guessed wrong each time."""
    values = np.repeat(np.eye(60)[:, None, None], 4, axis=1)
    acts = xr.DataArray(values, {"label": ("example", np.arange(60) % 2)}, ("example", "token", "head", "unit"))
    assert 0.15 < nq.probe_heads({"a": acts})["position_accuracy"].item() < 0.35


def test_categories__follow_the_rule(found):
    kinds = nq.head_categories(found)
    assert kinds["category"].sel(checkpoint=10, layer="a").values.tolist() == [
        "unclassified",
        "class",
        "position",
        "both",
    ]
    assert set(kinds["category"].sel(checkpoint=0).values.ravel()) == {"unclassified"}
    assert kinds["kind"].values.tolist() == list(CATEGORIES)
    np.testing.assert_allclose(kinds["share"].sum("kind"), 1)
    np.testing.assert_allclose(kinds["excess"].sel(checkpoint=10), [0.25, 0.25, 0.25, 0, -0.75])
    uniform = found.assign(entropy=xr.full_like(found["class_gain"], 0.99))
    assert nq.head_categories(uniform)["category"].sel(checkpoint=10, head=[0, 1]).values.tolist() == [
        ["uniform", "class"]
    ]
    strict = nq.head_categories(found, nq.HeadRule(least_gain=1.01))
    assert float(strict["share"].sel(kind="unclassified", checkpoint=10)) == 1
    with pytest.raises(NotFoundError, match="pass that of probe_heads"):
        nq.head_categories(found[["class_accuracy"]])


def test_layers_with_fewer_heads_are_padded(acts):
    found = nq.probe_heads({"a": acts, "b": acts.isel(head=[0, 1])})
    assert found["class_accuracy"].sel(layer="b").notnull().sum("head").values.tolist() == [2, 2]
    assert nq.head_categories(found)["category"].sel(layer="b", checkpoint=10).values.tolist()[2:] == ["", ""]


def test_a_nan_makes_its_head_nan(acts):
    values = acts.copy(deep=True)
    values[1, 0, 0, 2, 0] = np.nan
    found = nq.probe_heads({"a": values})
    assert found["class_accuracy"].isnull().values[1, 0].tolist() == [False, False, True, False]
    assert nq.head_categories(found)["category"].values[1, 0, 2] == ""


def test_probes__name_what_is_wrong(acts, tmp_path):
    from ndt_store.testing import simulate_store

    with pytest.raises(NotFoundError, match="no layer of what heads put out"):
        nq.probe_heads(simulate_store(tmp_path / "r.zarr").store)
    with pytest.raises(DimensionError, match="expected example, token, head and unit"):
        nq.probe_heads({"a": acts.isel(head=0)})
    with pytest.raises(InvalidInputError, match="A class has 50 examples and n_folds=60"):
        nq.probe_heads({"a": acts}, n_folds=60)


def test_probes__are_refused_where_a_checkpoint_does_not_fit(acts):
    with pytest.raises(MemoryBudgetError, match="probe_heads of a"):
        nq.probe_heads({"a@heads": acts}, memory=1000)
