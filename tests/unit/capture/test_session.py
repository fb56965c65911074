"""What lands in the store is what the model computed; the session refuses before it writes and resumes exactly."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import capture
from ndt_store import open_store, verify
from ndt_store.errors import (
    CaptureError,
    InvalidInputError,
    ResumeMismatchError,
    SchemaError,
    StorageError,
    StoreLockedError,
)

torch.set_num_threads(1)


class Net(nn.Module):
    """Named so that a functional forward pass can be written beside it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).flatten(1))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def data(rng):
    return rng.standard_normal((23, 1, 8, 8)).astype(np.float32), np.arange(23) % 3


OPTIONS = {"layers": ["conv", "relu", "head"], "kinds": ["activations", "gradients"], "progress": False}


def _direct(net, inputs, labels):
    """Forward and backward by hand, without hooks."""
    x = torch.from_numpy(inputs)
    conv = torch.nn.functional.conv2d(x, net.conv.weight, net.conv.bias)
    conv.retain_grad()
    relu = torch.relu(conv)
    relu.retain_grad()
    logits = torch.nn.functional.linear(relu.flatten(1), net.head.weight, net.head.bias)
    logits.retain_grad()
    logits.gather(1, torch.from_numpy(labels)[:, None]).sum().backward()
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    arrays = {"conv": conv, "relu": relu, "head": logits}
    return {k: (v.detach().numpy(), v.grad.numpy()) for k, v in arrays.items()}, logits.detach(), loss.detach()


def test_activations_and_gradients_equal_a_direct_pass_bit_for_bit(tmp_path, net, data):
    inputs, labels = data
    store = capture.capture(net, data, store=tmp_path / "s", batch_size=8, block_nbytes=5000, **OPTIONS)
    assert len(store.catalogue.record(0).arrays["layers/conv/activations"].blocks) > 2
    for start in range(0, 23, 8):
        rows = slice(start, start + 8)
        expected, logits, loss = _direct(net, inputs[rows], labels[rows])
        for layer, (activation, gradient) in expected.items():
            got = store[layer].isel(checkpoint=0, example=rows)
            assert got.activations.values.tobytes() == activation.tobytes()
            assert got.gradients.values.tobytes() == gradient.tobytes()
        root = store.root.isel(checkpoint=0, example=rows)
        assert root.logits.values.tobytes() == logits.numpy().tobytes()
        np.testing.assert_allclose(root.loss.values, loss.numpy(), rtol=1e-6)
        assert (root.prediction.values == logits.argmax(1).numpy()).all()
        assert root.input.values.tobytes() == inputs[rows].tobytes()


def test_attentions_equal_those_the_module_returns(tmp_path, rng):
    torch.manual_seed(0)
    net = Attending().eval()
    x = rng.standard_normal((10, 5, 8)).astype(np.float32)
    store = capture.capture(
        net,
        (x, np.zeros(10, int)),
        store=tmp_path / "s",
        layers=["layer.self_attn"],
        kinds=["attentions"],
        batch_size=10,
        progress=False,
    )
    attention = net.layer.self_attn
    tokens = torch.from_numpy(x)
    with torch.no_grad():
        _, expected = attention(tokens, tokens, tokens, need_weights=True, average_attn_weights=False)
    got = store["layer.self_attn"].attentions
    assert got.dims == ("checkpoint", "example", "head", "query", "key")
    assert got.values[0].tobytes() == expected.numpy().tobytes()
    np.testing.assert_allclose(got.sum("key").values, 1, atol=1e-6)


