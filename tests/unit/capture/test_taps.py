"""Taps against forward and backward passes written out by hand, without a hook: equal to the last bit."""

import copy
import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from capture._torchvision import import_torchvision
from capture.sites import discover_sites
from capture.taps import Tapper
from ndt_store.errors import CaptureError, InvalidInputError

from .model_zoo import (
    MLP,
    Detour,
    EmbeddingNet,
    ResidualCNN,
    Structured,
    TokenClassifier,
    TokensFirst,
    seeded,
)

torch.set_num_threads(1)

BOTH = ["activations", "gradients"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(1)


def tap(model, patterns, inputs, labels=None, kinds=BOTH, **options):
    sites = discover_sites(model, patterns, kinds, inputs, labels, **options)
    options.pop("dims", None)
    pieces = {}

    def take(name, kind, tensor):
        assert (name, kind) not in pieces
        pieces[name, kind] = tensor.clone()

    with Tapper(model, sites, **options) as tapper:
        result = tapper.run(inputs, labels)
        rest = tapper.run(inputs, labels, take)
    # Handed out piece by piece they are the same.
    assert rest.tensors == {}
    assert set(pieces) == set(result.tensors)
    for key, tensor in result.tensors.items():
        torch.testing.assert_close(pieces[key], tensor, rtol=0, atol=0, equal_nan=True)
    for one, other in zip((rest.logits, rest.loss), (result.logits, result.loss), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    return result


def retained(tensors):
    for tensor in tensors:
        tensor.retain_grad() if tensor.requires_grad else tensor.requires_grad_()
    return tensors


def assert_same(result, name, value, gradient=None):
    assert torch.equal(result.tensors[name, "activations"], value.detach()), name
    if gradient is not None:
        assert torch.equal(result.tensors[name, "gradients"], gradient), name


def mlp_by_hand(model, x):
    one, two, three = model.net[0], model.net[2], model.net[4]
    a = functional.linear(x, one.weight, one.bias)
    b = a.clamp_min(0)
    c = functional.linear(b, two.weight, two.bias)
    d = c.clamp_min(0)
    return retained([a, b, c, d, functional.linear(d, three.weight, three.bias)])


@pytest.mark.parametrize("gradient_of", ["label_logit", "prediction_logit", "loss"])
def test_run__mlp_equals_the_pass_by_hand(gradient_of):
    model, x, labels = seeded(MLP), torch.randn(7, 6), torch.tensor([0, 1, 2, 0, 1, 2, 2])
    steps = mlp_by_hand(copy.deepcopy(model), x)
    logits = steps[-1]
    {
        "label_logit": lambda: logits[torch.arange(7), labels].sum(),
        "prediction_logit": lambda: logits.max(1).values.sum(),
        "loss": lambda: functional.cross_entropy(logits, labels, reduction="sum"),
    }[gradient_of]().backward()
    result = tap(model, ["net.*"], x, labels, gradient_of=gradient_of)
    for index, step in enumerate(steps):
        assert_same(result, f"net.{index}", step, step.grad)
    assert torch.equal(result.logits, logits.detach())
    assert torch.equal(result.prediction, logits.argmax(1))
    by_hand = -logits.double().log_softmax(1)[torch.arange(7), labels]
    torch.testing.assert_close(result.loss.double(), by_hand.detach(), rtol=1e-6, atol=1e-6)


def test_run__inplace_modules_and_shortcuts_equal_the_pass_by_hand():
    model = seeded(ResidualCNN).eval()
    x, labels = torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 2, 1])
    twin = copy.deepcopy(model)
    stem = functional.conv2d(x, twin.stem.weight, twin.stem.bias, padding=1)
    relu0 = stem.relu()
    conv = functional.conv2d(relu0, twin.conv.weight, twin.conv.bias, padding=1)
    bn = twin.norm
    norm = functional.batch_norm(conv, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)
    relu1 = (norm + relu0).relu()
    pool = functional.adaptive_avg_pool2d(relu1, 1)
    head = functional.linear(pool.flatten(1), twin.head.weight, twin.head.bias)
    names = ["stem", "relu#0", "conv", "norm", "relu#1", "pool", "head"]
    steps = retained([stem, relu0, conv, norm, relu1, pool, head])
    head[torch.arange(5), labels].sum().backward()
    result = tap(model, ["**"], x, labels)
    for name, step in zip(names, steps, strict=True):
        assert_same(result, name, step, step.grad)
    assert torch.equal(result.logits, model(x).detach())


