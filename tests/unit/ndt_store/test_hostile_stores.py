"""A store may come from a stranger: forged metadata end in a typed error, never in a hang or a giant allocation."""

import json
import os
import struct

import numpy as np
import pytest

from ndt_store import open_store, verify
from ndt_store.commits import commit_key
from ndt_store.errors import FormatVersionError, IntegrityError, NdtError, StorageError
from ndt_store.layout import canonical_json, digest
from ndt_store.testing import simulate_store

CUBE = "layers/fc/activations"


@pytest.fixture
def root(tmp_path):
    simulate_store(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def forge_root(root, change):
    """Change the content of the root document and make its digest right again."""
    document = json.loads((root / "zarr.json").read_text())
    content = document["attributes"]["ndt"]
    del content["digest"]
    change(content)
    try:
        content["digest"] = digest(content)
    except ValueError:
        content["digest"] = "0" * 64
    (root / "zarr.json").write_text(json.dumps(document))


def forge_record(root, step, change):
    path = root / commit_key(step)
    record = json.loads(path.read_bytes())
    del record["digest"]
    change(record)
    path.write_bytes(canonical_json({**record, "digest": digest(record)}))


def _spec(content, path=CUBE):
    return next(spec for spec in content["schema"]["arrays"] if spec["path"] == path)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["provenance"].update(x=float("nan")),
        lambda c: c.update(provenance=[1]),
        lambda c: c["provenance"].update(identity=[1]),
        lambda c: c["provenance"].update(identity={"a": "\ud800"}),
        lambda c: _spec(c).update(attrs=[1, 2]),
        lambda c: _spec(c).update(codec="pickle"),
        lambda c: _spec(c).update(dtype="object"),
        lambda c: _spec(c).update(rows=1 << 55),
        lambda c: _spec(c).update(sizes=[1 << 40, 10], rows=1),
        lambda c: _spec(c).update(path="layers/../../etc/activations"),
        lambda c: c["schema"].update(checkpoints=[0, 10, 1 << 70]),
        lambda c: c["schema"].update(checkpoints="0"),
        lambda c: c["schema"].update(groups={"layers/../..": {}}),
        lambda c: c["schema"].update(arrays=5),
    ],
)
def test_a_forged_schema_is_refused_when_the_store_is_opened(root, change):
    forge_root(root, change)
    with pytest.raises(IntegrityError, match=r"zarr\.json is damaged"):
        open_store(root)


@pytest.mark.parametrize(
    "change",
    [lambda content: _spec(content).update(shard_blocks=8), lambda content: content["schema"].update(shard_blocks=8)],
)
def test_a_field_of_a_later_version_is_not_called_damage(root, change):
    forge_root(root, change)
    with pytest.raises(FormatVersionError, match=r"newer version of ndt-activations .*shard_blocks"):
        open_store(root)


@pytest.mark.parametrize("nbytes", [1 << 45, -5, 0])
def test_a_forged_block_size_is_refused_before_anything_is_allocated(root, nbytes):
    def change(record):
        record["arrays"][CUBE]["blocks"][0][1] = nbytes

    forge_record(root, 10, change)
    store = open_store(root)
    with pytest.raises(IntegrityError, match="which no such block has") as caught:
        store["fc"].activations.isel(checkpoint=1).load()
    assert caught.value.array == CUBE
    assert [f.array for f in verify(store, read_data=True).findings] == [CUBE]


def test_a_forged_number_of_blocks_is_refused(root):
    forge_record(root, 10, lambda record: record["arrays"][CUBE]["blocks"].append(["x", 1, "00000000"]))
    with pytest.raises(IntegrityError, match="other numbers of blocks"):
        open_store(root)["fc"].activations.load()


def test_a_string_block_that_declares_billions_of_items_is_refused(root):
    from ndt_store.codecs import crc32c

    key = open_store(root).catalogue.record(10).arrays["weights_digest"].blocks[0].key
    payload = struct.pack("<I", (1 << 31) - 1) + (root / key).read_bytes()[4:-4]
    (root / key).write_bytes(payload + struct.pack("<I", crc32c(payload)))

    def change(record):
        record["arrays"]["weights_digest"]["blocks"][0][2] = f"{crc32c(payload):08x}"

    forge_record(root, 10, change)
    with pytest.raises(IntegrityError, match="declares 2147483647 strings"):
        open_store(root).tree["weights_digest"].load()


@pytest.mark.parametrize("key", ["zarr.json", "commits/10.json", "block"])
def test_a_pipe_or_device_in_the_place_of_a_file_is_not_waited_for(root, key):
    if key == "block":
        key = open_store(root).catalogue.record(10).arrays[CUBE].blocks[0].key
    (root / key).unlink()
    os.mkfifo(root / key)
    _expect_damage(root)
    (root / key).unlink()
    (root / key).symlink_to("/dev/zero")
    _expect_damage(root)


def _expect_damage(root):
    try:
        findings = verify(open_store(root), read_data=True).findings
    except NdtError:
        return
    assert findings


def test_a_symlink_loop_is_a_finding_and_an_expected_error(root):
    key = open_store(root).catalogue.record(10).arrays[CUBE].blocks[0].key
    (root / key).unlink()
    (root / key).symlink_to(root / key)
    findings = verify(open_store(root)).findings
    assert [(f.array, f.block) for f in findings] == [(CUBE, key)]
    with pytest.raises(IntegrityError, match="cannot be read"):
        open_store(root)["fc"].activations.load()


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(root, monkeypatch):
    scandir = os.scandir

    def refuse(path="."):
        if str(path).endswith("commits"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"listing .*commits: Permission denied; mend the permissions"):
        open_store(root)


def test_values_of_a_whole_store_are_untouched_by_these_checks(root):
    assert verify(open_store(root), read_data=True).ok
    assert np.isfinite(open_store(root)["fc"].activations.values).all()
