"""The tables of false alarms and power: what they count, and that series are the same every time."""

import numpy as np
import pytest

from benchmarks import jump_tables
from benchmarks.jump_series import N_MEASUREMENTS, NULLS, PLANTED
from benchmarks.jump_tables import outcome, rate


def test_scenarios__have_names_of_their_own_and_repeat():
    names = [scenario.name for scenario in (*NULLS, *PLANTED)]
    assert len(set(names)) == len(names)
    for scenario in (*NULLS, *PLANTED):
        values, planted = scenario.series(3)
        again, _ = scenario.series(3)
        assert values.shape == (N_MEASUREMENTS,)
        np.testing.assert_array_equal(values, again)
        assert not np.array_equal(values, scenario.series(4)[0])
        assert bool(planted) == (scenario in PLANTED)


@pytest.mark.parametrize("size", [1, 4])
def test_planted_jumps__have_their_size_in_noise_deviations(size):
    scenario = next(one for one in PLANTED if one.name == f"white noise, {size}")
    changes = []
    for number in range(200):
        values, (place,) = scenario.series(number)
        changes.append(abs(values[place : place + 20].mean() - values[place - 20 : place].mean()))
    assert np.mean(changes) == pytest.approx(size, rel=0.1)


def test_outcome__counts_what_is_found_and_what_is_not_there():
    found = outcome(next(one for one in PLANTED if one.name == "white noise, 6"), 0)
    assert (found.n_planted, found.n_found, found.n_false, found.n_placed, found.n_covered) == (1, 1, 0, 1, 1)
    nothing = outcome(NULLS[0], 0)
    assert (nothing.n_planted, nothing.n_found, nothing.n_false) == (0, 0, 0)


def test_rate__has_its_interval():
    assert rate(0, 100) == "0.0% (0.0% to 3.6%)"


def test_quick__prints_both_tables_and_keeps_nothing(monkeypatch, capsys):
    monkeypatch.setattr(jump_tables, "NULLS", NULLS[:1])
    monkeypatch.setattr(jump_tables, "PLANTED", PLANTED[5:6])
    kept = jump_tables.HERE / "JUMPS.md"
    before = kept.read_bytes() if kept.exists() else None
    assert jump_tables.main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert "| white noise | 0.0% (0.0% to 16.8%) |" in out
    assert "| white noise, 6 | 100.0% (83.2% to 100.0%) |" in out
    assert (kept.read_bytes() if kept.exists() else None) == before
