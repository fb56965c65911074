"""Blocks of a dependent series: their length against theory and another implementation, what resamples keep."""

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError

SCHEMES = ("stationary", "circular", "moving")


def autoregressive(rng, rho, n):
    return scipy.signal.lfilter([1.0], [1.0, -rho], rng.standard_normal(n + 200))[200:]


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (np.sin(np.arange(60) / 5) + np.cos(np.arange(60) * 1.7), (6.54011991, 7.4865684)),
        (np.sqrt(np.arange(200) * 29 % 83) + np.sqrt(np.arange(200) * 28 % 83), (9.69109045, 11.09352927)),
        (np.cumsum(np.arange(200) * 61 % 97 - 48.0), (11.91274502, 13.63668889)),
        (np.sqrt(np.arange(90) * 29 % 83), (29.0, 29.0)),
    ],
    ids=["waves", "fast", "sums", "at its limit"],
)
def test_block_length__is_that_of_the_package_arch(series, expected):
    found = [float(nq.block_length(series, scheme=scheme)) for scheme in ("stationary", "circular")]
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # optimal_block_length of arch 8.0.0


def test_block_length__is_near_that_of_theory(rng):
    n, rho = 4000, 0.6
    found = [float(nq.block_length(autoregressive(rng, rho, n))) for _ in range(20)]
    # Of an AR(1), G / g = 2 rho / (1 - rho^2).
    assert np.mean(found) == pytest.approx((2 * rho / (1 - rho**2)) ** (2 / 3) * n ** (1 / 3), rel=0.15)


def test_block_length__of_each_series_is_its_own(rng):
    series = np.stack([rng.standard_normal(300), autoregressive(rng, 0.9, 300)], axis=1)
    found = nq.block_length(series)
    assert found.shape == (2,)
    assert found.tolist() == [float(nq.block_length(series[:, k])) for k in range(2)]
    assert found[0] < 5 < 10 < found[1]


@pytest.mark.parametrize("series", [np.ones(50), [1.0, np.nan, 3.0, 4.0], [1.0, np.inf, 3.0, 4.0]])
def test_block_length__of_what_has_no_dependence_to_tell_is_one(series):
    assert nq.block_length(series) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_block_resamples__are_runs_of_neighbours_as_long_as_asked(scheme):
    chosen = nq.block_resamples(200, 10, n_resamples=300, scheme=scheme)
    assert chosen.shape == (300, 200)
    assert chosen.min() == 0
    assert chosen.max() == 199
    steps = np.diff(chosen, axis=1) % 200
    # Seams come once in ten values, less those where a new block happens to go on.
    assert (steps != 1).mean() == pytest.approx(0.1, abs=0.01)


def test_block_resamples__of_a_fixed_length_are_whole_blocks():
    for row in nq.block_resamples(23, 4.2, n_resamples=20, scheme="moving"):
        blocks = [row[place : place + 5] for place in range(0, 23, 5)]
        assert all((np.diff(block) == 1).all() for block in blocks)


def test_block_resamples__stationary_ones_take_every_place_alike_and_moving_ones_the_ends_less():
    counts = {scheme: np.bincount(nq.block_resamples(50, 10, scheme=scheme).ravel()) / 2000 for scheme in SCHEMES}
    assert counts["stationary"][[0, 49]] == pytest.approx(1, abs=0.15)
    assert counts["circular"][[0, 49]] == pytest.approx(1, abs=0.15)
    assert counts["moving"][[0, 49]].max() < 0.3


