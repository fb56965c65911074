"""Gradient flow and anomalies: against direct sums, planted spikes, and noise that gives nothing."""

import json

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.kernels.anomalies import band
from ndt_store import open_store
from ndt_store.cli import main
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate_store(tmp_path_factory.mktemp("flow") / "r.zarr", n_parameters=5, n_tracked=120)


@pytest.fixture(scope="module")
def store(simulated):
    return simulated.store


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_flow__is_what_its_parts_say(simulated, store):
    found = nq.gradient_flow(store)
    norms = simulated.arrays["parameters/gradient_norm"]
    sizes = np.array([10, 20, 30, 40, 50])
    assert found["size"].values.tolist() == sizes.tolist()
    np.testing.assert_allclose(found["total_norm"], [np.linalg.norm(row) for row in norms])
    assert found["module"].values.tolist() == ["0", "1", "2"]
    rms = np.sqrt(
        np.stack([(norms[:, :2] ** 2).sum(1) / 30, (norms[:, 2:4] ** 2).sum(1) / 70, norms[:, 4] ** 2 / 50], axis=1)
    )
    np.testing.assert_allclose(found["module_rms"], rms)
    np.testing.assert_allclose(found["flow_ratio"], rms / rms[:, -1:])
    np.testing.assert_allclose(found["relative_norm"], norms / simulated.arrays["parameters/weight_norm"])


def test_flow__has_norms_of_outputs_with_intervals_over_examples(simulated, store):
    found = nq.gradient_flow(store)
    assert found["layer"].values.tolist() == list(store.layers)
    for layer in store.layers:
        values = simulated.arrays[f"layers/{layer}/gradients"].astype(np.float64)
        norms = np.sqrt((values.reshape(*values.shape[:2], -1) ** 2).sum(-1))
        expected = nq.mean_ci(norms, axis=1)
        one = found.sel(layer=layer)
        np.testing.assert_allclose(one["output_norm"], expected.estimate)
        np.testing.assert_allclose(one["output_norm_low"], expected.low)
        np.testing.assert_allclose(one["output_norm_high"], expected.high)
    assert "output_norm" not in nq.gradient_flow(store.parameters)


def test_flow__of_weights_and_modules_without_gradient_is_nan_and_not_infinite(store):
    given = store.parameters.load()
    given["weight_norm"][:, 0] = 0
    given["gradient_norm"][0, 4] = 0
    found = nq.gradient_flow(given)
    assert found["relative_norm"].isel(parameter=0).isnull().all()
    assert found["flow_ratio"].isel(checkpoint=0).isnull().all()
    assert found["flow_ratio"].isel(checkpoint=1).notnull().all()


def test_flow__names_what_is_wrong(tmp_path, store):
    plain = simulate_store(tmp_path / "r.zarr").store
    with pytest.raises(NotFoundError, match="capture the kind 'parameters'"):
        nq.gradient_flow(plain)
    with pytest.raises(DimensionError, match=r"no gradient_std \(checkpoint, parameter\)"):
        nq.gradient_flow(store.parameters.drop_vars("gradient_std"))


def series(values):
    return xr.DataArray(np.exp(np.asarray(values)), {"step": np.arange(len(values)) * 5}, ("step",))


@pytest.mark.parametrize("sign", [1, -1])
def test_anomalies__find_what_was_planted_and_merge_neighbours(rng, sign):
    logs = 0.1 * rng.standard_normal(300) - np.linspace(0, 3, 300)
    logs[[100, 200, 201]] += sign * 2.0
    found = nq.gradient_anomalies(series(logs))
    assert list(zip(found["first_step"].values, found["last_step"].values, strict=True)) == [(500, 500), (1000, 1005)]
    np.testing.assert_allclose(found["factor"], np.exp(sign * 2.0), rtol=0.5)
    outside = (found["norm"] < found["band_low"]) | (found["norm"] > found["band_high"])
    assert outside.sel(step=[500, 1000, 1005]).all()
    assert outside.sum() == 3


def ar(rng, n, correlation):
    values = np.zeros(n + 100)
    for place, drawn in enumerate(rng.standard_normal(n + 100)):
        values[place] = correlation * values[place - 1] + drawn
    return values[100:]


NOISES = {
    "white": lambda rng, n: rng.standard_normal(n),
    "ar": lambda rng, n: ar(rng, n, 0.7),
    "t5": lambda rng, n: rng.standard_t(5, n),
    "decay": lambda rng, n: rng.standard_normal(n) + 30 * np.exp(-np.arange(n) / (n / 10)),
    "louder at first": lambda rng, n: rng.standard_normal(n) * np.linspace(3, 1, n),
    "walk": lambda rng, n: np.cumsum(rng.standard_normal(n)),
}


def share_with_any(noise, n, n_series, seed=0):
    hits = 0
    for number in range(n_series):
        values = NOISES[noise](np.random.default_rng((seed, number)), n)
        found = band(values, width=9, block=4, n_resamples=49, seed=number)
        hits += (nq.fdr(found.p_value) <= 0.05).any()
    return hits / n_series


