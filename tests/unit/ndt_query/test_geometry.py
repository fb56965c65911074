"""Dimensionality against scikit-learn and singular values, with intervals that cover."""

import numpy as np
import pytest
import xarray as xr
from sklearn.decomposition import PCA

import ndt_query as nq
from ndt_store.errors import InvalidInputError, MemoryBudgetError
from ndt_store.views.spectrum import MEASURES

from .sources import labelled


def reference(samples, centre=True):
    exact = samples.astype(np.float64)
    s = np.linalg.svd(exact - exact.mean(0) * centre, compute_uv=False)
    energy, p = s**2, s / s.sum()
    p = p[p > 0]
    return {
        "stable_rank": energy.sum() / energy.max(),
        "participation_ratio": energy.sum() ** 2 / (energy**2).sum(),
        "energy_dims_90": np.searchsorted(np.cumsum(energy) / energy.sum(), 0.90) + 1,
        "energy_dims_95": np.searchsorted(np.cumsum(energy) / energy.sum(), 0.95) + 1,
        "nuclear_ratio": s.sum() / s.max(),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
    }


@pytest.mark.parametrize("n", [12, 400])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("positions", ["flatten", "mean", "samples"])
def test_dimensionality__equals_singular_values(rng, n, centre, positions):
    values = rng.random((2, n, 5, 3, 2), dtype=np.float32) * np.arange(1, 6)[:, None, None]
    found = nq.dimensionality(labelled(values), centre=centre, positions=positions)
    samples = {
        "flatten": values.reshape(2, n, -1),
        "mean": values.mean((3, 4), dtype=np.float64),
        "samples": values.transpose(0, 1, 3, 4, 2).reshape(2, -1, 5),
    }[positions]
    for c in range(2):
        for name, expected in reference(samples[c], centre).items():
            assert found[name].values[c] == pytest.approx(expected, rel=1e-5), name
    assert found["n_samples"].values.tolist() == [samples.shape[1]] * 2
    assert found["n_features"] == samples.shape[2]


def test_dimensionality__needs_as_many_components_as_scikit_learn(rng):
    values = rng.standard_normal((1, 300, 20)) * 0.8 ** np.arange(20)
    ratio = PCA().fit(values[0]).explained_variance_ratio_
    found = nq.dimensionality(labelled(values))
    assert found["energy_dims_90"].item() == PCA(n_components=0.90).fit(values[0]).n_components_
    assert found["energy_dims_95"].item() == PCA(n_components=0.95).fit(values[0]).n_components_
    assert found["participation_ratio"].item() == pytest.approx(1 / (ratio**2).sum())


def test_dimensionality__of_raw_relu_data_is_held_at_one_by_the_mean(rng):
    values = 5 + rng.standard_normal((1, 500, 30))
    assert nq.dimensionality(labelled(values), centre=False)["stable_rank"].item() < 1.1
    assert nq.dimensionality(labelled(values))["stable_rank"].item() > 10
    assert '"centre": false' in nq.dimensionality(labelled(values), centre=False).attrs["parameters"]


@pytest.mark.parametrize("positions", ["flatten", "samples"])
def test_dimensionality__jackknife_equals_leaving_groups_out_by_hand(rng, positions):
    values = rng.standard_normal((1, 30, 4, 2, 1)) * np.arange(1, 5)[:, None, None]
    found = nq.dimensionality(labelled(values), positions=positions, n_groups=5, seed=3)
    groups = np.random.default_rng(3).permutation(np.arange(30) % 5)

    def ratio(kept):
        part = values[0, kept]
        rows = part.reshape(len(part), -1) if positions == "flatten" else part.transpose(0, 2, 3, 1).reshape(-1, 4)
        return reference(rows)["participation_ratio"]

    parts = np.array([ratio(groups != g) for g in range(5)])
    spread = np.sqrt(4 / 5 * ((parts - parts.mean()) ** 2).sum())
    reach = 2.7764451051977987 * spread  # t, 4 degrees of freedom, 97.5%
    middle = ratio(np.full(30, True))
    assert found["participation_ratio_low"].item() == pytest.approx(max(0, middle - reach))
    assert found["participation_ratio_high"].item() == pytest.approx(middle + reach)


def test_dimensionality__corrects_the_bias_of_few_samples(rng):
    truth = 60.0
    found = [nq.dimensionality(labelled(rng.standard_normal((1, 40, 60))), interval="none") for _ in range(40)]
    plain, corrected = (np.mean([one[name].item() for one in found]) for name in
                        ("participation_ratio", "participation_ratio_corrected"))  # fmt: skip
    assert plain < 30
    assert corrected == pytest.approx(truth, rel=0.1)


