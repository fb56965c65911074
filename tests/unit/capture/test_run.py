"""capture.capture over several checkpoints: whose weights, what is looked at first, what a resume compares."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import capture
from capture.forecast import require_memory
from ndt_store import open_store, verify
from ndt_store.errors import (
    IntegrityError,
    InvalidInputError,
    MemoryBudgetError,
    NdtError,
    ResumeMismatchError,
    SchemaError,
)

torch.set_num_threads(1)

OPTIONS = {"layers": ["0", "2"], "progress": False}


def build(activation=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))


def other_weights(net):
    return {name: tensor + 1 for name, tensor in net.state_dict().items()}


@pytest.fixture
def data(rng):
    return rng.standard_normal((6, 4)).astype(np.float32), np.arange(6) % 3


def _files(root):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_the_models_own_state_dict_is_a_checkpoint_like_any_other(tmp_path, data):
    net = build()
    x = torch.from_numpy(data[0])
    expected = net(x).detach().numpy()
    half = {name: tensor for name, tensor in net.state_dict().items() if name.startswith("0")}
    mixed = {**other_weights(net), **half}
    checkpoints = [(0, other_weights(net)), (1, net.state_dict()), (2, mixed)]
    store = capture.capture(net, data, store=tmp_path / "s", checkpoints=checkpoints, **OPTIONS)
    assert store.root.logits.sel(checkpoint=1).values.tobytes() == expected.tobytes()
    assert store["0"].activations.sel(checkpoint=2).values.tobytes() == net[0](x).detach().numpy().tobytes()
    assert net(x).detach().numpy().tobytes() == expected.tobytes()


def truncated(path, net):
    capture.save_weights(path, net.state_dict())
    path.write_bytes(path.read_bytes()[:-8])
    return path


def reshaped(path, net):
    capture.save_weights(path, {**net.state_dict(), "2.bias": torch.zeros(7)})
    return path


def pickled(path, net):
    torch.save({**net.state_dict(), "more": torch.zeros(1)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


@pytest.mark.parametrize(
    ("late", "error", "words"),
    [
        (
            lambda path, net: {**net.state_dict(), "0.bias": torch.zeros(9)},
            InvalidInputError,
            r"0\.bias \(9,\) instead",
        ),
        (lambda path, net: {"0.bias": [1.0, 2.0]}, InvalidInputError, "'0.bias' is list, expected a dense tensor"),
        (reshaped, InvalidInputError, r"late\.safetensors do not fit Sequential: 1 of another shape \(2\.bias"),
        (pickled, InvalidInputError, r"late\.pt do not fit Sequential: 1 unexpected \(more\)"),
        (truncated, IntegrityError, "cannot be read as weights"),
    ],
)
def test_every_checkpoint_is_looked_at_before_the_first_byte(tmp_path, data, late, error, words):
    net = build()
    checkpoints = [(0, net.state_dict()), (9, late(tmp_path / "late.safetensors", net))]
    with pytest.raises(error, match=words):
        capture.capture(net, data, store=tmp_path / "s", checkpoints=checkpoints, **OPTIONS)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "given", [[(0, {"w": torch.arange(10**4)}, 1)], [(0, None)], 7, {"w": torch.zeros(99)}, [(0, 5)]]
)
def test_checkpoints_that_are_none_are_described_by_type_and_shape(tmp_path, data, given):
    with pytest.raises(InvalidInputError, match="checkpoint") as caught:
        capture.capture(build(), data, store=tmp_path / "s", checkpoints=given, **OPTIONS)
    assert "tensor(" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_steps_may_be_numpy_integers(tmp_path, data):
    net = build()
    store = capture.capture(net, data, store=tmp_path / "s", checkpoints=[(np.int64(3), net.state_dict())], **OPTIONS)
    with capture.Session(net, data, store=tmp_path / "s", checkpoints=np.array([3]), **OPTIONS) as session:
        session.capture(np.int32(3))
        session.capture(np.uint8(5))
        assert session.store.checkpoints.tolist() == [3, 5]
    assert store.checkpoints.tolist() == [3]


@pytest.mark.parametrize("step", [True, 2.0, "2", None, -1, 1 << 63])
def test_steps_that_are_no_whole_numbers_are_refused(tmp_path, data, step):
    net = build()
    with pytest.raises(SchemaError, match="Checkpoints are training steps, whole numbers"):
        capture.capture(net, data, store=tmp_path / "s", checkpoints=[(step, net.state_dict())], **OPTIONS)
    assert not (tmp_path / "s").exists()
    with capture.Session(net, data, store=tmp_path / "s", **OPTIONS) as session:
        with pytest.raises(SchemaError, match="Checkpoints are training steps, whole numbers"):
            session.capture(step)
        assert session.store.checkpoints.tolist() == []


def of_first_logit(out, labels):
    return out[:, 0]


GRADIENTS = {"kinds": ["activations", "gradients"]}


@pytest.mark.parametrize(
    ("first", "then", "field"),
    [
        ({}, {"model": build(nn.Tanh)}, "model_structure"),
        ({}, {"output": lambda out: out.flip(1)}, "output"),
        ({"output": lambda out: out.flip(1)}, {"output": lambda out: out.roll(1, 1)}, "output"),
        (
            {**GRADIENTS, "gradient_of": lambda out, labels: out[:, 0]},
            {"gradient_of": lambda out, labels: out[:, 1]},
            "gradient_of",
        ),
        ({**GRADIENTS, "gradient_of": lambda out, labels: out[:, 0]}, {"gradient_of": of_first_logit}, "gradient_of"),
        ({"layers": (name for name in ["0"])}, {"layers": (name for name in ["2"])}, "layers"),
        ({"kinds": (kind for kind in ["activations"])}, {"kinds": iter(GRADIENTS["kinds"])}, "kinds"),
    ],
)
def test_resume__raises_on_a_changed_capture_with_the_same_weights(tmp_path, data, first, then, field):
    given = {"model": build(), "data": data, "store": tmp_path / "s", **OPTIONS, **first}
    capture.capture(**given)
    before = _files(tmp_path / "s")
    again = {"layers": ["0"]} if field == "layers" else {}
    with pytest.raises(ResumeMismatchError) as caught:
        capture.capture(**{**given, **again, **then})
    assert caught.value.field == field
    assert _files(tmp_path / "s") == before


def test_resume__takes_names_in_any_order_any_number_of_times_and_from_generators(tmp_path, data):
    net = build()
    given = {"data": data, "store": tmp_path / "s", "progress": False}
    store = capture.capture(net, layers=["2", "0"], kinds=["gradients", "activations"], **given)
    assert store.layers == ("0", "2")
    assert store.provenance["identity"]["layers"] == ["0", "2"]
    assert store.provenance["identity"]["kinds"] == ["activations", "gradients"]
    before = _files(tmp_path / "s")
    kinds = (kind for kind in ["activations", "gradients", "activations"])
    capture.capture(net, layers=(name for name in ["0", "2", "2"]), kinds=kinds, **given)
    assert _files(tmp_path / "s") == before


@pytest.mark.parametrize("change", [{"layers": 5}, {"layers": [0]}, {"kinds": None}])
def test_names_that_are_none_are_refused(tmp_path, data, change):
    with pytest.raises(InvalidInputError, match="expected names"):
        capture.capture(build(), data, store=tmp_path / "s", **{**OPTIONS, **change})


def test_resume__captures_the_same_inside_autocast(tmp_path, data):
    net = build()
    store = capture.capture(net, data, store=tmp_path / "a", **OPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = capture.capture(net, data, store=tmp_path / "b", **OPTIONS)
    assert within["0"].activations.values.tobytes() == store["0"].activations.values.tobytes()


def test_resume__compares_weights_that_another_process_committed_meanwhile(tmp_path, data, monkeypatch):
    from ndt_store.writer import StoreWriter

    net, path, opened = build(), tmp_path / "s", StoreWriter.open

    def overtaken(*args, **kwargs):
        monkeypatch.setattr(StoreWriter, "open", opened)
        capture.capture(build(), data, store=path, checkpoints=[(0, other_weights(net))], **OPTIONS)
        return opened(*args, **kwargs)

    monkeypatch.setattr(StoreWriter, "open", overtaken)
    with pytest.raises(ResumeMismatchError, match="weights of checkpoint 0"):
        capture.capture(net, data, store=path, checkpoints=[(0, net.state_dict())], **OPTIONS)


class Breaking(nn.Module):
    """Fails in a capture's own pass, after discovery, as often as it is told to."""

    def __init__(self):
        super().__init__()
        self.linear, self.failures = nn.Linear(4, 3), 0

    def forward(self, x):
        if len(x) > 3 and self.failures:
            self.failures -= 1
            raise RuntimeError("out of memory")
        return self.linear(x)


