"""Figures of composition show the numbers they are given, and say what they leave out."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex

import ndt_query as nq
from ndt_query import plot
from ndt_query.plot.style import OKABE_ITO
from ndt_store.errors import DimensionError, InvalidInputError

from .sources import labelled

N = 60


@pytest.fixture(scope="module")
def results():
    """conv2 is a mixture of conv1 at checkpoint 100 and noise at 0, fc noise throughout."""
    rng = np.random.default_rng(2)
    conv1, conv2 = rng.standard_normal((2, 2, N, 6))
    conv2[1] = conv1[1] @ rng.standard_normal((6, 6))
    conv2[:, :, 5] = 0
    layers = {"conv1": conv1, "conv2": conv2, "$fc$": rng.standard_normal((2, N, 3))}
    arrays = {name: labelled(values) for name, values in layers.items()}
    return nq.compose_pairs(arrays, n_permutations=19, interval="none")


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_composition__draws_units_against_their_null_over_training(results):
    figure = plot.composition(results)
    first, second = figure.axes
    one = results["conv1", "conv2"]
    np.testing.assert_allclose(lines(first)[0], np.nanmedian(one["r2"].clip(min=-0.25), axis=1))
    assert lines(first)[1] == [0.7, 0.7]
    null = first.collections[0].get_paths()[0].vertices[:, 1]
    known = one["null_r2"].clip(min=-0.25)
    assert null.max() == pytest.approx(float(known.max()))
    assert null.min() == pytest.approx(float(known.min()))
    assert first.get_title(loc="left") == "conv1 \u2192 conv2\n0 \u2192 5 of 5 composed"
    assert second.get_title(loc="left") == "conv2 \u2192 \\$fc\\$\n0 \u2192 0 of 3 composed"
    assert first.get_ylabel() == "held-out $R^2$"
    assert second.get_ylabel() == ""


def test_composition__of_one_checkpoint_draws_how_many_units_lie_above(results):
    one = results["conv1", "conv2"].sel(checkpoint=100)
    (axes,) = plot.composition(one).axes
    shuffled, held_out, threshold = axes.get_lines()
    assert held_out.get_xdata()[1:].tolist() == sorted(one["r2"].dropna("unit").values)
    np.testing.assert_allclose(held_out.get_ydata(), [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-12)
    assert len(shuffled.get_xdata()) == 1 + 19 * 5
    assert threshold.get_xdata() == [0.7, 0.7]
    assert axes.get_title(loc="left") == "conv1 \u2192 conv2\n5 of 5 composed"
    assert axes.get_ylabel() == "units above"


def test_composition__of_a_layer_that_is_all_nan_draws_nothing_there(results):
    nothing = results["conv1", "conv2"].copy(deep=True)
    nothing["r2"][:], nothing["null_r2"][:] = np.nan, np.nan
    assert np.isnan(lines(plot.composition(nothing).axes[0])[0]).all()
    (axes,) = plot.composition(nothing.isel(checkpoint=0)).axes
    assert len(axes.get_lines()) == 1
    assert np.isnan(lines(plot.composed_share(nothing).axes[0])[0]).all()


def test_composed_share__is_of_units_that_vary_with_exact_intervals(results):
    axes = plot.composed_share(results).axes[0]
    first, second = axes.containers
    assert first.lines[0].get_ydata().tolist() == [0, 1]
    ends = np.array([segment[:, 1] for segment in first.lines[2][0].get_segments()])
    expected = np.stack(nq.clopper_pearson([0, 5], [5, 5]), axis=1)
    np.testing.assert_allclose(ends, expected)
    assert second.lines[0].get_ydata().tolist() == [0, 0]
    low, high = axes.get_xlim()
    assert low <= 0 < 100 <= high < 110
    assert axes.get_title(loc="left") == "95% intervals, of units that vary"


def test_composed_share__refuses_one_checkpoint(results):
    with pytest.raises(DimensionError, match="conv1 \u2192 conv2 has no dimension checkpoint"):
        plot.composed_share(results["conv1", "conv2"].isel(checkpoint=0))


@pytest.mark.parametrize("draw", [plot.composition, plot.composed_share])
def test_figures__refuse_another_result(results, draw):
    with pytest.raises(DimensionError, match="has no null_r2 and composed: pass that of compose"):
        draw(results["conv1", "conv2"].drop_vars("null_r2"))
    with pytest.raises(DimensionError, match="no result to draw"):
        draw({})


def test_composition_graph__draws_each_edge_from_unit_to_unit_with_sign_and_width(results):
    graph = nq.composition_graph(results, least_share=0.2)
    axes = plot.composition_graph(graph).axes[0]
    edges = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert len(edges) == graph.sizes["edge"] > 5
    labels = {text.xy: text.get_text() for text in axes.texts}
    drawn = {
        (labels[tuple(start)], labels[tuple(end)]): line
        for line in edges
        for start, end in [np.stack(line.get_data(), axis=1)]
    }
    for e in range(graph.sizes["edge"]):
        one = graph.isel(edge=e)
        line = drawn[str(one["early_unit"].item()), str(one["late_unit"].item())]
        assert to_hex(line.get_color()).upper() == OKABE_ITO[0 if one["weight"] > 0 else 1]
    widths = [line.get_linewidth() for line in edges]
    weights = np.sort(np.abs(graph["weight"].values))
    np.testing.assert_allclose(widths, 0.4 + 2.6 * weights / weights[-1])
    assert axes.get_title(loc="left") == f"step 100: all {len(edges)} edges"
    assert [text.get_text() for text in axes.get_xticklabels()][2] == "\\$fc\\$\n0 of 3 units"


def many(pairs, n):
    names = ("early_layer", "early_unit", "late_layer", "late_unit", "weight", "share", "leave_out", "r2")
    rows = [(a, u, b, u, 1.0, share, 0.1, 0.9) for (a, b), share in pairs for u in range(n)]
    columns = {name: ("edge", np.array(values)) for name, values in zip(names, zip(*rows, strict=True), strict=True)}
    return xr.Dataset(columns, attrs={"layers": '{"a": 99, "b": 99, "c": 99}'})


def test_composition_graph__shows_as_many_edges_of_each_pair_and_says_what_it_leaves_out():
    graph = many([(("a", "b"), 0.9), (("b", "c"), 0.1)], 80)
    axes = plot.composition_graph(graph).axes[0]
    edges = [line for line in axes.get_lines() if len(line.get_xdata()) == 2]
    assert len(edges) == 60
    assert sum(line.get_xdata()[0] == 0 for line in edges) == 30
    assert axes.get_title(loc="left") == "the 60 edges of the largest share of each pair; 100 more are left out"
    assert len(plot.composition_graph(graph, most=7).axes[0].texts) < 20


def test_composition_graph__orders_units_so_that_edges_do_not_cross_where_they_need_not():
    graph = many([(("a", "b"), 0.9)], 12)
    graph["late_unit"][:] = np.random.default_rng(0).permutation(12)
    axes = plot.composition_graph(graph).axes[0]
    heights = sorted(tuple(line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 2)
    assert [end for _, end in heights] == sorted(end for _, end in heights)


def test_composition_graph__without_edges_says_so(results):
    axes = plot.composition_graph(nq.composition_graph(results, checkpoint=0)).axes[0]
    assert axes.get_title(loc="left") == "no unit is composed"
    assert not axes.texts


def test_composition_graph__refuses_another_result_and_no_edges_at_all(results):
    with pytest.raises(DimensionError, match="no early_unit over edge"):
        plot.composition_graph(results["conv1", "conv2"])
    with pytest.raises(InvalidInputError, match="most=0"):
        plot.composition_graph(nq.composition_graph(results), most=0)
