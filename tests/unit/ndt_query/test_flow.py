"""Rollout, maximal flow and what passes each token equal independent computations and closed forms."""

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import linprog

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError

from .attention_cases import noise, patterns


@pytest.fixture
def layers(rng):
    return {name: patterns(noise(rng, n=8, heads=3, tokens=4, dtype=np.float64)) for name in ("a", "b", "c")}


def with_residual(values):
    found = values.mean(axis=2) + np.eye(values.shape[-1])
    return found / found.sum(-1, keepdims=True)


def test_rollout__is_the_product_of_the_layers(layers):
    found = nq.attention_rollout(layers)
    assert found.dims == ("checkpoint", "example", "query", "key")
    a, b, c = (with_residual(one.values) for one in layers.values())
    np.testing.assert_allclose(found, c @ b @ a)
    np.testing.assert_allclose(found.sum("key"), 1)
    bare = nq.attention_rollout(layers, residual=False, layers=["c", "a"])
    np.testing.assert_allclose(bare, layers["a"].values.mean(2) @ layers["c"].values.mean(2))
    lazy = nq.attention_rollout({name: one.chunk({"example": 3}) for name, one in layers.items()})
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy, found)
    assert found.sel(checkpoint=10, example=103).dims == ("query", "key")


def by_linear_programming(mixed, query, key):
    """Maximal flow from an output token to an input token: variables are the flows on edges."""
    depth, n = len(mixed), mixed[0].shape[0]
    edges = [(level, q, k) for level in range(depth) for q in range(n) for k in range(n)]
    bounds = [(0, mixed[level][q, k]) for level, q, k in edges]
    balance = []
    for level in range(1, depth):
        for token in range(n):
            row = [0.0] * len(edges)
            for place, (at, q, k) in enumerate(edges):
                row[place] += (at == level and k == token) - (at == level - 1 and q == token)
            balance.append(row)
    # What leaves other outputs, and what reaches other inputs, is nothing.
    for place, (at, q, k) in enumerate(edges):
        if (at == depth - 1 and q != query) or (at == 0 and k != key):
            bounds[place] = (0, 0)
    gain = [-1.0 if at == 0 and k == key else 0.0 for at, q, k in edges]
    solved = linprog(gain, A_eq=balance, b_eq=np.zeros(len(balance)), bounds=bounds)
    return -solved.fun


def test_flow__is_that_of_a_linear_program(layers):
    found = nq.attention_flow(layers, [100, 105])
    assert found.sizes == {"checkpoint": 2, "example": 2, "query": 4, "key": 4}
    mixed = [with_residual(one.values)[1, 5] for one in layers.values()]
    for query in range(4):
        for key in range(4):
            expected = by_linear_programming(mixed, query, key)
            assert float(found[1, 1, query, key]) == pytest.approx(expected, abs=1e-6)


def test_flow__of_one_layer_is_attention_itself(layers):
    found = nq.attention_flow(layers, [101], layers=["b"], residual=False)
    np.testing.assert_allclose(found[:, 0], layers["b"].values.mean(2)[:, 1], atol=1e-7)


def test_metrics__at_their_ends():
    def of(pattern):
        values = np.broadcast_to(pattern, (1, 5, 2, *pattern.shape)).copy()
        return nq.flow_metrics(
            {"a": patterns(values, steps=[0]), "b": patterns(values, steps=[0])}, residual=False
        ).isel(checkpoint=0)

    own = of(np.eye(4))
    assert [float(own[name]) for name in ("flow_entropy", "input_diversity", "output_concentration")] == [0, 1, 0]
    np.testing.assert_allclose(own["throughput"], 0.25)
    assert not own["bottleneck"].any()
    alike = of(np.full((4, 4), 0.25))
    values = [float(alike[name]) for name in ("flow_entropy", "input_diversity", "output_concentration")]
    np.testing.assert_allclose(values, [1, 1, 1])
    one = of(np.eye(4)[[2] * 4])
    values = [float(one[name]) for name in ("flow_entropy", "input_diversity", "output_concentration")]
    np.testing.assert_allclose(values, [0, 0.25, 1])
    np.testing.assert_allclose(one["throughput"], [[0, 0, 1, 0]] * 2)
    assert one["bottleneck"].values.tolist() == [[False, False, True, False]] * 2


