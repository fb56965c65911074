"""Every example in a docstring runs and shows what it says; every public function is documented in full."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import ndt_query

MODULES = [module.name for module in pkgutil.walk_packages(ndt_query.__path__, "ndt_query.")]
FUNCTIONS = [name for name in ndt_query.__all__ if inspect.isfunction(getattr(ndt_query, name))]


@pytest.mark.parametrize("name", MODULES)
def test_examples__run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_examples__are_found():
    found = [test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name))]
    assert sum(bool(test.examples) for test in found) >= 10


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring__describes_every_parameter(name):
    function = getattr(ndt_query, name)
    for parameter in inspect.signature(function).parameters:
        assert parameter in function.__doc__.split("Returns")[0], parameter
    assert "Returns" in function.__doc__
