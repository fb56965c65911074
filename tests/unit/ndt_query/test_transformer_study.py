"""The study of a transformer is made of what each question says, finds what was planted, and is shown as pages."""

import importlib
import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.study_pages import kind_of, study_figures
from ndt_query.transformer_figures import transformer_tables
from ndt_store import StoreWriter, open_store, write_experiment
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.layout import blocks
from ndt_store.planning import ProbeSet, Tap, plan_store

STEPS, N, HEADS, TOKENS, UNITS = (0, 10, 40), 90, 4, 9, 6
LAYERS = ("enc.0", "enc.1")
LABELS = np.arange(N) % 3


def planted(rng):
    """Head 2 of enc.1 looks at token 4 from step 10 on; head 1 of enc.0 puts out the class at step 40."""
    found = {}
    for layer in LAYERS:
        found[f"layers/{layer}/attentions"] = rng.dirichlet(np.full(TOKENS, 2.0), (3, N, HEADS, TOKENS))
        found[f"layers/{layer}@heads/activations"] = rng.standard_normal((3, N, TOKENS, HEADS, UNITS))
    pattern = found["layers/enc.1/attentions"]
    pattern[1:, :, 2] = 0.1 * pattern[1:, :, 2] + 0.9 * np.eye(TOKENS)[4]
    found["layers/enc.0@heads/activations"][2, :, :, 1] += 4 * np.eye(UNITS)[LABELS][:, None]
    found["prediction"] = np.stack([rng.permutation(LABELS), LABELS, LABELS])
    found["loss"] = rng.random((3, N))
    return {name: values.astype(np.int64 if name == "prediction" else np.float32) for name, values in found.items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("transformer") / "r.zarr"
    rng = np.random.default_rng(3)
    taps = []
    for layer in LAYERS:
        taps.append(Tap(layer, "attentions", ("example", "head", "query", "key"), (HEADS, TOKENS, TOKENS)))
        taps.append(Tap(f"{layer}@heads", "activations", ("example", "token", "head", "unit"), (TOKENS, HEADS, UNITS)))
    taps.append(Tap("classifier", "activations", ("example", "unit"), (5,)))
    probe = ProbeSet(rng.random((N, 6, 6)).astype(np.float32), LABELS)
    schema, static = plan_store(STEPS, probe, taps, n_classes=3)
    values = planted(rng)
    with StoreWriter.open(path, schema, static=static, provenance={}) as writer:
        for place, step in enumerate(STEPS):
            for array in schema.cubes:
                given = values.get(array.path)
                for block in blocks(array):
                    shape = (block.stop - block.start, *array.sizes[1:]) if array.sizes else ()
                    if given is not None:
                        part = given[place, block.start : block.stop]
                    else:
                        part = np.asarray("", object) if array.dtype == "string" else np.zeros(shape, array.dtype)
                    writer.write_block(step, array.path, block.index, part)
            writer.commit(step)
    correct = np.ones((3, 2, 2, HEADS, N), np.int32)
    correct[2, :, 1, 2, LABELS == 1] = 0
    over = ("step", "ablation", "layer", "head", "example")
    write_experiment(path, "head_ablation", xr.Dataset(
        {
            "correct": (over, correct), "margin": (over, correct.astype(np.float32)),
            "whole_correct": (("step", "example"), np.ones((3, N), np.int32)),
            "whole_margin": (("step", "example"), np.ones((3, N), np.float32)),
            "gradient_importance": (("step", "layer", "head", "example"), rng.random((3, 2, HEADS, N))),
            "label": ("example", LABELS),
        },
        {
            "step": list(STEPS), "ablation": np.array(["zero", "mean"], object), "layer": np.array(LAYERS, object),
            "example": np.arange(N),
        },
    ))  # fmt: skip
    return open_store(path)


@pytest.fixture(scope="module")
def study(store):
    seen = []
    found = nq.transformer_study(store, progress=lambda *one: seen.append(one))
    assert seen == [(n, 11) for n in range(1, 12)]
    return found


def test_study__is_made_of_what_each_question_says(study, store):
    assert set(study.children) == {
        "performance", "measures", "patterns", "selectivity", "specialisation", "clusters", "evolution", "flow",
        "image", "importance", "probes", "categories",
    }  # fmt: skip
    assert study.attrs["left_out"] == ""
    xr.testing.assert_allclose(study["measures"]["entropy"], nq.attention_entropy(store)["entropy"])
    xr.testing.assert_allclose(study["flow"].to_dataset(), nq.flow_metrics(store))
    xr.testing.assert_equal(study["importance"].to_dataset(), nq.head_importance(store))
    probes = nq.probe_heads(store)
    np.testing.assert_array_equal(study["probes"]["class_accuracy"], probes["class_accuracy"])
    np.testing.assert_allclose(probes["entropy"], nq.attention_entropy(store)["entropy"])


def test_study__finds_what_was_planted(study):
    specialised = study["specialisation"].to_dataset()
    assert (specialised["p_value"].sel(layer="enc.1").values[1:] < 0.01).all()
    assert float(specialised["p_value"].sel(layer="enc.1")[0]) > 0.01
    assert (specialised["half_after"].sel(layer="enc.1"), specialised["half"].sel(layer="enc.1")) == (0, 10)
    assert specialised["half"].sel(layer="enc.0").isnull()
    flow = study["flow"].to_dataset()["bottleneck"]
    assert not flow.sel(checkpoint=0).any()
    category = study["categories"].to_dataset()["category"].sel(checkpoint=40, layer="enc.0")
    assert (category.values == "class").tolist() == [False, True, False, False]
    worth = study["importance"].to_dataset().sel(step=40, ablation="zero")
    assert float(worth["class_accuracy_drop"].sel({"layer": "enc.1", "head": 2, "class": 1})) == 1


def test_study__goes_on_where_heads_cannot_be_probed(store, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise InvalidInputError("A class has 3 examples")

    monkeypatch.setattr(importlib.import_module("ndt_query.transformer_study"), "probe_heads", refuse)
    found = nq.transformer_study(store, checkpoints=[0, 40])
    assert "probes: A class has 3 examples" in found.attrs["left_out"]
    assert not {"probes", "categories"} & set(found.children)
    assert nq.study_page(found, tmp_path / "out").exists()


def test_table__of_a_study_of_which_some_layers_were_probed(study):
    some = study.copy()
    for name in ("probes", "categories"):
        some[name] = xr.DataTree(study[name].to_dataset().sel(layer=["enc.0"]).isel(head=slice(3)))
    rows = transformer_tables(some)["heads"]
    assert [bool(row["category"]) for row in rows] == [True, True, True, False] + [False] * HEADS
    assert len(rows) == 2 * HEADS


def test_page__has_its_figures_in_both_formats_and_the_numbers(study, tmp_path):
    page = nq.study_page(study, tmp_path / "out")
    names = {"patterns", "measures", "specialisation", "clusters", "importance", "flow", "bottlenecks"}
    made = {path.name for path in page.parent.iterdir()}
    assert made == {f"{name}{end}" for name in names for end in (".pdf", ".png")} | {"index.html", "study.zarr"}
    text = page.read_text()
    assert text.count("<figure>") == 7
    assert "Study of a transformer" in text
    assert "<td>enc.1</td><td>2</td>" in text
    stored = xr.open_datatree(page.parent / "study.zarr", engine="zarr", consolidated=False)
    np.testing.assert_array_equal(stored["measures"]["gini"], study["measures"]["gini"])
    assert stored["categories"]["category"].values.tolist() == study["categories"]["category"].values.tolist()


def test_figures__fit_journal_columns_and_show_what_they_say(study):
    figures = study_figures(study)
    for figure in figures.values():
        assert figure.get_size_inches()[0] <= 7.21
    titles = [axes.get_title(loc="center") for axes in figures["patterns"].axes[:3]]
    assert titles == ["0", "10", "40"]
    assert len(figures["patterns"].axes) == 2 * HEADS * 3
    measures = {axes.get_ylabel() for axes in figures["measures"].axes}
    assert measures == {"entropy", "Hoyer sparsity", "Gini index", "distance, tokens"}
    assert "silhouette" in figures["clusters"].axes[0].get_title(loc="left")


def test_report__of_a_transformer_has_its_study(store, study, tmp_path):
    text = nq.report(store, tmp_path / "with").read_text()
    assert "What the heads of the transformer do" in text
    assert "<td>classifier</td>" in text
    assert "@heads" not in text  # no layer of units
    assert (tmp_path / "with" / "transformer" / "patterns.pdf").exists()
    kept = xr.open_datatree(tmp_path / "with" / "transformer" / "study.zarr", engine="zarr", consolidated=False)
    np.testing.assert_allclose(kept["measures"]["entropy"], study["measures"]["entropy"])
    assert "What the heads of the transformer do" not in nq.report(store, tmp_path / "without", study=False).read_text()


def test_study__leaves_out_what_cannot_be_asked(tmp_path):
    rng = np.random.default_rng(0)
    taps = [Tap("cross", "attentions", ("example", "head", "query", "key"), (1, 4, 6))]
    schema, static = plan_store((0, 5), ProbeSet(rng.random((30, 3)), np.arange(30) % 2), taps, n_classes=2)
    with StoreWriter.open(tmp_path / "r.zarr", schema, static=static, provenance={}) as writer:
        for step in (0, 5):
            for array in schema.cubes:
                for block in blocks(array):
                    shape = (block.stop - block.start, *array.sizes[1:]) if array.sizes else ()
                    part = np.asarray("", object) if array.dtype == "string" else np.zeros(shape, array.dtype)
                    if array.path.endswith("attentions"):
                        part = rng.dirichlet(np.ones(6), shape[:-1]).astype(np.float32)
                    writer.write_block(step, array.path, block.index, part)
            writer.commit(step)
    found = nq.transformer_study(open_store(tmp_path / "r.zarr"))
    for name in ("specialisation", "clusters", "flow", "importance", "probes"):
        assert name not in found.children
        assert f"{name}: " in found.attrs["left_out"]
    page = nq.study_page(found, tmp_path / "out").read_text()
    assert "Left out: importance" in page


def test_study__names_what_is_wrong(store, study, tmp_path):
    with pytest.raises(NotFoundError, match=r"no attention patterns of enc.9: it has enc.0, enc.1"):
        nq.transformer_study(store, layers=["enc.9"])
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        nq.transformer_study(store, checkpoints=[0, 11])
    with pytest.raises(NotFoundError, match="pass what cnn_study, transformer_study or mlp_study gave"):
        kind_of(xr.DataTree())
    with pytest.raises(DimensionError, match="pass that of mean_pattern"):
        nq.plot.attention_patterns(study["measures"].to_dataset())
    with pytest.raises(DimensionError, match="expected a measure of attention"):
        nq.plot.attention_measures(study["flow"].to_dataset())
    with pytest.raises(DimensionError, match="pass that of cluster_heads"):
        nq.plot.head_clusters(study["flow"].to_dataset())
    with pytest.raises(DimensionError, match="do not fit 9 tokens"):
        nq.plot.bottlenecks(study["flow"].to_dataset(), np.zeros((6, 6)), (2, 2))
    from ndt_store.testing import simulate_store

    with pytest.raises(InvalidInputError, match="1 committed checkpoints"):
        nq.transformer_study(simulate_store(tmp_path / "one.zarr", checkpoints=(0,)).store)
    with pytest.raises(NotFoundError, match="No layer holds attention"):
        nq.transformer_study(simulate_store(tmp_path / "none.zarr").store)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_attention_command__tabulates_and_draws(store, capsys, tmp_path):
    code, out, err = run(
        capsys, "attention", store.path, "--layer", "enc.1", "--format", "json", "--figure", tmp_path / "m.png",
        "--patterns", tmp_path / "p.svg",
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 3 * HEADS
    expected = nq.attention_entropy(store["enc.1"])["entropy"].sel(checkpoint=40, head=2)
    assert rows[-2]["entropy"] == pytest.approx(float(expected))
    assert (tmp_path / "m.png").stat().st_size > 5000
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    code, out, err = run(capsys, "attention", store.path, "--layer", "enc.0@heads")
    assert (code, out) == (2, "")
    assert "holds attention of enc.0, enc.1, and none of these is selected" in err


def test_attention_command__selects_examples(store, capsys):
    code, out, _ = run(capsys, "attention", store.path, "--example", "0:5", "--checkpoint", "0", "--format", "json")
    assert code == 0
    part = store["enc.0"].attentions.sel(checkpoint=0, example=slice(0, 5))
    assert json.loads(out)[0]["gini"] == pytest.approx(float(nq.attention_sparsity(part)["gini"][0]))


def test_heads_command__lists_worth_and_what_can_be_read(store, capsys, tmp_path):
    code, out, err = run(capsys, "heads", store.path, "--format", "json", "--figure", tmp_path / "h.pdf")
    assert code == 0, err
    rows = json.loads(out)
    assert [(row["layer"], row["head"]) for row in rows] == [(layer, head) for layer in LAYERS for head in range(HEADS)]
    assert rows[6]["accuracy_drop"] == pytest.approx(1 / 3)
    assert rows[1]["category"] == "class"
    assert rows[1]["class_accuracy"] > 0.9
    assert (tmp_path / "h.pdf").read_bytes().startswith(b"%PDF")
    assert "rank correlation" in err
    code, out, err = run(capsys, "heads", store.path, "--checkpoint", "7")
    assert (code, out) == (2, "")
    assert "ablated at steps 0, 10, 40 by zero, mean: got 7 and zero" in err


def test_heads_command__of_a_store_without_either_says_what_to_do(capsys, tmp_path):
    from ndt_store.testing import simulate_store

    simulate_store(tmp_path / "r.zarr")
    code, _, err = run(capsys, "heads", tmp_path / "r.zarr")
    assert code == 2
    assert "has neither the experiment head_ablation nor layers @heads" in err
    code, _, err = run(capsys, "heads", tmp_path / "r.zarr", "--figure", tmp_path / "f.png")
    assert "run `ndt ablate-heads`" in err


def test_study__of_no_checkpoints_or_one_layer(store):
    with pytest.raises(InvalidInputError, match=r"checkpoints=\[\] names none"):
        nq.transformer_study(store, checkpoints=[])
    name = next(name for name in store.layers if "attentions" in store[name])
    assert nq.transformer_study(store, layers=name, n_permutations=9)["measures"]["layer"].values.tolist() == [name]


def test_transformer_command__writes_the_study(store, capsys, tmp_path):
    code, out, err = run(
        capsys, "transformer", store.path, "--out", tmp_path / "t", "--checkpoint", 0, "--checkpoint", 40
    )
    assert code == 0, err
    assert out.strip() == str(tmp_path / "t" / "index.html")
    stored = xr.open_datatree(tmp_path / "t" / "study.zarr", engine="zarr", consolidated=False)
    assert stored["measures"]["checkpoint"].values.tolist() == [0, 40]


def test_commands_and_studies_of_units__pass_over_heads(store, capsys):
    code, out, err = run(capsys, "summary", store.path, "--format", "json")
    assert code == 0, err
    assert {row["layer"] for row in json.loads(out)} == {"classifier"}
    assert set(nq.cnn_study(store, n_permutations=9)["selectivity"].children) == {"classifier"}
    code, _, err = run(capsys, "summary", store.path, "--layer", "enc.0@heads")
    assert code == 2
    assert "holds no activations of enc.0@heads" in err
