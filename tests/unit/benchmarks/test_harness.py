import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import Bar, Row, against, race, sized, slower_of
from benchmarks.pagecache import can_drop, drop, files_below, resident_share

SPIN_SECONDS = 0.002


def test_race__leaves_the_first_round_out_and_starts_each_round_with_another() -> None:
    called = []
    candidates = {name: lambda name=name: called.append(name) for name in "abc"}
    times = race(candidates, rounds=3)
    assert "".join(called) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_race__counts_seven_rounds_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NDT_BENCH_QUICK", raising=False)
    assert len(race({"a": lambda: None})["a"]) == 7


def test_race__times_the_candidate_and_not_what_runs_between() -> None:
    events = []

    def between() -> None:
        events.append("between")
        time.sleep(0.05)

    times = race({"a": lambda: events.append("a"), "b": lambda: time.sleep(SPIN_SECONDS)}, rounds=2, between=between)
    assert events.count("between") == 6
    assert events[:2] == ["between", "a"]
    assert max(times["a"]) < 0.05
    assert min(times["b"]) >= SPIN_SECONDS


def test_against__takes_ratios_round_by_round() -> None:
    # The machine is three times slower in the last rounds, and both candidates with it.
    times = {"ours": [1.0, 2.0, 1.0, 6.0, 3.0], "theirs": [2.0, 2.0, 4.0, 6.0, 12.0]}
    row = against("question", times, "ours", "theirs", nbytes=8, n_examples=2)
    ratios = [0.5, 1.0, 0.25, 1.0, 0.25]
    assert (row.ours, row.baseline, row.ratio, row.n) == (2.0, 4.0, 0.5, 5)
    assert row.spread == (0.25, 1.0)
    assert row.quartiles == tuple(np.quantile(ratios, [0.25, 0.75]))
    assert row.as_json()["times"] == times


def test_against__works_with_one_round() -> None:
    row = against("question", {"a": [1.0], "b": [4.0]}, "a", "b")
    assert (row.ratio, row.spread, row.quartiles) == (0.25, (0.25, 0.25), (0.25, 0.25))


@pytest.mark.parametrize(
    ("bar", "met"),
    [(None, None), (Bar(0.5), True), (Bar(0.49), False), (Bar(2.0, on="ours"), True), (Bar(1.9, on="ours"), False)],
)
def test_row__says_whether_its_bar_is_met(bar: Bar | None, met: bool | None) -> None:
    row = Row("question", "baseline", 2.0, 4.0, 0.5, (0.5, 0.5), "s", 1, bar=bar)
    assert row.met is met
    assert row.as_json()["met"] is met


def test_against__shows_no_bar_at_the_quick_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"a": [1.0], "b": [4.0]}
    monkeypatch.delenv("NDT_BENCH_QUICK", raising=False)
    assert against("question", times, "a", "b", bar=Bar(0.1)).met is False
    monkeypatch.setenv("NDT_BENCH_QUICK", "1")
    assert against("question", times, "a", "b", bar=Bar(0.1)).met is None


def test_sized__is_in_megabytes() -> None:
    row = sized("store", "raw", 2_000_000, 8_000_000)
    assert (row.ours, row.baseline, row.ratio, row.unit) == (2.0, 8.0, 0.25, "MB")


def test_slower_of__takes_the_larger_of_each_round() -> None:
    assert slower_of({"a": [1.0, 5.0], "b": [2.0, 3.0]}, "a", "b") == [2.0, 5.0]


def test_drop__empties_the_page_cache_of_a_file(tmp_path: Path) -> None:
    if not can_drop(tmp_path):
        pytest.skip("files of this folder lie in memory")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    assert resident_share([file]) == 1.0
    drop([file])
    assert resident_share([file]) == 0.0
    file.read_bytes()
    assert resident_share([file]) == 1.0


def test_drop__raises_when_pages_stay(tmp_path: Path) -> None:
    file = tmp_path / "file.npy"
    np.save(file, np.zeros(1 << 18))
    mapped = np.load(file, mmap_mode="r")
    assert mapped.sum() == 0.0  # reads, and so maps, every page
    with pytest.raises(RuntimeError, match="stayed in the page cache"):
        drop([file])


def test_race__drops_the_files_of_a_cold_candidate_before_each_run(tmp_path: Path) -> None:
    if not can_drop(tmp_path):
        pytest.skip("files of this folder lie in memory")
    file = tmp_path / "file"
    file.write_bytes(os.urandom(1 << 20))
    seen = []

    def read() -> None:
        seen.append(resident_share([file]))
        file.read_bytes()

    race({"a": read}, rounds=2, cold={"a": [file]})
    assert seen == [0.0, 0.0, 0.0]


def test_files_below__lists_files_and_what_folders_hold(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("folder/inner/b", "folder/a", "c"):
        (tmp_path / name).touch()
    found = files_below(tmp_path / "folder", tmp_path / "c")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["folder/a", "folder/inner/b", "c"]
