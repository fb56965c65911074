"""Graphs of composed units: edges are what compose found, files are GraphML that others read."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .sources import labelled

N = 90
XML = {"g": "http://graphml.graphdrawing.org/xmlns"}


@pytest.fixture(scope="module")
def layers():
    """conv2's unit 1 is made of conv1's 2 and -5; fc's unit 0 of conv2's 1 alone; at checkpoint 0 nothing is."""
    rng = np.random.default_rng(5)
    conv1, conv2 = rng.standard_normal((2, 2, N, 8))
    conv2 = conv2[..., :4].copy()
    conv2[1, :, 1] = conv1[1, :, 2] - 0.5 * conv1[1, :, 5] + 0.05 * rng.standard_normal(N)
    fc = rng.standard_normal((2, N, 2))
    fc[1, :, 0] = -3 * conv2[1, :, 1] + 0.05 * rng.standard_normal(N)
    return {name: labelled(values).drop_attrs() for name, values in (("conv1", conv1), ("conv2", conv2), ("fc", fc))}


@pytest.fixture(scope="module")
def results(layers):
    return nq.compose_pairs(layers, n_permutations=19)


@pytest.fixture(scope="module")
def graph(results):
    return nq.composition_graph(results)


def rows(graph):
    names = ("early_layer", "early_unit", "late_layer", "late_unit")
    return list(zip(*(graph[name].values.tolist() for name in names), strict=True))


def test_compose_pairs__are_those_of_neighbours_or_the_ones_named(layers, results):
    assert list(results) == [("conv1", "conv2"), ("conv2", "fc")]
    alone = nq.compose(layers["conv1"], layers["conv2"], n_permutations=19)
    for name in alone.data_vars:
        np.testing.assert_array_equal(results["conv1", "conv2"][name], alone[name])
    assert results["conv2", "fc"].attrs["early_layer"] == "conv2"
    assert results["conv2", "fc"].attrs["layer"] == "fc"
    named = nq.compose_pairs(layers, [("conv1", "fc")], checkpoint=100, n_permutations=19)
    assert list(named) == [("conv1", "fc")]
    assert "checkpoint" not in named["conv1", "fc"].dims


def test_composition_graph__has_the_planted_edges_and_no_other(graph):
    assert rows(graph) == [("conv1", 2, "conv2", 1), ("conv1", 5, "conv2", 1), ("conv2", 1, "fc", 0)]
    assert np.sign(graph["weight"].values).tolist() == [1, -1, -1]
    assert (graph["r2"] > 0.9).all()
    assert graph.attrs["checkpoint"] == 100
    assert json.loads(graph.attrs["layers"]) == {"conv1": 8, "conv2": 4, "fc": 2}
    assert graph.attrs["n_examples"] == N


def test_composition_graph__of_layers_is_that_of_their_results(layers, graph):
    again = nq.composition_graph(layers, n_permutations=19)
    assert again.equals(graph)
    assert nq.composition_graph(layers, [("conv1", "conv2")], checkpoint=100, n_permutations=19).sizes["edge"] == 2


def test_composition_graph__numbers_are_those_of_compose(results, graph):
    one = results["conv1", "conv2"].sel(checkpoint=100, unit=1)
    for name, source in (("weight", "coefficient"), ("share", "share"), ("leave_out", "leave_out")):
        assert graph[name].values[:2].tolist() == one[source].values[:2].tolist()
    assert graph["r2"].values[:2].tolist() == [one["r2"].item()] * 2


def test_composition_graph__where_nothing_is_composed_has_no_edges(results):
    empty = nq.composition_graph(results, checkpoint=0)
    assert empty.sizes["edge"] == 0
    assert empty["early_unit"].dtype == np.int64
    assert set(json.loads(empty.attrs["layers"])) == {"conv1", "conv2", "fc"}


def test_composition_graph__keeps_the_first_contributor_whatever_its_share(results):
    assert len(rows(nq.composition_graph(results, least_share=0.9))) == 2
    every = nq.composition_graph(results, least_share=0.0)
    assert every.sizes["edge"] == 8 + 4


def test_composition_graph__of_a_store_and_of_a_tree(tmp_path):
    store = simulate_store(tmp_path / "s.zarr", n_examples=20).store
    options = {"n_permutations": 19, "interval": "none"}
    found = nq.composition_graph(store, **options)
    assert list(json.loads(found.attrs["layers"])) == list(store.layers)
    assert found.attrs["store"] == str(tmp_path / "s.zarr")
    assert nq.composition_graph(store.tree, checkpoint=100, **options).equals(found)


def test_pairs__that_cannot_be_asked(layers, results):
    with pytest.raises(NotFoundError, match="no layer 'conv9' with activations: there are conv1, conv2, fc"):
        nq.compose_pairs(layers, [("conv1", "conv9")])
    with pytest.raises(InvalidInputError, match="is no pair: expected the names of an early layer and of another"):
        nq.compose_pairs(layers, [("conv1", "conv1")])
    with pytest.raises(InvalidInputError, match="'ab' is no pair"):
        nq.compose_pairs(layers, ["ab"])
    with pytest.raises(InvalidInputError, match="pairs is empty"):
        nq.compose_pairs(layers, [])
    with pytest.raises(InvalidInputError, match="pairs='all' is not an option"):
        nq.compose_pairs(layers, "all")
    with pytest.raises(InvalidInputError, match="A pair needs two layers: there is fc alone"):
        nq.compose_pairs({"fc": layers["fc"]})
    with pytest.raises(NotFoundError, match="no checkpoint 50"):
        nq.compose_pairs(layers, checkpoint=50)
    with pytest.raises(NotFoundError, match="no checkpoint 50"):
        nq.composition_graph(results, checkpoint=50)
    with pytest.raises(NotFoundError, match=r"no result of \('conv1', 'fc'\)"):
        nq.composition_graph(results, [("conv1", "fc")])
    with pytest.raises(InvalidInputError, match="Results are there already: leave out folds"):
        nq.composition_graph(results, folds=3)
    with pytest.raises(InvalidInputError, match="least_share=2"):
        nq.composition_graph(results, least_share=2)


def test_write_graphml__is_read_back_as_it_was(graph, tmp_path):
    path = nq.write_graphml(graph, tmp_path / "g.graphml")
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{{{XML['g']}}}graphml"
    keys = {
        key.get("id"): (key.get("for"), key.get("attr.name"), key.get("attr.type"))
        for key in root.findall("g:key", XML)
    }
    assert keys["weight"] == ("edge", "weight", "double")
    assert keys["unit"] == ("node", "unit", "long")
    (body,) = root.findall("g:graph", XML)
    assert body.get("edgedefault") == "directed"
    nodes = {
        node.get("id"): {data.get("key"): data.text for data in node.findall("g:data", XML)}
        for node in body.findall("g:node", XML)
    }
    assert nodes == {
        f"{layer}/{unit}": {"layer": layer, "unit": str(unit)}
        for layer, unit in (("conv1", 2), ("conv1", 5), ("conv2", 1), ("fc", 0))
    }
    edges = body.findall("g:edge", XML)
    assert [(edge.get("source"), edge.get("target")) for edge in edges] == [
        (f"{a}/{b}", f"{c}/{d}") for a, b, c, d in rows(graph)
    ]
    for place, edge in enumerate(edges):
        held = {data.get("key"): float(data.text) for data in edge.findall("g:data", XML)}
        assert held == {name: graph[name].values[place] for name in ("weight", "share", "leave_out", "r2")}
        assert set(held) < set(keys)
        assert edge.get("source") in nodes
        assert edge.get("target") in nodes


def test_write_graphml__takes_any_name_of_a_layer(layers, tmp_path):
    odd = 'a<b>&"c"\x00\x1b[31m\ufffe é\U0001f600'
    graph = nq.composition_graph({odd: layers["conv1"], "conv2": layers["conv2"]}, n_permutations=19)
    root = ElementTree.parse(nq.write_graphml(graph, tmp_path / "g.graphml")).getroot()
    names = {data.text for data in root.iter(f"{{{XML['g']}}}data") if data.get("key") == "layer"}
    assert names == {"conv2", 'a<b>&"c"\ufffd\ufffd[31m\ufffd é\U0001f600'}


def test_write_graphml__of_no_edges_is_a_graph_without_nodes(results, tmp_path):
    root = ElementTree.parse(nq.write_graphml(nq.composition_graph(results, checkpoint=0), tmp_path / "g.graphml"))
    assert len(root.find("g:graph", XML)) == 0


def test_write_graphml__refuses_another_result(results, tmp_path):
    with pytest.raises(DimensionError, match="The graph has no early_layer, .* over edge: pass that of composition_gr"):
        nq.write_graphml(results["conv2", "fc"], tmp_path / "g.graphml")
    assert not list(tmp_path.iterdir())
    assert isinstance(results["conv2", "fc"], xr.Dataset)
