"""Questions to a whole store, and what results say about themselves."""

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query.plot.style import results_by_layer
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

from .sources import labelled


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulate_store(tmp_path_factory.mktemp("layers") / "run.zarr", n_examples=15).store


def test_question_with_units__to_a_store_answers_with_a_tree_keyed_by_layer(store):
    found = nq.unit_moments(store)
    assert isinstance(found, xr.DataTree)
    assert set(found.children) == set(store.layers)
    for layer in store.layers:
        xr.testing.assert_identical(found[layer].to_dataset(), nq.unit_moments(store[layer].activations))


def test_question_without_units__to_a_store_answers_with_a_layer_dimension(store):
    found = nq.dimensionality(store)
    assert found["stable_rank"].dims == ("checkpoint", "layer")
    assert found["layer"].values.tolist() == list(store.layers)
    for layer in store.layers:
        one = nq.dimensionality(store[layer].activations)
        np.testing.assert_array_equal(found["stable_rank"].sel(layer=layer), one["stable_rank"])
        assert found["n_features"].sel(layer=layer).item() == one["n_features"].item()


def test_question__to_a_tree_equals_the_question_to_its_store(store):
    tree, direct = nq.selectivity_index(store.tree, n_permutations=9), nq.selectivity_index(store, n_permutations=9)
    for layer in store.layers:
        xr.testing.assert_equal(tree[layer].to_dataset(), direct[layer].to_dataset())


def test_question__to_a_mapping_of_selections_is_about_those(store):
    chosen = {"fc": store["fc"].sel(checkpoint=[0, 100]), "conv1": store["conv1"].activations.sel(checkpoint=[0, 100])}
    expected = nq.dimensionality(store)["stable_rank"].sel(checkpoint=[0, 100], layer=["fc", "conv1"])
    xr.testing.assert_allclose(nq.dimensionality(chosen)["stable_rank"], expected)


def test_question__to_a_layer_dataset_is_about_its_activations(store):
    xr.testing.assert_identical(nq.unit_moments(store["fc"]), nq.unit_moments(store["fc"].activations))
    with pytest.raises(NotFoundError, match="it has gradients"):
        nq.unit_moments(store["fc"].drop_vars("activations"))


def test_question__skips_layers_without_activations(tmp_path):
    mixed = simulate_store(tmp_path / "run.zarr", attention={"attn": (2, 3)}).store
    assert "attn" in mixed.layers
    assert "attn" not in nq.unit_moments(mixed).children


def test_question__to_a_store_without_activations_says_so(tmp_path):
    none = simulate_store(tmp_path / "run.zarr", kinds=("gradients",)).store
    with pytest.raises(NotFoundError, match="No layer holds activations"):
        nq.dimensionality(none)
    with pytest.raises(NotFoundError, match="no group 'layers'"):
        nq.unit_moments(xr.DataTree())


def test_result__says_what_it_is_and_where_it_comes_from(rng):
    found = nq.dead_units(labelled(rng.random((2, 6, 4))), 0.25)
    assert found.attrs["what"] == "units that never fire on the probe set"
    assert json.loads(found.attrs["parameters"])["threshold"] == 0.25
    assert {key: found.attrs[key] for key in ("store", "layer", "kind")} == {
        "store": "run.zarr",
        "layer": "conv1",
        "kind": "activations",
    }
    assert found.attrs["commits"] == [0, 100]
    assert found.attrs["n_examples"] == 6
    assert found.attrs["software"] == f"ndt-activations {version('ndt-activations')}"


def test_result__can_be_written_to_a_file(store, tmp_path):
    found = nq.selectivity_index(store["fc"], n_permutations=9).compute()
    found.to_zarr(tmp_path / "result.zarr", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "result.zarr", consolidated=False) as read:
        xr.testing.assert_identical(read.load(), found)


def test_question__of_another_type_says_what_can_be_asked():
    with pytest.raises(InvalidInputError, match="got list"):
        nq.dimensionality([1, 2])


def test_import__of_the_package_brings_no_heavy_library():
    heavy = ("scipy", "sklearn", "matplotlib", "dask", "torch")
    script = f"import sys, ndt_query; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_import__of_every_name_brings_no_torch_and_no_capture():
    script = (
        "import sys, ndt_query as nq; [getattr(nq, name) for name in nq.__all__];"
        "print('scipy' in sys.modules, 'torch' in sys.modules, 'capture' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["True", "False", "False"]


def test_all__is_sorted():
    assert list(nq.__all__) == sorted(nq.__all__)


def test_questions__of_layers_named_by_paths_keep_their_names(rng):
    acts = {name: labelled(rng.random((2, 6, n))) for name, n in (("block/attn", 3), ("block/mlp", 5), ("a b", 2))}
    found = nq.dead_units(acts)
    assert found["block/mlp"].sizes["unit"] == 5
    assert sorted(results_by_layer(found)) == ["a b", "block/attn", "block/mlp"]


def test_questions__of_a_layer_inside_another_ask_for_one(rng):
    acts = {name: labelled(rng.random((2, 6, n))) for name, n in (("block", 3), ("block/mlp", 5))}
    with pytest.raises(InvalidInputError, match="'block/mlp' lies inside layer 'block'"):
        nq.dead_units(acts)
    assert nq.summary(acts).sizes["layer"] == 2


def test_questions__of_a_tree_find_layers_named_by_paths(tmp_path):
    simulated = simulate_store(tmp_path / "run.zarr", layers={"block/mlp": (4,), "fc": (3,)})
    names = nq.summary(simulated.store.tree)["layer"].values.tolist()
    assert sorted(names) == ["block/mlp", "fc"]
