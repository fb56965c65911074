"""Checkpoints: digests that see every bit, files that are whole or absent, one sentence for every bad file."""

from __future__ import annotations

import collections
import hashlib
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from capture import checkpoints
from capture.checkpoints import (
    checkpoint_path,
    list_checkpoints,
    load_into,
    load_weights,
    save_weights,
    weights_digest,
)
from ndt_store.errors import IntegrityError, InvalidInputError, NotFoundError, StorageError


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 4, generator=generator),
        "b": torch.randn(3, generator=generator).to(torch.bfloat16),
        "h": torch.randn(2, generator=generator).half(),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
    }


def test_weights_digest__is_the_documented_hash() -> None:
    weights = sample()
    expected = hashlib.sha256()
    expected.update(b'["b", "bfloat16", [3]]\n' + weights["b"].view(torch.int16).numpy().tobytes())
    expected.update(b'["empty", "float32", [0, 3]]\n')
    expected.update(b'["h", "float16", [2]]\n' + weights["h"].numpy().tobytes())
    expected.update(b'["mask", "bool", [2]]\n\x01\x00')
    expected.update(b'["steps", "int64", []]\n' + (7).to_bytes(8, "little"))
    expected.update(b'["w", "float32", [3, 4]]\n' + weights["w"].numpy().tobytes())
    assert weights_digest(weights) == expected.hexdigest()


def test_weights_digest__ignores_order_layout_gradients_and_sharing() -> None:
    weights = sample()
    shuffled = dict(reversed(weights.items()))
    shuffled["w"] = weights["w"].t().contiguous().t()
    assert not shuffled["w"].is_contiguous()
    shuffled["b"] = torch.cat([torch.ones(1).bfloat16(), weights["b"]])[1:]
    assert weights_digest(shuffled) == weights_digest(weights)
    assert weights_digest(weights | {"w": nn.Parameter(weights["w"])}) == weights_digest(weights)
    one = torch.ones(2)
    assert weights_digest({"a": one, "b": one}) == weights_digest({"a": one, "b": one.clone()})


def test_weights_digest__sees_names_dtypes_shapes_and_single_bits() -> None:
    weights = sample()
    bit = weights["w"].clone()
    bit.view(torch.int32)[1, 1] ^= 1
    renamed = {("v" if name == "w" else name): value for name, value in weights.items()}
    variants = [
        weights,
        weights | {"w": bit},
        renamed,
        weights | {"w": weights["w"].reshape(4, 3)},
        weights | {"w": weights["w"].view(torch.int32)},
        weights | {"steps": torch.tensor(7.0)},
        weights | {"empty": torch.zeros(3, 0)},
        weights | {"w": -torch.zeros(3, 4)},
        weights | {"w": torch.zeros(3, 4)},
    ]
    assert len({weights_digest(v) for v in variants}) == len(variants)


def test_weights_digest__refuses_what_is_not_a_dense_tensor() -> None:
    with pytest.raises(InvalidInputError, match="'epoch' is int"):
        weights_digest({"epoch": 3})
    with pytest.raises(InvalidInputError, match=r"'s' is torch\.sparse_coo"):
        weights_digest({"s": torch.sparse_coo_tensor([[0]], [1.0], (2,), check_invariants=True)})


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8).filter(
            lambda name: name != "__metadata__"
        ),
        st.lists(st.floats(width=32), max_size=5),
        max_size=4,
    )
)
def test_save_weights__round_trip_is_exact(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    weights = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in values.items()}
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, weights)
    loaded = load_weights(path)
    assert set(loaded) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name].view(torch.int32), value.view(torch.int32))


def test_save_weights__keeps_dtypes_layouts_and_metadata(tmp_path: Path) -> None:
    weights = sample() | {"t": torch.arange(6).reshape(2, 3).t()}
    path = tmp_path / "w.safetensors"
    save_weights(path, weights, {"step": "5"})
    assert weights_digest(load_weights(path)) == weights_digest(weights)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "5"}


