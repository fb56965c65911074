"""The arithmetic of the budget."""

import dask
import pytest

from ndt_query import budget
from ndt_query.budget import Projection
from ndt_store.errors import InvalidInputError, MemoryBudgetError


def test_projected_nbytes__adds_its_visible_terms():
    terms = Projection(1000, 500, 2.0, 3, 10, 7, 1)
    assert budget.projected_nbytes(terms) == 3 * (2 * 1000 + 2 * 500) + 7 * 10 + 1


@pytest.mark.parametrize(("text", "nbytes"), [("4 GiB", 4 << 30), ("1kB", 1000), (12, 12)])
def test_allowed_nbytes__reads_sizes(text, nbytes):
    assert budget.allowed_nbytes(text) == nbytes


def test_allowed_nbytes__is_half_of_the_machine_without_further_word(monkeypatch):
    monkeypatch.delenv(budget.MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr(budget, "memory_nbytes", lambda: 1000)
    assert budget.allowed_nbytes() == 500


@pytest.mark.parametrize("text", ["much", "-1 GB", 0, True])
def test_allowed_nbytes__refuses_what_is_not_a_size(text):
    with pytest.raises(InvalidInputError, match="is not a size"):
        budget.allowed_nbytes(text)


def test_check__raises_only_above_the_budget():
    terms = Projection(100, 0, 0.0, 1, 0, 0, 0)
    budget.check("it", terms, 200, "select less")
    with pytest.raises(MemoryBudgetError, match="it is projected to take 200 B where 199 B are allowed"):
        budget.check("it", terms, 199, "select less")


def test_n_threads__follows_dask():
    with dask.config.set(scheduler="synchronous"):
        assert budget.n_threads() == 1
    with dask.config.set(scheduler="threads", num_workers=5):
        assert budget.n_threads() == 5
