"""Records of series and experiments that somebody else made are read, or refused with a sentence, never believed."""

import json

import pytest

from ndt_store import Column, SeriesWriter, open_training
from ndt_store.errors import FormatVersionError, IntegrityError
from ndt_store.layout import canonical_json, digest
from ndt_store.supplements import SupplementRecord, parse_group, record_key


@pytest.fixture
def record(tmp_path):
    rows = {"loss": Column(), "rank": Column(("layer",))}
    with SeriesWriter.open(tmp_path / "s", rows=rows, coords={"layer": ["a", "b"]}) as writer:
        for step in range(3):
            writer.append(step, loss=step, rank=[step, step])
    return tmp_path / "s" / "commits" / "training.json"


def test_a_record_reads_back_as_it_was_and_is_canonical(record):
    data = record.read_bytes()
    found = SupplementRecord.from_json(data, "training")
    assert found.to_json() == data == canonical_json(json.loads(data))
    assert (found.dim, found.n_rows) == ("step", 3)


@pytest.mark.parametrize("key", ["training", "experiments/a b", "experiments/700"])
def test_keys_of_records_name_their_group(key):
    assert parse_group(record_key(key)) == key


@pytest.mark.parametrize(
    "key",
    [
        "commits/700.json",
        "commits/static.json",
        "commits/experiments/a/b.json",
        "commits/experiments/...json",
        "commits/experiments/a",
        "commits/experiments.json",
        "training.json",
    ],
)
def test_other_keys_name_none(key):
    assert parse_group(key) is None


def set_path(content, path, value):
    *parents, last = path
    for part in parents:
        content = content[part]
    if value is None:
        del content[last]
    else:
        content[last] = value


LOSS, RANK = 2, 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rows",), -1),
        (("rows",), 2.5),
        (("rows",), 1 << 60),
        (("rows",), 4096),
        (("rows",), None),
        (("group",), "experiments/x"),
        (("dim",), "layer"),
        (("dim",), "epoch"),
        (("identity",), 3),
        (("attributes",), ["a"]),
        (("arrays",), {}),
        (("arrays", LOSS, "path"), "training/../../loss"),
        (("arrays", LOSS, "path"), "layers/loss"),
        (("arrays", LOSS, "dims"), ["checkpoint", "step"]),
        (("arrays", LOSS, "sizes"), [1 << 40]),
        (("arrays", LOSS, "sizes"), [511]),
        (("arrays", LOSS, "rows"), 100),
        (("arrays", LOSS, "codec"), "fast"),
        (("arrays", LOSS, "codec"), "pickle"),
        (("arrays", LOSS, "dtype"), "string"),
        (("arrays", LOSS, "dtype"), "object"),
        (("arrays", RANK, "sizes"), [512, 3]),
        (("blocks", "training/loss"), []),
        (("blocks", "training/loss"), [[4100, "xyz"]]),
        (("blocks", "training/loss"), [[4100]]),
        (("blocks", "training/loss"), None),
        (("blocks",), []),
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_or_the_format_is_damaged(record, path, value):
    content = json.loads(record.read_bytes())
    del content["digest"]
    assert content["arrays"][LOSS]["path"] == "training/loss"
    assert content["arrays"][RANK]["path"] == "training/rank"
    set_path(content, path, value)
    record.write_bytes(canonical_json({**content, "digest": digest(content)}))
    with pytest.raises(IntegrityError, match=r"commits/training.json is damaged"):
        open_training(record.parent.parent)


@pytest.mark.parametrize("path", [("shards",), ("arrays", LOSS, "shards")])
def test_a_record_of_a_newer_version_says_so(record, path):
    content = json.loads(record.read_bytes())
    del content["digest"]
    set_path(content, path, 1)
    record.write_bytes(canonical_json({**content, "digest": digest(content)}))
    with pytest.raises(FormatVersionError, match="newer version"):
        open_training(record.parent.parent)


def test_blocks_listed_with_another_size_or_checksum_raise(record):
    for changed in ([[4000, None]], [[4100, "00000000"]], [[1 << 40, None]]):
        content = json.loads(record.read_bytes())
        del content["digest"]
        size, crc = changed[0]
        content["blocks"]["training/loss"] = [[size, crc or content["blocks"]["training/loss"][0][1]]]
        whole = record.read_bytes()
        record.write_bytes(canonical_json({**content, "digest": digest(content)}))
        with pytest.raises(IntegrityError) as caught:
            open_training(record.parent.parent)
        assert caught.value.block == "training/loss/c/0"
        record.write_bytes(whole)
