"""`ndt intervene` and `ndt effects`: where moments come from, what is kept and printed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from capture import schedules, tracked_moments
from capture.moments import Moment, read_moments, scheduled_moments
from capture.schedules import load_schedule
from ndt_store import Column, SeriesWriter, open_store, write_experiment
from ndt_store.cli import main
from ndt_store.errors import InvalidInputError, NotFoundError

RECIPE = """
name = "tiny"
[model]
name = "mlp_narrow"
[data]
name = "digits"
[training]
steps = 12
batch_size = 32
checkpoints = [0, 12]
[probe]
n_examples = 20
[capture]
layers = ["relu1", "classifier"]
[tracking]
every = 2
n_examples = 30
"""
STUDY = ("intervene", "tiny.toml", "--seeds", "0,3", "--steps", "2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def captured(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for command in ("train", "capture"):
        assert run(capsys, command, "tiny.toml")[0] == 0
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def test_intervene__forecasts_trains_keeps_and_prints_effects(
    captured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *STUDY, "--jump", "3", "--control", "9", "--format", "json")
    assert code == 0, err
    forecast = "10 arms: 2 seeds undisturbed, and 4 moments frozen and perturbed for 2 updates; 80 updates in all."
    assert err.index(forecast) < err.index("intervening")
    study = open_store("runs/tiny.zarr").experiment("interventions").load()
    assert study["moment_step"].values.tolist() == [[3, 9], [3, 9]]
    assert study["role"].values.tolist() == [["jump", "control"]] * 2
    assert (study.attrs["n_steps"], study.attrs["noise"], study.attrs["every"]) == (2, 1.0, 2)
    rows = json.loads(out)
    effects = nq.intervention_effects(study)
    assert len(rows) == 2 * 3 * (2 + 2 * 2)
    for row in rows:
        one = effects.sel(arm=row["arm"], role=row["role"], **({"layer": row["layer"]} if row["layer"] else {}))
        assert row["effect"] == pytest.approx(one[row["quantity"]].item())
        assert row["high"] == pytest.approx(one[f"{row['quantity']}_high"].item())
    assert "2 seeds: 95% intervals by Student's t on 1 degree of freedom" in err
    assert "smallest possible two-sided p is 0.5" in err


def test_intervene__again_trains_nothing_and_other_results_need_replace(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = ("--jump", "3", "--control", "9")
    first = run(capsys, *STUDY, *moments)
    with monkeypatch.context() as patch:
        patch.setattr("capture.updates.Updates.make", None)
        assert run(capsys, *STUDY, *moments)[:2] == first[:2]
        for other in ((*moments, "--noise", "2"), ("--jump", "3", "--control", "8")):
            code, out, err = run(capsys, *STUDY, *other, "--arms", "elsewhere")
            assert (code, out) == (3, "")
            assert "other settings, seeds or moments already: give --replace" in err
        code, _, err = run(capsys, *STUDY, *moments, "--noise", "2", "--replace")
        assert code == 3
        assert "noise = 1.0, and this study has 2.0" in err
    assert run(capsys, *STUDY, *moments, "--noise", "2", "--replace", "--arms", "elsewhere")[0] == 0
    assert open_store("runs/tiny.zarr").experiment("interventions").attrs["noise"] == 2.0


def test_intervene__takes_moments_from_a_file(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (captured / "moments.csv").write_text("seed,step,role,jump\n0,3,jump,0\n3,4,jump,\n3,8,control,0\n7,2,jump,0\n")
    assert run(capsys, *STUDY, "--moments", "moments.csv")[0] == 0
    study = open_store("runs/tiny.zarr").experiment("interventions")
    assert study["moment_step"].values.tolist() == [[3, -1], [4, 8]]
    assert study["jump"].values.tolist() == [[0, -1], [-1, 0]]
    code, _, err = run(capsys, *STUDY, "--moments", "moments.csv", "--jump", "3")
    assert code == 2
    assert "give the one or the others" in err


def schedule_of(found: dict[int, list[tuple[int, str, int]]]) -> Any:
    """A schedule that knows the answers, with checkpoints about each moment as jump_schedule lists them."""

    def schedule(training: xr.Dataset, *, seed: int) -> xr.Dataset:
        assert training["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]
        rows = [(c + o, c, role, jump) for c, role, jump in found[seed] for o in (-2, 0, 2)]
        columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
        return xr.Dataset(
            {
                name: ("moment", np.array(one))
                for name, one in zip(("step", "centre", "role", "jump"), columns, strict=True)
            }
        )

    return schedule


def test_intervene__by_default_begins_before_the_jumps_of_each_seeds_own_training(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: [(4, "jump", 1), (8, "control", 1)], 3: [(6, "jump", 0), (12, "control", 0)]}
    monkeypatch.setattr(tracked_moments, "load_schedule", lambda name: schedule_of(found))
    code, _, err = run(capsys, *STUDY)
    assert code == 2
    assert "runs/tiny-seed3.zarr holds no tracked training of seed 3: run `ndt train tiny --seed 3`" in err
    assert run(capsys, "train", "tiny.toml", "--seed", "3")[0] == 0
    code, _, err = run(capsys, *STUDY)
    assert code == 0, err
    assert "seed 3: left out the control at 11, which would end after the training." in err
    assert "seed 0: jumps at 3; controls at 7." in err
    assert "seed 3: jumps at 5; controls at none." in err
    study = open_store("runs/tiny.zarr").experiment("interventions")
    assert study["moment_step"].values.tolist() == [[3, 7], [5, -1]]
    assert study["jump"].values.tolist() == [[1, 1], [0, -1]]
    monkeypatch.setattr(tracked_moments, "load_schedule", lambda name: schedule_of({0: [], 3: []}))
    code, _, err = run(capsys, *STUDY)
    assert code == 2
    assert "No jump is found: there is nothing to interfere at (tracked trainings of seed 0, 3)" in err
    late = {0: [(12, "jump", 0), (4, "control", 0)], 3: []}
    monkeypatch.setattr(tracked_moments, "load_schedule", lambda name: schedule_of(late))
    code, _, err = run(capsys, *STUDY)
    assert code == 2
    assert "left out what would end after the training: jumps at 11, with their controls" in err
    assert "1 jumps are found, all too late for 2 steps: give fewer with --steps" in err


def test_intervene__leaves_out_a_control_whose_intervention_would_run_through_a_jump(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: [(8, "jump", 0), (6, "control", 0), (4, "control", 0)]}
    monkeypatch.setattr(tracked_moments, "load_schedule", lambda name: schedule_of(found))
    code, _, err = run(capsys, "intervene", "tiny.toml", "--seeds", "0", "--steps", "3")
    assert code == 0, err
    assert "left out the control at 5, which would run through the jump at 7" in err
    assert "jumps at 7; controls at 3." in err


def test_intervene__takes_no_jumps_from_a_training_of_another_recipe(
    captured: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: [(4, "jump", 0)], 3: [(6, "jump", 0)]}
    monkeypatch.setattr(tracked_moments, "load_schedule", lambda name: schedule_of(found))
    (captured / "other.toml").write_text(RECIPE.replace("batch_size = 32", "batch_size = 16"))
    assert run(capsys, "train", "other.toml", "--seed", "3", "--store", "runs/tiny-seed3.zarr")[0] == 0
    code, _, err = run(capsys, *STUDY)
    assert code == 3
    assert "runs/tiny-seed3.zarr" in err
    assert "training.batch_size = 16" in err
    with SeriesWriter.open("runs/tiny-seed4.zarr", rows={"participation_ratio": Column()}) as series:
        series.append(0, participation_ratio=1.0)
    code, _, err = run(capsys, "intervene", "tiny.toml", "--seeds", "4", "--steps", "2")
    assert code == 2
    assert "does not say by which recipe its training was tracked" in err


def test_intervene__beside_results_that_are_not_its_own_needs_replace(
    captured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment("runs/tiny.zarr", "interventions", xr.Dataset({"a": ("x", [1.0, 2.0])}))
    code, out, err = run(capsys, *STUDY, "--jump", "3")
    assert (code, out) == (3, "")
    assert "give --replace" in err
    assert "Traceback" not in err
    assert run(capsys, "report", "runs/tiny.zarr")[0] == 0
    assert "Interventions are left out." in Path("runs/tiny-report/index.html").read_text()


def test_intervene__refuses_a_store_of_another_training(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *STUDY, "--jump", "3", "--store", "none.zarr")
    assert code == 2
    assert "none.zarr" in err
    (captured / "tiny.toml").write_text(RECIPE.replace("batch_size = 32", "batch_size = 16"))
    code, _, err = run(capsys, *STUDY, "--jump", "3")
    assert code == 3
    assert "training.batch_size = 32" in err
    assert not (captured / "runs" / "tiny-interventions").exists()
    (captured / "tiny.toml").write_text(RECIPE.replace("[0, 12]", "[0, 5, 12]"))
    assert run(capsys, *STUDY, "--jump", "3")[0] == 0


def test_intervene__refuses_what_is_no_list_of_seeds(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "intervene", "tiny.toml", "--seeds", "0,b")
    assert code == 2
    assert "no list of whole numbers" in err
    code, _, err = run(capsys, *STUDY, "--jump", "11")
    assert code == 2
    assert "step 11, expected 1 to 10" in err


def test_effects__draws_a_figure(captured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "effects", "runs/tiny.zarr")[0] == 2
    table = run(capsys, *STUDY, "--jump", "3", "--control", "9", "--format", "csv")[1]
    code, out, err = run(capsys, "effects", "runs/tiny.zarr", "--figure", "effects.png", "--format", "csv")
    assert (code, out) == (0, table)
    assert "effects.png: figure." in err
    assert (captured / "effects.png").read_bytes().startswith(b"\x89PNG")


def test_read_moments__without_seeds_is_for_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "moments.csv"
    path.write_text("step,role\n7,control\n 3 , jump \n")
    expected = (Moment(7, "control"), Moment(3, "jump"))
    assert read_moments(path, (0, 1)) == {0: expected, 1: expected}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("when,role\n3,jump\n", "begins with when, role: expected the columns step and role"),
        ("step,role,why\n3,jump,x\n", "begins with step, role, why"),
        ("step,role,step\n3,jump,4\n", "begins with step, role, step: .* each once"),
        ("", "begins with nothing"),
        ("step,role\n3,jump,7,8\n", "line 2 has 4 cells, expected 2"),
        ("step,role\n3\n", "line 2 has 1 cells"),
        ("step,role\nthree,jump\n", "line 2: step is 'three', expected a whole number"),
        ("step,role\n\n\n1_5,jump\n", "line 4: step is '1_5'"),
        ("step,role\n3,Jump\n", "line 2: role is 'Jump', expected jump or control"),
        ("step,role,jump\n3,jump,-5\n", "line 2: jump is '-5'"),
        ("seed,step,role\n0,3,jump\n,4,jump\n", "line 3: seed is ''"),
        ("seed,step,role\n7,3,jump\n", "has 1 rows, and none is of seed 0"),
        ("\0step", "is no CSV file|begins with"),
    ],
)
def test_read_moments__names_the_line_that_is_wrong(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "moments.csv"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=match):
        read_moments(path, (0,))


def test_read_moments__takes_what_spreadsheets_write(tmp_path: Path) -> None:
    path = tmp_path / "moments.csv"
    path.write_bytes(b"\xef\xbb\xbfstep,role\r\n3,jump\r\n\r\n")
    assert read_moments(path, (0,)) == {0: (Moment(3, "jump"),)}
    path.write_bytes(b"step,role\n3,\xff\n")
    with pytest.raises(InvalidInputError, match="no CSV file in UTF-8"):
        read_moments(path, (0,))


def test_read_moments__needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="No moments at"):
        read_moments(tmp_path / "none.csv", (0,))


def test_scheduled_moments__begin_after_the_measurement_before_the_jump() -> None:
    schedule = schedule_of({0: [(8, "control", 0), (4, "jump", 0)]})
    steps = np.array([0, 2, 4, 6, 8, 10, 12])
    found = scheduled_moments(schedule(xr.Dataset(coords={"step": steps}), seed=0), steps)
    assert found == (Moment(3, "jump", 0), Moment(7, "control", 0))


def test_load_schedule__names_what_is_offered() -> None:
    assert callable(load_schedule("jumps"))
    with pytest.raises(NotFoundError, match="No installed package offers a schedule 'jump' .*did you mean 'jumps'"):
        load_schedule("jump")


def test_load_schedule__says_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules, "entry_points", lambda group: ())
    with pytest.raises(NotFoundError, match="there is none at all"):
        load_schedule("jumps")