def test_a_step_that_failed_leaves_no_hole(tmp_path, data):
    net = Breaking()
    given = {"layers": ["linear"], "progress": False}
    with capture.Session(net, data, store=tmp_path / "s", checkpoints=[1], **given) as session:
        net.failures = 1
        with pytest.raises(RuntimeError, match="out of memory"):
            session.capture(1)
        session.capture(1)
        net.failures = 1
        with pytest.raises(RuntimeError, match="out of memory"):
            session.capture(5)
        session.capture(4)
    store = open_store(tmp_path / "s")
    assert store.checkpoints.tolist() == [1, 4]
    assert store.catalogue.schema.checkpoints == (1, 4)
    assert verify(store, read_data=True).ok


def test_float64_is_rounded_with_a_warning_and_kept_with_native(tmp_path, data, caplog):
    net, wide = build().double(), (data[0].astype(np.float64) / 3, data[1])
    with caplog.at_level(logging.WARNING):
        rounded = capture.capture(net, wide, store=tmp_path / "a", **OPTIONS)
    assert "2 layers compute in float64 and are stored as float32, the first is 0; pass dtype='native'" in caplog.text
    caplog.clear()
    kept = capture.capture(net, wide, store=tmp_path / "b", dtype="native", **OPTIONS)
    assert caplog.text == ""
    x = torch.from_numpy(wide[0])
    assert rounded["0"].activations.values[0].tobytes() == net[0](x).detach().float().numpy().tobytes()
    assert kept["0"].activations.values[0].tobytes() == net[0](x).detach().numpy().tobytes()
    assert kept.root.logits.values[0].tobytes() == net(x).detach().numpy().tobytes()
    loss = nn.functional.cross_entropy(net(x), torch.from_numpy(wide[1]), reduction="none").detach().numpy()
    assert kept.root.loss.values[0].tobytes() == loss.tobytes()
    assert rounded.root.logits.dtype == rounded.root.loss.dtype == np.float32