def test_run__gradients_of_one_example_do_not_depend_on_the_batch():
    model, x, labels = seeded(ResidualCNN), torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 1])
    sites = discover_sites(model, ["conv"], BOTH, x)
    with Tapper(model, sites) as tapper:
        whole = tapper.run(x, labels).tensors["conv", "gradients"]
        alone = torch.cat([tapper.run(x[i : i + 1], labels[i : i + 1]).tensors["conv", "gradients"] for i in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-7)


def resnet18(**options):
    return import_torchvision().models.resnet18(num_classes=5, **options)


def test_run__resnet18_equals_autograd_on_its_blocks():
    model = seeded(resnet18).eval()
    x, labels = torch.randn(2, 3, 32, 32), torch.tensor([3, 1])
    twin = copy.deepcopy(model)
    stem = twin.maxpool(functional.relu(twin.bn1(twin.conv1(x))))
    outs, h = {}, stem
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(twin, stage)):
            shortcut = h if block.downsample is None else block.downsample(h)
            mid = functional.relu(block.bn1(block.conv1(h)))
            outs[f"{stage}.{index}.conv2"] = block.conv2(mid)
            bn2 = block.bn2(outs[f"{stage}.{index}.conv2"])
            outs[f"{stage}.{index}.bn2"] = bn2
            h = functional.relu(bn2 + shortcut)
            outs[f"{stage}.{index}"] = h
    logits = twin.fc(twin.avgpool(h).flatten(1))
    retained(outs.values())
    logits[torch.arange(2), labels].sum().backward()
    result = tap(model, ["layer?.?", "layer?.?.conv2", "layer?.?.bn2", "layer?.?.relu"], x, labels)
    assert torch.equal(result.logits, logits.detach())
    for name, value in outs.items():
        assert_same(result, name, value, value.grad)
    assert torch.equal(result.tensors["layer1.0.relu#1", "gradients"], outs["layer1.0"].grad)


def test_run__vit_equals_autograd_on_its_blocks():
    vit = import_torchvision().models.VisionTransformer
    model = seeded(lambda: vit(32, 8, 2, 2, 32, 64, num_classes=4)).eval()
    nn.init.normal_(model.heads.head.weight)
    x, labels = torch.randn(3, 3, 32, 32), torch.tensor([3, 0, 1])
    twin = copy.deepcopy(model)
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    tokens = twin.conv_proj(x).flatten(2).transpose(1, 2)
    h = torch.cat([twin.class_token.expand(3, -1, -1), tokens], 1) + twin.encoder.pos_embedding
    outs = {}
    for name, block in twin.encoder.layers.named_children():
        normed = block.ln_1(h)
        attended = block.self_attention(normed, normed, normed, need_weights=False)[0]
        outs[f"encoder.layers.{name}.self_attention"] = attended
        mid = attended + h
        mlp = block.mlp(block.ln_2(mid))
        outs[f"encoder.layers.{name}.mlp"] = mlp
        h = mid + mlp
        outs[f"encoder.layers.{name}"] = h
    logits = twin.heads(twin.encoder.ln(h)[:, 0])
    torch.backends.mha.set_fastpath_enabled(was)
    retained(outs.values())
    logits[torch.arange(3), labels].sum().backward()
    result = tap(model, list(outs), x, labels)
    assert torch.equal(result.logits, logits.detach())
    for name, value in outs.items():
        assert_same(result, name, value, value.grad)
        assert result.tensors[name, "gradients"].abs().max() > 0, name


def test_run__tokens_first_modules_are_handed_out_examples_first():
    model, x = seeded(TokensFirst).eval(), torch.randn(3, 5, 8)
    twin = copy.deepcopy(model)
    encoded = twin.encoder(x.transpose(0, 1))
    sequence = twin.rnn(encoded)[0]
    retained([encoded, sequence])
    logits = twin.head(sequence.mean(0))
    logits[:, 0].sum().backward()
    result = tap(model, ["encoder", "rnn"], x, torch.zeros(3, dtype=torch.int64))
    assert_same(result, "encoder", encoded.transpose(0, 1), encoded.grad.transpose(0, 1))
    assert_same(result, "rnn", sequence.transpose(0, 1), sequence.grad.transpose(0, 1))


