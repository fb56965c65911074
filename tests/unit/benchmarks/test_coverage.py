"""Intervals hold the truth, and tests raise false alarms, as often as the documentation says."""

import re
from pathlib import Path

import pytest

from benchmarks.coverage import INTERVALS, TESTS

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "statistics.md"
CASES = (*INTERVALS, *TESTS)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=[f"{place}: {case.what}" for place, case in enumerate(CASES)])
def test_case__lies_in_its_band(case):
    low, high = case.band
    assert low <= case.run() <= high


def test_page__shows_every_case_and_figures_that_its_test_allows():
    rows = re.findall(r"^\| (.+?) \| ([\d.]+)% \|$", PAGE.read_text(), re.MULTILINE)
    assert [what for what, _ in rows] == [case.what for case in CASES]
    for (what, figure), case in zip(rows, CASES, strict=True):
        assert 100 * case.band[0] <= float(figure) <= 100 * case.band[1], what
