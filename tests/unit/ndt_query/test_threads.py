"""One BLAS thread while our tasks run, and only then."""

import sys

import dask
import dask.array as da
import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

import ndt_query as nq
from ndt_query import threads

from .sources import labelled


def blas_threads():
    return {lib["num_threads"] for lib in ThreadpoolController().info() if lib["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(2):
        yield


@pytest.fixture
def seen():
    found = []

    def note(block):
        found.append(blas_threads())
        return block

    return found, note


def test_computation_of_a_question__runs_with_one_blas_thread_and_gives_the_others_back(two_threads, seen):
    found, note = seen
    acts = labelled(np.ones((2, 6, 3), np.float32), chunks=(1, 3, 3))
    acts = acts.copy(data=acts.data.map_blocks(note, meta=np.empty((0, 0, 0), np.float32)))
    nq.unit_moments(acts).compute()
    assert len(found) == 4
    assert all(threads == {1} for threads in found)
    assert blas_threads() == {2}


def test_other_computations__keep_their_threads(two_threads, seen):
    found, note = seen
    nq.unit_moments(labelled(np.ones((1, 4, 3), np.float32), chunks=(1, 4, 3)))
    da.ones(3).map_blocks(note, meta=np.empty(0)).compute()
    assert found == [{2}]


def test_failed_computation__gives_the_threads_back(two_threads):
    def fail(block):
        raise RuntimeError("broken disk")

    acts = labelled(np.ones((1, 4, 3), np.float32), chunks=(1, 4, 3))
    acts = acts.copy(data=acts.data.map_blocks(fail, meta=np.empty((0, 0, 0), np.float32)))
    with pytest.raises(RuntimeError, match="broken disk"), dask.config.set(scheduler="threads"):
        nq.unit_moments(acts).compute()
    assert blas_threads() == {2}


def test_libraries__are_looked_for_again_when_modules_have_come(monkeypatch):
    callback = threads._OneBlasThread()
    first = callback._controller()
    assert callback._controller() is first
    monkeypatch.setitem(sys.modules, "a_module_with_its_own_blas", threads)
    assert callback._controller() is not first
