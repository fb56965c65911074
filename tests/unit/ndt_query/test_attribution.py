"""Grad-CAM equals direct computations, is lazy, and is never scaled map by map."""

import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query import attribution
from ndt_store.errors import DimensionError, InvalidInputError, MemoryBudgetError, NotFoundError
from ndt_store.testing import simulate_store

from .sources import counted

DIMS = ("checkpoint", "example", "unit", "y", "x")
STEPS = [0, 10, 40]


def layer(acts, grads, dims=DIMS, labels=None):
    n = acts.shape[dims.index("example")]
    coords = {"checkpoint": STEPS[: acts.shape[0]], "example": 100 + np.arange(n)}
    found = xr.Dataset({"activations": (dims, acts), "gradients": (dims, grads)}, coords)
    return found if labels is None else found.assign_coords(label=("example", labels))


@pytest.fixture
def random(rng):
    return layer(rng.standard_normal((3, 8, 5, 4, 6)), rng.standard_normal((3, 8, 5, 4, 6)), labels=np.arange(8) % 2)


def direct(acts, grads, signed=False):
    cam = np.zeros((*acts.shape[:2], *acts.shape[3:]))
    for k in range(acts.shape[2]):
        cam += grads[:, :, k].mean(axis=(2, 3))[..., None, None] * acts[:, :, k]
    return cam if signed else np.maximum(cam, 0)


@pytest.mark.parametrize("signed", [False, True])
def test_grad_cam__is_its_formula(random, signed, monkeypatch):
    monkeypatch.setattr(attribution, "STRIPE_NBYTES", 8 * 5 * 24 * 3)  # three examples at a time: stripes have to meet
    cam = nq.grad_cam(random, signed=signed)
    assert cam.dims == ("checkpoint", "example", "y", "x")
    np.testing.assert_allclose(cam, direct(random.activations.values, random.gradients.values, signed), rtol=1e-12)
    assert cam.attrs["what"] == "Grad-CAM"
    assert cam["label"].values.tolist() == random["label"].values.tolist()


def test_grad_cam__of_stored_tensors_is_that_of_autograd(tmp_path):
    torch = pytest.importorskip("torch")
    import capture
    import ndt_store

    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
                        nn.Flatten(), nn.Linear(6 * 16, 3))  # fmt: skip
    images, labels = torch.rand(10, 1, 12, 12), torch.arange(10) % 3
    capture.capture(net, (images, labels), store=tmp_path / "r.zarr", layers=["1", "4"],
                    kinds=["activations", "gradients"], progress=False)  # fmt: skip
    cams = nq.grad_cam(ndt_store.open_store(tmp_path / "r.zarr"))
    for name in ("1", "4"):
        out = images
        for place, module in enumerate(net):
            out = module(out)
            if str(place) == name:
                kept = out
        (grads,) = torch.autograd.grad(out.gather(1, labels[:, None]).sum(), kept)
        expected = torch.relu((grads.mean((2, 3), keepdim=True) * kept).sum(1)).detach().numpy()
        np.testing.assert_allclose(cams[name]["cam"].sel(checkpoint=0), expected, rtol=1e-5, atol=1e-7)


def test_grad_cam__of_tokens_has_a_number_each(rng):
    dims = ("checkpoint", "example", "token", "unit")
    acts, grads = rng.standard_normal((2, 3, 4, 7, 5))
    cam = nq.grad_cam(layer(acts, grads, dims), signed=True)
    assert cam.dims == ("checkpoint", "example", "token")
    np.testing.assert_allclose(cam, (acts * grads.mean(2, keepdims=True)).sum(3), rtol=1e-12)


def test_grad_cam__of_a_selection_is_the_selection_of_the_maps(random):
    whole = nq.grad_cam(random)
    one = nq.grad_cam(random.sel(checkpoint=10, example=[101, 103]))
    xr.testing.assert_allclose(one.drop_attrs(), whole.sel(checkpoint=10, example=[101, 103]).drop_attrs())
    assert one.dims == ("example", "y", "x")


def test_grad_cam__is_lazy_and_reads_each_chunk_once(rng):
    acts, source = counted(rng.standard_normal((3, 8, 5, 4, 6)), (1, 4, 5, 4, 6))
    grads, other = counted(rng.standard_normal((3, 8, 5, 4, 6)), (1, 4, 5, 4, 6))
    cam = nq.grad_cam(xr.Dataset({"activations": acts, "gradients": grads}))
    assert source.reads == []
    cam.compute()
    assert len(source.reads) == len(other.reads) == 6


def test_grad_cam__shows_a_nan_and_touches_no_other_example(random):
    random["activations"][0, 2, 1, 0, 0] = np.nan
    cam = nq.grad_cam(random)
    assert np.isnan(cam[0, 2, 0, 0])
    assert int(cam.isnull().sum()) == 1
    random["gradients"][1, 3, 1, 0, 0] = np.nan
    assert np.isnan(nq.grad_cam(random)[1, 3]).all()


def test_grad_cam__of_a_store_leaves_layers_without_positions_out(tmp_path):
    store = simulate_store(
        tmp_path / "r.zarr", layers={"conv": (4, 3, 3), "fc": (5,)}, kinds=("activations", "gradients")
    ).store
    found = nq.grad_cam(store)
    assert set(found.children) == {"conv"}
    xr.testing.assert_identical(found["conv"]["cam"].compute(), nq.grad_cam(store["conv"]).compute())