def test_run__embedding_of_integers_has_gradients():
    model, x = seeded(EmbeddingNet), torch.randint(0, 11, (4, 6))
    result = tap(model, ["embed"], x, torch.tensor([0, 1, 2, 0]))
    expected = model.head.weight[[0, 1, 2, 0]][:, None].expand(4, 6, 6) / 6
    torch.testing.assert_close(result.tensors["embed", "gradients"], expected.detach())


def test_run__frozen_parameters_and_callers_without_gradient_make_no_difference():
    model, x, labels = seeded(MLP), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    expected = tap(model, ["net.*"], x, labels)
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = tap(model, ["net.*"], x, labels)
    with torch.inference_mode():
        inference = tap(model, ["net.*"], x.clone(), labels)
    for key, tensor in expected.tensors.items():
        assert torch.equal(frozen.tensors[key], tensor)
        assert torch.equal(inference.tensors[key], tensor)


def test_run__gradients_leave_parameter_gradients_and_a_pending_backward_alone():
    model, x, labels = seeded(MLP), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    twin = copy.deepcopy(model)
    functional.cross_entropy(twin(x), labels).backward()
    pending = functional.cross_entropy(model(x), labels)
    tap(model, ["net.*"], x, labels)
    assert all(parameter.grad is None for parameter in model.parameters())
    pending.backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_run__results_stand_in_no_graph():
    result = tap(seeded(MLP), ["net.*"], torch.randn(3, 6), torch.zeros(3, dtype=torch.int64))
    handed = [result.logits, result.loss, result.prediction, *result.tensors.values()]
    assert not any(tensor.requires_grad for tensor in handed)


def test_run__output_without_influence_has_zero_gradient():
    result = tap(seeded(Detour), ["unused", "first"], torch.randn(3, 4), torch.zeros(3, dtype=torch.int64))
    assert result.tensors["unused", "gradients"].abs().max() == 0
    assert result.tensors["first", "gradients"].abs().max() > 0


@pytest.mark.parametrize("patterns", [["same"], ["same", "first"]])
def test_run__identity_is_told_from_other_uses_of_its_input(patterns):
    model = seeded(Detour)
    result = tap(model, patterns, torch.randn(3, 4), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(result.tensors["same", "gradients"], 3 * model.head.weight[:3].detach())
    if "first" in patterns:
        torch.testing.assert_close(result.tensors["first", "gradients"], 4 * model.head.weight[:3].detach())


def test_run__inplace_module_whose_return_is_ignored_has_its_gradient():
    class Ignored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.relu, self.head = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)

        def forward(self, x):
            x = self.first(x)
            self.relu(x)
            return self.head(x)

    for patterns, frozen in itertools.product((["relu"], ["first", "relu"]), (False, True)):
        model = seeded(Ignored).requires_grad_(not frozen)
        result = tap(model, patterns, torch.randn(3, 4), torch.tensor([0, 1, 2]))
        assert torch.equal(result.tensors["relu", "gradients"], model.head.weight.detach()), patterns


def test_run__outputs_inside_structures_are_tapped():
    model, x = seeded(Structured), torch.randn(3, 4)
    result = tap(model, ["inner", "inner.linear"], x, torch.tensor([0, 1, 2]))
    state = model.inner.linear(x).detach()
    expected = model.head.weight.detach() * (1 - state.tanh() ** 2)
    assert torch.equal(result.tensors["inner", "activations"], state)
    torch.testing.assert_close(result.tensors["inner", "gradients"], expected)
    torch.testing.assert_close(result.tensors["inner.linear", "gradients"], expected)


def test_run__takes_tuples_and_mappings_of_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, a, b):
            return self.one(a) + self.two(b)

    model, a, b = seeded(Two), torch.randn(4, 4), torch.randn(4, 5)
    for inputs in ((a, b), {"b": b, "a": a}):
        result = tap(model, ["two"], inputs, torch.zeros(4, dtype=torch.int64))
        assert torch.equal(result.tensors["two", "activations"], model.two(b).detach())