def test_every_checkpoint_holds_its_own_weights_and_the_model_keeps_its(tmp_path, data):
    nets = {}
    for step in (0, 7, 30):
        torch.manual_seed(step)
        nets[step] = Net()
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    file = tmp_path / "step.safetensors"
    capture.save_weights(file, nets[30].state_dict())
    checkpoints = [(30, file), (0, nets[0].state_dict()), (7, nets[7].state_dict())]
    store = capture.capture(model, data, store=tmp_path / "s", checkpoints=checkpoints, batch_size=23, **OPTIONS)
    assert store.checkpoints.tolist() == [0, 7, 30]
    for step, net in nets.items():
        expected = net(torch.from_numpy(data[0])).detach().numpy()
        assert store.root.logits.sel(checkpoint=step).values.tobytes() == expected.tobytes()
        assert store.tree["weights_digest"].sel(checkpoint=step).values == capture.weights_digest(net.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_session_grows_the_store_and_leaves_training_undisturbed(tmp_path, data):
    def train(session):
        torch.manual_seed(3)
        net = Net().train()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        seen = []
        with session(net) as open_session:
            for step in range(6):
                optimizer.zero_grad()
                noise = torch.rand(23)
                loss = nn.functional.cross_entropy(net(torch.from_numpy(data[0])), torch.from_numpy(data[1]))
                (loss * noise.mean()).backward()
                optimizer.step()
                if open_session is not None and step % 2 == 0:
                    gradient = net.head.weight.grad.clone()
                    open_session.capture(step)
                    assert net.training
                    assert torch.equal(net.head.weight.grad, gradient)
                    seen.append(open_session.store.checkpoints.tolist())
        return net, seen

    class Nothing:
        def __init__(self, net): ...
        def __enter__(self):
            return None

        def __exit__(self, *_):
            return None

    captured, seen = train(lambda net: capture.Session(net, data, store=tmp_path / "s", **OPTIONS))
    alone, _ = train(Nothing)
    assert capture.weights_digest(captured.state_dict()) == capture.weights_digest(alone.state_dict())
    assert seen == [[0], [0, 2], [0, 2, 4]]
    assert verify(open_store(tmp_path / "s"), read_data=True).ok


def test_a_finished_capture_is_recognised_and_nothing_is_written(tmp_path, net, data):
    capture.capture(net, data, store=tmp_path / "s", **OPTIONS)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*") if p.is_file()}
    capture.capture(net, data, store=tmp_path / "s", **OPTIONS)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*") if p.is_file()} == before


def _files(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} if root.exists() else None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"layers": ["conv"]}, "layers"),
        ({"kinds": ["activations"]}, "kinds"),
        ({"batch_size": 5}, "batch_size"),
        ({"gradient_of": "loss"}, "gradient_of"),
        ({"identity": {"recipe": {"seed": 2}}}, "recipe.seed"),
        ({"compression": "none"}, "input.codec"),
        ({"data": (np.ones((23, 1, 8, 8), np.float32), np.arange(23) % 3)}, "dataset_digest"),
        ({"checkpoints": [(3, None)]}, "checkpoints"),
    ],
)
def test_resume__raises_on_what_changed_naming_field_and_both_values(tmp_path, net, data, change, field):
    given = {"data": data, "identity": {"recipe": {"seed": 1}}, "checkpoints": [(0, net.state_dict())], **OPTIONS}
    capture.capture(net, store=tmp_path / "s", **given)
    before = _files(tmp_path / "s")
    if "checkpoints" in change:
        change = {"checkpoints": [(3, net.state_dict())]}
    with pytest.raises(ResumeMismatchError, match=r"was begun with .+ = .+ and this capture has") as caught:
        capture.capture(net, store=tmp_path / "s", **{**given, **change})
    assert caught.value.field == field
    assert _files(tmp_path / "s") == before


def test_resume__raises_on_other_weights_before_anything_is_written(tmp_path, net, data):
    capture.capture(net, data, store=tmp_path / "s", **OPTIONS)
    before = _files(tmp_path / "s")
    old = capture.weights_digest(net.state_dict())
    nn.init.zeros_(net.head.weight)
    with pytest.raises(ResumeMismatchError, match=f"weights of checkpoint 0 = '{old}' and this capture has"):
        capture.capture(net, data, store=tmp_path / "s", **OPTIONS)
    assert _files(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers": ["conf*"]}, InvalidInputError, "conf"),
        ({"layers": []}, InvalidInputError, "no pattern"),
        ({"kinds": ["attentions"]}, CaptureError, "attend"),
        ({"kinds": ["weights"]}, InvalidInputError, "weights"),
        ({"dtype": "int8"}, InvalidInputError, "dtype is 'int8'"),
        ({"batch_size": 0}, InvalidInputError, "batch_size is 0"),
        ({"gradient_of": "beauty"}, InvalidInputError, "beauty"),
        ({"compression": "zip"}, InvalidInputError, "'zip'"),
        ({"checkpoints": []}, InvalidInputError, "holds none"),
        ({"checkpoints": [(0, {}), (0, {})]}, InvalidInputError, "given twice"),
        ({"checkpoints": [(0, "nowhere.safetensors")]}, InvalidInputError, r"nowhere\.safetensors"),
        ({"checkpoints": [5]}, InvalidInputError, "pair of"),
        ({"data": (np.ones((3, 1, 8, 8), np.float32), [0, np.nan, 1])}, InvalidInputError, r"labels\[1\] is nan"),
        ({"data": (np.ones((6, 1, 8, 8), np.float32), np.asarray([0, 1, 2, 0, 1, 9]))}, InvalidInputError, "run to 9"),
        ({"data": (np.ones((3, 1, 8, 8), np.float32), np.asarray([0, 1]))}, InvalidInputError, "2 labels"),
        ({"data": (np.ones((0, 1, 8, 8), np.float32), np.asarray([], int))}, InvalidInputError, "empty"),
        ({"data": 5}, InvalidInputError, "data is int"),
    ],
)
def test_capture__raises_before_the_first_byte(tmp_path, net, data, change, error, words):
    given = {"data": data, **OPTIONS, **change}
    if isinstance(given["data"], tuple) and isinstance(given["data"][1], list):
        given["data"] = (given["data"][0], np.asarray(given["data"][1]))
    with pytest.raises(error, match=words):
        capture.capture(net, store=tmp_path / "s", **given)
    assert not (tmp_path / "s").exists()


