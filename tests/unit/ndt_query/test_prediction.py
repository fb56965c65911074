"""Early training foretells specialisation where it was planted, on heads and runs held out, and not in noise."""

import json

import numpy as np
import pytest

import ndt_query as nq
from ndt_query.prediction import FEATURES
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

from .attention_cases import noise, patterns

TOKENS = 9


def run(rng, foretold=True, heads=6):
    """Two layers; late, each head leans to a token of its own by some amount, early by a part of it or of another's."""
    found = {}
    for layer in ("a", "b"):
        values = noise(rng, n=40, heads=heads, tokens=TOKENS)
        lean = rng.uniform(0, 0.9, heads)
        early = lean if foretold else rng.permutation(lean)
        for head in range(heads):
            own = np.eye(TOKENS)[head]
            for step, weight in ((0, 0.3 * early[head]), (1, lean[head])):
                values[step, :, head] = (1 - weight) * values[step, :, head] + weight * own
        found[layer] = patterns(values)
    return found


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(1)
    return {f"seed {n}": run(rng) for n in range(3)}


@pytest.fixture(scope="module")
def found(runs):
    return nq.predict_specialisation(runs, 0)


def test_prediction__finds_what_was_planted_in_heads_and_in_runs(found):
    assert found["scheme"].values.tolist() == ["heads", "runs"]
    assert (found["r2"] > 0.5).all()
    assert (found["p_value"] == 1 / 200).all()
    assert (found["r2"] > found["layer_r2"] + 0.3).all()


def test_prediction__finds_nothing_where_early_says_nothing():
    rng = np.random.default_rng(2)
    null = {f"seed {n}": run(rng, foretold=False) for n in range(3)}
    assert (nq.predict_specialisation(null, 0, 10)["p_value"] > 0.05).all()


def test_prediction__is_of_what_the_questions_say(found, runs):
    assert found.sizes["member"] == 36
    assert found["run"].values[:12].tolist() == ["seed 0"] * 12
    one = runs["seed 1"]["b"]
    here = (found["run"] == "seed 1") & (found["layer_of"] == "b")
    np.testing.assert_allclose(
        found["observed"].values[here], nq.head_specialisation(one)["of_head"].sel(checkpoint=10)
    )
    assert found["feature"].values.tolist() == list(FEATURES)
    early = one.sel(checkpoint=0)
    np.testing.assert_allclose(found["features"].values[here, 0], nq.attention_entropy(early)["entropy"])
    np.testing.assert_allclose(found["features"].values[here, 4], nq.head_specialisation(early)["of_head"], rtol=1e-6)


def test_a_run_that_is_left_out_is_not_trained_on(runs, found):
    """Were it, changing its late patterns would change its own prediction."""
    changed = {name: dict(layers) for name, layers in runs.items()}
    other = changed["seed 2"]["a"].copy(deep=True)
    other[1] = 1 / TOKENS
    changed["seed 2"]["a"] = other
    again = nq.predict_specialisation(changed, 0, n_permutations=1)
    here = found["run"].values == "seed 2"
    np.testing.assert_allclose(
        again["predicted"].sel(scheme="runs").values[here], found["predicted"].sel(scheme="runs").values[here]
    )
    assert not np.allclose(again["observed"].values[here], found["observed"].values[here])


def test_prediction__of_one_run_holds_out_heads_alone(runs):
    found = nq.predict_specialisation([runs["seed 0"]], 0, n_permutations=9)
    assert np.isnan(found["r2"].sel(scheme="runs"))
    assert np.isfinite(found["r2"].sel(scheme="heads"))


def test_prediction__of_two_heads_a_layer_has_no_null():
    rng = np.random.default_rng(4)
    found = nq.predict_specialisation({f"seed {n}": run(rng, heads=2) for n in range(3)}, 0, n_permutations=9)
    assert found["p_value"].isnull().all()
    assert np.isnan(found["r2"].sel(scheme="heads"))
    assert np.isfinite(found["r2"].sel(scheme="runs"))


def test_figure__has_a_panel_for_each_way_of_holding_out(found):
    figure = nq.plot.predicted_specialisation(found)
    assert [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes] == ["held out: heads", "held out: runs"]
    with pytest.raises(DimensionError, match="pass that of predict_specialisation"):
        nq.plot.predicted_specialisation(found[["observed"]])


def test_prediction__names_what_is_wrong(runs):
    with pytest.raises(InvalidInputError, match="There are 6 heads in all"):
        nq.predict_specialisation([{"a": runs["seed 0"]["a"]}], 0)
    with pytest.raises(InvalidInputError, match="early=10 is not before late=10"):
        nq.predict_specialisation(runs, 10)
    with pytest.raises(NotFoundError, match="no checkpoint 3"):
        nq.predict_specialisation(runs, 3)
    with pytest.raises(InvalidInputError, match="There is no run"):
        nq.predict_specialisation([], 0)


def test_command__tabulates_and_draws(tmp_path, capsys, monkeypatch, runs):
    monkeypatch.setattr("ndt_query.foretell_cli.open_store", lambda name: runs[name])
    with pytest.raises(SystemExit) as stop:
        main(["foretell", *runs, "--early", "0", "--format", "json", "--figure", str(tmp_path / "f.png")])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    rows = json.loads(captured.out)
    assert [row["held_out"] for row in rows] == ["heads", "runs"]
    assert rows[1]["heads"] == 36
    assert (tmp_path / "f.png").stat().st_size > 5000
    with pytest.raises(SystemExit) as stop:
        main(["foretell", "seed 0", "seed 1", "seed 0", "--early", "0"])
    assert stop.value.code == 2
    assert "seed 0 is given twice" in " ".join(capsys.readouterr().err.split())
