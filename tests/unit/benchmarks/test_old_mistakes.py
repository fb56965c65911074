"""The mistakes of the study that this software replaces: each gives its wrong number, and ours is not that number.

Truths are closed forms, planted or numpy's, so that a test fails where a function of ours makes the mistake.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import ndt_query as nq
from benchmarks import old_cases, old_mistakes, old_ways
from benchmarks.old_mistakes import BEGIN, END, MISTAKES, PAGE
from benchmarks.old_pictures import draw

ROOT = Path(__file__).parents[3]
N_SERIES = 5
N_OLD = 60
"""The old detectors are quick."""


@pytest.fixture(scope="module")
def found() -> old_cases.Found:
    return old_cases.gathered(N_SERIES)


def test_stable_rank__is_not_one_whatever_the_data(found):
    two = found.ranks
    np.testing.assert_allclose(two.old, 1.0)
    np.testing.assert_allclose(two.ours, two.truth, rtol=0.06)
    assert two.truth.max() > 15


def test_stable_rank__does_not_know_the_mean(found):
    two = found.off_centre
    assert two.old[-1] == pytest.approx(1.01, abs=0.005)
    values = np.random.default_rng(2).standard_normal((200, 64))
    variances = np.linalg.svd(values - values.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(two.ours, variances.sum() / variances[0])
    # Noted as 26.3: another draw of the same distribution, whose standard deviation is 0.75.
    assert two.ours[-1] == pytest.approx(26.3, abs=1.5)


def test_global_z__fires_on_noise_and_on_a_smooth_curve(found):
    assert np.mean(found.noise.old) == pytest.approx(9, abs=1.5)
    assert np.mean(found.noise_events) == pytest.approx(7.4, abs=1)
    assert np.mean(found.exponentials.old) == pytest.approx(21.5, abs=2)
    assert found.noise.old.min() > 0
    # At most 5% of series give any: of ten, more than two do so with a chance of 1%.
    assert (found.noise.ours > 0).sum() + (found.exponentials.ours > 0).sum() <= 2


def test_trailing_z__fires_on_noise_and_again_after_a_jump(found):
    noise = [len(old_cases.old_hits("trailing", "white noise", number)) > 0 for number in range(N_OLD)]
    short = [len(old_cases.old_hits("trailing, short windows", "white noise", number)) > 0 for number in range(N_OLD)]
    assert np.mean(noise) == pytest.approx(0.85, abs=0.08)
    assert np.mean(short) == pytest.approx(0.9, abs=0.07)
    assert np.mean(found.trailing.ours > 0) <= 0.2
    assert np.mean(found.per_jump.old) > 3
    np.testing.assert_array_equal(found.per_jump.ours, 1)
    late = np.array([old_cases.first_late(number) for number in range(N_OLD)])
    assert 0.05 < np.mean((late >= 1) & (late <= 4)) < 0.3
    assert np.abs(found.places.ours).max() <= 1


def test_phase__is_of_steps_and_not_of_indices(found):
    two = found.phases
    assert two.old.max() < 0.2
    np.testing.assert_allclose(two.old, two.truth / 5, atol=0.001)
    np.testing.assert_allclose(two.ours, two.truth, atol=0.005)
    assert (two.truth > 0.5).sum() == (two.ours > 0.5).sum() == 5


def test_probes__do_not_predict_noise(found):
    two = found.probes
    assert two.old.mean() == pytest.approx(0.76, abs=0.02)
    assert (two.old > 0.7).mean() > 0.8
    assert two.ours.max() < 0.1
    assert abs(two.ours.mean()) < 0.05


def test_cam_difference__is_not_of_maps_scaled_one_by_one(found):
    maps = found.cams
    stayed = np.unravel_index(maps.before[0].argmax(), maps.before[0].shape)
    assert maps.old[0][stayed] == pytest.approx(-0.5, abs=1e-4)
    assert maps.ours[0][stayed] == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(maps.old[1], 0, atol=1e-12)
    np.testing.assert_allclose(maps.ours[1], 2 * maps.before[1])
    assert maps.ours[1].max() == pytest.approx(2, abs=1e-4)


def test_cka__of_independent_data_is_zero(found):
    two = found.similarities
    assert two.old.mean() == pytest.approx(512 / (512 + 64), abs=0.01)
    assert np.abs(two.ours).max() < 0.1
    assert abs(two.ours.mean()) < 0.03


def test_trailing_z__of_short_windows_is_that_of_long_ones_later_on():
    values = old_cases.white_noise(0)
    later = old_ways.trailing_z(values, fewest=5)
    np.testing.assert_array_equal(later[later >= 50], old_ways.trailing_z(values))


def test_events__are_hits_apart():
    assert [old_cases.events(np.array(hits, int)) for hits in ([], [0], [3, 4, 5], [0, 2, 3, 9])] == [0, 1, 1, 3]


def test_page_text__has_every_mistake_with_both_numbers(found):
    text = old_mistakes.page_text(found, "Made here.")
    assert text.startswith(BEGIN)
    assert text.endswith(END)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {5}
    assert "| 1.0 | 1.00 to 1.00 | 1.1 to 17.1 |" in text
    assert "| -0.50 | 0.00 |" in text
    assert all(f"### {one.panels}. {one.name}" in text for one in MISTAKES)


def test_every_mistake__is_on_the_page_and_names_tests_and_functions_that_are_there():
    page = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    for mistake in MISTAKES:
        assert f"### {mistake.panels}. {mistake.name}" in page
        assert mistake.gallery_test in globals()
        assert all(name in nq.__all__ for name in mistake.functions)
        for guard in mistake.guards:
            file, test = guard.split("::")
            source = (ROOT / "tests" / "unit" / "ndt_query" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), guard


def test_figure__has_a_panel_for_each_letter(found):
    letters = [axes.get_title(loc="left")[:1] for axes in draw(found).axes]
    assert letters == list("abcdefghi")
    assert letters == [letter for one in MISTAKES for letter in one.panels.split(", ")]


def test_quick__prints_and_keeps_nothing(monkeypatch, capsys, found):
    asked = []
    monkeypatch.setattr(old_mistakes, "gathered", lambda n: asked.append(n) or found)
    before = PAGE.read_bytes()
    assert old_mistakes.main(["--quick"]) == 0
    assert asked == [old_mistakes.QUICK]
    assert BEGIN in capsys.readouterr().out
    assert PAGE.read_bytes() == before
