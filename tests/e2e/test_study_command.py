"""`ndt study`: several seeds of a recipe from first weights to one comparison, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from ndt_store.cli import main

running = pytest.importorskip("tests.e2e.running", reason="needs torch: pip install '.[capture]'")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "small.toml").write_text(running.RECIPE)
    (folder / "wide.toml").write_text(running.RECIPE.replace('"small"', '"wide"').replace("[16, 16]", "[32, 16]"))
    return folder / "small.toml", folder / "wide.toml"


def test_a_study__runs_every_seed_once_and_compares_them(recipes, tmp_path, capsys):
    out = tmp_path / "study"
    code, said, told = run(capsys, "study", *recipes, "--seeds", 2, "--out", out)
    assert code == 0, told
    assert said.strip().splitlines()[-1] == str(out / "index.html")
    names = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("small", "wide")]
    for name in names:
        assert (out / f"{name}.zarr").is_dir()
        assert f'href="{name}-report/index.html"' in (out / "index.html").read_text()
        assert (out / f"{name}-report" / "index.html").is_file()
    found = xr.open_datatree(out / "comparison.zarr", engine="zarr", consolidated=False)
    assert sorted(found["runs"]["run"].values.tolist()) == sorted(names)
    assert found["groups"]["group"].values.tolist() == ["small", "wide"]
    assert found["groups"]["n_runs"].values.tolist() == [2, 2]
    assert (out / "runs.pdf").is_file()
    written = (out / "small-seed1.zarr" / "zarr.json").stat().st_mtime_ns
    code, _, told = run(capsys, "study", *recipes, "--seeds", 2, "--out", out, "--by", "loss")
    assert code == 0, told
    assert told.count("its report is there") == 4
    assert (out / "small-seed1.zarr" / "zarr.json").stat().st_mtime_ns == written
    recipes[0].write_text(running.RECIPE.replace("[16, 16]", "[8, 8]"))
    code, _, told = run(capsys, "study", *recipes, "--seeds", 2, "--out", out)
    recipes[0].write_text(running.RECIPE)
    assert code == 2
    assert "was made with model = " in told


def test_a_study__of_one_run_or_of_one_name_twice_is_refused_before_it_begins(recipes, tmp_path, capsys):
    code, _, told = run(capsys, "study", recipes[0], "--seeds", 1, "--out", tmp_path / "out")
    assert code == 2
    assert "compares two runs or more" in told
    code, _, told = run(capsys, "study", recipes[0], recipes[0], "--out", tmp_path / "out")
    assert code == 2
    assert "give each once" in told
    code, _, told = run(capsys, "study", "no-such-recipe", "--out", tmp_path / "out")
    assert code == 2
    assert not (tmp_path / "out").exists()
