"""Damage to any file of a store is found, named, and kept from the reader; the rest stays readable."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ndt_store import open_store, verify
from ndt_store.blocks import BlockArray
from ndt_store.errors import FormatVersionError, IntegrityError, NotFoundError
from ndt_store.testing import DAMAGES, data_files, simulate_store

N_TRIALS = 300


@pytest.mark.parametrize("codec", ["none", "fast"])
def test_every_damage_is_found_and_named_and_the_rest_stays_readable(tmp_path, codec):
    root = tmp_path / "s.zarr"
    sim = simulate_store(root, codec=codec, attention={"attn": (2, 5)}, n_examples=7, block_nbytes=600)
    files = list(data_files(root))
    rng = np.random.default_rng(11)
    seen: Counter[str] = Counter()
    for trial in range(N_TRIALS // 2):
        damage = DAMAGES[trial % len(DAMAGES)]
        path = files[int(rng.integers(len(files)))]
        whole = path.read_bytes()
        damage(path, rng)
        assert not path.exists() or path.read_bytes() != whole
        seen[_check_found(root, path, sim)] += 1
        path.write_bytes(whole)
    assert verify(open_store(root), read_data=True).ok
    assert seen["block"] > 50
    assert seen["record"] > 2
    assert seen["metadata"] > 10


def _check_found(root: Path, path: Path, sim) -> str:
    key = path.relative_to(root).as_posix()
    if key == "zarr.json":
        try:
            store = open_store(root)
        except (IntegrityError, NotFoundError, FormatVersionError):
            return "metadata"
        assert verify(store, read_data=True).findings, f"damage to {key} went unseen"
        return "metadata"
    store = open_store(root)
    findings = verify(store, read_data=True).findings
    assert findings, f"damage to {key} went unseen"
    if key.endswith("zarr.json"):
        assert any(f.array == key.removesuffix("/zarr.json") or key in f.message for f in findings), findings
        return "metadata"
    if key.startswith("commits/"):
        assert any(f.array == key or "not committed" in f.message for f in findings), findings
        return "record"
    assert any(f.block == key for f in findings), (key, findings)
    array = key.split("/c/")[0].removesuffix("/c")
    if array == "checkpoint":
        return "metadata"
    with pytest.raises(IntegrityError) as caught:
        store.tree[array].load()
    assert (caught.value.array, caught.value.block) == (array, key)
    others = [path for path in sim.arrays if path != array]
    other = others[len(key) % len(others)]
    spec = store.schema.find(other)
    np.testing.assert_array_equal(BlockArray(store.catalogue, spec)[...], sim.arrays[other])
    return "block"
