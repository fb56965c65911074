"""Units side by side, and everything about one: equal to direct computations, with what was planted found."""

import csv
import io
import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.profile import _histogram, cut_patches
from ndt_store import write_experiment
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

STEPS = (0, 10, 40)
N, N_UNITS = 60, 6
LABEL = np.arange(N) % 3


def values(rng):
    """Unit 1 answers to class 2, unit 3 is dead, unit 4 fires in one example, of class 1, alone."""
    found = np.maximum(rng.standard_normal((3, N, N_UNITS, 4, 4)), 0)
    found[2][LABEL == 2, 1] += 3
    found[:, :, 3] = 0
    found[:, :, 4] = 0
    found[:, 4, 4, 1, 2] = 0.01
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def planted():
    return values(np.random.default_rng(2))


@pytest.fixture(scope="module")
def store(tmp_path_factory, planted):
    return simulate_store(
        tmp_path_factory.mktemp("units") / "r.zarr", checkpoints=STEPS, n_examples=N, layers={"conv": (N_UNITS, 4, 4)},
        kinds=("activations",), planted={"layers/conv/activations": planted},
    ).store  # fmt: skip


@pytest.fixture(scope="module")
def table(store):
    return nq.unit_table(store["conv"].sel(checkpoint=40)).compute()


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_table__is_what_each_question_says(store, table):
    acts = store["conv"].activations.sel(checkpoint=40)
    xr.testing.assert_allclose(table["mean"].drop_attrs(), nq.unit_moments(acts)["mean"].compute().drop_attrs())
    np.testing.assert_array_equal(table["dead"], [False, False, False, True, False, False])
    np.testing.assert_allclose(table["firing_rate"].values[[3, 4]], [0, 1 / N])
    selective = nq.selectivity_index(acts, n_permutations=500).compute()
    np.testing.assert_array_equal(table["q_value"], selective["q_value"])


def test_rank_units__puts_the_planted_unit_first_and_what_has_no_number_last(table):
    order = nq.rank_units(table)["unit"].values.tolist()
    assert order[0] == 1
    assert order[-1] == 3
    assert nq.rank_units(table, "mean", ascending=True)["unit"].values.tolist()[0] == 3
    assert nq.rank_units(table, n=2).sizes["unit"] == 2


def test_rank_units__filters_what_is_nearly_dead_or_not_selective(table):
    by_index = nq.rank_units(table, "selectivity_index")["unit"].values.tolist()
    assert by_index[0] == 4  # an index of 1 from a single example
    assert 4 not in nq.rank_units(table, "selectivity_index", least_rate=0.05)["unit"].values
    assert nq.rank_units(table, max_q=0.01)["unit"].values.tolist() == [1]
    assert 1 in nq.rank_units(table, preferred=2)["unit"].values
    assert 1 not in nq.rank_units(table, preferred=0)["unit"].values


def test_rank_units__names_what_is_wrong(store, table):
    with pytest.raises(InvalidInputError, match="3 checkpoints: select one"):
        nq.rank_units(nq.unit_table(store["conv"]).compute())
    with pytest.raises(InvalidInputError, match="'auc' is no measure of units"):
        nq.rank_units(table, "auc")
    with pytest.raises(NotFoundError, match="no auroc"):
        nq.rank_units(table.drop_vars("auroc"))
    with pytest.raises(InvalidInputError, match="n="):
        nq.rank_units(table, n=0)


