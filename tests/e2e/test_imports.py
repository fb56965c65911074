"""Reading and asking needs no torch; a second test proves that the first one can fail."""

import subprocess
import sys

import pytest

HEAVY = {
    "import ndt_store, ndt_query": {"torch", "capture"},
    "import ndt_store.cli": {"torch", "capture", "xarray", "zarr", "dask", "scipy", "sklearn", "matplotlib"},
    "import ndt_query": {"scipy", "sklearn", "matplotlib"},
}


def _imported(program: str) -> set[str]:
    code = f"{program}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("program", HEAVY)
def test_import_brings_in_nothing_heavy(program):
    assert not _imported(program) & HEAVY[program]


def test_querying_a_store_brings_in_no_torch(tmp_path):
    program = (
        "from ndt_store.testing import simulate_store\nimport ndt_query as nq\n"
        f"store = simulate_store({str(tmp_path / 's')!r}).store\n"
        "nq.unit_moments(store['conv1'].activations).compute()\nnq.dimensionality(store)\n"
    )
    assert not _imported(program) & {"torch", "capture"}


def test_the_import_tests_would_see_torch():
    assert "torch" in _imported("import capture.taps")
    assert "scipy" in _imported("import ndt_query; ndt_query.dimensionality")
