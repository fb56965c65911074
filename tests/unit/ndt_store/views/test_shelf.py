"""Views are kept inside the store that they belong to, and nowhere else."""

import shutil

import numpy as np
import pytest

import ndt_query as nq
from ndt_store import index_store, open_store
from ndt_store.errors import StorageError
from ndt_store.testing import simulate_store

LINKED = ["views", "views/tmp", "views/moments", "views/moments/conv1", "views/moments/conv1/activations"]


@pytest.fixture
def store(tmp_path):
    simulate_store(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / "views", ignore_errors=True)
    return open_store(tmp_path / "s.zarr")


@pytest.mark.parametrize("linked", LINKED)
@pytest.mark.parametrize("inside", [False, True], ids=["out of the store", "into the store"])
def test_a_question_writes_nothing_through_a_link(store, tmp_path, linked, inside):
    root = store.catalogue.storage.root
    elsewhere = root / "layers" / "fc" if inside else tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (root / linked).parent.mkdir(parents=True, exist_ok=True)
    (root / linked).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    acts = store["conv1"].activations
    found = nq.unit_moments(acts).compute()
    np.testing.assert_allclose(found["mean"], acts.astype("float64").mean(("example", "y", "x")))
    assert sorted(elsewhere.rglob("*")) == before


def test_index__raises_on_a_link_and_names_it(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.catalogue.storage.root / "views").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"s\.zarr/views is a link, and nothing is written through links"):
        index_store(store)


def test_a_store_that_is_reached_by_a_link_keeps_its_views(store, tmp_path):
    (tmp_path / "alias").symlink_to(store.catalogue.storage.root)
    index_store(open_store(tmp_path / "alias"))
    assert (store.catalogue.storage.root / "views" / "moments" / "conv1" / "activations" / "10").is_file()


def test_a_question_leaves_nothing_but_views_and_no_temporary(store):
    root = store.catalogue.storage.root
    before = {path for path in root.rglob("*") if path.is_file()}
    nq.unit_moments(store["conv1"].activations).compute()
    new = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path not in before}
    assert new == {f"views/{view}/conv1/activations/{step}" for view in ("moments", "topk") for step in (0, 10, 100)}
    assert not (root / "tmp").exists()
