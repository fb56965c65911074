"""Selectors name labels, never positions, and say what is near when they miss."""

import numpy as np
import pytest

from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.selection import Selection, pick
from ndt_store.testing import simulate_store

STEPS = np.asarray([0, 10, 100, 700])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("10", [1]),
        ("700,0,0", [0, 3]),
        ("10:100", [1, 2]),
        (":99", [0, 1]),
        ("11:", [2, 3]),
        (":", [0, 1, 2, 3]),
    ],
)
def test_pick_finds_positions_by_label(text, expected):
    assert pick(text, STEPS, "checkpoint").tolist() == expected


@pytest.mark.parametrize("text", ["", "a", "1:2:3", "1;2", "1.5"])
def test_pick__raises_on_what_is_no_selector(text):
    with pytest.raises(InvalidInputError, match="--checkpoint .* is no selector"):
        pick(text, STEPS, "checkpoint")


def test_pick__raises_with_the_nearest():
    with pytest.raises(NotFoundError, match="no checkpoint 90: the nearest are 10 and 100"):
        pick("90", STEPS, "checkpoint")


def test_apply_selects_every_axis(tmp_path):
    store = simulate_store(tmp_path / "s").store
    chosen = Selection(checkpoint="10:", example="5:15", label="1").apply(store["fc"])
    assert chosen.checkpoint.values.tolist() == [10, 100]
    assert chosen.example.values.tolist() == [7, 13]
    assert set(chosen.label.values) == {1}


def test_a_label_that_no_selected_example_has_is_said_to_be_so(tmp_path):
    store = simulate_store(tmp_path / "s").store
    with pytest.raises(NotFoundError, match="No selected example has label 2: the labels among them are 0, 1"):
        Selection(example="5:7", label="2").apply(store["fc"])