@pytest.mark.parametrize("noise", ["white", "decay"])
def test_anomalies__of_noise_are_rare(noise):
    assert share_with_any(noise, 100, 30) <= 4 / 30


@pytest.mark.slow
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n", [100, 400])
def test_anomalies__keep_their_level_in_any_noise(noise, n):
    # Of 200 series at a true 5%, more than 17 with a false alarm would come by chance less than once in 60.
    assert share_with_any(noise, n, 200) <= 17 / 200


@pytest.mark.slow
@pytest.mark.parametrize("factor", [3, 10])
@pytest.mark.parametrize("end", [0, -1])
def test_anomalies__beside_an_end_that_stands_out_are_none(end, factor):
    flagged = 0
    for seed in range(10):
        values = np.exp(0.1 * np.random.default_rng(seed).standard_normal(200))
        values[end] *= factor
        series = xr.DataArray(values, {"step": np.arange(200) * 5}, ("step",))
        flagged += nq.gradient_anomalies(series, n_resamples=50).sizes["anomaly"]
    assert flagged <= 2


def test_anomalies__of_twelve_standard_deviations_are_found():
    found = 0
    for number in range(50):
        values = np.random.default_rng(number).standard_normal(400)
        values[200] = 12.0
        one = band(values, width=9, block=4, n_resamples=49, seed=number)
        found += nq.fdr(one.p_value)[200] <= 0.05
    assert found >= 45


def jumps_at(*steps):
    return xr.Dataset({"step": ("jump", np.array(steps, np.int64))})


def test_warning__of_anomalies_before_jumps_is_told_from_chance(rng):
    logs = 0.1 * rng.standard_normal(400)
    spikes = np.array([50, 117, 210, 262, 370])
    logs[spikes] += 2.0
    warned = nq.gradient_anomalies(series(logs), jumps=jumps_at(*(5 * (spikes + 4))))
    assert int(warned["n_warned"]) == 5
    assert warned["is_warned"].all()
    assert float(warned["warning_p_value"]) < 0.05
    late = nq.gradient_anomalies(series(logs), jumps=jumps_at(*(5 * (spikes - 4))))
    assert int(late["n_warned"]) == 0
    assert float(late["warning_p_value"]) > 0.5
    none = nq.gradient_anomalies(series(logs), jumps=jumps_at())
    assert np.isnan(none["warning_p_value"])
    assert (int(none["n_warned"]), none.sizes["jump"]) == (0, 0)


def test_warning__keeps_its_level_where_timing_is_chance():
    reached = 0
    for number in range(60):
        rng = np.random.default_rng(number)
        logs = 0.1 * rng.standard_normal(200)
        logs[rng.choice(np.arange(5, 195), 4, replace=False)] += 2.0
        jumps = jumps_at(*(5 * np.sort(rng.choice(200, 4, replace=False))))
        found = nq.gradient_anomalies(series(logs), jumps=jumps, n_resamples=19)
        reached += float(found["warning_p_value"]) <= 0.05
    assert reached <= 7  # of 60 at 5%, eight or more come by chance less than once in 80


def test_anomalies__of_a_training_take_all_parameters_and_leave_the_first_row_out(store):
    training = store.training.load()
    norms = training["gradient_norm"].values.copy()
    norms[0], norms[60] = np.nan, norms[60] * 30
    training["gradient_norm"] = (training["gradient_norm"].dims, norms)
    found = nq.gradient_anomalies(training)
    np.testing.assert_allclose(found["norm"], np.sqrt((norms[1:] ** 2).sum(1)))
    assert found["first_step"].values.tolist() == [300]
    assert found["step"].values[0] == 5


def test_anomalies__name_what_is_wrong(store, tmp_path):
    with pytest.raises(NotFoundError, match="no gradient_norm: track it"):
        nq.gradient_anomalies(simulate_store(tmp_path / "r.zarr", n_tracked=40).store)
    with pytest.raises(DimensionError, match="20 measurements of gradients: a band needs 30"):
        nq.gradient_anomalies(series(np.zeros(20)))
    with pytest.raises(DimensionError, match="expected step"):
        nq.gradient_anomalies(series(np.zeros(40)).rename(step="time"))
    with pytest.raises(InvalidInputError, match="NaN or infinite at 1 of 40"):
        nq.gradient_anomalies(series(np.zeros(40)).where(lambda one: one["step"] != 50))
    with pytest.raises(InvalidInputError, match="is 0 at step 50"):
        nq.gradient_anomalies(series(np.zeros(40)).where(lambda one: one["step"] != 50, 0.0))
    with pytest.raises(InvalidInputError, match="alpha=5"):
        nq.gradient_anomalies(store, alpha=5)