def test_metrics__equal_numpy_with_intervals_over_examples(layers):
    found = nq.flow_metrics(layers)
    rolled = nq.attention_rollout(layers).values
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(rolled > 0, rolled * np.log(rolled), 0).sum(-1).mean(-1) / np.log(4)
    np.testing.assert_allclose(found["flow_entropy"], entropy.mean(1))
    interval = nq.mean_ci(entropy, axis=1)
    np.testing.assert_allclose(found["flow_entropy_low"], interval.low)
    np.testing.assert_allclose(found["flow_entropy_high"], interval.high)
    assert found["layer"].values.tolist() == ["a", "b", "c"]
    b, c = (with_residual(one.values) for one in list(layers.values())[1:])
    expected = np.stack([rolled.mean((1, 2)), (c @ b).mean((1, 2)), c.mean((1, 2))], axis=1)
    np.testing.assert_allclose(found["throughput"], expected)
    np.testing.assert_allclose(found["throughput"].sum("token"), 1)
    lazy = nq.flow_metrics({name: one.chunk({"example": 3, "checkpoint": 1}) for name, one in layers.items()})
    xr.testing.assert_allclose(lazy, found)


def test_metrics__find_the_token_that_everything_passes_and_none_in_noise(rng):
    values = noise(rng, n=40, tokens=6)
    hub = values.copy()
    hub[1] = 0.2 * hub[1] + 0.8 * np.eye(6)[4]
    found = nq.flow_metrics({"a": patterns(values), "b": patterns(hub)})
    assert not found["bottleneck"].sel(checkpoint=0).any()
    assert found["bottleneck"].sel(checkpoint=10).values[1].tolist() == [False] * 4 + [True, False]


def test_flow__names_what_is_wrong(layers, rng):
    with pytest.raises(NotFoundError, match="no attention of layer 'd': there is of a, b, c"):
        nq.attention_rollout(layers, layers=["d"])
    with pytest.raises(DimensionError, match="as many queries as keys"):
        nq.flow_metrics({"a": patterns(noise(rng, keys=5))})
    with pytest.raises(DimensionError, match="a 4 x 4, b 9 x 9"):
        nq.attention_rollout({"a": layers["a"], "b": patterns(noise(rng, n=8))})
    with pytest.raises(NotFoundError, match="no example 7"):
        nq.attention_flow(layers, [7])
    with pytest.raises(InvalidInputError, match="factor"):
        nq.flow_metrics(layers, factor=-1)
    with pytest.raises(InvalidInputError, match="got DataArray; a DataArray or a layer's Dataset is one layer alone"):
        nq.attention_rollout(layers["a"])


def test_flow__takes_the_name_of_one_layer(layers):
    xr.testing.assert_identical(nq.attention_rollout(layers, layers="a"), nq.attention_rollout(layers, layers=["a"]))


def test_flow__of_nan_is_nan_for_its_example_alone(rng):
    values = noise(rng, n=2, heads=2, tokens=4, steps=1, dtype=np.float64)
    values[0, 1, 0, 2, 3] = np.nan
    layers = {"a": patterns(values), "b": patterns(noise(rng, n=2, heads=2, tokens=4, steps=1))}
    rolled, flow = nq.attention_rollout(layers), nq.attention_flow(layers, [100, 101])
    for found in (rolled, flow):
        assert np.isfinite(found.sel(example=100)).all()
        assert np.isnan(found.sel(example=101)).any()
    assert np.isnan(flow.sel(example=101)).all()


def test_rollout__of_a_tree_needs_the_order_of_its_layers(rng):
    names = [f"block.{n}" for n in range(11)]
    layers = {name: patterns(noise(rng, n=3, heads=1, tokens=3)) for name in names}
    nodes = {f"layers/{name}": one.to_dataset(name="attentions") for name, one in layers.items()}
    tree = xr.DataTree.from_dict(nodes)
    with pytest.raises(InvalidInputError, match="by name and not by depth"):
        nq.attention_rollout(tree)
    xr.testing.assert_allclose(nq.attention_rollout(tree, layers=names), nq.attention_rollout(layers))


def test_rollout__is_of_the_layers_that_hold_patterns(rng):
    layers = {"a": patterns(noise(rng)), "b": xr.Dataset({"attention_mean": patterns(noise(rng)).mean("example")})}
    xr.testing.assert_allclose(nq.attention_rollout(layers), nq.attention_rollout({"a": layers["a"]}))
