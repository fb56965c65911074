"""Several runs as one object: lazily, at what they share, and refused where they cannot be compared."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
import ndt_store
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.testing import simulate_store

LAYERS = {"conv": (3, 4, 4), "fc": (5,)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    steps = [(0, 10, 40), (0, 10, 20, 40), (0, 10, 40)]
    return folder, [
        simulate_store(folder / f"net-seed{n}.zarr", seed=n, layers=LAYERS, checkpoints=some, n_tracked=30 + n)
        for n, some in enumerate(steps)
    ]


@pytest.fixture(scope="module")
def runs(made):
    return ndt_store.open_runs(f"{made[0]}/net-seed*.zarr")


def test_runs__stand_side_by_side_at_the_checkpoints_they_share(made, runs):
    assert list(runs) == ["net-seed0", "net-seed1", "net-seed2"]
    assert len(runs) == 3
    assert runs.checkpoints.tolist() == [0, 10, 40]
    assert runs.layers == ("conv", "fc")
    acts = runs["conv"].activations
    assert acts.dims == ("run", "checkpoint", "example", "unit", "y", "x")
    assert acts.chunks is not None
    for n, (name, one) in enumerate(zip(runs, made[1], strict=True)):
        kept = [0, 1, 3] if n == 1 else [0, 1, 2]
        np.testing.assert_array_equal(acts.sel(run=name), one.arrays["layers/conv/activations"][kept])
    assert acts["label"].values.tolist() == runs.stores["net-seed0"].labels.tolist()


def test_runs__have_outputs_by_run_and_inputs_once(made, runs):
    root = runs.root
    assert root["logits"].dims == ("run", "checkpoint", "example", "class")
    assert root["input"].dims == ("example", "channel", "row", "column")
    np.testing.assert_array_equal(root["logits"].sel(run="net-seed2"), made[1][2].arrays["logits"])
    assert root.attrs["title"] == "simulated"


def test_runs__have_the_training_at_shared_steps(made, runs):
    training = runs.training
    assert training["loss"].dims == ("run", "step")
    assert training.sizes["step"] == 30
    xr.testing.assert_equal(training.sel(run="net-seed1", drop=True), made[1][1].store.training.isel(step=slice(30)))


@pytest.mark.parametrize(
    ("question", "options"),
    [("dimensionality", {"interval": "none"}), ("class_means", {}), ("dead_units", {})],
)
def test_questions__of_runs_are_those_of_each_stacked(runs, question, options):
    ask = getattr(nq, question)
    found = ask(runs, **options)
    for name, store in runs.stores.items():
        alone = ask(store, **options)
        if isinstance(found, xr.DataTree):
            for layer in runs.layers:
                xr.testing.assert_allclose(
                    found[layer].to_dataset().sel(run=name, drop=True).compute().drop_attrs(),
                    alone[layer].to_dataset().sel(checkpoint=runs.checkpoints).compute().drop_attrs(),
                )
        else:
            expected = alone.sel(checkpoint=runs.checkpoints).compute().drop_attrs()
            xr.testing.assert_allclose(found.sel(run=name, drop=True).compute().drop_attrs(), expected)


def test_runs__take_stores_in_order_and_names(made):
    stores = [one.store for one in made[1]]
    found = ndt_store.open_runs(stores[::-1], names=["c", "b", "a"])
    assert list(found) == ["c", "b", "a"]
    np.testing.assert_array_equal(found["fc"].activations.sel(run="a"), stores[0]["fc"].activations)
    assert found.select("b").layers == ("conv", "fc")
    assert found.select("b")["fc"].checkpoint.values.tolist() == [0, 10, 40]


def test_runs__that_cannot_be_compared_are_refused(made, tmp_path):
    folder, simulated = made
    first = simulated[0].store
    other = simulate_store(tmp_path / "a.zarr", n_examples=11, layers=LAYERS).store
    with pytest.raises(DimensionError, match="Run 'a' has other examples than 'net-seed0'"):
        ndt_store.open_runs([first, other])
    with pytest.raises(NotFoundError, match="There is no run"):
        ndt_store.open_runs([])
    wide = simulate_store(tmp_path / "b.zarr", layers={"conv": (4, 4, 4)}, checkpoints=(0,)).store
    with pytest.raises(DimensionError, match="Layer 'conv' of run 'b' has .*compare_runs"):
        ndt_store.open_runs([first, wide])
    late = simulate_store(tmp_path / "c.zarr", layers=LAYERS, checkpoints=(7,)).store
    with pytest.raises(NotFoundError, match="no checkpoint in common"):
        ndt_store.open_runs([first, late])
    strange = simulate_store(tmp_path / "d.zarr", layers={"strange": (4,)}).store
    with pytest.raises(NotFoundError, match="no layer in common"):
        ndt_store.open_runs([first, strange])
    with pytest.raises(NotFoundError, match="There is no run at"):
        ndt_store.open_runs(f"{folder}/nothing-*.zarr")
    with pytest.raises(InvalidInputError, match="one different name for each"):
        ndt_store.open_runs([first, first], names=["a", "a"])
    runs = ndt_store.open_runs([first, simulated[2].store])
    with pytest.raises(NotFoundError, match="share no layer 'fc2': they share conv, fc"):
        runs["fc2"]
    with pytest.raises(NotFoundError, match="no run 'x'"):
        runs.select("x")