def test_profile__equals_numpy(store, planted):
    found = nq.unit_profile(store, "conv", 1, k=4)
    mine = planted[:, :, 1]
    np.testing.assert_allclose(found["mean"], mine.mean((1, 2, 3), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(found["active_fraction"], (mine != 0).mean((1, 2, 3)))
    np.testing.assert_allclose(found["firing_rate"], (mine != 0).any((2, 3)).mean(1))
    by_class = np.stack([mine[:, c == LABEL].mean((1, 2, 3), dtype=np.float64) for c in range(3)], 1)
    np.testing.assert_allclose(found["class_mean"], by_class, rtol=1e-6)
    last = mine[2]
    assert int(found["count"].sum()) == int((last != 0).sum())
    assert float(found["zero_fraction"]) == pytest.approx((last == 0).mean())
    best = np.argsort(-last.max((1, 2)), kind="stable")[:4]
    assert found["example"].values.tolist() == (2 * best + 5).tolist()
    assert found["label"].values.tolist() == LABEL[best].tolist()
    for rank, example in enumerate(best):
        y, x = np.unravel_index(last[example].argmax(), (4, 4))
        assert (found["y"].values[rank], found["x"].values[rank]) == (y, x)
    assert (found["preferred_class"].item(), found["at"].item()) == (2, 40)
    assert found["p_value"].item() < 0.01


def test_profile__at_an_earlier_checkpoint_looks_there(store, planted):
    found = nq.unit_profile(store, "conv", 1, checkpoint=0, k=1)
    assert found["at"].item() == 0
    assert found["value"].item() == planted[0, :, 1].max()
    acts = store["conv"].activations.sel(checkpoint=0, unit=[1])
    expected = nq.selectivity_index(acts, n_permutations=1000)["p_value"].compute()
    assert found["p_value"].item() == expected.item()


def test_profile__without_fields_shows_whole_inputs(store):
    found = nq.unit_profile(store, "conv", 1, k=2)
    shown = store.root["input"].sel(example=found["example"].values).values
    np.testing.assert_array_equal(found["patch"], shown)
    assert "field_size" not in found


def test_profile__of_a_dead_unit_has_nothing_to_rank_by(store):
    found = nq.unit_profile(store, "conv", 3, k=1)
    assert float(found["zero_fraction"]) == 1
    assert int(found["count"].sum()) == 0
    assert found["p_value"].isnull()
    assert float(found["firing_rate_upper"][-1]) == pytest.approx(1 - 0.05 ** (1 / N))
    nq.plot.unit_profile(found)


def fields():
    """A 3 by 3 field about each position: the layer's maps are as large as the inputs, 4 by 4."""
    line = np.array([[0.0, 1, 0, np.nan]] * 4)
    mass = np.broadcast_to(line, (1, 1, 1, 4, 4))
    effective = np.full((1, 1, 1, 4, 4), np.nan)
    effective[..., :3, :3] = 1
    both = {"size": 3.0, "stride": 1.0, "offset": 0.0, "position": 2, "first": 1.0, "last": 3.0, "crop_start": 1,
            "crop_size": 3}  # fmt: skip
    return xr.Dataset(
        {
            **{name: (("layer", "axis"), [[one, one]]) for name, one in both.items()},
            "kind": ("layer", ["sliding"]), "reason": ("layer", [""]), "input_size": ("axis", [4, 4]),
            "effective": (("step", "layer", "unit", "field_row", "field_column"), effective),
            "row_mass": (("step", "layer", "unit", "group", "field_row"), mass),
            "column_mass": (("step", "layer", "unit", "group", "field_column"), mass),
            "group_size": ("group", [3, 3, 3, 3]),
        },
        {"step": [40], "layer": ["conv"], "axis": ["y", "x"], "unit_index": (("layer", "unit"), [[0]])},
    )  # fmt: skip


@pytest.fixture
def with_fields(tmp_path, planted):
    path = tmp_path / "f.zarr"
    simulate_store(
        path, checkpoints=STEPS, n_examples=N, layers={"conv": (N_UNITS, 4, 4)}, kinds=("activations",),
        planted={"layers/conv/activations": planted},
    )  # fmt: skip
    write_experiment(path, "receptive_fields", fields())
    from ndt_store import open_store

    return open_store(path)


def test_profile__cuts_out_what_the_unit_saw(with_fields):
    found = nq.unit_profile(with_fields, "conv", 1, k=N)
    assert found["field_size"].values.tolist() == [3, 3]
    assert found["patch"].shape == (N, 1, 3, 3)
    images = with_fields.root["input"].sel(example=found["example"].values).values
    seen = set()
    for rank in range(N):
        y, x = int(found["y"][rank]), int(found["x"][rank])
        seen.add((y, x))
        padded = np.pad(images[rank, 0], 1, constant_values=np.nan)
        np.testing.assert_array_equal(found["patch"].values[rank, 0], padded[y : y + 3, x : x + 3])
        assert (found["patch_top"].values[rank], found["patch_left"].values[rank]) == (y - 1, x - 1)
    assert {0, 3} <= {y for y, _ in seen}  # both borders are met


@pytest.mark.parametrize("size", [3.0, 18.0, 38.0])
def test_patches__are_aligned_to_the_field_also_where_it_exceeds_the_image(size):
    """Every row of a patch is the same place in the field, whichever sides the border cuts."""
    image = np.arange(28 * 28, dtype=float).reshape(1, 28, 28)
    both = {"size": [size] * 2, "stride": [6.0] * 2, "offset": [0.0] * 2}
    field = xr.Dataset({name: ("axis", one) for name, one in both.items()}, {"axis": ["y", "x"]})
    field["kind"], field["reason"] = "sliding", ""
    y, x = np.array([0, 1, 2, 4]), np.array([4, 0, 3, 1])
    patches, starts = cut_patches(np.repeat(image[None], 4, 0), field, y, x)
    assert patches.shape == (4, 1, int(size), int(size))
    for patch, (top, left), row, column in zip(patches[:, 0], starts, y, x, strict=True):
        assert (top, left) == (round(6 * row - (size - 1) / 2), round(6 * column - (size - 1) / 2))
        for place in np.ndindex(patch.shape):
            at = place[0] + top, place[1] + left
            inside = 0 <= at[0] < 28 and 0 <= at[1] < 28
            assert patch[place] == image[0][at] if inside else np.isnan(patch[place])


def test_profile__has_the_width_of_its_own_checkpoint(with_fields):
    assert "field_width" in nq.unit_profile(with_fields, "conv", 1, checkpoint=40)
    assert "field_width" not in nq.unit_profile(with_fields, "conv", 1, checkpoint=STEPS[0])


@pytest.mark.parametrize(
    "values", [np.float16([1000, 1001, 1002, 1003]), np.nextafter(np.float32(1), np.float32([1, 2, 2, 1])), [2.0] * 4]
)
def test_histogram__of_values_that_are_nearly_alike_counts_them(values):
    found = _histogram(np.asarray(values))
    assert found["count"][1].sum() == 4
    assert (np.diff(found["bin_edge"][1]) > 0).all()


def test_histogram__with_nan_has_no_share_of_zeros():
    found = _histogram(np.array([0, np.nan, 0, 1.0]))
    assert np.isnan(found["zero_fraction"][1])
    assert found["nan_count"][1] == 1


def test_profile__names_what_is_wrong(store):
    with pytest.raises(InvalidInputError, match="unit of a Store, which open_store gives: got str"):
        nq.unit_profile("a/path", "conv", 1)
    with pytest.raises(NotFoundError, match="no layer 'con'|con"):
        nq.unit_profile(store, "con", 1)
    with pytest.raises(NotFoundError, match="Layer conv has no unit 6: its 6 units end at 5"):
        nq.unit_profile(store, "conv", 6)
    with pytest.raises(InvalidInputError, match="'1' is no unit"):
        nq.unit_profile(store, "conv", "1")
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        nq.unit_profile(store, "conv", 1, checkpoint=11)
    with pytest.raises(InvalidInputError, match="k="):
        nq.unit_profile(store, "conv", 1, k=0)


def test_figure__shows_the_profile(store, with_fields):
    found = nq.unit_profile(with_fields, "conv", 1, k=3)
    figure = nq.plot.unit_profile(found)
    patches, below = figure.subfigs
    assert len(patches.axes) == 3
    np.testing.assert_allclose([bar.get_height() for bar in below.axes[1].patches], found["class_mean"][-1])
    assert below.axes[1].get_title(loc="left").startswith(f"AUROC {float(found['auroc']):.3f}")
    with pytest.raises(DimensionError, match="pass that of unit_profile"):
        nq.plot.unit_profile(store["conv"])


def test_units__lists_ranks_and_filters(store, capsys):
    code, out, err = run(capsys, "units", store.path, "--format", "json", "-n", "2")
    rows = json.loads(out)
    assert code == 0, err
    assert rows[0]["unit"] == 1
    assert {row["checkpoint"] for row in rows} == {40}
    assert len(rows) == 2
    code, out, _ = run(capsys, "units", store.path, "--max-q", "0.01", "--format", "csv", "--checkpoint", "10,40")
    listed = list(csv.DictReader(io.StringIO(out)))
    assert ("40", "1") in [(row["checkpoint"], row["unit"]) for row in listed]
    assert {row["unit"] for row in listed} == {"1"}
    assert run(capsys, "units", store.path, "--by", "auc")[0] == 2
    everything = json.loads(run(capsys, "units", store.path, "-n", 99, "--format", "json")[1])
    bar = max(row["firing_rate"] for row in everything)
    for options, holds in (
        (("--class", 2), lambda row: row["preferred_class"] == 2),
        (("--min-rate", bar), lambda row: row["firing_rate"] >= bar),
    ):
        listed = json.loads(run(capsys, "units", store.path, *options, "-n", 99, "--format", "json")[1])
        assert listed == [row for row in everything if holds(row)]
        assert 0 < len(listed) < len(everything)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--class", 9), "has no class 9: its examples are of classes"),
        (("--min-rate", 5), "5.0 is not in the range 0<=x<=1"),
    ],
)
def test_units__of_nothing_says_why(store, capsys, options, words):
    code, out, err = run(capsys, "units", store.path, *options)
    assert (code, out) == (2, "")
    assert words in err