def test_capture__raises_when_the_disk_cannot_hold_the_forecast(tmp_path, net, data, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"may take .* and the disk has 1\.0 kB free"):
        capture.capture(net, data, store=tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()
    capture.capture(net, data, store=tmp_path / "s", check_disk=False, **OPTIONS)


def test_the_forecast_is_an_upper_bound_of_an_uncompressed_store(tmp_path, net, data):
    forecast = capture.plan(net, data, store=tmp_path / "s", compression="none", **OPTIONS)
    assert not (tmp_path / "s").exists()
    capture.capture(net, data, store=tmp_path / "s", compression="none", **OPTIONS)
    files = [p for p in (tmp_path / "s").rglob("*") if p.is_file() and p.suffix != ".json"]
    views = sum(p.stat().st_size for p in files if "views" in p.parts)
    on_disk = sum(p.stat().st_size for p in files if not {"checkpoint", "views"} & set(p.parts))
    assert on_disk <= forecast.total_nbytes - forecast.arrays["views"] < 1.2 * on_disk
    assert 0 < views <= forecast.arrays["views"]


def test_a_second_writer_is_kept_out(tmp_path, net, data):
    with (
        capture.Session(net, data, store=tmp_path / "s", **OPTIONS),
        pytest.raises(StoreLockedError, match="is being written by process"),
    ):
        capture.capture(net, data, store=tmp_path / "s", **OPTIONS)


def test_session_steps_have_to_increase(tmp_path, net, data):
    with capture.Session(net, data, store=tmp_path / "s", **OPTIONS) as session:
        session.capture(5)
        nn.init.zeros_(net.head.weight)
        with pytest.raises(SchemaError, match="increase"):
            session.capture(3)
    assert open_store(tmp_path / "s").checkpoints.tolist() == [5]


def test_session__raises_outside_its_with_block(tmp_path, net, data):
    session = capture.Session(net, data, store=tmp_path / "s", **OPTIONS)
    with pytest.raises(InvalidInputError, match="with capture.Session"):
        session.capture(0)


def test_not_finite_activations_are_stored_exactly_counted_and_reported(tmp_path, net, data, caplog):
    with torch.no_grad():
        net.conv.bias[0] = float("nan")
        net.conv.bias[1] = float("inf")
    with caplog.at_level(logging.WARNING):
        store = capture.capture(net, data, store=tmp_path / "s", layers=["conv"], batch_size=23, progress=False)
    expected = net.conv(torch.from_numpy(data[0])).detach().numpy()
    assert store["conv"].activations.values[0].tobytes() == expected.tobytes()
    entry = store.catalogue.record(0).arrays["layers/conv/activations"]
    assert (entry.nan, entry.inf) == (23 * 36, 23 * 36)
    assert f"holds {23 * 36} NaN and {23 * 36} infinite values" in caplog.text


def test_float16_is_the_cast_of_float32(tmp_path, net, data):
    full = capture.capture(net, data, store=tmp_path / "a", **OPTIONS)
    half = capture.capture(net, data, store=tmp_path / "b", dtype="float16", **OPTIONS)
    expected = full["conv"].activations.values.astype(np.float16)
    assert half["conv"].activations.values.tobytes() == expected.tobytes()


def test_bfloat16_is_kept_exactly(tmp_path, net, data):
    net = net.to(torch.bfloat16)
    inputs = torch.from_numpy(data[0]).to(torch.bfloat16).float()

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.to(torch.bfloat16))

    store = capture.capture(
        Cast(), (inputs, data[1]), store=tmp_path / "s", layers=["net.conv"], batch_size=23, progress=False
    )
    expected = net.conv(inputs.to(torch.bfloat16)).detach().float().numpy()
    assert store["net.conv"].activations.values[0].tobytes() == expected.tobytes()


def test_datasets_are_read_without_being_held(tmp_path, net, data):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 23

        def __getitem__(self, n):
            return torch.from_numpy(data[0][n]), int(data[1][n])

    a = capture.capture(net, Images(), store=tmp_path / "a", **OPTIONS)
    b = capture.capture(net, data, store=tmp_path / "b", **OPTIONS)
    assert a.root.input.values.tobytes() == b.root.input.values.tobytes()
    assert a["conv"].gradients.values.tobytes() == b["conv"].gradients.values.tobytes()
    assert a.provenance["identity"]["dataset_digest"] == b.provenance["identity"]["dataset_digest"]


