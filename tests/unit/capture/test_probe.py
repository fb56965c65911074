"""A probe set is what was given, always the same, or one sentence that says what is wrong with it."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

import capture
from capture.data import ImageData
from capture.probe import as_probe
from ndt_store import open_store
from ndt_store.errors import CaptureError, InvalidInputError, NotFoundError

torch.set_num_threads(1)

X, Y = np.arange(24, dtype=np.float32).reshape(6, 4), np.array([0, 1, 2, 0, 1, 2])


class Items:
    """A dataset of whatever it was given."""

    def __init__(self, items):
        self.items, self.readings = list(items), 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        self.readings += 1
        return self.items[position]


def seen(probe, size=4):
    inputs, labels = zip(*probe.batches(size), strict=True)
    return torch.cat(inputs), torch.cat(labels)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X, Y],
        (X, Y.tolist()),
        (torch.from_numpy(X), Y.tolist()),
        (X, [torch.tensor(label) for label in Y]),
        (X.astype(">f4"), Y.astype(">i8")),
        (np.asfortranarray(X), Y.astype(float)),
        Items(zip(X, Y, strict=True)),
        Items((row.tolist(), float(label)) for row, label in zip(X.astype(float), Y, strict=True)),
        list(zip(torch.from_numpy(X), Y, strict=True)),
    ],
    ids=["pair", "list", "labels", "tensor", "tensors", "big-endian", "fortran", "dataset", "numbers", "examples"],
)
def test_as_probe__takes_pairs_and_datasets_for_what_they_are(data):
    probe = as_probe(data)
    inputs, labels = seen(probe)
    assert len(probe) == 6
    assert inputs.numpy().tolist() == X.tolist()
    assert labels.tolist() == Y.tolist()
    assert probe.contents.inputs.dtype.isnative
    if inputs.dtype == torch.float32:
        assert probe.digest == as_probe((X, Y)).digest


def test_as_probe__takes_a_pair_with_a_list_of_two_labels_for_two_examples():
    inputs, labels = seen(as_probe((X[:2], [1, 0])))
    assert (inputs.shape, labels.tolist()) == ((2, 4), [1, 0])


def test_as_probe__reads_a_dataset_once_beside_its_first_example():
    data = Items(zip(X, Y, strict=True))
    as_probe(data)
    assert data.readings == 6 + 3


class Failing(Items):
    def __getitem__(self, position):
        if position == 2:
            raise OSError("no such image")
        return super().__getitem__(position)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            [(X[0], 0), (X[1], 1)],
            r"pair whose inputs are tuple \(ndarray of float32 with shape \(4,\), 0\): expected an",
        ),
        ((X.tolist(), Y), "inputs are list of 6: expected an array"),
        (X, "data is ndarray: expected a pair"),
        ((X, 5), r"inputs have shape \(6, 4\) and the labels are one number"),
        ((X, ["cat"] * 6), "labels, is list of 6 and holds <U3, expected an array of numbers"),
        ((X, None), "labels, is None and holds object"),
        ((X, [None] * 6), "labels, is list of 6 and holds object"),
        ((X, [[0], [1, 2]]), "labels, is list of 2, which gives no array"),
        ((X.astype(complex), Y), "holds complex128"),
        ((torch.from_numpy(X).to_sparse(), Y), "which gives no array"),
        ((np.ones((3, 0, 4), np.float32), [0, 1, 2]), r"inputs have shape \(3, 0, 4\), which holds no number"),
        (Items((x, "cat") for x in X), "the label 'cat' for example 0"),
        (Items((x, "3") for x in X), "the label '3' for example 0"),
        (Items((x, None) for x in X), "the label None for example 0"),
        (Items((x, torch.eye(3)[0]) for x in X), r"the label Tensor of torch.float32 with shape \(3,\)"),
        (Items(({"a": x}, 0) for x in X), "input of example 0 is dict of 1, expected one array"),
        (Items(((torch.ones(2), torch.ones(2)), 0) for _ in X), r"input of example 0 is tuple \(Tensor .* one array"),
        (Items([(X[0], 0), (X[1, :2], 1), (X[2], 2)]), r"Example 1 of the dataset has shape \(2,\)"),
        (Items([(X[0], 0), (X[1].astype(float), 1), (X[2], 2)]), "type float64 where example 0"),
        (Items(X), "gives ndarray of float32 with shape .* expected \\(input, label\\)"),
        (Items({"input": x, "label": 0} for x in X), "gives dict of 2 for example 0"),
        (Failing(zip(X, Y, strict=True)), r"fails at example 2 with OSError \(no such image\)"),
    ],
)
def test_as_probe__raises_one_short_sentence(data, words):
    with pytest.raises(InvalidInputError, match=words) as caught:
        as_probe(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


class Augmented:
    """Example 0 repeats; example 3 changes from its `after`-th reading on."""

    def __init__(self, after):
        self.after, self.readings = after, 0

    def __len__(self):
        return 6

    def __getitem__(self, position):
        self.readings += position == 3
        shift = 1e-3 if position == 3 and self.readings > self.after else 0
        return torch.from_numpy(X[position]) + shift, int(Y[position])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


# Read for the digest, for discovery, for the static input, and then once a checkpoint.
@pytest.mark.parametrize("readings", [1, 2, 3, 4])
def test_capture__raises_when_an_example_changes_and_commits_nothing_of_it(tmp_path, net, readings):
    data, given = Augmented(readings), {"layers": ["0"], "batch_size": 6, "progress": False}
    weights = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    checkpoints = [(0, net.state_dict()), (1, weights)]
    with pytest.raises(CaptureError, match="Example 3 of the probe set has other values .* remove random transforms"):
        capture.capture(net, data, store=tmp_path / "s", checkpoints=checkpoints, **given)
    if readings <= 2:
        with pytest.raises(NotFoundError):
            open_store(tmp_path / "s")
    else:
        assert open_store(tmp_path / "s").checkpoints.tolist() == list(range(readings - 3))
    store = capture.capture(net, Augmented(99), store=tmp_path / "s", checkpoints=checkpoints, **given)
    assert store.root.input.values.tobytes() == X.tobytes()
    assert store.checkpoints.tolist() == [0, 1]


def test_a_session__raises_when_the_callers_array_was_written_to(tmp_path, net):
    inputs = X.copy()
    with capture.Session(net, (inputs, Y), store=tmp_path / "s", layers=["0"], progress=False) as session:
        session.capture(0)
        inputs[4] += 1
        with pytest.raises(CaptureError, match="Example 4 of the probe set"):
            session.capture(1)
        inputs[4] -= 1
        session.capture(2)
    assert open_store(tmp_path / "s").checkpoints.tolist() == [0, 2]


def test_labels_are_those_of_the_beginning(tmp_path, net):
    labels = Y.copy()
    with capture.Session(net, (X, labels), store=tmp_path / "s", layers=["0"], progress=False) as session:
        labels[:] = 0
        session.capture(0)
    root = open_store(tmp_path / "s").root
    expected = nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(Y), reduction="none")
    np.testing.assert_allclose(root.loss.values[0], expected.detach().numpy(), rtol=1e-6)


def test_image_data_that_was_written_to_is_refused_as_well(tmp_path, net):
    images = ImageData(X.reshape(6, 1, 1, 4).copy(), Y, ("a", "b", "c"), "images", np.arange(6))
    flat = nn.Sequential(nn.Flatten(), net)
    with capture.Session(flat, images, store=tmp_path / "s", layers=["1.0"], progress=False) as session:
        images.inputs[2] += 1
        with pytest.raises(CaptureError, match="Example 2 of the probe set"):
            session.capture(0)


@pytest.mark.parametrize("labels", [Y, torch.from_numpy(Y).bfloat16()], ids=["int64", "bfloat16"])
def test_bfloat16_inputs_reach_the_model_as_such_and_are_kept_exactly(tmp_path, net, labels):
    inputs = torch.linspace(-1, 1, 24).reshape(6, 4).bfloat16()
    net = net.bfloat16()
    store = capture.capture(net, (inputs, labels), store=tmp_path / "s", layers=["0"], progress=False)
    assert store.root.input.dtype == np.float32
    assert store.root.input.values.tobytes() == inputs.float().numpy().tobytes()
    assert store["0"].activations.values[0].tobytes() == net[0](inputs).detach().float().numpy().tobytes()
    assert store.root.label.values.tolist() == Y.tolist()
    items = Items(zip(inputs, Y, strict=True))
    assert as_probe(items).digest == as_probe((inputs, Y)).digest != as_probe((inputs.float(), Y)).digest


def test_labels_that_are_no_classes_of_the_model_leave_its_scores_out(tmp_path, net, caplog):
    given = {"layers": ["0"], "progress": False}
    with caplog.at_level(logging.WARNING):
        store = capture.capture(net, (X, Y + 7), store=tmp_path / "a", **given)
    assert "labels run to 9 and the model gives 3 class scores" in caplog.text
    assert not {"logits", "loss", "prediction"} & set(store.root.variables)
    assert store["0"].activations.values[0].tobytes() == net[0](torch.from_numpy(X)).detach().numpy().tobytes()
    assert store.root.label.values.tolist() == (Y + 7).tolist()
    one = nn.Sequential(*net, nn.Linear(3, 1))
    store = capture.capture(one, (X, Y), store=tmp_path / "b", **given)
    assert "logits" not in store.root
    kinds = ["activations", "gradients"]
    store = capture.capture(net, (X, Y + 7), store=tmp_path / "c", kinds=kinds, gradient_of="prediction_logit", **given)
    assert store["0"].gradients.shape == (1, 6, 5)
    for gradient_of in ("label_logit", "loss"):
        with pytest.raises((InvalidInputError, CaptureError), match=r"labels run (from 7 )?to 9"):
            capture.capture(net, (X, Y + 7), store=tmp_path / "d", kinds=kinds, gradient_of=gradient_of, **given)
    assert not (tmp_path / "d").exists()
