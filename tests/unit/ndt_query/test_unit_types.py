"""The rule of types says what it should of planted units and pictures, and nothing of what learned nothing."""

import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.kernels.patches import orientation_coherence, spatial_frequency
from ndt_query.proportions import paired_shares
from ndt_query.unit_types import TYPES
from ndt_store.cli import main
from ndt_store.errors import DimensionError, NotFoundError
from ndt_store.testing import simulate_store


def stripes(period, angle=0.0, size=16):
    y, x = np.mgrid[:size, :size]
    return np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)


@pytest.mark.parametrize("angle", [0, np.pi / 4, np.pi / 2, 1.0])
def test_coherence__is_1_for_one_orientation_whichever_it_is(angle):
    assert orientation_coherence(stripes(8, angle)) == pytest.approx(1, abs=0.02)


def test_coherence__is_about_0_for_noise_and_for_two_orientations(rng):
    assert orientation_coherence(rng.standard_normal((200, 14, 14))).mean() < 0.12
    assert orientation_coherence(stripes(8) + stripes(8, np.pi / 2)) == pytest.approx(0, abs=0.05)


def test_coherence__of_a_step_edge_with_missing_pixels(rng):
    edge = np.zeros((14, 14))
    edge[:, 7:] = 1
    edge[:3] = np.nan
    assert orientation_coherence(edge) == 1
    assert np.isnan(orientation_coherence(np.ones((5, 5))))


@pytest.mark.parametrize("period", [3, 4, 8])
def test_frequency__is_that_of_a_sine(period):
    assert spatial_frequency(stripes(period, size=24)) == pytest.approx(1 / period, rel=0.06)


def test_frequency__of_noise_is_that_of_a_flat_spectrum(rng):
    f = np.fft.fftfreq(14)
    flat = np.hypot(f[:, None], f).mean()
    assert spatial_frequency(rng.standard_normal((3000, 14, 14))).mean() == pytest.approx(flat, rel=0.03)
    assert np.isnan(spatial_frequency(np.full((6, 6), 3.0)))


def scores(**columns):
    base = {"coherence": 0.0, "frequency": 0.0, "auroc": 0.5, "q_value": 1.0, "firing_rate": 0.5, "field": 1.0}
    return xr.Dataset({name: (("checkpoint", "unit"), [[value]]) for name, value in {**base, **columns}.items()})


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "unclassified"),
        ({"coherence": 0.7}, "edge"),
        ({"frequency": 0.3}, "texture"),
        ({"coherence": 0.7, "frequency": 0.3}, "edge"),
        ({"auroc": 0.8, "q_value": 0.01, "coherence": 0.7}, "part"),
        ({"auroc": 0.95, "q_value": 0.01}, "object"),
        ({"auroc": 0.95, "q_value": 0.2}, "unclassified"),
        ({"auroc": 0.95, "q_value": 0.01, "field": 0.3}, "part"),
        ({"auroc": 0.95, "q_value": 0.01, "field": 0.1, "coherence": 0.7}, "edge"),
        ({"auroc": 0.95, "q_value": 0.01, "firing_rate": 0.001}, "unclassified"),
        ({"coherence": np.nan, "frequency": np.nan, "auroc": np.nan, "q_value": np.nan}, "unclassified"),
    ],
)
def test_rule__says_what_it_states(columns, expected):
    assert nq.TypeRule().of(scores(**columns)).item() == expected


N = 120
LABEL = np.arange(N) % 3


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """At step 10 unit 0 is wired to class 1; before, and in the others, there is noise."""
    rng = np.random.default_rng(1)
    values = np.maximum(rng.standard_normal((2, N, 12, 3, 3)), 0)
    values[1][LABEL == 1, 0] += 5
    values[:, :, 11] = 0
    return simulate_store(
        tmp_path_factory.mktemp("types") / "r.zarr", checkpoints=(0, 10), n_examples=N,
        layers={"conv": (12, 3, 3), "fc": (2,)}, kinds=("activations",), planted={"layers/conv/activations": values},
    ).store  # fmt: skip


@pytest.fixture(scope="module")
def found(store):
    return nq.unit_types(store, "conv")


def test_types__find_the_unit_that_is_wired_to_a_class(found):
    assert found["type"].sel(checkpoint=10, unit=0).item() == "object"
    assert found["type"].sel(checkpoint=0, unit=0).item() != "object"
    others = found["type"].sel(unit=slice(1, None)).values
    assert not ((others == "object") | (others == "part")).any()
    assert (found["type"].sel(unit=11) == "unclassified").all()


def test_types__follow_from_their_scores(found, store):
    np.testing.assert_array_equal(found["type"], nq.TypeRule().of(found))
    acts = store["conv"].activations
    told = nq.selectivity_index(acts, n_permutations=500)
    np.testing.assert_allclose(found["auroc"], told["auroc_held_out"])
    top = nq.top_examples(acts, 9).compute().sel(checkpoint=10, unit=3)
    patch = store.root["input"].sel(example=top["example"].values).mean("example").values[0].astype(np.float64)
    assert found["frequency"].sel(checkpoint=10, unit=3).item() == pytest.approx(spatial_frequency(patch).item())
    assert found["field"].item() == 1  # nothing is known of it: the whole input


