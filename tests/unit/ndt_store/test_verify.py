"""Verification compares with something independent of what it checks, and says how bad it is."""

import json

import pytest

from ndt_store import open_store, verify
from ndt_store.layout import documents
from ndt_store.testing import simulate_store


@pytest.fixture
def root(tmp_path):
    simulate_store(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def _findings(root, read_data=True):
    return [(f.severity, f.array, f.block) for f in verify(open_store(root), read_data=read_data).findings]


def test_a_whole_store_has_no_findings(root):
    report = verify(open_store(root), read_data=True)
    assert report.ok
    assert report.n_commits == 3
    files = [p for p in root.rglob("*") if p.is_file() and p.name != "zarr.json"]
    blocks = [p for p in files if p.relative_to(root).parts[0] not in ("commits", "checkpoint")]
    assert (report.n_blocks, report.nbytes) == (len(blocks), sum(p.stat().st_size for p in blocks))


def test_an_altered_node_document_is_damage(root):
    path = root / "layers" / "fc" / "activations" / "zarr.json"
    document = json.loads(path.read_text())
    document["fill_value"] = 0.0
    path.write_text(json.dumps(document, indent=1))
    assert _findings(root) == [("damaged", "layers/fc/activations", "")]


def test_an_altered_consolidated_document_is_damage(root):
    path = root / "zarr.json"
    document = json.loads(path.read_text())
    document["consolidated_metadata"]["metadata"]["layers/fc/activations"]["shape"][0] = 9
    path.write_text(json.dumps(document, indent=1))
    assert _findings(root) == [("damaged", "zarr.json", "")]


def test_documents_of_an_interrupted_extension_are_incomplete_not_damage(root):
    path = root / "layers" / "fc" / "activations" / "zarr.json"
    document = json.loads(path.read_text())
    document["shape"][0] = 4
    path.write_text(json.dumps(document, indent=1))
    assert _findings(root) == [("incomplete", "layers/fc/activations/zarr.json", "")]


@pytest.mark.parametrize("n_planned", [2, 4])
def test_any_interrupted_change_of_plan_is_incomplete_not_damage(root, n_planned):
    store = open_store(root)
    steps = (0, 10, 100, 700)[:n_planned]
    for key, data in documents(store.schema.with_checkpoints(steps), store.provenance).items():
        if key != "zarr.json":
            (root / key).write_bytes(data)
    assert {severity for severity, _, _ in _findings(root)} == {"incomplete"}


def test_other_steps_in_the_coordinate_are_damage(root):
    store = open_store(root)
    rendered = documents(store.schema.with_checkpoints((0, 11, 100)), store.provenance)
    (root / "checkpoint/c/0").write_bytes(rendered["checkpoint/c/0"])
    assert _findings(root) == [("damaged", "checkpoint", "checkpoint/c/0")]


def test_a_record_of_an_unplanned_checkpoint_is_damage(root):
    (root / "commits" / "55.json").write_bytes((root / "commits" / "10.json").read_bytes())
    assert _findings(root) == [("damaged", "commits/55.json", "")]


def test_without_read_data_content_is_not_read_but_size_is_measured(root):
    entry = open_store(root).catalogue.record(0).arrays["layers/fc/activations"].blocks[0]
    path = root / entry.key
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert _findings(root, read_data=False) == []
    assert _findings(root, read_data=True) == [("damaged", "layers/fc/activations", entry.key)]
    path.write_bytes(whole[:-1])
    assert _findings(root, read_data=False) == [("damaged", "layers/fc/activations", entry.key)]


def test_progress_counts_every_block(root):
    seen = []
    report = verify(open_store(root), read_data=True, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, report.n_blocks) for n in range(1, report.n_blocks + 1)]