def test_values_that_overflow_float16_are_counted_apart_from_infinities(tmp_path, data, caplog):
    net = build()
    with torch.no_grad():
        net[0].bias[0], net[0].bias[1], net[0].bias[2] = 1e5, float("inf"), float("nan")
    with caplog.at_level(logging.WARNING):
        store = capture.capture(
            net, data, store=tmp_path / "s", dtype="float16", layers=["0"], batch_size=4, progress=False
        )
    assert "6 finite values of layers/0/activations overflowed float16" in caplog.text
    assert "layers/0/activations holds 6 NaN and 6 infinite values" in caplog.text
    assert store.catalogue.record(0).arrays["layers/0/activations"].inf == 12


def test_a_layer_that_emits_nothing_is_refused(tmp_path, data):
    class Empty(nn.Module):
        def forward(self, x):
            return x[:, :0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty, self.head = Empty(), nn.Linear(4, 3)

        def forward(self, x):
            self.empty(x)
            return self.head(x)

    with pytest.raises(NdtError, match=r"'empty' \(Empty\) emits shape \(3, 0\), which holds no number"):
        capture.capture(Net(), data, store=tmp_path / "s", layers=["empty"], progress=False)


def test_memory__raises_before_the_first_byte_and_names_blocks_that_fit(tmp_path, rng):
    net = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
    data = rng.standard_normal((512, 256)).astype(np.float32), np.zeros(512, int)
    given = {"layers": ["*"], "batch_size": 16, "progress": False}
    assert capture.plan(net, data, store=tmp_path / "s", memory=1, **given).memory_nbytes > 2_000_000
    with pytest.raises(
        MemoryBudgetError, match=r"beside the model, where 9\.0 MB are allowed: pass block_nbytes="
    ) as caught:
        capture.capture(net, data, store=tmp_path / "s", memory=9_000_000, **given)
    assert caught.value.projected_nbytes > caught.value.allowed_nbytes == 9_000_000
    assert not (tmp_path / "s").exists()
    block_nbytes = int(str(caught.value).split("block_nbytes=")[1].split(",")[0])
    capture.capture(net, data, store=tmp_path / "s", memory=9_000_000, block_nbytes=block_nbytes, **given)
    with pytest.raises(MemoryBudgetError):
        capture.capture(net, data, store=tmp_path / "t", memory=9_000_000, block_nbytes=2 * block_nbytes, **given)
    with pytest.raises(MemoryBudgetError, match="even blocks of one example take .* capture fewer layers"):
        capture.capture(net, data, store=tmp_path / "t", memory=10_000, **given)


def test_memory__by_default_is_a_quarter_of_the_machines(tmp_path, data, monkeypatch):
    with capture.Session(build(), data, store=tmp_path / "s", memory=10**6, **OPTIONS) as session:
        schema = session._open_writer().schema
    monkeypatch.setattr("capture.forecast.memory_nbytes", lambda: 1000)
    with pytest.raises(MemoryBudgetError) as caught:
        require_memory(schema, 256, None)
    assert caught.value.allowed_nbytes == 250


@pytest.mark.parametrize(
    ("options", "words"),
    [({"layers": ["0"], "layer": ["0"]}, "no option 'layer'.*layers"), ({"kinds": ["activations"]}, "needs layers=")],
)
def test_a_mistyped_or_missing_option_is_one_sentence(tmp_path, options, words):
    model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    data = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    for ask in (capture.capture, capture.plan):
        with pytest.raises(InvalidInputError, match=words):
            ask(model, data, store=tmp_path / "s", **options)