def test_dimensionality__does_not_correct_for_samples_that_are_not_independent(rng):
    found = nq.dimensionality(labelled(rng.random((1, 40, 3, 2, 2))), positions="samples")
    for end in ("", "_low", "_high"):
        assert np.isnan(found["participation_ratio_corrected" + end])


def test_dimensionality__without_interval_has_none(rng):
    found = nq.dimensionality(labelled(rng.random((1, 40, 3))), interval="none")
    assert np.isnan(found["stable_rank_low"])
    assert found["stable_rank"] > 0


@pytest.mark.parametrize("n", [8, 300])
@pytest.mark.parametrize("positions", ["flatten", "mean", "samples"])
def test_dimensionality__with_a_nan_is_nan_at_that_checkpoint(rng, n, positions):
    values = rng.random((2, n, 4, 2, 2))
    values[1, 3, 2, 1, 0] = np.nan
    found = nq.dimensionality(labelled(values), positions=positions)
    for name in MEASURES:
        assert np.isnan(found[name]).values.tolist() == [False, True]
    assert found["nan_count"].values.tolist() == [0, 1]


@pytest.mark.parametrize("values", [np.zeros((1, 20, 3)), np.ones((1, 1, 3))], ids=["dead", "one example"])
def test_dimensionality__of_what_does_not_vary_is_nan(values):
    found = nq.dimensionality(labelled(values))
    assert np.isnan(found["stable_rank"])
    assert np.isnan(found["participation_ratio_corrected"])


@pytest.mark.slow
def test_dimensionality__interval_covers_the_truth():
    rng, scales = np.random.default_rng(1), np.linspace(1, 2, 5)
    truth = (scales**2).sum() ** 2 / (scales**4).sum()
    covered = 0
    for _ in range(1000):
        acts = xr.DataArray(rng.standard_normal((400, 5)) * scales, dims=("example", "unit"))
        found = nq.dimensionality(acts)
        name = "participation_ratio_corrected"
        covered += bool(found[f"{name}_low"] < truth < found[f"{name}_high"])
    assert 930 <= covered <= 970


@pytest.mark.parametrize("value", [3.3, 0.1, -7.7])
@pytest.mark.parametrize("positions", ["flatten", "mean", "samples"])
@pytest.mark.parametrize("n", [7, 200])
def test_dimensionality__of_a_layer_that_never_varies_is_unknown(value, positions, n):
    found = nq.dimensionality(labelled(np.full((1, n, 3, 2, 2), value)), positions=positions)
    for name in (*MEASURES, "participation_ratio_corrected"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize("n", [5, 200])
def test_dimensionality__of_a_layer_that_varies_by_rounding_is_unknown(rng, n):
    values = np.where(rng.random((1, n, 12)) < 0.5, 3.3, np.nextafter(3.3, 4))
    found = nq.dimensionality(labelled(values))
    assert np.isnan(found["stable_rank"]).all()
    assert np.isnan(found["participation_ratio_corrected"]).all()


def test_dimensionality__of_a_small_variation_about_a_large_mean_is_measured(rng):
    values = rng.standard_normal((1, 4000, 4))
    found = nq.dimensionality(labelled(1e8 + values), interval="none")
    assert found["participation_ratio"].item() == pytest.approx(4, abs=0.05)


def test_dimensionality__beyond_the_range_of_float64_is_unknown(rng):
    assert np.isnan(nq.dimensionality(labelled(1e300 * rng.random((1, 20, 3))))["stable_rank"]).all()


def test_dimensionality__over_the_budget_names_a_cheaper_way(rng):
    acts = labelled(rng.random((1, 8, 4, 3, 3)), chunks=(1, 8, 4, 3, 3))
    with pytest.raises(MemoryBudgetError, match="use positions='mean', select fewer"):
        nq.dimensionality(acts, memory=10)
    with pytest.raises(MemoryBudgetError) as caught:
        nq.dimensionality(acts, positions="mean", memory=10)
    assert "use positions" not in str(caught.value)


@pytest.mark.parametrize(("options", "expected"), [({"confidence": 95}, "confidence=95"), ({"seed": -1}, "seed=-1")])
def test_dimensionality__refuses_options_before_it_reads(rng, options, expected):
    with pytest.raises(InvalidInputError, match=expected):
        nq.dimensionality(labelled(rng.random((1, 8, 4)), chunks=(1, 8, 4)), **options)


def test_dimensionality__has_no_interval_below_one_direction(rng):
    values = rng.standard_normal((1, 30, 5))
    values[0, 3] = 40
    found = nq.dimensionality(labelled(values), n_groups=2)
    for name in ("stable_rank", "participation_ratio", "energy_dims_90", "nuclear_ratio", "effective_rank"):
        assert float(found[f"{name}_low"][0]) == 1
