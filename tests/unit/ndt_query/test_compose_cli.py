"""`ndt compose`: a row for each late unit, a sentence for each pair, a graph and a figure."""

import csv
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import open_store
from ndt_store.cli import main
from ndt_store.testing import simulate_store

N = 60
SHAPES = {"conv1": (6, 2, 2), "conv2": (4,), "fc": (3,)}
FEW = ("--shuffles", "19")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """At step 10 conv2's unit 1 is conv1's unit 2 less its unit 5; conv2's unit 3 is dead."""
    rng = np.random.default_rng(0)
    conv1 = rng.standard_normal((2, N, 6, 2, 2))
    conv2 = rng.standard_normal((2, N, 4))
    means = conv1[1].mean(axis=(2, 3))
    conv2[1, :, 1] = means[:, 2] - means[:, 5] + 0.1 * rng.standard_normal(N)
    conv2[..., 3] = 0
    planted = {"layers/conv1/activations": conv1, "layers/conv2/activations": conv2}
    path = tmp_path_factory.mktemp("compose") / "run.zarr"
    simulate_store(path, checkpoints=(0, 10), n_examples=N, layers=SHAPES, planted=planted)
    return path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["compose", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_rows__are_what_the_function_finds(store, capsys):
    code, out, err = run(capsys, store, "--early", "conv1", "--late", "conv2", "--format", "json")
    rows = json.loads(out)
    opened = open_store(store)
    found = nq.compose(*(opened[name].sel(checkpoint=10) for name in ("conv1", "conv2"))).compute()
    assert code == 0
    assert len(rows) == 4
    first, *_, last = rows
    assert (first["early"], first["late"], first["checkpoint"], first["unit"]) == ("conv1", "conv2", 10, 1)
    for name in ("r2", "r2_low", "r2_high", "q_value", "composed"):
        assert first[name] == found[name].values[1]
    assert first["null_95"] == pytest.approx(float(np.nanquantile(found["null_r2"], 0.95)))
    one = found.isel(unit=1, rank=slice(3))
    parts = zip(one["early_unit"].values, one["coefficient"].values, strict=True)
    assert first["contributors"] == ", ".join(f"{unit} ({weight:.2f})" for unit, weight in parts)
    assert set(one["early_unit"].values[:2]) == {2, 5}
    assert [row["r2"] for row in rows[:3]] == sorted((row["r2"] for row in rows[:3]), reverse=True)
    assert (last["unit"], last["r2"], last["composed"], last["contributors"]) == (3, None, False, "")
    assert "conv2 from conv1 at step 10: 1 of 3 units that vary are composed, R2 above 0.7 and above the null" in err
    assert "(33%, 1% to 91%)" in err


def test_layers__are_neighbours_unless_they_are_named(store, capsys):
    out = run(capsys, store, *FEW, "--top", "1", "--format", "csv")[1]
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["early"], row["late"]) for row in rows] == [("conv1", "conv2"), ("conv2", "fc")]
    named = ("--early", "conv1", "--late", "fc", "--early", "conv2", "--late", "conv1")
    out = run(capsys, store, *FEW, *named, "--top", "1", "--format", "json")[1]
    assert [(row["early"], row["late"]) for row in json.loads(out)] == [("conv1", "fc"), ("conv2", "conv1")]


def test_checkpoints__are_the_last_one_unless_they_are_chosen(store, capsys):
    pair = ("--early", "conv1", "--late", "conv2")
    out, err = run(capsys, store, *FEW, *pair, "--checkpoint", "0:10", "--top", "2", "--format", "json")[1:]
    assert [(row["checkpoint"], row["composed"]) for row in json.loads(out)] == [
        (0, False), (0, False), (10, True), (10, False),
    ]  # fmt: skip
    assert "at step 0: 0 of 3 units" in err
    assert "at step 10: 1 of 3 units" in err


