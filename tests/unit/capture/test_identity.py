"""Digests tell apart what would capture something else, and nothing more."""

import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from capture.identity import callable_name, structure_digest


def encoder(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, **options)


class WithFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.passes = 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Sequential(nn.Linear(3, 3), nn.Tanh())),
        (encoder(), encoder(activation="gelu")),
        (encoder(), encoder(norm_first=True)),
        (encoder(), encoder(batch_first=True)),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (WithFunction(functional.relu), WithFunction(functional.gelu)),
        (WithFunction(lambda x: x + 1), WithFunction(lambda x: x + 2)),
    ],
)
def test_structure_digest__differs(one, other):
    assert structure_digest(one) != structure_digest(other)


def test_structure_digest__ignores_weights_mode_counters_and_addresses():
    torch.manual_seed(0)
    one, other = (nn.Sequential(encoder(), WithFunction(functional.relu), nn.BatchNorm1d(8)) for _ in range(2))
    other.eval()
    other[1].passes = 5
    other[2](torch.ones(3, 8))
    assert structure_digest(one) == structure_digest(other)

    class Shown(nn.Module):
        def extra_repr(self):
            return f"{object()!r}"

    assert structure_digest(Shown()) == structure_digest(Shown())


def test_structure_digest__ends_for_a_module_that_holds_its_own_method():
    def build():
        module = Scoring()
        module.score = module.scores
        return module

    assert structure_digest(build()) == structure_digest(build()) != structure_digest(Scoring())


def closing_over(value):
    return lambda out, labels: out[:, value]


def of_default(value):
    def pick(out, labels, at=value, *, scale=value):
        return out[:, at] * scale

    return pick


class Pick:
    def __init__(self, at):
        self.at = at

    def __call__(self, out, labels):
        return out[:, self.at]

    def method(self, out, labels):
        return out[:, self.at]


class Slotted:
    __slots__ = ()

    def __call__(self, out, labels):
        return out


class Scoring(nn.Module):
    def scores(self, out):
        return out


def test_callable_name__of_a_models_method_ignores_its_mode_and_of_a_slotted_object_is_there():
    assert callable_name(Scoring().scores) == callable_name(Scoring().eval().scores)
    assert callable_name(Slotted()).startswith(f"{__name__}.Slotted ")


def pick(out, labels, at):
    return out[:, at]


@pytest.mark.parametrize(
    "make",
    [
        closing_over,
        of_default,
        Pick,
        lambda at: Pick(at).method,
        lambda at: functools.partial(pick, at=at),
        lambda at: closing_over([pick, of_default(0)][at]),
        lambda at: [lambda out: out.logits, lambda out: out.scores][at],
        lambda at: [lambda out: out[0], lambda out: out[1]][at],
        lambda at: [lambda out: (lambda: out[0])(), lambda out: (lambda: out[1])()][at],
        lambda at: [torch.softmax, torch.sigmoid][at],
        lambda at: [torch.Tensor.mean, torch.Tensor.sum][at],
        lambda at: [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Tanh())][at],
    ],
)
def test_callable_name__tells_callables_apart_and_knows_them_again(make):
    assert callable_name(make(0)) == callable_name(make(0)) != callable_name(make(1))


def test_callable_name__ends_for_a_function_that_closes_over_itself():
    def depth(out, labels):
        return depth(out, labels)

    assert callable_name(depth).startswith(f"{__name__}.test_callable_name__ends")


def test_callable_name__is_the_same_in_every_process():
    code = (
        "from capture.identity import callable_name\n"
        "print(callable_name(lambda out, labels: out if labels in {'a', 'b', 'c', 'd'} else None))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(names) == 1
    assert names.pop().startswith("__main__.<lambda> ")
