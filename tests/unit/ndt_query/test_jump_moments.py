"""What is said about jumps, and the moments that are kept about them and their controls."""

import json

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import InvalidInputError, NotFoundError

OFFSETS = [-10, -2, 0, 2, 10]


def jumps_at(*places, n=400, every=5, layers=None):
    """A result of detect_jumps as it would be, without the search."""
    index = np.array(places, np.int64)
    size = np.where(np.arange(len(index)) % 2, -1.0, 2.0)
    steps = np.arange(n) * every
    level = np.linspace(0, 1, n) + (size * (np.arange(n)[:, None] >= index)).sum(axis=1)
    of_layer = () if layers is None else ("measured_layer",)
    names = None if layers is None else list(dict.fromkeys(layers))
    wide = level if layers is None else np.repeat(level[:, None], len(names), axis=1)
    found = xr.Dataset(
        {
            "step": ("jump", steps[index]),
            "index": ("jump", index),
            "size": ("jump", size),
            "size_error": ("jump", np.full(len(index), 0.1)),
            "level": (("measurement", *of_layer), wide),
            "level_error": (("measurement", *of_layer), np.full(wide.shape, 0.05)),
        },
        {"measurement": steps},
        {"store": "run.zarr"},
    )
    if layers is not None:
        found = found.assign_coords(measured_layer=names).assign(layer=("jump", list(layers)))
    return found


def moments(schedule, role):
    part = schedule.isel(moment=np.flatnonzero(schedule["role"].values == role))
    centres = part["centre"].values
    return {int(centre): part.isel(moment=np.flatnonzero(centres == centre)) for centre in centres}


def test_characters__of_a_known_result():
    found = nq.characterise_jumps(jumps_at(40, 200))
    assert int(found["count"]) == 2
    np.testing.assert_allclose(found["phase"], [40 / 399, 200 / 399])
    np.testing.assert_allclose(found["before"], [39 / 399, 199 / 399 + 2])
    np.testing.assert_allclose(found["after"], [40 / 399 + 2, 200 / 399 + 1])
    np.testing.assert_allclose(found["after_high"] - found["after"], 0.05 * scipy.stats.norm.ppf(0.975))
    np.testing.assert_allclose(found["size"] - found["size_low"], 0.1 * scipy.stats.norm.ppf(0.975))
    moved = np.abs(np.diff(jumps_at(40, 200)["level"])).sum()
    np.testing.assert_allclose(found["share"], np.array([2, 1]) / moved)
    assert found.attrs["what"] == "what jumps are like"
    assert found.attrs["store"] == "run.zarr"


def test_characters__have_the_confidence_that_is_asked_for():
    wide, narrow = (nq.characterise_jumps(jumps_at(40), confidence=level) for level in (0.99, 0.5))
    assert (wide["size_high"] > narrow["size_high"]).all()
    with pytest.raises(InvalidInputError, match="not a level"):
        nq.characterise_jumps(jumps_at(40), confidence=1)


def test_characters__of_layers_are_counted_apart():
    found = nq.characterise_jumps(jumps_at(40, 200, 300, layers=["a", "b", "b"]))
    assert found["count"].sel(measured_layer="a") == 1
    assert found["count"].sel(measured_layer="b") == 2
    assert found["layer"].values.tolist() == ["a", "b", "b"]


def test_characters__of_no_jumps_are_empty():
    found = nq.characterise_jumps(jumps_at())
    assert int(found["count"]) == 0
    assert found.sizes["jump"] == 0


def test_characters__of_a_real_search_bracket_the_levels():
    values = np.random.default_rng(0).standard_normal(200) + np.where(np.arange(200) < 120, 3.0, 12.0)
    found = nq.characterise_jumps(nq.detect_jumps(values, np.arange(200) * 5, n_null=99))
    assert float(found["before_low"][0]) < 3 < float(found["before_high"][0])
    assert float(found["after_low"][0]) < 12 < float(found["after_high"][0])
    assert 0.6 < float(found["share"][0]) <= 1


