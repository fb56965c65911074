"""The engine: lazy, each chunk read once, any chunking equal to the dense answer, within the budget."""

import subprocess
import sys
import textwrap
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import ndt_query as nq
from ndt_query import budget
from ndt_store.errors import InvalidInputError, MemoryBudgetError

from .sources import counted, labelled

QUESTIONS = {
    "unit_moments": lambda acts: nq.unit_moments(acts),
    "dead_units": lambda acts: nq.dead_units(acts, 0.5),
    "neuron_importance": lambda acts: nq.neuron_importance(acts),
    "class_means": lambda acts: nq.class_means(acts),
    "top_examples": lambda acts: nq.top_examples(acts, k=4),
    "selectivity_index": lambda acts: nq.selectivity_index(acts, n_permutations=20),
    "dimensionality rows": lambda acts: nq.dimensionality(acts, n_groups=4),
    "dimensionality scatter": lambda acts: nq.dimensionality(acts, positions="samples", n_groups=4),
    "dimensionality mean": lambda acts: nq.dimensionality(acts, positions="mean", n_groups=4, centre=False),
}


@pytest.fixture
def values(rng):
    return rng.standard_normal((3, 23, 4, 3, 2), dtype=np.float32).clip(-0.5)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("chunks", [(1, 1, 4, 3, 2), (2, 7, 4, 3, 2), (3, 23, 4, 3, 2), (1, 5, 3, 2, 1)], ids=str)
def test_question__answers_the_same_for_any_chunking(values, name, chunks):
    dense = QUESTIONS[name](labelled(values))
    lazy = QUESTIONS[name](labelled(values, chunks=chunks))
    assert all(not variable.chunks for variable in dense.data_vars.values())
    assert lazy.chunks
    computed = lazy.compute()
    xr.testing.assert_allclose(computed, dense, rtol=1e-9)
    for variable in lazy.data_vars:
        assert lazy[variable].dtype == computed[variable].dtype == dense[variable].dtype
    assert lazy.attrs == dense.attrs


def test_question__answers_tokens_as_it_answers_their_transpose(rng):
    values = rng.standard_normal((2, 12, 5, 6), dtype=np.float32)
    tokens = labelled(values, chunks=(1, 4, 5, 6))
    conv = tokens.rename(token="x").transpose("checkpoint", "example", "unit", "x")
    xr.testing.assert_allclose(nq.unit_moments(tokens).compute(), nq.unit_moments(conv).compute())
    found, other = nq.top_examples(tokens, 3).compute(), nq.top_examples(conv, 3).compute()
    xr.testing.assert_equal(found, other.rename(x="token"))


def test_question__computes_nothing_until_asked(values):
    acts, source = counted(values, (1, 8, 4, 3, 2))
    for ask in QUESTIONS.values():
        ask(acts)
    assert source.reads == []


def test_questions__asked_together_read_each_chunk_once(values):
    acts, source = counted(values, (2, 8, 4, 3, 2))
    assert acts.data.npartitions == 6
    dask.compute(*(ask(acts) for ask in QUESTIONS.values()))
    assert len(source.reads) == 6


def test_questions__asked_together_of_a_transposed_array_read_each_chunk_once(values):
    acts, source = counted(values, (1, 8, 4, 3, 2))
    other = acts.transpose("x", "unit", "y", "checkpoint", "example")
    dask.compute(nq.unit_moments(other), nq.top_examples(other, 3), nq.class_means(other))
    assert len(source.reads) == 9


def test_question__repeats_bit_for_bit_whatever_the_scheduler(values):
    lazy = nq.unit_moments(labelled(values, chunks=(1, 2, 4, 3, 2)))
    with dask.config.set(scheduler="synchronous"):
        one = lazy.compute()
    with dask.config.set(scheduler="threads", num_workers=4):
        xr.testing.assert_identical(one, lazy.compute())


def test_question__refuses_chunks_of_unknown_size(values):
    acts = labelled(values, chunks=(1, 23, 4, 3, 2))
    data = acts.data[:, da.from_array(np.ones(23, bool), chunks=23)]
    unknown = xr.DataArray(data, dims=acts.dims)
    with pytest.raises(InvalidInputError, match="compute_chunk_sizes"):
        nq.unit_moments(unknown)


def test_question__over_its_budget_says_both_numbers(values):
    acts = labelled(values, chunks=(1, 23, 4, 3, 2))
    with pytest.raises(
        MemoryBudgetError, match=r"unit_moments is projected to take .* where 0.98 kiB are allowed"
    ) as caught:
        nq.unit_moments(acts, memory=1000)
    assert caught.value.allowed_nbytes == 1000
    assert caught.value.projected_nbytes > 1000


def test_question__reads_the_budget_from_the_environment(values, monkeypatch):
    acts = labelled(values, chunks=(1, 23, 4, 3, 2))
    monkeypatch.setenv(budget.MEMORY_VARIABLE, "1 kB")
    with pytest.raises(MemoryBudgetError):
        nq.unit_moments(acts)
    nq.unit_moments(acts, memory="1 GiB")


def test_question__cuts_examples_where_smaller_pieces_fit(rng):
    # One read is a plane of positions; a kernel needs all planes of an example, and would get 64 examples of them.
    values = rng.standard_normal((1, 64, 4, 32, 16), dtype=np.float32)
    acts, _ = counted(values, (1, 64, 4, 1, 16))
    with dask.config.set(scheduler="synchronous"):
        whole = nq.unit_moments(acts, memory="1 GiB")
        cut = nq.unit_moments(acts, memory=400_000)
    assert whole["mean"].data.dask.layers.keys() != cut["mean"].data.dask.layers.keys()
    xr.testing.assert_allclose(whole.compute(), cut.compute())
    np.testing.assert_allclose(cut["mean"], values.mean((1, 3, 4), dtype=np.float64), rtol=1e-10)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_projection__bounds_the_memory_of_a_fresh_process():
    script = textwrap.dedent("""
        import dask, dask.array as da, numpy as np, xarray as xr
        import ndt_query as nq
        from ndt_query import budget, reduce

        dask.config.set(num_workers=2)
        projected = []
        reduce.check = lambda what, terms, allowed, advice: projected.append(budget.projected_nbytes(terms))

        def ask(n_examples):
            data = da.zeros((8, n_examples, 64, 28, 28), chunks=(1, 128, 64, 28, 28), dtype="float32")
            acts = xr.DataArray(data + np.float32(1), dims=("checkpoint", "example", "unit", "y", "x"))
            nq.unit_moments(acts).compute()
            return data.nbytes

        def peak_nbytes():
            # Unlike getrusage, not inherited from the process that started this one.
            line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024

        ask(2)
        start = peak_nbytes()
        total = ask(512)
        print(projected[-1], peak_nbytes() - start, total)
    """)
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    projected, growth, total = (int(number) for number in shown.split())
    assert total > 6 * projected
    assert 0.3 * projected < growth < projected + 16e6
