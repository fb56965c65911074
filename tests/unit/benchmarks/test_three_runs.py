"""The table of the study's runs says what was found, from trainings that are small."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from benchmarks import three_runs
from benchmarks.quote import put_between


def run(seed: int, height: float) -> three_runs.Run:
    rng = np.random.default_rng(seed)
    steps = np.arange(100) * 5
    values = rng.standard_normal((100, 2))
    values[60:, 0] += height
    series = xr.Dataset(
        {
            **dict.fromkeys(three_runs.MEASURES, (("step", "layer"), values)),
            "validation_accuracy": ("step", np.linspace(0.1, 0.9, 100) + 0.01 * rng.standard_normal(100)),
        },
        {"step": steps, "layer": ["relu1", "relu2"]},
    )
    jumps = {name: nq.detect_jumps(series, measure=name) for name in three_runs.MEASURES}
    return three_runs.Run("planted", seed, series, jumps, f"{seed:064x}")


@pytest.fixture(scope="module")
def text() -> str:
    return three_runs.tables([run(0, 12.0), run(1, 0.0)])


def test_tables__count_and_place_the_jumps_of_each_run(text: str) -> None:
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| planted")]
    counts = {(row[1], row[3]): (row[5], row[6]) for row in rows if len(row) == 9}
    assert counts["0", "participation ratio"] == ("1", "300")
    assert counts["1", "stable rank"] == ("0", "none")
    each = [row for row in rows if len(row) == 11]
    assert {(row[1], row[3], row[4]) for row in each} == {("0", "relu1", "300")}


def test_tables__say_so_where_no_jump_survives() -> None:
    assert "No jump survives the null in any run." in three_runs.tables([run(1, 0.0)])


def test_put_between__replaces_what_lies_between_its_marks(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{three_runs.BEGIN}\nold\n{three_runs.END}\nafter\n")
    put_between(page, three_runs.BEGIN, three_runs.END, f"{three_runs.BEGIN}\nnew\n{three_runs.END}")
    assert page.read_text() == f"before\n{three_runs.BEGIN}\nnew\n{three_runs.END}\nafter\n"