def test_unit__looks_at_the_step_that_was_asked_for(store, capsys):
    told = json.loads(run(capsys, "unit", store.path, "--layer", "conv", "--unit", 1, "--checkpoint", STEPS[0],
                          "--format", "json")[1])  # fmt: skip
    facts = {row["what"]: row["value"] for row in told}
    expected = nq.unit_profile(store, "conv", 1, checkpoint=STEPS[0])
    assert facts["auroc"] == f"{expected['auroc'].item():.4g}"
    assert facts["auroc"] != f"{nq.unit_profile(store, 'conv', 1)['auroc'].item():.4g}"


def test_unit__prints_draws_and_writes_a_page(store, capsys, tmp_path):
    code, out, err = run(capsys, "unit", store.path, "--layer", "conv", "--unit", 1, "-k", 2, "--format", "json",
                         "--figure", tmp_path / "u.png", "--page", tmp_path / "u.html")  # fmt: skip
    assert code == 0, err
    facts = {row["what"]: row["value"] for row in json.loads(out)}
    found = nq.unit_profile(store, "conv", 1, k=2)
    assert facts["auroc"] == f"{found['auroc'].item():.4g}"
    assert facts["top 0"].startswith(f"{found['value'].values[0]:.4g}: example {found['example'].values[0]}, label 2")
    assert (tmp_path / "u.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "u.html").read_text()
    assert "conv, unit 1" in page
    assert "<script" not in page
    assert run(capsys, "unit", store.path, "--layer", "conv", "--unit", 77)[0] == 2
    assert (
        run(capsys, "unit", store.path, "--layer", "conv", "--unit", 1, "--figure", tmp_path / "no" / "u.png")[0] == 2
    )