def test_run__callable_objective_and_output_are_used():
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return {"states": [self.linear(x)]}

    model, x = seeded(Sequence), torch.randn(3, 5, 4)
    result = tap(
        model,
        ["linear"],
        x,
        kinds=["gradients"],
        output=lambda raw: raw["states"][0] * 2,
        gradient_of=lambda output, labels: output.square().sum((1, 2)),
    )
    torch.testing.assert_close(result.tensors["linear", "gradients"], 8 * model.linear(x).detach())
    assert (result.logits, result.loss, result.prediction) == (None, None, None)


def test_run__half_types_are_handed_out_as_stated():
    model, x = seeded(MLP).bfloat16(), torch.randn(3, 6).bfloat16()
    result = tap(model, ["net.0"], x, torch.zeros(3, dtype=torch.int64))
    by_hand = functional.linear(x, model.net[0].weight, model.net[0].bias)
    assert result.tensors["net.0", "activations"].dtype == torch.float32
    assert torch.equal(result.tensors["net.0", "activations"].bfloat16(), by_hand.detach())
    assert result.logits.dtype == torch.float32
    half = tap(seeded(MLP).half(), ["net.0"], x.half(), torch.zeros(3, dtype=torch.int64))
    assert half.tensors["net.0", "gradients"].dtype == torch.float16
    double = tap(seeded(MLP).double(), ["net.0"], x.double(), torch.zeros(3, dtype=torch.int64))
    assert double.tensors["net.0", "gradients"].dtype == torch.float64


@pytest.mark.parametrize("frozen", [False, True])
def test_run__checkpointed_blocks_have_the_same_gradients(frozen):
    class Saving(MLP):
        def forward(self, x):
            hidden = checkpoint(self.net[:3], x, use_reentrant=False)
            return self.net[3:](hidden)

    x, labels = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    models = [seeded(build).requires_grad_(not frozen) for build in (MLP, Saving)]
    plain, saving = (tap(model, ["net.*"], x, labels) for model in models)
    for key, tensor in plain.tensors.items():
        assert torch.equal(saving.tensors[key], tensor), key


def test_run__taps_do_not_change_what_untapped_copies_are_needed_for():
    model, x = seeded(ResidualCNN), torch.randn(3, 2, 5, 5)
    sites = discover_sites(model, ["pool"], ["activations"], x)
    handed = []
    model.pool.register_forward_hook(lambda module, args, output: handed.append(output))
    with Tapper(model, sites) as tapper:
        tensor = tapper.run(x).tensors["pool", "activations"]
    assert tensor.data_ptr() == handed[-1].data_ptr()


def test_run__raises_when_labels_are_missing_or_unknown():
    model, x = seeded(MLP), torch.randn(3, 6)
    sites = discover_sites(model, ["net.0"], BOTH, x)
    with Tapper(model, sites) as tapper:
        with pytest.raises(CaptureError, match="got no labels"):
            tapper.run(x)
        with pytest.raises(CaptureError, match="0 to 7 where.*0 to 2"):
            tapper.run(x, torch.tensor([0, 1, 7]))


def test_run__raises_when_the_output_is_no_logits():
    model = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))
    with pytest.raises(CaptureError, match=r"needs logits of shape \(3, classes\).*\(3, 2, 2\)"):
        discover_sites(model, ["0"], BOTH, torch.randn(3, 4))


def test_run__raises_when_nothing_depends_on_the_taps():
    class Cut(MLP):
        def forward(self, x):
            with torch.no_grad():
                return self.net(x)

    with pytest.raises(CaptureError, match="depends on none of them"):
        discover_sites(Cut(), ["net.0"], BOTH, torch.randn(3, 6))


