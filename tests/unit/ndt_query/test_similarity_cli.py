"""`ndt cka` and its figure: every pair once, the telling ones in a table, one pair with its interval and null."""

import csv
import io
import json

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import open_store
from ndt_store.cli import main
from ndt_store.errors import DimensionError
from ndt_store.testing import simulate_store

LAYERS = {"a": (6, 2, 2), "b": (5,), "c": (4,)}
STEPS = (0, 10, 20, 30)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cka")
    paths = [folder / "one.zarr", folder / "other.zarr"]
    for seed, path in enumerate(paths):
        simulate_store(path, checkpoints=STEPS, n_examples=20, layers=LAYERS, kinds=("activations",), seed=seed)
    return paths


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["cka", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def key(row):
    return row["layer"], row["checkpoint"], row["other_layer"], row["other_checkpoint"]


def test_every_pair_of_one_run_is_listed_once(stores, capsys):
    code, out, _ = run(capsys, stores[0], "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 12 * 11 // 2
    assert len({frozenset([key(row)[:2], key(row)[2:]]) for row in rows}) == len(rows)
    found = nq.cka_matrix(open_store(stores[0]))["cka"]
    for row in rows[::7]:
        layer, step, other, other_step = key(row)
        expected = found.sel(layer=layer, checkpoint=step, other_layer=other, other_checkpoint=other_step)
        assert row["cka"] == pytest.approx(float(expected), abs=1e-6)


def test_more_examples_than_batches_hold_are_drawn_unless_all_are_asked_for(tmp_path, capsys):
    path = tmp_path / "many.zarr"
    simulate_store(path, checkpoints=(0,), n_examples=300, layers={"b": (5,), "c": (4,)}, kinds=("activations",))
    few = (path, "--batch-size", "16")
    code, _, err = run(capsys, *few)
    assert code == 0
    assert "of 256 of 300 examples, drawn at random: --all-examples takes all" in err
    code, out, err = run(capsys, *few, "--pair", "b", "c", "--format", "json")
    assert json.loads(out)[0]["n_examples"] == 256
    assert "of 256 of 300 examples" in err
    code, out, err = run(capsys, *few, "--pair", "b", "c", "--format", "json", "--all-examples")
    assert json.loads(out)[0]["n_examples"] == 300
    assert "drawn at random" not in err


def test_every_pair_of_two_runs_is_listed(stores, capsys):
    code, out, _ = run(capsys, *stores, "--layer", "[ab]", "--checkpoint", "0,30", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert len(rows) == 16
    found = nq.cka_matrix(*map(open_store, stores))["cka"]
    row = rows[5]
    expected = found.sel(
        layer=row["layer"], checkpoint=int(row["checkpoint"]),
        other_layer=row["other_layer"], other_checkpoint=int(row["other_checkpoint"]),
    )  # fmt: skip
    assert float(row["cka"]) == pytest.approx(float(expected), abs=1e-6)


def words(out):
    return [line.split()[:4] for line in out.splitlines()[3:] if line.strip()]


def test_a_table_of_many_pairs_has_the_telling_ones_and_says_so(stores, capsys):
    _, out, err = run(capsys, stores[0])
    expected = [[name, "0", name, "30"] for name in "abc"] + [["a", "30", "b", "30"], ["b", "30", "c", "30"]]
    assert words(out) == expected
    assert "5 of 66 pairs" in err
    _, out, err = run(capsys, *stores)
    assert words(out) == [[name, step, name, step] for name in "abc" for step in ("0", "30")]
    assert "6 of 144 pairs" in err
    _, out, err = run(capsys, stores[0], "--checkpoint", "0,30")
    assert len(words(out)) == 15
    assert "pairs" not in err


def test_a_pair_has_interval_and_null(stores, capsys):
    arguments = ("--pair", "a@10", "b@20", "--pair", "c", "c@0", "--seed", "3", "--format", "json")
    code, out, _ = run(capsys, *stores, *arguments)
    first, last = json.loads(out)
    one, other = map(open_store, stores)
    found = nq.cka(one["a"].sel(checkpoint=10), other["b"].sel(checkpoint=20), seed=3)
    assert code == 0
    assert first == {
        "layer": "a", "checkpoint": 10, "other_layer": "b", "other_checkpoint": 20,
        **{name: pytest.approx(float(found[name])) for name in found}, "n_examples": 20,
    }  # fmt: skip
    assert key(last) == ("c", 30, "c", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pair", "nothing@0", "a"), "has no activations 'nothing@0': expected LAYER@STEP or LAYER"),
        (("--pair", "a@5", "b"), "no checkpoint 5"),
        (("--pair", "a", "b", "--layer", "a"), "leave out --layer"),
        (("--figure", "cka.txt"), "is no picture"),
        (("--layer", "z*"), "no layer like 'z*'"),
        (("--batch-size", "3"), "batch_size=3 is not possible"),
    ],
)
def test_what_is_wrong_is_named(stores, capsys, arguments, said):
    code, _, err = run(capsys, stores[0], *arguments)
    assert code == 2
    assert said in err


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.images}


def test_figure__of_several_layers_and_checkpoints(stores, capsys, tmp_path):
    code, _, err = run(capsys, stores[0], "--figure", tmp_path / "cka.png")
    assert code == 0
    assert "cka.png" in err
    assert (tmp_path / "cka.png").stat().st_size > 10_000
    result = nq.cka_matrix(open_store(stores[0]))
    drawn = panels(nq.plot.cka_matrix(result))
    assert list(drawn) == ["step 0", "step 20", "step 30", "a", "b", "c"]
    (image,) = drawn["step 30"].images
    assert image.get_clim() == (0, 1)
    expected = result["cka"].sel(checkpoint=30, other_checkpoint=30).values
    np.testing.assert_allclose(image.get_array(), np.maximum(expected, 0))
    assert (result["cka"] < 0).any()
    assert [tick.get_text() for tick in drawn["a"].get_xticklabels()] == ["0", "10", "20", "30"]
    labels = [axes.get_ylabel() for axes in nq.plot.cka_matrix(result).axes]
    assert "debiased linear CKA; below 0 shown as 0" in labels


def test_figure__of_two_layers_and_of_two_runs(stores):
    one, other = map(open_store, stores)
    two = {name: one[name].activations for name in "ab"}
    assert list(panels(nq.plot.cka_matrix(nq.cka_matrix(two)))) == ["a", "b", "a (up), b"]
    drawn = panels(nq.plot.cka_matrix(nq.cka_matrix(one, other)))
    assert drawn["step 0"].get_xlabel() == "other run"
    assert drawn["step 0"].get_ylabel() == "first run"
    single = nq.plot.cka_matrix(nq.cka_matrix(one["a"].sel(checkpoint=[10])))
    assert list(panels(single)) == ["step 10"]
    later = {name: other[name].activations.sel(checkpoint=[30]) for name in "bc"}
    early = {name: one[name].activations.sel(checkpoint=[0]) for name in "abc"}
    assert list(panels(nq.plot.cka_matrix(nq.cka_matrix(early, later)))) == ["step 0, other at 30"]


def test_figure__says_that_grey_is_nan(stores):
    result = nq.cka_matrix(open_store(stores[0]))
    result["cka"][0] = np.nan
    assert any(axes.get_ylabel().endswith("grey: NaN") for axes in nq.plot.cka_matrix(result).axes)


def test_figure__names_what_it_needs(stores):
    with pytest.raises(DimensionError, match="no cka over layer, checkpoint, other_layer, other_checkpoint"):
        nq.plot.cka_matrix(nq.cka_matrix(open_store(stores[0])).isel(checkpoint=0))