def test_schedule__keeps_five_moments_about_each_jump_and_each_control():
    schedule = nq.jump_schedule(jumps_at(100, 250))
    for role in ("jump", "control"):
        about = moments(schedule, role)
        assert len(about) == 2
        for centre, part in about.items():
            assert part["offset"].values.tolist() == OFFSETS
            assert part["step"].values.tolist() == [centre + 5 * offset for offset in OFFSETS]
    assert list(moments(schedule, "jump")) == [500, 1250]
    assert schedule["keep"].values.tolist() == sorted(set(schedule["step"].values.tolist()))
    assert schedule.attrs["n_unmatched"] == 0
    assert json.loads(schedule.attrs["parameters"]) == {"seed": 0}


@pytest.mark.parametrize("seed", range(5))
def test_controls__are_away_from_every_jump_and_near_in_phase(seed):
    places = [4, 7, 60, 200]
    schedule = nq.jump_schedule(jumps_at(*places), seed=seed)
    controls = moments(schedule, "control")
    assert len(controls) == 4
    for centre, part in controls.items():
        jump = places[int(part["jump"].values[0])]
        assert min(abs(centre // 5 - place) for place in places) >= 15
        reachable = [i for i in range(1, 400) if min(abs(i - place) for place in places) >= 15]
        distance = sorted(abs(np.log(i / jump)) for i in reachable)
        assert abs(np.log(centre / 5 / jump)) <= distance[40]
    assert schedule.attrs["control_gap"] >= 15


def test_controls__are_chosen_by_seed():
    first, same, other = (nq.jump_schedule(jumps_at(100, 250), seed=seed) for seed in (1, 1, 2))
    xr.testing.assert_identical(first, same)
    assert list(moments(first, "control")) != list(moments(other, "control"))
    np.testing.assert_array_equal(*(one["step"].values[one["role"].values == "jump"] for one in (first, other)))


def test_moments_at_the_ends__are_clipped_and_listed_once():
    schedule = nq.jump_schedule(jumps_at(4, 397))
    about = moments(schedule, "jump")
    assert about[20]["step"].values.tolist() == [0, 10, 20, 30, 70]
    assert about[1985]["step"].values.tolist() == [1935, 1975, 1985, 1995]
    assert about[1985]["offset"].values.tolist() == [-10, -2, 0, 2]


def test_a_jump_of_several_layers_at_one_measurement__is_one_moment():
    schedule = nq.jump_schedule(jumps_at(100, 250, 100, layers=["a", "a", "b"]))
    assert list(moments(schedule, "jump")) == [500, 1250]
    assert len(moments(schedule, "control")) == 2
    assert set(schedule["jump"].values.tolist()) == {0, 1}


def test_no_jumps__is_an_empty_schedule():
    schedule = nq.jump_schedule(jumps_at())
    assert schedule.sizes == {"moment": 0, "kept": 0}
    assert schedule["step"].dtype == np.int64
    assert schedule["role"].dtype.kind == "U"
    assert (schedule.attrs["n_unmatched"], schedule.attrs["control_gap"]) == (0, -1)


def test_where_there_is_no_room__controls_lie_as_far_as_they_can():
    places = list(range(10, 100, 20))
    schedule = nq.jump_schedule(jumps_at(*places, n=100))
    controls = [centre // 5 for centre in moments(schedule, "control")]
    assert len(controls) == 5
    assert 3 < schedule.attrs["control_gap"] <= 10
    gaps = [abs(a - b) for k, a in enumerate(controls) for b in controls[:k]]
    assert min(gaps) > 3


def test_jumps_without_any_room__have_no_control():
    places = list(range(3, 40, 4))
    schedule = nq.jump_schedule(jumps_at(*places, n=43))
    assert len(moments(schedule, "jump")) == 10
    assert len(moments(schedule, "control")) == 0
    assert schedule.attrs["n_unmatched"] == 10


def test_what_is_no_result_of_a_search__is_refused():
    for question in (nq.characterise_jumps, nq.jump_schedule):
        with pytest.raises(NotFoundError, match="no 'index': pass a result of detect_jumps"):
            question(xr.Dataset())
