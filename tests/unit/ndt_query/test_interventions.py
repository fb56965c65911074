"""Effects of interventions: equal to plain arithmetic, found where they are planted, and honest about few seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import ndt_query as nq
from ndt_query import plot
from ndt_query.plot.style import OKABE_ITO
from ndt_store import open_store, write_experiment
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .studies import study


@pytest.fixture
def planted(rng: np.random.Generator) -> xr.Dataset:
    return study(rng, at_jumps=0.05, at_controls=0.01, between_moments=0.01)


def lost(data: xr.Dataset, name: str, seed: int, role: str, arm: str) -> list[xr.DataArray]:
    """Normal - arm of each moment of a role."""
    here = data[name].sel(seed=seed).isel(moment=data["role"].sel(seed=seed).values == role)
    difference = here.sel(arm="normal") - here.sel(arm=arm)
    return [difference.isel(moment=m) for m in range(difference.sizes["moment"])]


def test_importance__is_the_mean_over_moments_then_over_seeds_with_students_interval(planted: xr.Dataset) -> None:
    found = nq.intervention_effects(planted)
    for arm in ("frozen", "perturbed"):
        means = {
            role: np.array([np.mean(lost(planted, "final_accuracy", s, role, arm)) for s in range(3)])
            for role in ("jump", "control")
        }
        means["difference"] = means["jump"] - means["control"]
        for role, values in means.items():
            one = found.sel(role=role, arm=arm)
            np.testing.assert_allclose(one["final_accuracy_by_seed"], values)
            assert float(one["final_accuracy"]) == pytest.approx(values.mean())
            expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert (one["final_accuracy_low"], one["final_accuracy_high"]) == pytest.approx(tuple(expected))


def test_p_value__counts_the_signs_of_seeds(rng: np.random.Generator) -> None:
    data = study(rng, n_seeds=5, at_jumps=0.01)
    one = nq.intervention_effects(data).sel(role="jump", arm="perturbed")
    values = one["final_accuracy_by_seed"].values
    means = [np.mean(values * signs) for signs in itertools.product((1, -1), repeat=5)]
    reached = np.mean(np.abs(means) >= abs(values.mean()) * (1 - 1e-12))
    assert float(one["final_accuracy_p_value"]) == pytest.approx(reached)


def test_area_and_means__are_trapezoids_over_the_same_window_after_each_moment(planted: xr.Dataset) -> None:
    for n, name in enumerate(("validation_accuracy", "participation_ratio", "stable_rank")):
        planted[name] += np.random.default_rng(n).normal(0, 0.1, planted[name].shape)
    result = nq.intervention_effects(planted)
    assert result.attrs["window"] == 20  # the last control, at step 41, begins at 40 of 60
    found = result.sel(role="control", arm="frozen", seed=1)

    def areas(name: str) -> list[xr.DataArray]:
        curves = lost(planted, name, 1, "control", "frozen")
        return [curve.dropna("step").isel(step=slice(5)).integrate("step") for curve in curves]

    assert float(found["accuracy_area_by_seed"]) == pytest.approx(np.mean(areas("validation_accuracy")))
    for name in ("participation_ratio", "stable_rank"):
        np.testing.assert_allclose(found[f"{name}_by_seed"], np.mean(areas(name), axis=0) / 20)


def test_curves__follow_every_moment_as_far_as_all_reach(planted: xr.Dataset) -> None:
    found = nq.intervention_effects(planted)
    assert found["since"].values.tolist() == [0, 5, 10, 15, 20]
    assert (found["running_validation_accuracy"].sel(since=0) == 0).all()
    expected = found["final_accuracy"]
    for since in (5, 20):
        for end in ("", "_low", "_high"):
            now = found[f"running_validation_accuracy{end}"].sel(since=since)
            np.testing.assert_allclose(now, found[f"final_accuracy{end}"])
            wide = found[f"running_participation_ratio{end}"].sel(since=since, layer="relu2")
            np.testing.assert_allclose(wide, 11 * found[f"final_accuracy{end}"])
    assert expected.sizes == {"role": 3, "arm": 2}


def test_curves__of_a_moment_between_measurements_begin_at_its_first(rng: np.random.Generator) -> None:
    data = study(rng, at_jumps=0.05, moments=[(11, "jump"), (23, "control")])
    found = nq.intervention_effects(data)
    assert found["since"].values.tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    curve = data["validation_accuracy"].isel(seed=0, moment=1).sel(step=slice(25, None))
    expected = (curve.sel(arm="normal") - curve.sel(arm="frozen")).integrate("step")
    assert float(found["accuracy_area_by_seed"].sel(seed=0, role="control", arm="frozen")) == pytest.approx(
        float(expected)
    )


def test_curves__leave_out_a_last_measurement_that_is_off_the_beat(planted: xr.Dataset) -> None:
    longer = planted.reindex(step=[*planted["step"].values, 63], fill_value=100.0)
    found, expected = nq.intervention_effects(longer), nq.intervention_effects(planted)
    xr.testing.assert_allclose(found, expected)


def test_one_measurement_after_a_moment__is_no_area(rng: np.random.Generator) -> None:
    found = nq.intervention_effects(study(rng, moments=[(11, "jump"), (59, "control")]))
    assert found["since"].values.tolist() == [0]
    assert found["accuracy_area"].isnull().all()
    assert found["participation_ratio"].isnull().all()
    assert found["final_accuracy"].notnull().all()


def test_effects__are_found_where_jumps_matter_and_controls_do_not(rng: np.random.Generator) -> None:
    found = nq.intervention_effects(study(rng, at_jumps=0.1, between_seeds=0.003))
    for name in ("final_accuracy", "accuracy_area", "participation_ratio", "stable_rank"):
        assert (found[f"{name}_low"].sel(role=["jump", "difference"]) > 0).all(), name
        assert (found[f"{name}_low"].sel(role="control") < 0).all(), name
    assert float(found["final_accuracy"].sel(role="difference", arm="frozen")) == pytest.approx(0.1, abs=0.02)


def test_effects__that_are_the_same_everywhere_are_no_difference(rng: np.random.Generator) -> None:
    found = nq.intervention_effects(study(rng, at_jumps=0.1, at_controls=0.1, between_seeds=0.003))
    for name in ("final_accuracy", "accuracy_area", "participation_ratio", "stable_rank"):
        assert (found[f"{name}_low"].sel(role="control") > 0).all(), name
        one = found.sel(role="difference")
        assert ((one[f"{name}_low"] < 0) & (one[f"{name}_high"] > 0)).all(), name


def test_few_seeds__say_what_they_cannot_show(rng: np.random.Generator) -> None:
    found = nq.intervention_effects(study(rng, at_jumps=0.1, between_seeds=1e-4))
    assert found["n_seeds"].values.tolist() == [3, 3, 3]
    assert found["least_p_value"].values.tolist() == [0.25, 0.25, 0.25]
    assert float(found["final_accuracy_p_value"].min()) == 0.25
    assert found.attrs["seeds"] == (
        "3 seeds: 95% intervals by Student's t on 2 degrees of freedom; the smallest possible two-sided p is 0.25"
    )
    one = nq.intervention_effects(study(rng, n_seeds=1, at_jumps=0.1))
    assert one["final_accuracy"].notnull().all()
    assert one["final_accuracy_low"].isnull().all()
    assert one["final_accuracy_p_value"].isnull().all()
    assert one["least_p_value"].isnull().all()
    assert one.attrs["seeds"] == "one seed: no interval and no p value"


def test_seeds_without_a_role__are_left_out_and_counted(rng: np.random.Generator) -> None:
    data = study(rng, n_seeds=4, at_jumps=0.05)
    role, step = data["role"].values.copy(), data["moment_step"].values.copy()
    role[3, [0, 2]], step[3, [0, 2]] = "", -1
    role[2, [1, 3]], step[2, [1, 3]] = "", -1
    padded = data.assign_coords(role=(("seed", "moment"), role), moment_step=(("seed", "moment"), step))
    padded = padded.where(padded["moment_step"] >= 0)
    found = nq.intervention_effects(padded)
    assert found["n_seeds"].values.tolist() == [3, 3, 2]
    assert found["n_jumps"].values.tolist() == [2, 2, 2, 0]
    assert found["n_controls"].values.tolist() == [2, 2, 0, 2]
    assert found["least_p_value"].values.tolist() == [0.25, 0.25, 0.5]
    assert found.attrs["seeds"].startswith("2 seeds (jumps 3, controls 3): 95% intervals by Student's t on 1 degree of")
    whole = nq.intervention_effects(data)
    for kept, there in (("jump", [0, 1, 2]), ("control", [0, 1, 3]), ("difference", [0, 1])):
        expected = whole["accuracy_area_by_seed"].sel(role=kept).isel(seed=there).mean("seed")
        np.testing.assert_allclose(found["accuracy_area"].sel(role=kept), expected)
    only = padded.isel(seed=[3])
    alone = nq.intervention_effects(only)
    assert alone["n_seeds"].values.tolist() == [0, 1, 0]
    assert alone["final_accuracy"].sel(role=["jump", "difference"]).isnull().all()


def test_difference__compares_each_jump_with_its_own_control(planted: xr.Dataset) -> None:
    """Moments are jump, control, jump, control; the second jump has lost its control, and another has no jump."""
    ids = np.tile([0, 0, 1, 2], (3, 1))
    found = nq.intervention_effects(planted.assign_coords(jump=(("seed", "moment"), ids)))
    lost = planted["final_accuracy"].sel(arm="normal") - planted["final_accuracy"].sel(arm=["frozen", "perturbed"])
    expected = lost.isel(moment=0) - lost.isel(moment=1)
    np.testing.assert_allclose(found["final_accuracy_by_seed"].sel(role="difference"), expected)
    np.testing.assert_allclose(
        found["final_accuracy_by_seed"].sel(role="jump"), lost.isel(moment=[0, 2]).mean("moment")
    )
    assert found["n_matched"].values.tolist() == [1, 1, 1]
    unknown = nq.intervention_effects(planted.assign_coords(jump=(("seed", "moment"), ids - 1)))
    xr.testing.assert_allclose(unknown.drop_vars("n_matched"), nq.intervention_effects(planted).drop_vars("n_matched"))


def test_steps__need_not_be_in_order(planted: xr.Dataset) -> None:
    backwards = planted.isel(step=slice(None, None, -1))
    xr.testing.assert_identical(nq.intervention_effects(backwards), nq.intervention_effects(planted))


def test_a_measurement_that_is_missing__is_not_skipped(planted: xr.Dataset) -> None:
    planted["participation_ratio"][0, 0, 1, 2, 1] = np.nan
    found = nq.intervention_effects(planted)
    hit = found["participation_ratio"].isnull()
    assert hit.sel(role=["jump", "difference"], arm="frozen", layer="relu2").all()
    assert int(hit.sum()) == 2
    assert found["participation_ratio_p_value"].isnull().equals(hit)


def test_bootstrap__resamples_seeds(rng: np.random.Generator) -> None:
    data = study(rng, n_seeds=12, at_jumps=0.05)
    found = nq.intervention_effects(data, interval="bootstrap", confidence=0.9).sel(role="jump", arm="frozen")
    values = found["final_accuracy_by_seed"].values
    expected = nq.bootstrap_ci(values, confidence=0.9)
    np.testing.assert_allclose(
        [found["final_accuracy_low"], found["final_accuracy_high"]], [expected.low, expected.high]
    )
    assert "BCa resampling of seeds" in found.attrs["seeds"]


def test_a_store__is_asked_for_its_experiment(planted: xr.Dataset, tmp_path) -> None:
    path = tmp_path / "run.zarr"
    simulate_store(path)
    with pytest.raises(NotFoundError, match="ndt intervene"):
        nq.intervention_effects(open_store(path))
    write_experiment(path, "interventions", planted)
    xr.testing.assert_identical(nq.intervention_effects(open_store(path)), nq.intervention_effects(planted))


def test_refusals__name_what_is_wrong(planted: xr.Dataset) -> None:
    with pytest.raises(DimensionError, match="stable_rank of interventions has no such variable"):
        nq.intervention_effects(planted.drop_vars("stable_rank"))
    with pytest.raises(DimensionError, match="final_accuracy of interventions has"):
        nq.intervention_effects(planted.isel(arm=0))
    with pytest.raises(DimensionError, match="no arm 'normal'"):
        nq.intervention_effects(planted.isel(arm=[1, 2]))
    for wrong in (None, "keep.zarr", planted["final_accuracy"]):
        with pytest.raises(InvalidInputError, match="asked of a Store or of what"):
            nq.intervention_effects(wrong)
    for every in (0, "x", True):
        with pytest.raises(DimensionError, match="expected a whole number of at least 1"):
            nq.intervention_effects(planted.assign_attrs(every=every))
    with pytest.raises(DimensionError, match="1 arms"):
        nq.intervention_effects(planted.isel(arm=[0]))
    with pytest.raises(InvalidInputError, match="no moment with role"):
        nq.intervention_effects(planted.assign_coords(role=planted["role"].astype(str).where(False, "")))
    with pytest.raises(InvalidInputError, match="interval='z'"):
        nq.intervention_effects(planted, interval="z")
    with pytest.raises(InvalidInputError, match="confidence"):
        nq.intervention_effects(planted, confidence=95)


@pytest.mark.slow
@pytest.mark.parametrize("n_seeds", [3, 6])
def test_interval_of_the_difference__covers_zero_where_freezing_costs_the_same_everywhere(n_seeds: int) -> None:
    rng = np.random.default_rng(7)
    n = 1500
    covers = np.zeros((n, 2))
    for draw in range(n):
        data = study(rng, n_seeds=n_seeds, at_jumps=0.05, at_controls=0.05, between_moments=0.01, n_layers=1)
        one = nq.intervention_effects(data).sel(role="difference")
        covers[draw] = (one["final_accuracy_low"] <= 0) & (one["final_accuracy_high"] >= 0)
    assert 0.93 <= covers.mean() <= 0.97, covers.mean()


@pytest.mark.slow
def test_interval_of_the_difference__misses_zero_where_only_jumps_matter() -> None:
    rng = np.random.default_rng(8)
    found = [
        nq.intervention_effects(study(rng, at_jumps=0.05, between_seeds=0.005, n_layers=1)).sel(role="difference")
        for _ in range(200)
    ]
    assert np.mean([one["final_accuracy_low"] > 0 for one in found]) >= 0.9


def test_figure__shows_estimates_seeds_and_curves(planted: xr.Dataset) -> None:
    result = nq.intervention_effects(planted)
    figure = plot.interventions(result)
    assert isinstance(figure, Figure)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "",
        "",
        "frozen",
        "frozen",
        "perturbed",
        "perturbed",
    ]
    final = figure.axes[0]
    bars = final.containers
    assert [to_hex(bar.lines[0].get_color()).upper() for bar in bars] == [OKABE_ITO[1], OKABE_ITO[0], OKABE_ITO[6]]
    for bar, role in zip(bars, ("jump", "control", "difference"), strict=True):
        one = result.sel(role=role)
        np.testing.assert_allclose(bar.lines[0].get_ydata(), one["final_accuracy"])
        ends = np.array([segment[:, 1] for segment in bar.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, np.stack([one["final_accuracy_low"], one["final_accuracy_high"]], 1))
    curves = figure.axes[2].get_lines()
    expected = result["running_validation_accuracy"].sel(arm="frozen", role="jump")
    np.testing.assert_allclose(curves[0].get_ydata(), expected)
    assert [text.get_text() for text in figure.axes[3].get_xticklabels()] == ["relu1", "relu2"]
    assert figure.get_supxlabel().startswith("3 seeds: 95% intervals")
    assert figure.get_supxlabel().endswith("over 20 steps from each moment")
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent(), *(one.yaxis.label.get_window_extent() for one in figure.axes[:2])]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_figure__leaves_out_roles_that_no_seed_has(rng: np.random.Generator) -> None:
    result = nq.intervention_effects(study(rng, moments=[(11, "jump"), (21, "jump")]))
    figure = plot.interventions(result, measure="stable_rank")
    assert len(figure.axes[0].containers) == 1
    assert figure.axes[3].get_ylabel() == "stable rank lost"
    with pytest.raises(InvalidInputError, match="measure"):
        plot.interventions(result, measure="rank")
    with pytest.raises(DimensionError, match="intervention_effects"):
        plot.interventions(result.drop_vars("accuracy_area"))
