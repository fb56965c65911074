"""The study of smooth learning: its parts are what each question says, and what is not there is said."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.mlp_figures import mlp_figures, mlp_tables
from ndt_store.cli import main
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

STEPS = tuple(range(0, 210, 10))
LAYERS = {"relu1": (9,), "relu2": (8,), "small": (4,), "classifier": (3,)}
N = 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 3
    pulled = np.linspace(0, 4, len(STEPS))[:, None, None] * np.eye(3, 8)[labels]
    return simulate_store(
        tmp_path_factory.mktemp("mlp") / "r.zarr", checkpoints=STEPS, n_examples=N, layers=LAYERS, n_tracked=60,
        n_parameters=4, planted={"layers/relu2/activations": rng.standard_normal((len(STEPS), N, 8)) + pulled},
    ).store  # fmt: skip


@pytest.fixture(scope="module")
def study(store):
    return nq.mlp_study(store, k=5)


def test_study__is_what_each_question_says(store, study):
    assert set(study.children) == {
        "performance", "dimensionality", "overlap", "drift", "cka", "disentanglement", "last", "transition", "growth",
        "flow", "anomalies",
    }  # fmt: skip
    assert study.attrs["left_out"] == ""
    acts = {layer: store[layer].activations for layer in LAYERS}
    xr.testing.assert_allclose(study["dimensionality"].to_dataset(), nq.dimensionality(acts).compute())
    wide = {layer: acts[layer] for layer in ("relu1", "relu2")}
    xr.testing.assert_allclose(study["overlap"].to_dataset(), nq.subspace_overlap(wide, 5))
    assert study["drift"]["layer"].values.tolist() == ["relu1", "relu2"]
    assert study["disentanglement"].sizes["checkpoint"] == study["cka"].sizes["checkpoint"] == 8
    assert study["last"].attrs["layer"] == "small"  # the classifier is as wide as there are classes
    xr.testing.assert_allclose(study["flow"].to_dataset(), nq.gradient_flow(store))


def test_study__of_chosen_layers_and_checkpoints(store):
    found = nq.mlp_study(store, layers="relu2", checkpoints=[0, 100, 200], k=2)
    assert found["dimensionality"]["layer"].values.tolist() == ["relu2"]
    assert found["last"]["checkpoint"].values.tolist() == [0, 100, 200]
    assert found["last"].attrs["layer"] == "relu2"
    assert found["last"]["accuracy"].values[-1] > 0.9 > found["last"]["accuracy"].values[0]
    assert "transition: The series has 3 values" in found.attrs["left_out"]
    assert "drift: There are 3 checkpoints" in found.attrs["left_out"]


def test_study__finds_classes_that_come_apart_gradually(store):
    found = nq.mlp_study(store, layers=["relu2"], k=2)
    changes = dict(zip(found["transition"]["measure"].values, found["transition"]["change"].values, strict=True))
    assert changes["separation"] == "gradual"
    rows = {row["measure"]: row for row in mlp_tables(found)["changes"]}
    assert rows["separation"]["change"] == "gradual"


def test_study__says_what_is_not_there(tmp_path):
    bare = simulate_store(tmp_path / "r.zarr", checkpoints=(0, 10), n_examples=20, layers={"fc": (4,)}).store
    found = nq.mlp_study(bare, k=5)
    assert {"dimensionality", "cka", "disentanglement", "last"} <= set(found.children)
    said = found.attrs["left_out"]
    for words in ("overlap: no layer has more than 5 units", "growth: nothing was tracked", "flow: the store holds no",
                  "anomalies: nothing was tracked"):  # fmt: skip
        assert words in said
    page = nq.study_page(found, tmp_path / "out").read_text()
    assert "Left out: overlap: no layer has more than 5 units" in page


def test_study__names_what_is_wrong(store, tmp_path):
    with pytest.raises(NotFoundError, match="no activations of conv9: it has relu1"):
        nq.mlp_study(store, layers=["conv9"])
    with pytest.raises(NotFoundError, match="no checkpoint 7"):
        nq.mlp_study(store, checkpoints=[0, 7])
    with pytest.raises(InvalidInputError, match=r"checkpoints=\[10\] are fewer than two"):
        nq.mlp_study(store, checkpoints=[10])
    with pytest.raises(InvalidInputError, match="k=0"):
        nq.mlp_study(store, k=0)
    with pytest.raises(NotFoundError, match="no activations of no layer"):
        nq.mlp_study(store, layers=[])
    with pytest.raises(InvalidInputError, match="a Store, which open_store gives: got str"):
        nq.mlp_study("a/path")
    one = simulate_store(tmp_path / "one.zarr", checkpoints=(0,)).store
    with pytest.raises(InvalidInputError, match="1 committed checkpoints"):
        nq.mlp_study(one)


def test_tables_and_figures__show_what_the_study_found(study):
    told = mlp_tables(study)
    assert [row["layer"] for row in told["layers"]] == list(LAYERS)
    dimension = study["dimensionality"].to_dataset().sel(layer="relu2")["participation_ratio"]
    first, last = told["layers"][1]["dimension"].split("; then ")
    assert first.startswith(f"{float(dimension[0]):.1f} (")
    assert last.startswith(f"{float(dimension[-1]):.1f} (")
    assert told["layers"][3]["smoothness"] == ""
    assert told["steps"] == (0, 200)
    assert "norms of the gradient stand out" in told["warning"]
    assert set(mlp_figures(study)) == {
        "performance", "dimensionality", "overlap", "drift", "cka", "disentanglement", "flow", "anomalies",
    }  # fmt: skip


def test_report__of_a_network_without_maps_and_heads_has_the_study(store, tmp_path):
    page = nq.report(store, tmp_path / "out")
    assert "How representations change" in page.read_text()
    assert (tmp_path / "out" / "mlp" / "study.zarr").is_dir()
    assert (tmp_path / "out" / "mlp" / "disentanglement.pdf").is_file()


def test_command__writes_the_study(store, capsys, tmp_path):
    arguments = ["mlp", str(store.path), "--out", str(tmp_path / "m"), "--checkpoint", "0", "--checkpoint", "200"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--layer", "relu1"])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert captured.out.strip() == str(tmp_path / "m" / "index.html")
    kept = xr.open_datatree(tmp_path / "m" / "study.zarr", engine="zarr", consolidated=False)
    assert kept["dimensionality"]["layer"].values.tolist() == ["relu1"]


def test_tables__show_what_is_unknown_as_a_dash_and_keep_the_rest(study):
    told = study.copy(deep=True)
    told["disentanglement"]["silhouette"].loc[{"layer": "relu1", "checkpoint": STEPS[0]}] = np.nan
    told["disentanglement"]["silhouette_low"].loc[{"layer": "relu1", "checkpoint": STEPS[0]}] = np.nan
    told["drift"]["smoothness"].loc[{"layer": "relu1"}] = np.nan
    (row,) = (one for one in mlp_tables(told)["layers"] if one["layer"] == "relu1")
    last = study["disentanglement"].to_dataset().sel(layer="relu1").isel(checkpoint=-1)
    assert row["silhouette"].startswith(f"\u2013; then {float(last['silhouette']):.2f} (")
    assert row["smoothness"] == ""
    assert "nan" not in str(mlp_tables(told)["layers"])


@pytest.mark.parametrize(
    ("rate", "midpoint", "said"),
    [(0.01, 80.0, "rises on the whole, half by step 80"), (-0.01, 80.0, "falls on the whole, half by step 80"),
     (0.01, -1720.0, "rises on the whole, with no middle in this training"),
     (0.01, 1e6, "rises on the whole, with no middle in this training")],
)  # fmt: skip
def test_tables__say_of_growth_what_the_fit_can(study, rate, midpoint, said):
    told = study.copy(deep=True)
    for name, value in (("growth", True), ("rate", rate), ("midpoint", midpoint), ("r2", 0.54)):
        told["growth"][name].loc[{"layer": "relu1"}] = value
    (row,) = (one for one in mlp_tables(told)["layers"] if one["layer"] == "relu1")
    assert row["growth"] == f"{said}, R2 0.54"
