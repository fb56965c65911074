"""Measures of attention equal scipy and closed forms, lazily and from summaries, and say what they leave out."""

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy import stats

import ndt_query as nq
from ndt_query import attention_data
from ndt_query.attention_data import deal, group_means, patterns_of
from ndt_query.kernels.patterns import divergences, grid_distances
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError

from .attention_cases import noise, patterns
from .sources import CountingSource


@pytest.fixture
def random(rng):
    return patterns(noise(rng))


def gini(row):
    """Mean absolute difference over twice the mean."""
    return np.abs(row[:, None] - row).mean() / (2 * row.mean())


def hoyer(row):
    n = len(row) ** 0.5
    return (n - np.abs(row).sum() / np.sqrt((row**2).sum())) / (n - 1)


def by_row(values, measure):
    """Mean over queries of a measure of each row: (checkpoint, example, head)."""
    return np.apply_along_axis(measure, -1, values.astype(np.float64)).mean(axis=-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_measures__equal_those_of_each_row(rng, dtype):
    att = patterns(noise(rng, dtype=np.float64).astype(dtype))
    found = nq.attention_entropy(att).merge(nq.attention_sparsity(att, threshold=0.2)).merge(nq.attention_distance(att))
    values = att.values
    apart = np.abs(np.arange(9)[:, None] - np.arange(9))
    expected = {
        "entropy": by_row(values, lambda row: stats.entropy(row, base=9)),
        "hoyer": by_row(values, hoyer),
        "gini": by_row(values, gini),
        "share": by_row(values, lambda row: (row > 0.2).mean()),
        "distance": (values.astype(np.float64) * apart).sum(-1).mean(-1),
    }
    rtol = {np.float64: 1e-12, np.float32: 1e-5, np.float16: 3e-3}[dtype]
    for name, one in expected.items():
        np.testing.assert_allclose(found[name], one.mean(1), rtol=rtol, atol=rtol, err_msg=name)
        low, high = stats.t.interval(0.95, 59, one.mean(1), stats.sem(one, axis=1))
        np.testing.assert_allclose(found[f"{name}_low"], low, rtol=10 * rtol, err_msg=name)
        np.testing.assert_allclose(found[f"{name}_high"], high, rtol=10 * rtol, err_msg=name)
    assert found["entropy"].dims == ("checkpoint", "head")


def test_measures__at_their_ends():
    one_hot, uniform = np.broadcast_to(np.eye(5), (2, 3, 1, 5, 5)), np.full((2, 3, 1, 5, 5), 0.2)
    att = patterns(np.concatenate([one_hot, uniform], axis=2))
    np.testing.assert_allclose(nq.attention_entropy(att)["entropy"], [[0, 1]] * 2, atol=1e-15)
    sparse = nq.attention_sparsity(att, threshold=0.5)
    np.testing.assert_allclose(sparse["hoyer"], [[1, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(sparse["gini"], [[0.8, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(sparse["share"], [[0.2, 0]] * 2)
    distance = nq.attention_distance(att)
    np.testing.assert_allclose(distance["distance"], [[0, 1.6]] * 2)
    assert float(distance["uniform_distance"]) == pytest.approx(1.6)
    single = patterns(np.ones((1, 3, 2, 4, 1)))
    assert nq.attention_entropy(single)["entropy"].isnull().all()
    assert nq.attention_sparsity(single)["hoyer"].isnull().all()
    assert (nq.attention_sparsity(single)["gini"] == 0).all()


def test_queries_that_attend_to_nothing_are_left_out_and_nan_is_not(rng):
    values = noise(rng, dtype=np.float64)
    values[0, 0, 0, 2:] = 0
    values[0, 1, 1] = 0
    values[1, 2, 2, 0, 0] = np.nan
    found = nq.attention_entropy(patterns(values))["entropy"]
    rest = values.copy()
    first = [stats.entropy(row, base=9) for row in values[0, 0, 0, :2]]
    others = by_row(rest[0, 1:, 0], lambda row: stats.entropy(row, base=9))
    assert found.values[0, 0] == pytest.approx(np.mean([np.mean(first), *others]))
    assert np.isnan(found.values[0, 1])  # an example of that head attends to nothing at all
    assert np.isnan(found.values).sum() == 2
    assert np.isnan(found.values[1, 2])


def test_measures__are_lazy_and_read_each_chunk_once_together(rng):
    values = noise(rng, n=12)
    reads = CountingSource(values)
    lazy = da.from_array(reads, chunks=(1, 4, 4, 9, 9), asarray=False, meta=np.empty((0,) * 5, values.dtype))
    source = patterns(values).copy(data=lazy)
    asked = [nq.attention_entropy(source), nq.attention_sparsity(source), nq.mean_pattern(source)]
    assert reads.reads == []
    entropy, sparsity, mean = dask.compute(*asked)
    assert len(reads.reads) == 6
    assert (
        sum(1 for key in asked[0].merge(asked[1], compat="override").__dask_graph__() if "row_statistics" in str(key))
        == 6
    )
    np.testing.assert_allclose(entropy["entropy"], nq.attention_entropy(patterns(values))["entropy"], rtol=1e-6)
    np.testing.assert_allclose(sparsity["gini"], nq.attention_sparsity(patterns(values))["gini"], rtol=1e-6)
    np.testing.assert_allclose(mean["pattern"], values.mean(1, dtype=np.float64))


def test_distance__on_a_grid_after_a_class_token(rng):
    att = patterns(noise(rng, tokens=7, dtype=np.float64))
    found = nq.attention_distance(att, grid=(2, 3), n_prefix=1)
    rest = att.values[..., 1:, 1:]
    rest = rest / rest.sum(-1, keepdims=True)
    places = [(row, column) for row in range(2) for column in range(3)]
    apart = np.array([[np.hypot(a - c, b - d) for c, d in places] for a, b in places])
    np.testing.assert_allclose(grid_distances(2, 3), apart)
    np.testing.assert_allclose(found["distance"], (rest * apart).sum(-1).mean((1, 3)))
    assert float(found["uniform_distance"]) == pytest.approx(apart.mean())
    with pytest.raises(DimensionError, match=r"grid=\(2, 2\) does not fit 6 queries and 6 keys beside 1 tokens"):
        nq.attention_distance(att, grid=(2, 2), n_prefix=1)


def test_distance__leaves_out_queries_of_the_class_token_alone_and_keeps_nan(rng):
    values = noise(rng, tokens=5, dtype=np.float16)
    values[0, 3, 1, 2] = [1, 0, 0, 0, 0]
    values[1, 3, 1, 2, 2] = np.nan
    for options in ({"n_prefix": 1}, {"n_prefix": 1, "grid": (2, 2)}):
        found = nq.attention_distance(patterns(values), **options)["distance"].values
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1]).tolist() == [False, True, False, False]
    four = noise(rng, tokens=4)
    four[1, 0, 2, 1, 1] = np.nan
    found = nq.attention_distance(patterns(four), grid=(2, 2))["distance"].values
    assert np.isnan(found).tolist() == [[False] * 4, [False, False, True, False]]


def test_mean_pattern__of_some_examples_is_not_taken_for_that_of_all(random):
    mean = random.mean("example", dtype=np.float64).assign_attrs(n_examples=60)
    kept = xr.Dataset({"attention_mean": mean, "attention_entropy": random.isel(query=0, key=0, drop=True)})
    assert nq.mean_pattern(kept)["pattern"].shape == mean.shape
    with pytest.raises(InvalidInputError, match="mean pattern of 60 examples and 2 were selected"):
        nq.mean_pattern(kept.isel(example=slice(2)))


def test_layers__are_stacked_and_padded(rng):
    layers = {"a": patterns(noise(rng)), "b": patterns(noise(rng, heads=2, tokens=5))}
    found = nq.attention_entropy(layers)
    assert found["entropy"].dims == ("checkpoint", "layer", "head")
    assert found["entropy"].sel(layer="b").isnull().sum("head").values.tolist() == [2, 2]
    np.testing.assert_array_equal(found["entropy"].sel(layer="a"), nq.attention_entropy(layers["a"])["entropy"])
    mean = nq.mean_pattern(layers)["pattern"]
    assert mean.dims == ("checkpoint", "layer", "head", "query", "key")
    np.testing.assert_allclose(mean.sel(layer="b").isel(head=[0, 1], query=range(5), key=range(5)),
                               layers["b"].mean("example", dtype=np.float64))  # fmt: skip


def test_summaries__answer_in_place_of_patterns(random):
    names = {"entropy": "attention_entropy", "hoyer": "attention_hoyer", "gini": "attention_gini",
             "share": "attention_share", "distance": "attention_distance"}  # fmt: skip
    values = {}
    for name, kept in names.items():
        question = {"entropy": nq.attention_entropy, "distance": nq.attention_distance}.get(name, nq.attention_sparsity)
        one = [question(random.isel(example=[n]))[name] for n in range(random.sizes["example"])]
        values[kept] = xr.concat(one, "example").transpose("checkpoint", "example", "head")
    values["attention_mean"] = random.mean("example", dtype=np.float64)
    kept = xr.Dataset(values)
    for question in (nq.attention_entropy, nq.attention_sparsity, nq.attention_distance, nq.mean_pattern):
        whole, few = question(random), question(kept)
        for name in whole.data_vars:
            np.testing.assert_allclose(few[name], whole[name], rtol=1e-5, err_msg=name)
    with pytest.raises(
        InvalidInputError, match=r"threshold=0\.3 is asked for, and the capture kept summaries with 0\.1"
    ):
        nq.attention_sparsity(kept, threshold=0.3)
    with pytest.raises(NotFoundError, match="it has summaries alone, which do not answer this"):
        nq.attention_selectivity(kept, labels=np.arange(60) % 2)


def test_group_means__are_those_of_the_groups(random):
    groups = deal(60, 7, seed=1)
    assert sorted(np.bincount(groups).tolist()) == [8, 8, 8, 9, 9, 9, 9]
    expected = np.stack([random.values[:, groups == g].mean(1, dtype=np.float64) for g in range(7)], axis=1)
    for source in (random, random.chunk({"checkpoint": 1, "example": 17}), random.chunk({"head": 2})):
        found = group_means(patterns_of(source), groups, what="a test")
        assert (found.chunks is None) == (source.chunks is None)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        again = group_means(patterns_of(source.sel(checkpoint=10)), groups, what="a test")
        np.testing.assert_allclose(again, expected[1], rtol=1e-12)
    lazy = group_means(patterns_of(random.chunk({"example": 20})), groups, what="a test")
    np.testing.assert_array_equal(lazy.compute(), lazy.compute())  # sums are not added to twice
    with pytest.raises(MemoryBudgetError, match="a test is projected to take"):
        group_means(patterns_of(random.chunk({"example": 20})), groups, what="a test", memory="10 kB")


def test_divergences__equal_scipys(rng):
    from scipy.spatial.distance import jensenshannon

    means = rng.dirichlet(np.ones(6), (3, 4))
    found = divergences(means)
    for a in range(3):
        for b in range(3):
            expected = np.mean([jensenshannon(p, q, base=2) ** 2 for p, q in zip(means[a], means[b], strict=True)])
            assert found[a, b] == pytest.approx(expected, abs=1e-12)
    assert divergences(np.stack([np.eye(4), np.roll(np.eye(4), 1, 1)]))[0, 1] == pytest.approx(1)


def test_questions__name_what_is_wrong(random, rng):
    with pytest.raises(DimensionError, match="expected example, head, query and key"):
        nq.attention_entropy(random.isel(head=0))
    with pytest.raises(NotFoundError, match="it has no attention"):
        nq.attention_entropy(xr.Dataset({"activations": ("example", [1.0])}))
    with pytest.raises(NotFoundError, match="No layer holds attention"):
        nq.attention_entropy({"a": xr.Dataset({"activations": ("example", [1.0])})})
    with pytest.raises(InvalidInputError, match="got list"):
        nq.attention_entropy([random])
    with pytest.raises(InvalidInputError, match="threshold"):
        nq.attention_sparsity(random, threshold=1.0)
    with pytest.raises(InvalidInputError, match="not a level"):
        nq.attention_entropy(random, confidence=95)
    with pytest.raises(DimensionError, match="grid=7 does not fit"):
        nq.attention_distance(random, grid=7)
    n = random.sizes["query"]
    with pytest.raises(InvalidInputError, match=f"n_prefix={n} leaves no patch: there are {n} tokens"):
        nq.attention_distance(random, n_prefix=n)
    with pytest.raises(NotFoundError, match="no group 'layers'"):
        dict(attention_data.attention_layers(xr.DataTree()))


def test_results__say_what_they_are(random):
    found = nq.attention_entropy(random)
    assert found.attrs["what"] == "entropy of attention"
    assert found.attrs["n_examples"] == 60
    assert '"confidence": 0.95' in found.attrs["parameters"]
    assert found["head"].values.tolist() == [0, 1, 2, 3]