def test_a_dataset_that_changes_is_refused(tmp_path, net):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, n):
            return torch.rand(1, 8, 8), 0

    with pytest.raises(InvalidInputError, match="random transforms"):
        capture.capture(net, Noisy(), store=tmp_path / "s", **OPTIONS)


def test_an_error_in_a_writer_thread_reaches_the_caller_and_the_capture_resumes(tmp_path, net, data):
    from ndt_store.testing import FaultyStorage, no_room

    storage = FaultyStorage(tmp_path / "s", 0, no_room)
    capture.capture(net, data, store=storage, block_nbytes=3000, **OPTIONS)
    # The views come after the commit, which stands whatever becomes of them.
    total = storage.n_operations - sum(p.is_file() for p in (tmp_path / "s" / "views").rglob("*"))
    for at in range(total - 25, total, 4):
        path = tmp_path / f"s{at}"
        with pytest.raises(StorageError, match="No space left"):
            capture.capture(net, data, store=FaultyStorage(path, at, no_room), block_nbytes=3000, **OPTIONS)
        store = capture.capture(net, data, store=path, block_nbytes=3000, **OPTIONS)
        assert verify(store, read_data=True).ok


def test_a_disk_that_is_full_when_the_views_are_written_costs_no_commit(tmp_path, net, data):
    from ndt_store.testing import FaultyStorage, no_room

    storage = FaultyStorage(tmp_path / "s", 0, no_room)
    whole = capture.capture(net, data, store=storage, **OPTIONS)
    n_views = sum(p.is_file() for p in (tmp_path / "s" / "views").rglob("*"))
    assert n_views == 2 * len([s for s in whole.schema.cubes if s.path.startswith("layers/")])
    at = storage.n_operations - n_views + 1  # the last one sweeps temporaries
    store = capture.capture(net, data, store=FaultyStorage(tmp_path / "full", at, no_room), **OPTIONS)
    assert verify(store, read_data=True).ok
    assert sum(p.is_file() for p in (tmp_path / "full" / "views").rglob("*")) == 1


def test_views_made_in_flight_are_those_made_from_the_blocks(tmp_path, net, data):
    from ndt_store import index_store

    store = capture.capture(net, data, store=tmp_path / "s", block_nbytes=3000, **OPTIONS)
    folder = tmp_path / "s" / "views"
    in_flight = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    report = index_store(store, force=True)
    assert report.n_made * 2 == len(in_flight) > 0
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == in_flight


def test_a_model_without_class_scores_is_captured_without_logits(tmp_path, rng):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    inputs = rng.standard_normal((5, 1, 6, 6)).astype(np.float32)
    store = capture.capture(net, (inputs, np.zeros(5, int)), store=tmp_path / "s", layers=["0"], progress=False)
    assert "logits" not in store.root
    assert store["0"].activations.shape == (1, 5, 2, 4, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_every_kind_of_every_checkpoint_equals_a_direct_pass(tmp_path, rng):
    states = []
    for step in (0, 4):
        torch.manual_seed(step)
        states.append((step, Attending().state_dict()))
    net = Attending().cuda()
    x = rng.standard_normal((23, 5, 8)).astype(np.float32)
    y = np.arange(23) % 3
    store = capture.capture(
        net,
        (x, y),
        store=tmp_path / "s",
        checkpoints=states,
        layers=["layer", "layer.self_attn", "head"],
        kinds=["activations", "gradients", "attentions"],
        batch_size=8,
        block_nbytes=600,
        progress=False,
    )
    assert verify(store, read_data=True).ok
    for step, state in states:
        net.load_state_dict(state)
        net.eval()
        for start in range(0, 23, 8):
            rows = slice(start, start + 8)
            tokens = torch.from_numpy(x[rows]).cuda()
            mixed = net.layer(tokens)
            mixed.retain_grad()
            logits = net.head(mixed.mean(1))
            logits.gather(1, torch.from_numpy(y[rows]).cuda()[:, None]).sum().backward()
            got = store["layer"].sel(checkpoint=step).isel(example=rows)
            np.testing.assert_allclose(got.activations.values, mixed.detach().cpu().numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.gradients.values, mixed.grad.cpu().numpy(), rtol=1e-4, atol=1e-6)
            with torch.no_grad():
                _, weights = net.layer.self_attn(tokens, tokens, tokens, average_attn_weights=False)
            seen = store["layer.self_attn"].attentions.sel(checkpoint=step).isel(example=rows)
            np.testing.assert_allclose(seen.values, weights.cpu().numpy(), rtol=1e-4, atol=1e-5)


def test_a_session_offers_no_way_to_record_weights_that_it_did_not_look_at():
    assert {name for name in vars(capture.Session) if not name.startswith("_")} == {
        "capture",
        "committed",
        "forecast",
        "store",
        "track",
    }