def test_table__names_its_columns(store, capsys):
    out = run(capsys, store, *FEW, "--early", "conv1", "--late", "conv2")[1]
    names = "early late checkpoint unit r2 r2_low r2_high null_95 q_value composed contributors"
    assert out.split()[:11] == names.split()


def test_threshold__sets_what_counts_as_composed(store, capsys):
    err = run(capsys, store, *FEW, "--early", "conv1", "--late", "conv2", "--threshold", "0.999")[2]
    assert "0 of 3 units that vary are composed, R2 above 0.999 and above the null (0%, 0% to 71%)" in err
    code, _, err = run(capsys, store, "--threshold", "1.5")
    assert code == 2
    assert "threshold=1.5 is not possible" in err
    code, _, err = run(capsys, store, "--shuffles", "5")
    assert code == 2
    assert "n_permutations=5 is not possible" in err


def test_a_layer_that_never_varies__has_no_r2(tmp_path, capsys):
    dead = {"layers/fc/activations": np.zeros((1, 20, 3))}
    layers = {"conv1": (4,), "fc": (3,)}
    simulate_store(tmp_path / "s.zarr", checkpoints=(0,), n_examples=20, layers=layers, planted=dead)
    code, out, err = run(capsys, tmp_path / "s.zarr", *FEW, "--format", "json")
    assert code == 0
    assert [row["r2"] for row in json.loads(out)] == [None] * 3
    assert "fc from conv1 at step 0: no unit has an R2, because none varies or there are NaN." in err


def test_graphml__holds_the_edges_of_the_one_checkpoint(store, capsys, tmp_path):
    target = tmp_path / "units.graphml"
    code, _, err = run(capsys, store, *FEW, "--early", "conv1", "--late", "conv2", "--graphml", target)
    assert code == 0
    assert f"wrote {target}" in err
    ends = {
        (edge.get("source"), edge.get("target"))
        for edge in ElementTree.parse(target).iter()
        if edge.tag.endswith("edge")
    }
    assert ends >= {("conv1/2", "conv2/1"), ("conv1/5", "conv2/1")}
    assert {late for _, late in ends} == {"conv2/1"}
    code, _, err = run(capsys, store, *FEW, "--checkpoint", "0,10", "--graphml", target)
    assert code == 2
    assert "--graphml holds the graph of one checkpoint and 2 are chosen: choose one." in err


@pytest.mark.parametrize("steps", ["10", "0,10"])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figure__is_drawn(store, capsys, tmp_path, suffix, steps):
    target = tmp_path / f"compose{suffix}"
    code, _, err = run(capsys, store, *FEW, "--checkpoint", steps, "--figure", target)
    assert code == 0
    assert f"wrote {target}" in err
    assert target.stat().st_size > 5_000


def test_wrong_usage__is_one_sentence(store, capsys, tmp_path):
    for arguments, message in (
        (("--early", "conv9", "--late", "fc"), "holds no activations of a layer 'conv9': it has conv1, conv2, fc."),
        (("--early", "conv1"), "There are 1 --early and 0 --late: give one of each for every pair of layers."),
        (("--early", "fc", "--late", "fc"), "is no pair"),
        (("--figure", tmp_path / "x.doc"), "is no picture: end the name in .png, .svg, .pdf."),
        (("--graphml", tmp_path / "no" / "x.graphml"), "lies in no folder that is there"),
        (("--checkpoint", "7"), "There is no checkpoint 7"),
    ):
        code, out, err = run(capsys, store, *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert run(capsys, tmp_path / "nothing.zarr")[0] == 2


def test_a_store_without_a_pair_or_a_checkpoint__says_so(tmp_path, capsys):
    simulate_store(tmp_path / "one.zarr", layers={"fc": (3,)})
    code, _, err = run(capsys, tmp_path / "one.zarr")
    assert code == 2
    assert "holds activations of 1 layers: a pair needs two." in err
    simulate_store(tmp_path / "none.zarr", n_committed=0)
    code, _, err = run(capsys, tmp_path / "none.zarr")
    assert code == 2
    assert "has no committed checkpoint yet" in err
