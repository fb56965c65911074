"""What heads are worth: paired intervals, an exact test, a rank correlation; planted costs are found, noise is not."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import ndt_query as nq
from ndt_query.plot import head_importance as draw
from ndt_store.errors import DimensionError, NotFoundError

N, HEADS = 300, 4
LABELS = np.arange(N) % 3


def ablated(rng, changes):
    """All examples are right; at step 10 those of `changes` (layer, head) -> examples are wrong without the head."""
    shape = (2, 2, 2, HEADS, N)
    correct = np.ones(shape, np.int32)
    margin = 2 + rng.normal(0, 0.1, shape)
    for (layer, head), wrong in changes.items():
        correct[1, :, layer, head, wrong] = 0
        margin[1, :, layer, head, wrong] -= 3
    gradient = np.abs(rng.normal(0, 0.1, (2, 2, HEADS, N)))
    for (layer, head), wrong in changes.items():
        gradient[1, layer, head, wrong] += 1
    dims = ("step", "ablation", "layer", "head", "example")
    return xr.Dataset(
        {
            "correct": (dims, correct),
            "margin": (dims, margin),
            "whole_correct": (("step", "example"), np.ones((2, N), np.int32)),
            "whole_margin": (("step", "example"), np.full((2, N), 2.0)),
            "gradient_importance": (("step", "layer", "head", "example"), gradient),
            "label": ("example", LABELS),
        },
        {"step": [0, 10], "ablation": ["zero", "mean"], "layer": ["a", "b"], "example": np.arange(N)},
    )


@pytest.fixture
def given(rng):
    return ablated(rng, {(0, 1): np.flatnonzero(LABELS == 2)[:60]})


def test_importance__finds_the_head_whose_removal_costs_a_class(given):
    found = nq.head_importance(given)
    now = found.sel(step=10, ablation="zero")
    assert float(now["accuracy_drop"].sel(layer="a", head=1)) == pytest.approx(0.2)
    np.testing.assert_allclose(now["class_accuracy_drop"].sel(layer="a", head=1), [0, 0, 0.6])
    assert now["class_accuracy_drop"].dims == ("layer", "head", "class")
    told = now["q_value"].values < 0.05
    assert told.tolist() == [[False, True, False, False], [False] * 4]
    assert float(now["rank_correlation"]) > 0
    assert (found["q_value"].sel(step=0) == 1).all()
    assert found["whole_accuracy"].values.tolist() == [1, 1]


def test_importance__has_paired_intervals_and_mcnemars_test(rng):
    experiment = ablated(rng, {})
    whole = rng.random((2, N)) < 0.8
    correct = np.where(
        rng.random((2, 2, 2, HEADS, N)) < 0.1, 1 - whole[:, None, None, None], whole[:, None, None, None]
    )
    experiment["whole_correct"] = (("step", "example"), whole.astype(np.int32))
    experiment["correct"] = (experiment["correct"].dims, correct.astype(np.int32))
    found = nq.head_importance(experiment).isel(step=1, ablation=0, layer=1, head=3)
    difference = whole[1].astype(float) - correct[1, 0, 1, 3]
    lost, won = (int((difference == sign).sum()) + 1 for sign in (1, -1))
    share = (lost - won) / (N + 2)
    reach = 1.959964 * np.sqrt(((lost + won) / (N + 2) - share**2) / (N + 2))
    low, high = share - reach, share + reach
    assert [
        float(found[name]) for name in ("accuracy_drop", "accuracy_drop_low", "accuracy_drop_high")
    ] == pytest.approx([difference.mean(), low, high])
    down, up = int((difference > 0).sum()), int((difference < 0).sum())
    assert float(found["p_value"]) == pytest.approx(stats.binomtest(down, down + up).pvalue)
    fallen = 2 - experiment["margin"].values[1, 0, 1, 3]
    assert float(found["margin_drop"]) == pytest.approx(fallen.mean())
    gradients = nq.head_importance(experiment)["gradient_importance"][1]
    drops = nq.head_importance(experiment)["margin_drop"][1, 0]
    expected = stats.spearmanr(gradients.values.ravel(), drops.values.ravel()).statistic
    assert float(found["rank_correlation"]) == pytest.approx(expected)


def test_importance__where_nothing_changed_is_not_sure_of_0(rng):
    experiment = ablated(rng, {})
    found = nq.head_importance(experiment)
    assert (found["accuracy_drop"] == 0).all()
    assert (found["accuracy_drop_high"] > 1 / N).all()
    assert (found["accuracy_drop_low"] < -1 / N).all()
    assert (found["class_accuracy_drop_high"] > found["accuracy_drop_high"]).all()


def test_importance__intervals_hold_rare_changes(rng):
    """Two examples in a thousand change on average, of 100: Student's t holds that in less than a fifth of draws."""
    from ndt_query.importance import _with_limits

    lost = (rng.random((2000, 100)) < 0.002).astype(float)
    limits = _with_limits("x", lost, ("draw",), 0.95)
    low, high = limits["x_low"][1], limits["x_high"][1]
    assert ((low <= 0.002) & (high >= 0.002)).mean() > 0.93


def test_importance__in_noise_finds_no_head(rng):
    false = 0
    for seed in range(20):
        noise = np.random.default_rng(seed)
        experiment = ablated(noise, {})
        flips = noise.random(experiment["correct"].shape) < 0.1
        whole = noise.random((2, N)) < 0.9
        base = np.broadcast_to(whole[:, None, None, None], flips.shape)
        swapped = np.where(flips, noise.random(flips.shape) < 0.9, base)
        experiment["whole_correct"] = (("step", "example"), whole.astype(np.int32))
        experiment["correct"] = (experiment["correct"].dims, swapped.astype(np.int32))
        false += int((nq.head_importance(experiment, n_permutations=9)["q_value"] < 0.05).sum())
    assert false <= 4  # of 640 heads


def test_figure__shows_the_sure_ones_filled(given):
    figure = draw(nq.head_importance(given))
    left, middle, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [f"{a}.{b}" for a in range(2) for b in range(HEADS)]
    filled = [line.get_markerfacecolor() != "white" for line in left.get_lines() if line.get_marker() == "o"]
    assert filled.count(True) == 1
    assert len([line for line in middle.get_lines() if line.get_label()]) >= 2
    assert "rank correlation" in right.get_title(loc="left")
    with pytest.raises(DimensionError, match="no method 'noise' at step 10: it has zero, mean"):
        draw(nq.head_importance(given), method="noise")
    with pytest.raises(DimensionError, match="pass that of head_importance"):
        draw(given)


def test_importance__names_what_is_wrong(given):
    with pytest.raises(NotFoundError, match="pass that of ablate_heads"):
        nq.head_importance(given[["correct"]])
