"""The study of a CNN is made of what each question says, finds what was planted, and finds nothing in noise."""

import importlib
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.cnn_figures import cnn_tables
from ndt_query.study import emergence
from ndt_query.study_pages import study_figures
from ndt_query.unit_types import TYPES
from ndt_store.cli import main
from ndt_store.errors import InvalidInputError, NotFoundError, StorageError
from ndt_store.testing import simulate_store

STEPS = (0, 10, 40)
N = 120
LABEL = np.arange(N) % 3


def planted(rng):
    """Units 0 to 11 of conv1 tell class 1 from step 40 on; unit 2 of conv2 wakes up at 10; late unit 0 is a sum."""
    early = np.maximum(rng.standard_normal((3, N, 16, 4, 4)), 0)
    early[2][LABEL == 1, :12] += 6
    middle = np.maximum(rng.standard_normal((3, N, 6, 4, 4)), 0)
    middle[0, :, 2] = 0
    late = np.maximum(rng.standard_normal((3, N, 5, 2, 2)), 0)
    late[:, :, 0] = early[:, :, [14, 15]].mean((3, 4)).sum(2)[..., None, None]
    return {f"layers/conv{n}/activations": one.astype(np.float32) for n, one in enumerate((early, middle, late), 1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulate_store(
        tmp_path_factory.mktemp("study") / "r.zarr", checkpoints=STEPS, n_examples=N, kinds=("activations",),
        layers={"conv1": (16, 4, 4), "conv2": (6, 4, 4), "conv3": (5, 2, 2)}, planted=planted(np.random.default_rng(4)),
    ).store  # fmt: skip


@pytest.fixture(scope="module")
def study(store):
    seen = []
    found = nq.cnn_study(store, progress=lambda *one: seen.append(one))
    assert seen == [(n, 9) for n in range(1, 10)]
    return found


def test_study__is_made_of_what_each_question_says(study, store):
    assert set(study.children) == {
        "performance", "selectivity", "types", "waking", "stimuli", "composition", "emergence",
    }  # fmt: skip
    acts = store["conv1"].activations
    expected = nq.selectivity_index(acts, n_permutations=500).compute()
    xr.testing.assert_identical(study["selectivity/conv1"].to_dataset(), expected)
    xr.testing.assert_identical(
        study["types/conv2"].to_dataset(), nq.type_shares(nq.unit_types(store, "conv2", checkpoints=STEPS))
    )
    assert list(study["composition"].children) == ["conv1--conv3"]


def test_study__finds_what_was_planted(study):
    waking = study["waking"].to_dataset()
    assert waking["woken"].sel(layer="conv2").values.tolist() == [1, 0]
    assert waking["unit"].values.tolist() == [2]
    one = study["emergence"].to_dataset().sel(layer="conv1")
    assert one["share"].values.tolist() == [0, 0, 0.75]
    assert (one["half_after"], one["half"]) == (10, 40)
    composed = study["composition/conv1--conv3"].to_dataset()["composed"]
    assert composed.sel(unit=0).values.all()
    assert not composed.sel(unit=slice(1, None)).values.any()


def test_study__finds_nothing_in_noise(study):
    found = study["emergence"].to_dataset()
    assert (found["share"].sel(layer=["conv2", "conv3"]) == 0).all()
    assert found["half"].sel(layer=["conv2", "conv3"]).isnull().all()
    assert int(study["waking"].to_dataset()["woken"].sel(layer=["conv1", "conv3"]).sum()) == 0
    shares = study["types/conv3"].to_dataset()["share"]
    assert float(shares.sel(type=["part", "object"]).max()) == 0


def test_emergence__needs_a_rise_beyond_doubt():
    def layer(counts):
        auroc = np.array([[0.95] * k + [0.5] * (20 - k) for k in counts])
        return xr.Dataset(
            {
                "auroc_held_out": (("checkpoint", "unit"), auroc),
                "q_value": (("checkpoint", "unit"), np.zeros((4, 20))),
                "nan_count": (("checkpoint", "unit"), np.zeros((4, 20), int)),
            },
            {"checkpoint": [0, 10, 40, 100]},
        )

    found = emergence({"up": layer([0, 2, 12, 20]), "doubtful": layer([3, 4, 5, 6]), "down": layer([20, 9, 3, 0])})
    assert found["half"].sel(layer="up") == 40
    assert found["half_after"].sel(layer="up") == 10
    assert found["half"].sel(layer=["doubtful", "down"]).isnull().all()
    low, high = nq.clopper_pearson(2, 20)
    one = found.sel(layer="up", checkpoint=10)
    assert (one["share_low"], one["share_high"]) == (low, high)
    missing = layer([0, 2, 12, 20])
    missing["nan_count"][1, 3] = 1
    found = emergence({"some": missing})
    assert np.isnan(found["share"].values[:, 0]).tolist() == [False, True, False, False]
    assert found["half"].isnull().all()


def test_study__takes_selectivity_that_was_asked_for(store, study):
    known = {layer: nq.selectivity_index(store[layer].activations, n_permutations=9).compute() for layer in ("conv1",)}
    found = nq.cnn_study(store, layers=["conv1", "conv3"], selective=known)
    xr.testing.assert_identical(found["selectivity/conv1"].to_dataset(), known["conv1"])
    xr.testing.assert_identical(found["selectivity/conv3"].to_dataset(), study["selectivity/conv3"].to_dataset())


def test_study__holds_what_drives_the_woken_units(study, store):
    stimuli = study["stimuli"].to_dataset()
    driven = np.unique(study["waking"]["example"].values)
    assert stimuli["example"].values.tolist() == driven.tolist()
    np.testing.assert_array_equal(stimuli["input"], store.root["input"].sel(example=driven))


def test_page__has_its_figures_in_both_formats_and_the_numbers(study, tmp_path):
    page = nq.study_page(study, tmp_path / "out")
    names = {"hierarchy", "emergence", "selectivity", "waking", "stimuli", "composition"}
    made = {path.name for path in page.parent.iterdir()}
    assert made == {f"{name}{end}" for name in names for end in (".pdf", ".png")} | {"index.html", "study.zarr"}
    assert (page.parent / "waking.pdf").read_bytes().startswith(b"%PDF")
    assert b"/FontFile2" in (page.parent / "waking.pdf").read_bytes()  # fonts are embedded, as TrueType
    text = page.read_text()
    assert text.count("<figure>") == 6
    assert (
        "<td>conv1</td><td>16</td><td>0% (0% to 21%)</td><td>75% (48% to 93%)</td><td>10 to 40</td><td>0</td>" in text
    )
    assert "<td>conv1 to conv3</td><td>1 of 5</td><td>1 of 5</td>" in text
    assert "<script" not in text
    stored = xr.open_datatree(page.parent / "study.zarr", engine="zarr", consolidated=False)
    np.testing.assert_array_equal(stored["emergence"]["share"], study["emergence"]["share"])
    nq.study_page(study, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        nq.study_page(study, tmp_path / "file" / "out")


def test_figures__fit_journal_columns(study):
    for figure in study_figures(study).values():
        assert figure.get_size_inches()[0] <= 7.2


def test_study__names_what_is_wrong(store, tmp_path):
    with pytest.raises(NotFoundError, match="no activations of conv9: it has conv1, conv2, conv3"):
        nq.cnn_study(store, layers=["conv9"])
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        nq.cnn_study(store, checkpoints=[0, 11])
    with pytest.raises(NotFoundError, match="pass what cnn_study, transformer_study or mlp_study gave"):
        study_figures(xr.DataTree())
    single = simulate_store(tmp_path / "r.zarr", checkpoints=(0,)).store
    with pytest.raises(InvalidInputError, match="1 committed checkpoints"):
        nq.cnn_study(single)


def test_command__writes_the_study_of_chosen_layers_and_moments(store, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cnn", str(store.path), "--out", str(tmp_path), "--layer", "conv1", "--layer", "conv2",
              "--checkpoint", "0", "--checkpoint", "40"])  # fmt: skip
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out.strip()) == (0, str(tmp_path / "index.html")), captured.err
    stored = xr.open_datatree(tmp_path / "study.zarr", engine="zarr", consolidated=False)
    assert list(stored["composition"].children) == ["conv1--conv2"]
    assert stored["emergence"]["checkpoint"].values.tolist() == [0, 40]


def test_study__asks_for_selectivity_once_and_looks_at_pairs_before_it(store, monkeypatch):
    module, types = (importlib.import_module(f"ndt_query.{name}") for name in ("study", "unit_types"))
    asked = []
    ask = module.selectivity_index
    monkeypatch.setattr(module, "selectivity_index", lambda acts, **rest: asked.append(acts.name) or ask(acts, **rest))
    monkeypatch.setattr(types, "selectivity_index", None)
    with pytest.raises(InvalidInputError, match="runs backwards"):
        nq.cnn_study(store, pairs=[(10, 0)])
    assert asked == []
    nq.cnn_study(store, checkpoints=[0, 40], layers=["conv1", "conv2"])
    assert len(asked) == 2


def test_study__of_inputs_that_are_no_images_leaves_types_out(store, monkeypatch):
    module = importlib.import_module("ndt_query.study")
    monkeypatch.setattr(module, "images_of", lambda store, examples: None)
    found = nq.cnn_study(store, checkpoints=[0, 40], layers=["conv1", "conv2"])
    assert "types" not in found.children
    assert set(study_figures(found)) == {"emergence", "selectivity", "waking", "composition"}


def test_study__of_layers_inside_one_another_and_of_few_examples(tmp_path):
    made = simulate_store(
        tmp_path / "r.zarr", checkpoints=(0, 10), n_examples=8, kinds=("activations",),
        layers={"block": (4, 3, 3), "block/conv": (6, 3, 3), "a--b": (3, 3, 3)},
    ).store  # fmt: skip
    study = nq.cnn_study(made, n_permutations=9)
    assert list(study["selectivity"].children) == ["block", "block%2Fconv", "a--b"]
    assert study["selectivity"].children["block%2Fconv"].sizes["unit"] == 6
    assert "composition of block and a--b: " in study.attrs["left_out"]
    page = nq.study_page(study, tmp_path / "out").read_text()
    assert "<td>block/conv</td>" in page
    assert "Left out: composition of block and a--b" in page


def test_table__counts_a_unit_that_wakes_up_in_overlapping_pairs_once(store):
    both = nq.cnn_study(store, pairs={"jump": [(0, 10)], "": [(0, 40), (0, 10)]}, n_permutations=9)
    assert both["waking"].sizes["woken_unit"] == 3
    rows = {row["layer"]: row["woken"] for row in cnn_tables(both)["rows"]}
    assert rows == {"conv1": 0, "conv2": 1, "conv3": 0}
    assert "selectivity of 1 woken unit" in [axes.get_title() or axes.get_title(loc="left") for axes in
                                             study_figures(both)["waking"].axes]  # fmt: skip


def test_study__of_one_moment_says_that_two_are_needed(store):
    with pytest.raises(InvalidInputError, match=r"checkpoints=\[10\] are fewer than two"):
        nq.cnn_study(store, checkpoints=[10])
    one = nq.cnn_study(store, layers="conv1", n_permutations=9)
    assert list(one["selectivity"].children) == ["conv1"]


def test_figures__of_many_layers_stay_legible():
    names = [f"features.{i}.conv" for i in range(40)]
    steps, shares = [0, 10], np.linspace(0, 1, 80).reshape(2, 40)
    over = ("checkpoint", "layer")
    told = xr.Dataset(
        dict.fromkeys(("share", "share_low", "share_high"), (over, shares))
        | {name: ("layer", np.full(40, 10.0)) for name in ("half", "half_after")},
        {"checkpoint": steps, "layer": names},
    )
    figure = nq.plot.emergence(told)
    below = figure.axes[1]
    legend = figure.legends[0]
    assert legend.get_title().get_text() == "12 of 40"
    named = [text.get_text() for text in legend.get_texts()]
    assert (named[0], named[-1], len(named)) == (names[0], names[-1], 12)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in below.get_yticklabels()]
    assert len(boxes) == 40
    assert all(lower.y1 <= upper.y0 + 1 for upper, lower in pairwise(boxes))
    types = xr.Dataset(
        {name: (("checkpoint", "type"), np.full((2, len(TYPES)), 0.2)) for name in ("share", "count")},
        {"checkpoint": steps, "type": list(TYPES)},
    )
    lying = nq.plot.hierarchy(dict.fromkeys(names, types))
    lying.canvas.draw()
    boxes = [label.get_window_extent() for label in lying.axes[0].get_yticklabels()]
    assert len(boxes) == 40
    assert all(lower.y1 <= upper.y0 + 1 for upper, lower in pairwise(boxes))
    assert len(lying.axes[0].patches) == 40 * 2 * len(TYPES)


def test_command__of_a_store_with_attention_names_the_other_study(tmp_path, capsys):
    simulate_store(tmp_path / "r.zarr", checkpoints=(0, 10), kinds=("activations", "attentions"))
    with pytest.raises(SystemExit) as stop:
        main(["cnn", str(tmp_path / "r.zarr"), "--out", str(tmp_path / "out")])
    told = capsys.readouterr().err
    assert stop.value.code == 0, told
    assert "`ndt transformer` studies it" in told