def test_save_weights__equal_weights_give_equal_files(tmp_path: Path) -> None:
    reversed_order = dict(reversed(sample().items()))
    for name, weights in (("a", sample()), ("b", reversed_order)):
        save_weights(tmp_path / f"{name}.safetensors", weights, {"step": "5"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_save_weights__keeps_both_names_of_tied_weights(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    base = torch.arange(6.0)
    state = model.state_dict() | {"left": base[:3], "right": base[3:], "all": base}
    save_weights(tmp_path / "w.safetensors", state)
    loaded = load_weights(tmp_path / "w.safetensors")
    assert weights_digest(loaded) == weights_digest(state)
    assert {"embed.weight", "head.weight"} <= set(loaded)


def test_save_weights__leaves_the_old_file_when_the_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.zeros(2)})
    before = path.read_bytes()

    def no_room(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageError, match=r"w\.safetensors.*No space left"):
        save_weights(path, {"w": torch.ones(2)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_save_weights__flushes_the_file_before_its_name_and_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    save_weights(tmp_path / "w.safetensors", {"w": torch.zeros(2)})
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 99])
def test_load_weights__refuses_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": torch.zeros(20)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"w\.safetensors cannot be read") as caught:
        load_weights(path)
    assert caught.value.array == str(path)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
def test_load_weights__reads_plain_torch_files(tmp_path: Path, wrap: str | None) -> None:
    weights = collections.OrderedDict(sample())
    torch.save({wrap: weights, "epoch": 3} if wrap else weights, tmp_path / "w.pt")
    assert weights_digest(load_weights(tmp_path / "w.pt")) == weights_digest(weights)


def test_load_weights__reads_the_legacy_torch_format(tmp_path: Path) -> None:
    torch.save(sample(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert weights_digest(load_weights(tmp_path / "w.pth")) == weights_digest(sample())


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_load_weights__never_runs_code_from_a_file(tmp_path: Path, zipped: bool) -> None:
    torch.save({"w": Bomb(tmp_path / "ran")}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InvalidInputError, match="never unpickled"):
        load_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 10, 300, 1000])
def test_load_weights__refuses_a_truncated_torch_file(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "w.pt"
    torch.save(sample(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((IntegrityError, InvalidInputError), match=r"w\.pt"):
        load_weights(path)


def test_load_weights__says_what_is_wrong_with_the_path_or_content(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No weights at .*gone\.safetensors"):
        load_weights(tmp_path / "gone.safetensors")
    with pytest.raises(InvalidInputError, match=r"\.bin, expected a \.safetensors, \.pt or \.pth"):
        load_weights(tmp_path / "w.bin")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    with pytest.raises(IntegrityError, match=r"text\.safetensors"):
        load_weights(tmp_path / "text.safetensors")
    (tmp_path / "text.pt").write_text("not weights at all")
    with pytest.raises((IntegrityError, InvalidInputError), match=r"text\.pt"):
        load_weights(tmp_path / "text.pt")
    for content in ([torch.zeros(2)], {}, {"w": 3}, {"state_dict": {"w": "x"}}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(InvalidInputError, match="expected a state dict"):
            load_weights(tmp_path / "w.pt")


def test_load_into__loads_every_value() -> None:
    source, target = (
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
    )
    load_into(target, source.state_dict())
    assert weights_digest(target.state_dict()) == weights_digest(source.state_dict())


def test_load_into__lists_all_differences_in_one_sentence_and_loads_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    before = weights_digest(model.state_dict())
    weights = {"0.weight": torch.zeros(2, 3), "0.bias": torch.ones(3), "head": torch.zeros(1)}
    with pytest.raises(InvalidInputError) as caught:
        load_into(model, weights)
    message = str(caught.value)
    assert "4 missing (1.weight, 1.bias, 2.weight, ...)" in message
    assert "1 unexpected (head)" in message
    assert "1 of another shape (0.weight (2, 3) instead of (3, 2))" in message
    assert message.count(". ") == 0
    assert weights_digest(model.state_dict()) == before


def test_list_checkpoints__sorts_by_step_and_ignores_other_files(tmp_path: Path) -> None:
    for step in (100, 2, 1234567):
        save_weights(checkpoint_path(tmp_path, step), {"w": torch.zeros(1)})
    for name in ("step-1.safetensors", ".step-000003.safetensors.12.tmp", "training.json", "step-000004.pt"):
        (tmp_path / name).write_bytes(b"")
    assert list_checkpoints(tmp_path) == [
        (2, tmp_path / "step-000002.safetensors"),
        (100, tmp_path / "step-000100.safetensors"),
        (1234567, tmp_path / "step-1234567.safetensors"),
    ]
    with pytest.raises(NotFoundError, match="gone"):
        list_checkpoints(tmp_path / "gone")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_digest__is_the_same_on_every_device(tmp_path: Path) -> None:
    weights = sample()
    on_device = {name: value.cuda() for name, value in weights.items()}
    assert weights_digest(on_device) == weights_digest(weights)
    save_weights(tmp_path / "w.safetensors", on_device)
    assert weights_digest(checkpoints.load_weights(tmp_path / "w.safetensors")) == weights_digest(weights)
