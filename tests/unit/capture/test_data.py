"""Data: what the loaders return, what they refuse, and that digests and selections mean what they say."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import struct
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits as sklearn_digits

from capture import _idx
from capture.data import ImageData, load_data, load_digits, load_embedded, load_idx
from ndt_store.errors import IntegrityError, InvalidInputError, NotFoundError

SHARED = Path(__file__).parents[3].parent / "shared" / "data"


@pytest.fixture
def full_data() -> Path:
    root = Path(os.environ.get("NDT_DATA_DIR") or SHARED)
    if not (root / "fashion-mnist").is_dir():
        pytest.skip("the full data sets are not here: set NDT_DATA_DIR to a folder with mnist/ and fashion-mnist/")
    return root


def idx_bytes(values: np.ndarray, code: int = 8) -> bytes:
    return bytes((0, 0, code, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 12), ("t10k", 5)):
        images = rng.integers(0, 256, (n, 4, 3), dtype=np.uint8)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(idx_bytes(np.arange(n, dtype=np.uint8) % 3))
        )
    return tmp_path


def small(n: int = 12, n_classes: int = 3) -> ImageData:
    rng = np.random.default_rng(1)
    return ImageData(
        inputs=rng.random((n, 1, 2, 2), dtype=np.float32),
        labels=np.arange(n, dtype=np.int64)[::-1] % n_classes,
        class_names=tuple("abcdefgh"[:n_classes]),
        name="small",
        examples=np.arange(100, 100 + n, dtype=np.int64),
        split="test",
    )


def test_load_idx__reads_plain_and_compressed_files(idx_folder: Path) -> None:
    data = load_idx(idx_folder, "train")
    raw = np.frombuffer((idx_folder / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_allclose(data.inputs.reshape(-1) * 255, raw, atol=1e-4)
    assert data.inputs.shape == (12, 1, 4, 3)
    assert data.labels.tolist() == [0, 1, 2] * 4
    assert data.class_names == ("0", "1", "2")
    assert data.examples.tolist() == list(range(12))
    assert len(load_idx(idx_folder, "test")) == 5


def test_load_idx__says_which_file_is_missing_and_how_to_get_it(idx_folder: Path) -> None:
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(NotFoundError) as caught:
        load_idx(idx_folder, "test")
    for part in ("t10k-labels-idx1-ubyte.gz", str(idx_folder), "torchvision", "dataset-fashion-mnist"):
        assert part in str(caught.value)


@pytest.mark.parametrize("keep", [0, 3, 9, 16, 100, 159])
def test_load_idx__refuses_a_truncated_plain_file_at_any_length(idx_folder: Path, keep: int) -> None:
    path = idx_folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match="train-images-idx3-ubyte") as caught:
        load_idx(idx_folder, "train")
    assert caught.value.array == str(path)


@pytest.mark.parametrize("keep", [0, 5, 12, 25])
def test_load_idx__refuses_a_truncated_gzip_file_at_any_length(idx_folder: Path, keep: int) -> None:
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"train-labels-idx1-ubyte\.gz"):
        load_idx(idx_folder, "train")


def test_load_idx__refuses_what_is_not_gzip_or_whose_stream_is_damaged(idx_folder: Path) -> None:
    path = idx_folder / "train-labels-idx1-ubyte.gz"
    good = bytearray(path.read_bytes())
    good[14] ^= 0xFF
    for content in (b"<html>404</html>", bytes(good)):
        path.write_bytes(content)
        with pytest.raises(IntegrityError):
            load_idx(idx_folder, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(np.zeros((12, 4), np.uint8)), "magic number 00000802"),
        (idx_bytes(np.zeros((12, 4, 3), np.uint8), code=13), "magic number 00000d03"),
        (idx_bytes(np.zeros((12, 4, 3), np.uint8)) + b"x", "more than 144 bytes"),
        (bytes((0, 0, 8, 3)) + struct.pack(">3I", 60000, 60000, 60000), "at most"),
        (idx_bytes(np.zeros((0, 4, 3), np.uint8)), "non-empty"),
    ],
)
def test_load_idx__refuses_a_wrong_header(idx_folder: Path, content: bytes, message: str) -> None:
    (idx_folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(IntegrityError, match=message):
        load_idx(idx_folder, "train")


def test_load_idx__does_not_unpack_more_than_the_cap(idx_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_idx, "MAX_IDX_NBYTES", 100)
    with pytest.raises(IntegrityError, match="at most 100 bytes"):
        load_idx(idx_folder, "train")


def test_load_idx__refuses_images_and_labels_that_differ_in_number(idx_folder: Path) -> None:
    (idx_folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(11, np.uint8))))
    with pytest.raises(IntegrityError, match="11 entries, expected 12"):
        load_idx(idx_folder, "train")


def test_load_digits__splits_scikit_learns_array_without_overlap() -> None:
    train, test = load_digits("train"), load_digits("test")
    reference = sklearn_digits()
    np.testing.assert_array_equal(np.concatenate([train.inputs, test.inputs])[:, 0] * 16, reference.images)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), reference.target)
    np.testing.assert_array_equal(np.concatenate([train.examples, test.examples]), np.arange(1797))
    assert set(test.labels.tolist()) == set(range(10))


@pytest.mark.parametrize(("split", "share"), [("train", 500), ("test", 100)])
def test_load_embedded__is_balanced_and_scaled(split: str, share: int) -> None:
    data = load_embedded(split)
    assert np.bincount(data.labels).tolist() == [share] * 10
    assert data.inputs.shape == (10 * share, 1, 28, 28)
    assert (data.inputs.min(), data.inputs.max()) == (0.0, 1.0)
    assert (np.diff(data.examples) > 0).all()
    assert data.class_names[9] == "Ankle boot"


@pytest.mark.parametrize("split", ["train", "test"])
def test_load_embedded__keeps_original_images_and_indices(full_data: Path, split: str) -> None:
    part, whole = load_embedded(split), load_data("fashion-mnist", split, full_data)
    np.testing.assert_array_equal(part.inputs, whole.inputs[part.examples])
    np.testing.assert_array_equal(part.labels, whole.labels[part.examples])
    assert part.digest == whole.balanced(len(part)).digest


def test_embedded_readme__gives_the_digests_of_the_files_beside_it() -> None:
    folder = files("capture") / "embedded"
    listed = dict(re.findall(r"\| ((?:train|t10k)-\S+) \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text()))
    stored = {entry.name for entry in folder.iterdir() if entry.name.endswith(".gz")}
    assert len(stored) == 6
    for name in stored:
        digest = hashlib.sha256(gzip.decompress((folder / name).read_bytes())).hexdigest()
        assert listed[name.removesuffix(".gz")] == digest


def test_embedded_readme__snippet_makes_the_files(
    full_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = files("capture") / "embedded"
    shutil.copytree(full_data / "fashion-mnist", tmp_path / "fashion-mnist")
    (tmp_path / "embedded").mkdir()
    monkeypatch.chdir(tmp_path)
    snippet = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    exec(snippet[0], {})
    for made in (tmp_path / "embedded").iterdir():
        assert gzip.decompress(made.read_bytes()) == gzip.decompress((folder / made.name).read_bytes())


def test_load_data__takes_the_folder_from_the_environment(
    tmp_path: Path, idx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(idx_folder, tmp_path / "root" / "mnist")
    monkeypatch.setenv("NDT_DATA_DIR", str(tmp_path / "root"))
    data = load_data("mnist", "test")
    assert (data.name, data.split, data.n_classes) == ("mnist", "test", 10)
    assert load_data("mnist", "test", tmp_path / "root").digest == data.digest


def test_load_data__reads_both_full_data_sets(full_data: Path) -> None:
    fashion, mnist = (load_data(name, "test", full_data) for name in ("fashion-mnist", "mnist"))
    assert fashion.inputs.shape == mnist.inputs.shape == (10000, 1, 28, 28)
    # Published per-class counts of the two test sets.
    assert np.bincount(fashion.labels).tolist() == [1000] * 10
    assert np.bincount(mnist.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert (fashion.class_names[0], mnist.class_names[0]) == ("T-shirt/top", "0")


def test_load_data__takes_the_folder_that_torchvisions_downloader_fills(tmp_path: Path, idx_folder: Path) -> None:
    shutil.copytree(idx_folder, tmp_path / "root" / "FashionMNIST" / "raw")
    data = load_data("fashion-mnist", "train", tmp_path / "root")
    assert (data.name, len(data)) == ("fashion-mnist", 12)


@pytest.mark.parametrize(
    ("name", "folders", "ways"),
    [
        ("mnist", ("mnist", "MNIST/raw"), ("torchvision.datasets.MNIST('DIR', download=True)",)),
        (
            "fashion-mnist",
            ("fashion-mnist", "FashionMNIST/raw"),
            ("torchvision.datasets.FashionMNIST('DIR', download=True)", "dataset-fashion-mnist", "/usr/share/datasets"),
        ),
    ],
)
def test_load_data__says_which_files_are_missing_where_they_were_looked_for_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folders: tuple[str, ...], ways: tuple[str, ...]
) -> None:
    monkeypatch.delenv("NDT_DATA_DIR", raising=False)
    needed = ("t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz]", "NDT_DATA_DIR=DIR", "--data-dir", *ways)
    with pytest.raises(NotFoundError) as without:
        load_data(name, "test")
    with pytest.raises(NotFoundError) as empty:
        load_data(name, "test", tmp_path)
    for part in (*needed, "no data folder was given"):
        assert part in str(without.value)
    for part in (*needed, *(str(tmp_path / folder) for folder in folders)):
        assert part in str(empty.value)
    for message in (str(without.value), str(empty.value)):
        assert ("Debian" in message) == (name == "fashion-mnist")


def test_load_data__names_only_the_file_that_is_missing(tmp_path: Path, idx_folder: Path) -> None:
    shutil.copytree(idx_folder, tmp_path / "root" / "mnist")
    (tmp_path / "root" / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(NotFoundError, match=r"lacks t10k-labels-idx1-ubyte\[\.gz\], looked for in"):
        load_data("mnist", "test", tmp_path / "root")


def test_load_data__suggests_the_name_that_was_meant() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'fashion-mnist'"):
        load_data("fashion_mnist", "train")
    with pytest.raises(InvalidInputError, match="'val', expected one of train, test"):
        load_data("digits", "val")


def test_image_data__digest_is_the_documented_hash() -> None:
    data = small()
    expected = hashlib.sha256(b'["a", "b", "c"]\n')
    expected.update(b'["inputs", "float32", [12, 1, 2, 2]]\n' + data.inputs.tobytes())
    expected.update(b'["labels", "int64", [12]]\n' + data.labels.tobytes())
    expected.update(b'["examples", "int64", [12]]\n' + data.examples.tobytes())
    assert data.digest == expected.hexdigest()


def test_image_data__digest_sees_content_and_not_memory_layout_or_name() -> None:
    data = small()
    assert replace(data, name="other", split="train").digest == data.digest
    assert replace(data, inputs=np.asfortranarray(data.inputs)).digest == data.digest
    pixel = data.inputs.copy()
    pixel[3, 0, 1, 1] = np.nextafter(pixel[3, 0, 1, 1], 2, dtype=np.float32)
    changed = [
        replace(data, inputs=pixel),
        replace(data, inputs=data.inputs.reshape(12, 1, 1, 4)),
        replace(data, labels=np.roll(data.labels, 1)),
        replace(data, class_names=("a", "b", "d")),
        replace(data, class_names=("a", "bc", "")),
        data.select(np.arange(12)[::-1]),
    ]
    assert len({data.digest, *(other.digest for other in changed)}) == 7


def test_image_data__balanced_takes_the_first_of_each_class_in_order() -> None:
    data = small()
    part = data.balanced(6)
    assert np.bincount(part.labels).tolist() == [2, 2, 2]
    assert part.examples.tolist() == [100, 101, 102, 103, 104, 105]
    np.testing.assert_array_equal(part.inputs, data.inputs[:6])


def test_image_data__selections_refuse_what_they_cannot_give() -> None:
    data = small()
    with pytest.raises(InvalidInputError, match="multiple of its 3 classes"):
        data.balanced(7)
    with pytest.raises(InvalidInputError, match=r"Class 'a' of data set 'small' .* 4 images, expected at least 5"):
        data.balanced(15)
    with pytest.raises(InvalidInputError, match="from 1 to 12"):
        data.first(13)
    with pytest.raises(InvalidInputError, match="0 to 11"):
        data.select([-1])


def test_image_data__standardised_works_per_channel() -> None:
    inputs = np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)
    data = ImageData(inputs, np.zeros(5, np.int64), ("a",), "rgb", np.arange(5))
    got = data.standardised([0.1, 0.2, 0.3], [1.0, 2.0, 4.0]).inputs
    assert got.dtype == np.float32
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        np.testing.assert_allclose(got[:, channel], (inputs[:, channel].astype(float) - mean) / std, atol=1e-6)
    with pytest.raises(InvalidInputError, match="1 or 3 numbers"):
        data.standardised([0.1, 0.2], [1.0])
    with pytest.raises(InvalidInputError, match="every std above 0"):
        data.standardised([0.1], [0.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.zeros((12, 4), np.float32)}, r"expected float32 \(example, channel, y, x\)"),
        ({"inputs": np.zeros((12, 1, 2, 2))}, "type float64"),
        ({"labels": np.zeros(11, np.int64)}, r"labels of shape \(11,\)"),
        ({"labels": np.full(12, 3)}, "labels from 3 to 3, expected 0 to 2"),
        ({"examples": np.zeros(12, np.int64)}, "occurs twice"),
        ({"inputs": np.full((12, 1, 2, 2), np.nan, np.float32)}, "NaN"),
    ],
)
def test_image_data__refuses_arrays_that_contradict_it(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        replace(small(), **change)


def test_image_data__is_a_map_style_dataset() -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    data = small()
    inputs, labels = next(iter(torch_data.DataLoader(data, batch_size=12)))
    np.testing.assert_array_equal(inputs.numpy(), data.inputs)
    assert labels.tolist() == data.labels.tolist()
    assert json.dumps(data[0][1]) == str(data.labels[0])