def test_figures__are_drawn_from_their_results_alone(store, rng):
    flow = nq.gradient_flow(store)
    figure = nq.plot.gradient_flow(flow)
    lines = figure.axes[1].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), flow["flow_ratio"].isel(module=0))
    logs = 0.1 * rng.standard_normal(100)
    logs[50] += 3
    found = nq.gradient_anomalies(series(logs), jumps=jumps_at(270))
    drawn = nq.plot.gradient_anomalies(found)
    assert drawn.axes[0].get_lines()[1].get_xdata().tolist() == [250]
    assert "1 anomaly; before 1 of 1 jumps" in drawn.axes[0].get_title(loc="left")
    with pytest.raises(DimensionError, match="pass that of gradient_flow"):
        nq.plot.gradient_flow(found)
    with pytest.raises(DimensionError, match="pass that of gradient_anomalies"):
        nq.plot.gradient_anomalies(flow)


def test_command__tabulates_flow_or_anomalies(store, capsys, tmp_path):
    code, out, err = run(capsys, "gradients", store.path, "--checkpoint", "10", "--format", "json", "--figure",
                         tmp_path / "g.png")  # fmt: skip
    assert code == 0, err
    rows = json.loads(out)
    flow = nq.gradient_flow(store.parameters).sel(checkpoint=10)
    assert [row["flow_ratio"] for row in rows] == pytest.approx(flow["flow_ratio"].values.tolist())
    assert {row["checkpoint"] for row in rows} == {10}
    assert (tmp_path / "g.png").stat().st_size > 5000
    code, out, err = run(capsys, "gradients", store.path, "--anomalies", "--format", "json", "--figure",
                         tmp_path / "a.pdf")  # fmt: skip
    assert code == 0, err
    assert len(json.loads(out)) == nq.gradient_anomalies(store).sizes["anomaly"]
    assert "jumps in 120 measurements" in err
    assert (tmp_path / "a.pdf").stat().st_size > 5000


def test_command__says_what_is_missing(capsys, tmp_path):
    simulate_store(tmp_path / "r.zarr", n_tracked=10)
    code, _, err = run(capsys, "gradients", tmp_path / "r.zarr")
    assert code == 2
    assert "capture the kind 'parameters'; ask for --anomalies" in err
    assert run(capsys, "gradients", tmp_path / "r.zarr", "--anomalies")[0] == 2
    assert open_store(tmp_path / "r.zarr").layers


def test_anomalies__of_clipped_norms_are_refused(rng):
    clipped = np.minimum(np.exp(0.5 * rng.standard_normal(300) + 0.7), 1.0) * (1 - 1e-7 * rng.random(300))
    with pytest.raises(InvalidInputError, match="they look clipped; track them before"):
        nq.gradient_anomalies(series(np.log(clipped)))
    with pytest.raises(InvalidInputError, match="they look clipped"):
        nq.gradient_anomalies(series(np.where(np.arange(300) == 100, 1e-9, 0.0)))


def test_anomalies__of_a_parameter_that_turns_nan_are_no_numbers(store):
    training = store.training.load()
    norms = training["gradient_norm"].values.copy()
    norms[0], norms[:, 1] = np.nan, np.nan  # before the first update, and a frozen parameter
    training["gradient_norm"] = (training["gradient_norm"].dims, norms.copy())
    assert nq.gradient_anomalies(training).sizes["step"] == 119
    norms[50, 2] = np.nan
    training["gradient_norm"] = (training["gradient_norm"].dims, norms)
    with pytest.raises(InvalidInputError, match="NaN or infinite at 1 of 119 measurements, the first at step 250"):
        nq.gradient_anomalies(training)


def test_anomalies__of_a_training_that_never_held_a_gradient_say_so(store):
    training = store.training.load()
    training["gradient_norm"] = training["gradient_norm"] * np.nan
    with pytest.raises(NotFoundError, match=r"between backward\(\) and zero_grad\(\)"):
        nq.gradient_anomalies(training)


def test_anomalies__look_for_jumps_in_what_was_tracked(store, rng):
    training = store.training.load()
    n = training.sizes["step"]
    grown = 5 + 0.05 * rng.standard_normal(n) + 3.0 * (np.arange(n) >= 60)
    dims = training["participation_ratio"].dims
    broken = np.tile(grown[:, None], (1, training.sizes["layer"]))
    broken[7, 1] = np.nan  # a layer that does not vary at one measurement
    renamed = training.drop_vars("participation_ratio").assign(stable_rank=(dims, broken))
    renamed["gradient_norm"][0] = np.nan
    assert 300 in nq.gradient_anomalies(renamed)["jump_step"].values
    with pytest.raises(DimensionError, match="jumps has no variable 'step'"):
        nq.gradient_anomalies(renamed, jumps=xr.Dataset())


def test_flow_and_anomalies__of_a_path_say_what_they_are_asked_of():
    with pytest.raises(InvalidInputError, match="those of a Store, or its .parameters: got str"):
        nq.gradient_flow("run.zarr")
    with pytest.raises(InvalidInputError, match="got str"):
        nq.gradient_anomalies("run.zarr")


def test_command__refuses_options_that_would_be_ignored(simulated, capsys):
    for options, said in (
        (("--anomalies", "--checkpoint", "0"), "leave out --checkpoint"),
        (("--window", "5"), "give --anomalies"),
    ):
        code, _, err = run(capsys, "gradients", simulated.store.path, *options)
        assert code == 2
        assert said in " ".join(err.split())
