import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as program
from benchmarks import quote
from benchmarks.harness import Bar, Row
from benchmarks.report import markdown

ROWS = [
    Row("fast thing", "slow thing", 1.0, 4.0, 0.25, (0.2, 0.3), "s", 7, cache="warm", nbytes=2_200_000_000, bar=Bar(1)),
    Row("slow thing", "fast thing", 4.0, 1.0, 4.0, (3.0, 5.0), "s", 7, bar=Bar(2), note="on a Sunday"),
]


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one benchmark that works and one that does not."""
    for name in ("bad", "good"):
        (tmp_path / f"bench_{name}.py").touch()

    def fail(_folder: Path) -> list[Row]:
        raise ValueError("no luck")

    good = SimpleNamespace(__doc__="What works.\n\nMore.", run=lambda _folder: ROWS)
    monkeypatch.setattr(program, "HERE", tmp_path)
    (tmp_path / "README.md").write_text(f"before\n{quote.BEGIN}\n{quote.END}\nafter\n")
    monkeypatch.setattr(program, "README", tmp_path / "README.md")
    monkeypatch.setitem(sys.modules, "benchmarks.bench_good", good)
    monkeypatch.setitem(sys.modules, "benchmarks.bench_bad", SimpleNamespace(__doc__="What fails.", run=fail))
    monkeypatch.setattr(program, "set_threads", lambda: None)
    monkeypatch.delenv("NDT_BENCH_QUICK", raising=False)
    return tmp_path


def test_markdown__shows_sizes_bars_and_notes(sections: Path) -> None:
    text = markdown({"sections": {"good": program.section("good")}})
    fast, slow = (line for line in text.splitlines() if line.startswith(("| fast", "| slow")))
    assert "| 2.20 GB | warm | 1 s | slow thing | 4 s | 0.25 |" in fast
    assert fast.endswith("| 7 | at most 1: met |")
    assert slow.endswith("| at most 2: **missed** |")
    assert "- on a Sunday" in text
    head = next(line for line in text.splitlines() if line.startswith("| what"))
    assert head.count("|") == fast.count("|")


def test_main__keeps_the_rows_of_others_when_one_section_fails(
    sections: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([]) == 1
    text = (sections / "RESULTS.md").read_text()
    assert "Failed: ValueError: no luck" in text
    assert "| fast thing |" in text
    assert "| fast thing |" in capsys.readouterr().out


def test_main__runs_the_sections_named_and_keeps_the_others_results(
    sections: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.main([])
    monkeypatch.setattr(sys.modules["benchmarks.bench_good"], "run", lambda _folder: ROWS[:1])
    assert program.main(["good"]) == 0
    text = (sections / "RESULTS.md").read_text()
    assert "| fast thing |" in text
    assert "**missed**" not in text
    assert "Failed: ValueError: no luck" in text


def test_main__keeps_nothing_of_a_quick_run(sections: Path) -> None:
    assert program.main(["good", "--quick"]) == 0
    assert not (sections / "results.json").exists()


def test_main__names_the_sections_when_one_is_unknown(sections: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["godo"])
    assert stopped.value.code == 2
    assert "there is no benchmark 'godo': choose from bad, good" in capsys.readouterr().err


def test_main__quotes_figures_in_the_readme_and_nothing_else(sections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quote, "ROWS", (("good", "fast", "slow thing", "a fast thing"),))
    program.main(["good"])
    text = (sections / "README.md").read_text()
    assert "| a fast thing | 2.2 GB | slow thing | 0.25 | 0.2 to 0.3 |" in text
    assert text.startswith("before\n")
    assert text.endswith(f"{quote.END}\nafter\n")


def test_quoted__leaves_out_what_was_not_measured(sections: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (("good", "fast", "slow thing", "a fast thing"), ("good", "no", "such", "row"), ("none", "", "", "section"))
    monkeypatch.setattr(quote, "ROWS", rows)
    text = quote.quoted({"sections": {"good": program.section("good")}})
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == ["| what", "| a fast thing"]


def test_the_readme_quotes_the_results_as_they_are() -> None:
    root = Path(quote.__file__).parents[1]
    results = json.loads((root / "benchmarks" / "results.json").read_text())
    assert quote.quoted(results) in (root / "README.md").read_text()