def test_grad_cam__refuses_what_it_cannot_map(random, tmp_path):
    with pytest.raises(NotFoundError, match="no gradients: capture kinds"):
        nq.grad_cam(random[["activations"]])
    with pytest.raises(DimensionError, match="no positions"):
        nq.grad_cam(random.isel(y=0, x=0, drop=True))
    with pytest.raises(DimensionError, match="Activations have dims .* and gradients"):
        nq.grad_cam(random.assign(gradients=random.gradients.mean("x")))


def test_grad_cam__of_a_store_of_loss_gradients_says_that_they_are(tmp_path):
    torch = pytest.importorskip("torch")
    import capture
    import ndt_store

    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 2))
    data = torch.rand(4, 1, 6, 6), torch.arange(4) % 2
    capture.capture(net, data, store=tmp_path / "r.zarr", layers=["1"], kinds=["activations", "gradients"],
                    gradient_of="loss", progress=False)  # fmt: skip
    with pytest.raises(InvalidInputError, match="gradients are of the loss"):
        nq.grad_cam(ndt_store.open_store(tmp_path / "r.zarr"))


def test_grad_cam__keeps_within_the_budget(rng):
    acts, _ = counted(rng.standard_normal((1, 8, 5, 4, 6)), (1, 8, 5, 4, 6))
    with pytest.raises(MemoryBudgetError, match="grad_cam is projected"):
        nq.grad_cam(xr.Dataset({"activations": acts, "gradients": acts}), memory=1000)


def test_cam_difference__is_of_raw_maps(random):
    cam = nq.grad_cam(random)
    found = nq.cam_difference(cam, 0, 40)
    np.testing.assert_array_equal(found["difference"], cam.sel(checkpoint=40).values - cam.sel(checkpoint=0).values)
    largest = np.maximum(abs(cam.sel(checkpoint=0)).max(("y", "x")), abs(cam.sel(checkpoint=40)).max(("y", "x")))
    np.testing.assert_array_equal(found["limit"], largest)


def test_cam_difference__of_maps_that_differ_by_a_factor_is_not_nothing():
    """The study scaled each map to 1 before it subtracted them, and found no difference here."""
    base = np.ones((1, 3, 2, 4, 4)) * np.arange(1.0, 17).reshape(4, 4)
    found = layer(np.concatenate([base, 2 * base]), np.ones((2, 3, 2, 4, 4)))
    cam = nq.grad_cam(found)
    scaled = cam / cam.max(("y", "x"))
    assert float(abs(scaled.sel(checkpoint=10) - scaled.sel(checkpoint=0)).max()) < 1e-12
    for scale in ("none", "joint"):
        difference = nq.cam_difference(cam, 0, 10, scale=scale)["difference"]
        assert (difference > 0).all()
    joint = nq.cam_difference(cam, 0, 10, scale="joint")
    assert float(joint["after"].max()) == 1.0
    assert float(joint["before"].max()) == 0.5


def test_cam_difference__of_dark_maps_is_dark():
    dark = layer(np.zeros((2, 3, 2, 4, 4)), np.ones((2, 3, 2, 4, 4)))
    assert (nq.cam_difference(nq.grad_cam(dark), 0, 10, scale="joint")["difference"] == 0).all()


def test_cam_difference__names_what_is_wrong(random):
    cam = nq.grad_cam(random)
    with pytest.raises(NotFoundError, match="no checkpoint 11"):
        nq.cam_difference(cam, 0, 11)
    with pytest.raises(InvalidInputError, match="both 10"):
        nq.cam_difference(cam, 10, 10)
    with pytest.raises(InvalidInputError, match="scale='each'"):
        nq.cam_difference(cam, 0, 10, scale="each")


def test_class_cams__average_over_the_examples_of_each_class(random):
    cam = nq.grad_cam(random)
    found = nq.class_cams(cam)
    assert found["mean"].dims == ("checkpoint", "class", "y", "x")
    one = cam.values[:, np.arange(8) % 2 == 1]
    np.testing.assert_allclose(found["mean"].sel({"class": 1}), one.mean(1))
    np.testing.assert_allclose(found["standard_error"].sel({"class": 1}), one.std(1, ddof=1) / 2)
    assert found["n_examples"].values.tolist() == [4, 4]
    of_differences = nq.class_cams(nq.cam_difference(cam, 0, 40)["difference"])
    np.testing.assert_allclose(
        of_differences["mean"], found["mean"].sel(checkpoint=40).values - found["mean"].sel(checkpoint=0).values
    )
    single = nq.class_cams(cam.isel(example=[0, 1, 2]))
    assert single["standard_error"].sel({"class": 1}).isnull().all()


def test_correct_examples__are_right_at_every_checkpoint_asked(rng):
    label = np.array([0, 0, 1, 1, 1])
    prediction = np.array([[0, 1, 1, 1, 0], [0, 0, 0, 1, 1]])
    root = xr.Dataset(
        {"prediction": (("checkpoint", "example"), prediction)},
        {"checkpoint": [0, 10], "example": [3, 5, 7, 9, 11], "label": ("example", label)},
    )
    assert nq.correct_examples(root)["example"].values.tolist() == [3, 9]
    assert nq.correct_examples(root, [0])["example"].values.tolist() == [3, 7, 9]
    chosen = nq.correct_examples(root, [0], n_per_class=1)
    assert chosen["example"].values.tolist() == [3, 7]
    assert chosen.values.tolist() == [0, 1]
    with pytest.raises(NotFoundError, match="no checkpoint 3"):
        nq.correct_examples(root, [3])
    with pytest.raises(NotFoundError, match="no prediction"):
        nq.correct_examples(root.drop_vars("prediction"))
    with pytest.raises(InvalidInputError, match="n_per_class"):
        nq.correct_examples(root, n_per_class=0)
