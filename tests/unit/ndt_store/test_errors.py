"""Every error pickles, shows its sentence, and stands in the tree where callers expect it."""

import pickle

import pytest

from ndt_store import errors

ALL = [getattr(errors, name) for name in errors.__all__]


def _make(kind):
    if kind is errors.IntegrityError:
        return kind("a sentence.", "layers/fc/activations", "layers/fc/activations/c/0/0")
    if kind is errors.MemoryBudgetError:
        return kind("a sentence.", 10, 5)
    if kind is errors.ResumeMismatchError:
        return kind("a sentence.", "dtype")
    return kind("a sentence.")


@pytest.mark.parametrize("kind", ALL)
def test_every_error_pickles_with_its_fields(kind):
    error = _make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.__dict__) == ("a sentence.", error.__dict__)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_shows_one_plain_sentence(kind):
    assert str(_make(kind)) == "a sentence."


def test_no_error_is_left_out_of_the_tree():
    def below(kind):
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(errors.NdtError) == set(ALL)


def test_errors_are_caught_by_the_builtin_that_callers_know():
    assert issubclass(errors.InvalidInputError, ValueError)
    assert issubclass(errors.NotFoundError, KeyError)
    assert issubclass(errors.StorageError, OSError)