def test_types__are_the_same_from_selectivity_that_is_known(found, store):
    known = nq.selectivity_index(store["conv"].activations, n_permutations=500)
    xr.testing.assert_identical(nq.unit_types(store, "conv", selective=known), found)


def test_types__refuse_selectivity_of_other_checkpoints(store):
    known = nq.selectivity_index(store["conv"].activations, n_permutations=9)
    with pytest.raises(DimensionError, match="not the checkpoint labels of layer conv"):
        nq.unit_types(store, "conv", selective=known.isel(checkpoint=[1, 0]))
    found = nq.unit_types(store, "conv", selective=known)
    assert json.loads(found.attrs["parameters"])["n_permutations"] == 9


def test_types__average_the_patches_of_examples_that_drive_the_unit_alone(tmp_path):
    values = np.zeros((2, 60, 2, 3, 3), np.float32)
    values[:, 7:12, 0, 1, 1] = 1
    made = simulate_store(
        tmp_path / "r.zarr", checkpoints=(0, 10), n_examples=60, layers={"conv": (2, 3, 3)}, kinds=("activations",),
        planted={"layers/conv/activations": values},
    ).store  # fmt: skip
    found = nq.unit_types(made, "conv", k=9)
    picture = made.root["input"].values[7:12, 0].astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found["coherence"].sel(unit=0), orientation_coherence(picture))
    np.testing.assert_allclose(found["frequency"].sel(unit=0), spatial_frequency(picture))
    assert found["coherence"].sel(unit=1).isnull().all()  # it never fires


def test_shares__count_and_compare_with_the_first_checkpoint(found):
    shares = nq.type_shares(found)
    assert (shares["count"].sum("type") == 12).all()
    one = shares.sel(type="object")
    assert one["count"].values.tolist() == [0, 1]
    assert one["excess"].values.tolist() == [0, pytest.approx(1 / 12)]
    low, high = nq.clopper_pearson(1, 12)
    assert (one["share_low"][1], one["share_high"][1]) == (low, high)
    limits = paired_shares([1] + [0] * 11)
    assert one["excess_low"].values.tolist() == [0, limits.low]
    assert one["excess_high"].values.tolist() == [0, limits.high]


def test_shares__leave_units_out_whose_activations_are_nan(store):
    acts = store["conv"].activations.compute()
    broken = acts.where((acts["checkpoint"] < 10) | (acts["unit"] != 3))
    rates = nq.dead_units(broken)["firing_rate"].values
    scores = xr.Dataset({"firing_rate": (("checkpoint", "unit"), rates)})
    for name in ("q_value", "auroc", "coherence", "frequency"):
        scores[name] = xr.zeros_like(scores["firing_rate"])
    named = nq.TypeRule().of(scores.assign(field=0.1))
    assert [(unit, named[1, unit]) for unit in range(12) if not named[1, unit]] == [(3, "")]
    shares = nq.type_shares(xr.Dataset({"type": (("checkpoint", "unit"), named)}, {"checkpoint": [0, 10]}))
    assert shares["count"].sum("type").values.tolist() == [12, 11]
    np.testing.assert_allclose(shares["share"].sum("type"), 1)
    assert shares["excess_low"].isnull().values.tolist() == [[False] * 5, [True] * 5]
    gone = xr.Dataset({"type": (("checkpoint", "unit"), np.full((2, 3), "", object))}, {"checkpoint": [0, 10]})
    assert nq.type_shares(gone)[["share", "share_low", "excess"]].to_array().isnull().all()


def test_types__name_what_is_wrong(store):
    with pytest.raises(DimensionError, match="types are of conv layers"):
        nq.unit_types(store, "fc")
    with pytest.raises(NotFoundError, match="no checkpoint 3"):
        nq.unit_types(store, "conv", checkpoints=[3])
    selective = nq.selectivity_index(store["conv"].activations.sel(checkpoint=[10]))
    with pytest.raises(DimensionError, match="ask selectivity_index about the same"):
        nq.unit_types(store, "conv", selective=selective)
    with pytest.raises(NotFoundError, match="pass that of unit_types"):
        nq.type_shares(xr.Dataset())


def test_figure__draws_shares_and_the_base_rate(found):
    shares = nq.type_shares(found)
    figure = nq.plot.unit_types({"conv": shares, "again": shares})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines[::2]] == ["edge", "texture", "part", "object"]
    np.testing.assert_allclose(lines[6].get_ydata(), shares["share"].sel(type="object"))
    np.testing.assert_allclose(lines[7].get_ydata(), shares["share"].sel(type="object")[0])
    with pytest.raises(DimensionError, match="pass that of type_shares"):
        nq.plot.unit_types({"conv": found})


def test_command__counts_types_of_conv_layers_and_draws_them(store, found, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["types", str(store.path), "--format", "json", "--figure", str(tmp_path / "t.png")])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    rows = json.loads(captured.out)
    assert {row["layer"] for row in rows} == {"conv"}
    counts = {(row["checkpoint"], row["type"]): row["count"] for row in rows}
    shares = nq.type_shares(found)
    assert counts == {(c, t): int(shares["count"].sel(checkpoint=c, type=t)) for c in (0, 10) for t in TYPES}
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as stop:
        main(["types", str(store.path), "--layer", "fc"])
    assert stop.value.code == 2
    assert "types are of conv layers" in capsys.readouterr().err
