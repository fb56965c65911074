"""What is tracked while training equals what is asked of a capture, and lies beside it in one store."""

from __future__ import annotations

import numpy as np
import pytest

import ndt_query as nq
import ndt_store
from ndt_store.views.spectrum import MEASURES

torch = pytest.importorskip("torch", reason="needs torch: pip install '.[capture]'")
capture = pytest.importorskip("capture")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("positions", ["flatten", "mean"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn_shallow", ["conv1", "relu*", "classifier"]),
        ("transformer_narrow", ["embed", "encoder.layers.*", "encoder.layers.*.self_attn", "classifier"]),
    ],
)
def test_tracked_measures_equal_those_of_a_capture(tmp_path, name, layers, positions, centre):
    data = capture.load_data("fashion-mnist-mini", "test").balanced(80).standardised([0.286], [0.353])
    model = capture.build_model(name, input_shape=data.input_shape, n_classes=10, seed=0)
    # Trained a little, so that layers are no longer those of random weights.
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    tracker = capture.Tracker(model, data.inputs, data.labels, layers, positions=positions, centre=centre)
    found = tracker.measure()
    store = capture.capture(model, data, store=tmp_path / "run.zarr", layers=layers, progress=False)
    asked = nq.dimensionality(store, positions=positions, centre=centre, interval="none").sel(checkpoint=0)
    assert set(tracker.layers) == set(store.layers)
    for measure in MEASURES:
        expected = asked[measure].sel(layer=list(tracker.layers)).values
        np.testing.assert_allclose(found.dimensionality[measure], expected, rtol=1e-6, err_msg=measure)
    loss = store.root["loss"].sel(checkpoint=0).values.astype(float).mean()
    accuracy = (store.root["prediction"].sel(checkpoint=0) == store.root["label"]).values.mean()
    assert found.validation_loss == pytest.approx(loss, rel=1e-6)
    assert found.validation_accuracy == pytest.approx(accuracy)


def test_the_demo_is_tracked_and_captured_into_one_store(demo):
    store = ndt_store.open_store(demo.folder / "runs" / "demo.zarr")
    series = store.training
    recipe = capture.load_recipe("demo")
    assert series["step"].values.tolist() == list(range(0, 301, 5))
    assert tuple(series["layer"].values) == store.layers
    assert series["validation_loss"].values[-1] < series["validation_loss"].values[0]
    # The checkpoint of a step and the row of that step are of the same weights.
    examples = recipe.tracking_data().examples
    step = int(store.checkpoints[-1])
    there = np.isin(examples, store.examples)
    assert there.all()
    acts = store["classifier"].activations.sel(checkpoint=[step], example=examples)
    asked = nq.dimensionality(acts, interval="none", views=False).compute()
    row = series.sel(step=step, layer="classifier")
    for measure in MEASURES:
        assert row[measure].item() == pytest.approx(asked[measure].item(), rel=1e-3)