class Switch(nn.Module):
    """Does something else once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.habit = "as discovered"

    def forward(self, x):
        hidden = self.one(x)
        if self.habit == "skip":
            return self.head(hidden)
        if self.habit == "repeat":
            hidden = self.two(hidden)
        hidden = self.two(hidden)
        if self.habit == "write":
            hidden.add_(1)
        return self.head(hidden)


@pytest.mark.parametrize(
    ("habit", "message"),
    [
        ("skip", "'two' .* fired 0 times .* saw 1"),
        ("repeat", "'two' .* fired 2 times .* saw 1"),
        ("write", "'two' was written to"),
    ],
)
def test_run__raises_when_the_model_does_other_than_at_discovery(habit, message):
    model, x = seeded(Switch), torch.randn(3, 4)
    sites = discover_sites(model, ["two"], ["activations"], x)
    model.habit = habit
    with Tapper(model, sites) as tapper, pytest.raises(CaptureError, match=message):
        tapper.run(x)


def test_run__a_sink_has_what_left_the_module_whatever_is_written_into_it_later():
    model, x = seeded(Switch), torch.randn(3, 4)
    sites = discover_sites(model, ["two"], ["activations"], x)
    with Tapper(model, sites) as tapper:
        expected = tapper.run(x).tensors["two", "activations"].clone()
        model.habit = "write"
        pieces = []
        tapper.run(x, sink=lambda name, kind, tensor: pieces.append(tensor.clone()))
    assert torch.equal(pieces[0], expected)


def test_run__with_a_sink_neither_copies_nor_keeps_what_the_model_lets_go():
    model, x = seeded(ResidualCNN), torch.randn(3, 2, 5, 5)
    sites = discover_sites(model, ["stem", "conv", "norm"], ["activations"], x)
    assert any(site.clone for site in sites)  # the ReLU is in place
    emitted, gone = [], []
    model.stem.register_forward_hook(lambda module, args, output: emitted.append(weakref.ref(output)))
    model.norm.register_forward_hook(lambda module, args, output: emitted.append(weakref.ref(args[0])))
    model.head.register_forward_pre_hook(lambda module, args: gone.extend(ref() is None for ref in emitted))
    handed = []
    with Tapper(model, sites) as tapper:
        tapper.run(x, sink=lambda name, kind, tensor: handed.append(tensor.data_ptr()))
        assert len(handed) == 3
        assert gone == [False, True]  # the shortcut still holds the stem's; the convolution's is free
        gone.clear()
        tapper.run(x)
    assert False in gone[1:]


def test_run__an_error_of_the_sink_reaches_the_caller_and_the_model_is_left_as_found():
    model, x = seeded(MLP), torch.randn(3, 6)
    sites = discover_sites(model, ["net.*"], ["activations"], x)

    def refuse(name, kind, tensor):
        raise CaptureError("no room")

    with Tapper(model, sites) as tapper:
        with pytest.raises(CaptureError, match="no room"):
            tapper.run(x, sink=refuse)
        assert tapper.run(x).tensors  # without a sink again
    assert not any(module._forward_hooks for module in model.modules())


def test_run__raises_when_the_size_of_examples_changes():
    model = TokenClassifier(nn.Linear(8, 8))
    sites = discover_sites(model, ["body"], ["activations"], torch.randn(3, 5, 8))
    with Tapper(model, sites) as tapper, pytest.raises(CaptureError, match=r"\(3, 6, 8\) where \(3, 5, 8\)"):
        tapper.run(torch.randn(3, 6, 8))


def test_run__raises_outside_its_context():
    model = seeded(MLP)
    tapper = Tapper(model, discover_sites(model, ["net.0"], ["activations"], torch.randn(3, 6)))
    with pytest.raises(CaptureError, match="with block"):
        tapper.run(torch.randn(3, 6))
    with tapper, pytest.raises(CaptureError, match="entered already"), tapper:
        pass


def test_tapper__raises_on_another_model_or_objective():
    sites = discover_sites(seeded(MLP), ["net.0"], ["activations"], torch.randn(3, 6))
    with pytest.raises(InvalidInputError, match="no module of Detour"):
        Tapper(Detour(), sites)
    with pytest.raises(InvalidInputError, match="'logit'"):
        Tapper(seeded(MLP), sites, gradient_of="logit")


def test_run__raises_on_an_empty_batch():
    model = seeded(MLP)
    sites = discover_sites(model, ["net.0"], ["activations"], torch.randn(3, 6))
    with Tapper(model, sites) as tapper, pytest.raises(InvalidInputError, match=r"\(0, 6\)"):
        tapper.run(torch.randn(0, 6))
