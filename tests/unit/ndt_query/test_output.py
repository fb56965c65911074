"""Folders of results are written whole or not at all, and never over a store or over files of others."""

import importlib
from pathlib import Path

import pytest

import ndt_query as nq
from ndt_query.output import INDEX, staged
from ndt_query.pages import marker
from ndt_store import open_store
from ndt_store.cli import main
from ndt_store.errors import InvalidInputError
from ndt_store.testing import simulate_store
from tests.unit.ndt_query.test_gallery import simulated_store

TEMPLATE = "report.html.j2"


def write(folder, text=""):
    with staged(folder, TEMPLATE, ("cnn",)) as inside:
        (inside / "cnn").mkdir()
        (inside / "cnn" / "a.txt").write_text(text)
        (inside / INDEX).write_text(f"<head>{marker(TEMPLATE)}</head>{text}")


def test_result__is_replaced_by_a_later_one_and_leaves_other_files_alone(tmp_path):
    write(tmp_path, "first")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, "second")
    assert (tmp_path / "cnn" / "a.txt").read_text() == "second"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cnn", INDEX, "notes.txt"]


def test_result__does_not_keep_a_part_that_the_later_one_lacks(tmp_path):
    write(tmp_path)
    with staged(tmp_path, TEMPLATE, ("cnn",)) as inside:
        (inside / INDEX).write_text(marker(TEMPLATE))
    assert not (tmp_path / "cnn").exists()


def test_failure__leaves_the_earlier_result_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    write(out, "first")

    def fail():
        with staged(out, TEMPLATE, ("cnn",)) as inside:
            (inside / INDEX).write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        fail()
    assert (out / "cnn" / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [INDEX, "cnn"])
def test_files_of_others__are_not_touched(tmp_path, name):
    (tmp_path / name).write_text("<html>theirs</html>")
    with pytest.raises(InvalidInputError, match=rf"holds {name}.*no earlier result.*another folder"):
        write(tmp_path)
    assert (tmp_path / name).read_text() == "<html>theirs</html>"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("output") / "run.zarr")


@pytest.mark.parametrize("question", [nq.report, nq.cam_gallery])
@pytest.mark.parametrize("below", [".", "layers", "a/b"])
def test_store__is_never_the_folder_of_results(store, question, below):
    path = Path(store.path)
    before = sorted(path.rglob("*"))
    with pytest.raises(InvalidInputError, match="is an activation store or lies in one"):
        question(store, path / below)
    assert sorted(path.rglob("*")) == before


def test_store_called_as_the_maps_are__is_not_replaced(store, tmp_path):
    other = simulate_store(tmp_path / "cams.zarr", checkpoints=(0,), n_examples=4, layers={"fc": (2,)}).store
    with pytest.raises(InvalidInputError, match=r"holds cams\.zarr"):
        nq.cam_gallery(store, tmp_path, pairs=[(10, 40)], n_per_class=1)
    assert open_store(other.path).checkpoints == other.checkpoints


@pytest.mark.parametrize(("module", "question"), [("gallery", nq.cam_gallery), ("report", nq.report)])
def test_result_that_fails_at_its_end__leaves_no_folder(store, tmp_path, monkeypatch, module, question):
    def fail(*_, **__):
        raise RuntimeError("late")

    monkeypatch.setattr(importlib.import_module(f"ndt_query.{module}"), "write_page", fail)
    with pytest.raises(RuntimeError):
        question(store, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_gallery__refuses_gradients_of_the_loss(tmp_path):
    made = simulated_store(tmp_path / "r.zarr")
    made.provenance.setdefault("identity", {})["gradient_of"] = "loss"
    with pytest.raises(InvalidInputError, match="gradients are of the loss"):
        nq.cam_gallery(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_correct_examples__needs_a_checkpoint(store):
    with pytest.raises(InvalidInputError, match="checkpoints is empty"):
        nq.correct_examples(store, [])


def test_files_of_others__of_any_name_that_is_written_are_not_touched(tmp_path):
    (tmp_path / "cka.png").write_text("mine")

    def put():
        with staged(tmp_path, TEMPLATE, ("cnn",)) as inside:
            (inside / "cka.png").write_text("ours")
            (inside / INDEX).write_text(marker(TEMPLATE))

    with pytest.raises(InvalidInputError, match=r"holds cka.png, which is no earlier result"):
        put()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"cka.png": "mine"}


@pytest.mark.parametrize("command", ["cnn", "transformer", "mlp", "compare"])
def test_command__refuses_a_folder_before_the_work(tmp_path, capsys, monkeypatch, command):
    path = simulate_store(tmp_path / "s.zarr").store.path
    for module, name in (("study", "cnn_study"), ("transformer_study", "transformer_study"), ("mlp_study", "mlp_study"),
                         ("compare", "compare_runs")):  # fmt: skip
        monkeypatch.setattr(importlib.import_module(f"ndt_query.{module}"), name, None)
    (tmp_path / "file").write_text("mine")
    stores = [path, path] if command == "compare" else [path]
    for out, said in ((path, "is an activation store"), (tmp_path / "file" / "x", "file is no folder")):
        with pytest.raises(SystemExit) as stop:
            main([command, *stores, "--out", str(out)])
        assert stop.value.code != 0
        assert said in " ".join(capsys.readouterr().err.split())