def test_block_resamples__repeat_with_their_seed():
    one, same, other = (nq.block_resamples(30, 3, n_resamples=5, seed=seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


def test_block_bootstrap__of_single_values_is_the_bootstrap_of_a_mean(rng):
    data = rng.standard_normal(300)
    found = nq.block_bootstrap(data, length=1, n_resamples=4000)
    assert found.standard_error == pytest.approx(data.std() / np.sqrt(300), rel=0.05)
    assert (found.low, found.high) == pytest.approx(
        scipy.stats.t.interval(0.95, 299, data.mean(), found.standard_error)
    )
    assert found.n == 300
    assert found.estimate == data.mean()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_block_bootstrap__has_the_standard_error_of_a_dependent_mean(rng, scheme):
    rho, n = 0.7, 500
    truth = 1 / (1 - rho) / np.sqrt(n)  # of the mean of an AR(1) with innovations of variance 1
    found = [
        nq.block_bootstrap(autoregressive(rng, rho, n), scheme=scheme, n_resamples=300).standard_error
        for _ in range(30)
    ]
    assert np.mean(found) == pytest.approx(truth, rel=0.1)


def test_block_bootstrap__resamples_series_together(rng):
    first = autoregressive(rng, 0.8, 200)
    data = np.stack([first, first + 1], axis=1)
    found = nq.block_bootstrap(data, method="percentile")
    np.testing.assert_allclose(found.low[1] - found.low[0], 1)
    np.testing.assert_allclose(found.high[1] - found.high[0], 1)


def test_block_bootstrap__takes_any_statistic_and_axis(rng):
    data = rng.standard_normal((3, 200))
    found = nq.block_bootstrap(data, np.var, axis=1, length=1)
    np.testing.assert_allclose(found.estimate, data.var(axis=1))
    power = ((data - data.mean(axis=1, keepdims=True)) ** 2).std(axis=1)
    np.testing.assert_allclose(found.standard_error, power / np.sqrt(200), rtol=0.1)


def test_block_bootstrap__keeps_names(rng):
    data = xr.DataArray(
        rng.standard_normal((40, 3)), dims=("step", "layer"), coords={"step": np.arange(40) * 5, "layer": list("abc")}
    )
    found = nq.block_bootstrap(data, length=4)
    plain = nq.block_bootstrap(data.values, length=4)
    assert found["low"].dims == ("layer",)
    assert found["layer"].values.tolist() == ["a", "b", "c"]
    for name in ("estimate", "low", "high", "standard_error"):
        np.testing.assert_array_equal(found[name], getattr(plain, name))
    xr.testing.assert_equal(nq.block_bootstrap(data.transpose(), length=4), found)
    xr.testing.assert_equal(nq.block_bootstrap(data.rename(step="t"), dim="t", length=4), found)
    assert '"n": 40' in found.attrs["parameters"]
    assert "n_examples" not in found.attrs


def test_block_bootstrap__lets_nan_through_and_gives_a_constant_its_value(rng):
    data = rng.standard_normal((50, 3))
    data[3, 1], data[:, 2] = np.nan, 4.0
    found = nq.block_bootstrap(data)
    assert np.isnan(found.low).tolist() == [False, True, False]
    assert (found.low[2], found.estimate[2], found.high[2]) == (4, 4, 4)


def test_block_bootstrap__gives_the_same_whatever_the_batches(rng, monkeypatch):
    data = rng.standard_normal((60, 2))
    whole = nq.block_bootstrap(data, length=3, n_resamples=50)
    monkeypatch.setattr("ndt_query.dependent._BATCH_NBYTES", 7 * data.nbytes)
    np.testing.assert_array_equal(nq.block_bootstrap(data, length=3, n_resamples=50).low, whole.low)


def test_resampled_residuals__are_a_null_that_keeps_dependence(rng):
    noise = autoregressive(rng, 0.9, 400)
    chosen = nq.block_resamples(400, float(nq.block_length(noise)), n_resamples=200)
    kept = [np.corrcoef(one[1:], one[:-1])[0, 1] for one in noise[chosen]]
    single = [np.corrcoef(one[1:], one[:-1])[0, 1] for one in noise[nq.block_resamples(400, 1, n_resamples=200)]]
    assert np.mean(kept) > 0.75
    assert abs(np.mean(single)) < 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: nq.block_length([1.0]),
        lambda: nq.block_length([1.0, 2.0, 3.0], axis=1),
        lambda: nq.block_length([1.0, 2.0, 3.0], scheme="fixed"),
        lambda: nq.block_resamples(0, 1),
        lambda: nq.block_resamples(5, 0.5),
        lambda: nq.block_resamples(5, 6),
        lambda: nq.block_resamples(5, 2, scheme="fixed"),
        lambda: nq.block_resamples(5, 2, n_resamples=0),
        lambda: nq.block_resamples(5, 2, seed=-1),
        lambda: nq.block_bootstrap([1.0, 2.0, 3.0]),
        lambda: nq.block_bootstrap(np.arange(9.0), method="BCa"),
        lambda: nq.block_bootstrap(np.arange(9.0), confidence=95),
        lambda: nq.block_bootstrap(np.arange(9.0), length=10),
    ],
)
def test_blocks__refuse_what_they_cannot_use(call):
    with pytest.raises(InvalidInputError):
        call()


@pytest.mark.parametrize("dims", [("a", "b"), ("step", "checkpoint")])
@pytest.mark.parametrize("dim", [None, "time"])
def test_block_bootstrap__says_which_dimension_it_misses(dims, dim):
    with pytest.raises(DimensionError, match="expected one of them to be"):
        nq.block_bootstrap(xr.DataArray(np.zeros((4, 4)), dims=dims), dim=dim)
