"""Commands that ask a store: rows for every label that was asked for, and no more than can be read."""

import json

import numpy as np
import pytest

from ndt_store.cli import main
from ndt_store.testing import simulate_store


@pytest.fixture
def sim(tmp_path):
    return simulate_store(tmp_path / "s.zarr", layers={"conv": (3, 4, 4), "fc": (14,)})


@pytest.fixture
def store(sim):
    return sim.store


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_summary_has_a_row_for_each_checkpoint_and_layer(sim, capsys):
    code, out, _ = run(capsys, "summary", sim.store.path, "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["layer"], row["checkpoint"]) for row in rows] == [(n, s) for n in ("conv", "fc") for s in (0, 10, 100)]
    acts = sim.arrays["layers/fc/activations"]
    assert [row["units"] for row in rows[3:]] == [14] * 3
    assert [row["active_fraction"] for row in rows[3:]] == pytest.approx([(a > 0).mean() for a in acts])
    assert all(row["stable_rank_low"] <= row["stable_rank"] <= row["stable_rank_high"] for row in rows)
    assert {row["n_examples"] for row in rows} == {len(acts[0])}


def test_summary_puts_the_reach_of_intervals_beside_the_estimates_of_a_table(sim, capsys):
    found = json.loads(run(capsys, "summary", sim.store.path, "--layer", "fc", "--format", "json")[1])[0]
    _, out, _ = run(capsys, "summary", sim.store.path, "--layer", "fc")
    assert "_low" not in out
    for name in ("stable_rank", "participation_ratio"):
        reach = found[f"{name}_high"] - found[name]
        assert f" {found[name]:.4g} ± {reach:.2g} " in out
        assert found[f"{name}_low"] == pytest.approx(max(0, found[name] - reach))


def test_top_lists_the_last_checkpoint_and_ten_units_and_says_what_it_left_out(sim, capsys):
    code, out, err = run(capsys, "top", sim.store.path, "--layer", "fc", "-k", "2", "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert {row["checkpoint"] for row in rows} == {100}
    assert len(rows) == 20
    assert "4 more units are not listed" in err
    values = sim.arrays["layers/fc/activations"][2, :, 3]
    order = np.argsort(-values, kind="stable")[:2]
    got = [row for row in rows if row["unit"] == 3]
    assert [row["example"] for row in got] == sim.arrays["example"][order].tolist()
    assert [row["label"] for row in got] == sim.arrays["label"][order].tolist()


def test_top_of_named_units_is_complete(sim, capsys):
    arguments = ("--layer", "fc", "--unit", "13", "--unit", "2", "--checkpoint", "0:10", "--format", "json")
    code, out, err = run(capsys, "top", sim.store.path, *arguments)
    assert code == 0
    assert len(json.loads(out)) == 2 * 2 * 12
    assert "not listed" not in err


def test_a_store_without_activations_is_one_sentence(tmp_path, capsys):
    simulate_store(tmp_path / "g", kinds=("gradients",))
    code, out, err = run(capsys, "summary", tmp_path / "g")
    assert (code, out) == (2, "")
    assert "holds no activations of conv1, blocks.0, fc" in err


def test_report_writes_one_page_and_prints_its_path(sim, capsys, tmp_path):
    code, out, _ = run(capsys, "report", sim.store.path, "--out", tmp_path / "page")
    assert code == 0
    assert out.strip() == str(tmp_path / "page" / "index.html")
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"index.html", "cnn"}
    code, *_ = run(capsys, "report", sim.store.path, "--no-study", "--out", tmp_path / "alone")
    assert code == 0
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["index.html"]


def test_explain_says_on_stderr_where_answers_come_from(store, capsys):
    code, out, err = run(capsys, "top", store.path, "--layer", "fc", "-k", "2", "--explain", "--format", "json")
    assert code == 0
    assert "layers/fc/activations: view topk at 0 of 1 checkpoints" in err
    again = run(capsys, "top", store.path, "--layer", "fc", "-k", "2", "--explain", "--format", "json")
    assert "layers/fc/activations: view topk at 1 of 1 checkpoints" in again[2]
    assert again[1] == out
    _, _, err = run(capsys, "summary", store.path, "--layer", "fc", "--checkpoint", "0", "--explain")
    assert "layers/fc/activations: view moments" in err
    assert "view" not in run(capsys, "summary", store.path, "--layer", "fc")[2]


def test_a_damaged_view_is_named_in_one_line(store, capsys):
    run(capsys, "top", store.path, "--layer", "fc")
    step = int(store.checkpoints[-1])
    path = store.catalogue.storage.root / f"views/topk/fc/activations/{step}"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = run(capsys, "top", store.path, "--layer", "fc")
    assert code == 0
    assert f"ndt: View views/topk/fc/activations/{step} of " in err
    assert "Warning" not in err


def test_find_lists_every_example_beyond_a_threshold(store, capsys):
    code, out, _ = run(capsys, "find", store.path, "--layer", "fc", "--unit", "3", "--above", "0.5", "--format", "json")
    rows = json.loads(out)
    acts = store["fc"].activations.isel(checkpoint=-1, unit=3).compute()
    expected = acts.where(acts > 0.5, drop=True)
    assert code == 0
    assert sorted(row["example"] for row in rows) == sorted(expected["example"].values.tolist())
    values = [row["value"] for row in rows]
    assert values == sorted(values, reverse=True)
    labels = dict(zip(store.examples.tolist(), store.labels.tolist(), strict=True))
    assert all(row["label"] == labels[row["example"]] for row in rows)


def test_find_of_nothing_prints_a_header_and_too_much_is_refused(store, capsys):
    code, out, _ = run(capsys, "find", store.path, "--layer", "fc", "--above", "1e9", "--format", "csv")
    assert (code, out.strip()) == (0, "layer,checkpoint,unit,example,value")
    code, _, err = run(capsys, "find", store.path, "--above", "-1", "--limit", "5")
    assert code == 2
    assert "More than 5 hits" in err
    assert "or raise --limit." in err


def test_the_limit_of_find_is_for_all_layers_together(store, capsys):
    numbers = [len(find_rows(store, capsys, "--layer", layer)) for layer in ("conv", "fc")]
    assert min(numbers) > 0
    assert len(find_rows(store, capsys, "--limit", sum(numbers))) == sum(numbers)
    code, out, err = run(capsys, "find", store.path, "--above", "0.5", "--limit", sum(numbers) - 1)
    assert (code, out) == (2, "")
    assert f"More than {sum(numbers) - 1} hits" in err


def test_find_is_ordered_as_its_help_says(store, capsys):
    rows = find_rows(store, capsys, "--checkpoint", "0:100")
    order = [(store.layers.index(row["layer"]), row["checkpoint"], row["unit"], -row["value"]) for row in rows]
    assert order == sorted(order)
    values = [row["value"] for row in rows]
    assert values != sorted(values, reverse=True)
    assert "within one unit at one checkpoint largest first" in " ".join(run(capsys, "find", "--help")[1].split())


def find_rows(store, capsys, *options):
    code, out, _ = run(capsys, "find", store.path, "--above", "0.5", "--format", "json", *options)
    assert code == 0
    return json.loads(out)


@pytest.mark.parametrize("command", [["summary"], ["top"], ["find", "--above", "1"]])
def test_a_store_without_a_committed_checkpoint_says_so(tmp_path, capsys, command):
    path = simulate_store(tmp_path / "none.zarr", n_committed=0).store.path
    name, *options = command
    code, _, err = run(capsys, name, path, *options)
    assert code == 2
    assert "has no committed checkpoint yet" in err
