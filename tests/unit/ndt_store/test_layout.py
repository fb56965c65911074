"""Keys, blocks and documents, compared with what zarr itself makes of them."""

import json
import math

import numpy as np
import pytest
import zarr
from zarr.core.metadata.v3 import ArrayV3Metadata

from ndt_store.codecs import PROFILES
from ndt_store.layout import (
    blocks,
    canonical_json,
    checkpoint_chunks,
    documents,
    forecast,
    n_blocks,
    padded,
    rows_per_block,
)
from ndt_store.schema import DTYPES, ArraySpec, Schema


@pytest.mark.parametrize("codec", PROFILES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_array_documents_are_what_zarr_understands(dtype, codec):
    spec = ArraySpec("a", ("checkpoint", "example", "unit"), (10, 3), dtype, 4, codec, {"units": "1"})
    document = json.loads(documents(Schema((0, 7), (spec,)), {})["a/zarr.json"])
    metadata = ArrayV3Metadata.from_dict(document)
    assert metadata.shape == (2, 10, 3)
    assert metadata.chunks == (1, 4, 3)
    assert metadata.dimension_names == ("checkpoint", "example", "unit")
    assert metadata.attributes == {"units": "1"}
    fill = metadata.fill_value
    assert (dtype.startswith("float") and math.isnan(fill)) or fill in (0, "", False)


def test_block_keys_are_the_chunk_keys_of_zarr(tmp_path):
    spec = ArraySpec("cube", ("checkpoint", "example", "unit", "y"), (10, 3, 2), "float32", 4)
    array = zarr.create_array(
        tmp_path / "cube",
        shape=(2, 10, 3, 2),
        chunks=(1, 4, 3, 2),
        dtype="float32",
        config={"write_empty_chunks": True},
    )
    array[:] = 1
    written = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "cube" / "c").rglob("*") if path.is_file()}
    assert written == {block.key for index in range(2) for block in blocks(spec, index)}


@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 1000, 16384])
@pytest.mark.parametrize("width", [1, 32, 25088])
def test_rows_per_block_wastes_less_than_a_row_a_block(n, width):
    rows = rows_per_block((n, width), "float32", 1 << 20)
    count = math.ceil(n / rows)
    assert rows * count - n < count
    assert rows * width * 4 <= (1 << 20) or rows == 1


def test_blocks_cover_every_example_once():
    spec = ArraySpec("a", ("example", "unit"), (11, 2), "float32", 4)
    seen = [row for block in blocks(spec) for row in range(block.start, block.stop)]
    assert seen == list(range(11))
    assert n_blocks(spec) == 3


def test_padding_is_nan_and_leaves_the_data_alone():
    spec = ArraySpec("a", ("example", "unit"), (11, 2), "float32", 4)
    data = np.ones((3, 2), np.float32)
    full = padded(spec, data)
    assert full.shape == (4, 2)
    assert np.array_equal(full[:3], data)
    assert np.isnan(full[3]).all()


def test_forecast_of_an_uncompressed_cube_is_its_size_on_disk(tmp_path):
    from ndt_store.testing import simulate_store

    store = simulate_store(tmp_path / "s.zarr", codec="none").store
    path = "layers/conv1/activations"
    on_disk = sum(p.stat().st_size for p in (tmp_path / "s.zarr" / path / "c").rglob("*") if p.is_file())
    assert forecast(store.schema)[path] == on_disk


def test_checkpoint_coordinate_of_more_steps_than_a_chunk_holds():
    steps = tuple(range(0, 50_000, 10))
    chunks = checkpoint_chunks(Schema(steps, (ArraySpec("a", ("checkpoint",), (), "int64"),)))
    values = np.concatenate([np.frombuffer(data[:-4], "<i8") for data in chunks.values()])
    assert len(chunks) == 2
    assert values[: len(steps)].tolist() == list(steps)


def test_canonical_json__raises_on_nan():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": float("nan")})
