"""The import of torchvision, each case in a fresh interpreter, with a stand-in package where the case needs
one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

STALE = """
import torch
import torchvision.half_loaded
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: scores)
"""


def run(code: str, *first_on_path: Path) -> str:
    lines = [f"import sys; sys.path[:0] = {[str(path) for path in first_on_path]!r}", textwrap.dedent(code)]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def stand_in(folder: Path, body: str) -> Path:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(body)
    (package / "half_loaded.py").touch()
    return folder


def test_import_torchvision__declares_the_operators_that_a_stale_build_lacks(tmp_path: Path) -> None:
    code = """
    import gc
    try:
        import torchvision
    except RuntimeError as error:
        print(error)
    from capture._torchvision import import_torchvision
    module = import_torchvision()
    gc.collect()
    import torch
    print(module is import_torchvision(), module.half_loaded.__name__)
    print(torch.ops.torchvision.nms.default._schema)
    """
    first, second, third = run(code, stand_in(tmp_path, STALE)).splitlines()
    assert first == "operator torchvision::nms does not exist"
    assert second == "True torchvision.half_loaded"
    assert third == "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def test_import_torchvision__leaves_a_working_installation_alone(tmp_path: Path) -> None:
    code = """
    from capture import _torchvision
    print(_torchvision.import_torchvision().__name__, _torchvision._libraries)
    """
    assert run(code, stand_in(tmp_path, "")) == "torchvision []"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise RuntimeError('something else')", "RuntimeError something else"),
        ("import a_module_that_torchvision_needs", "ModuleNotFoundError No module named"),
    ],
)
def test_import_torchvision__hands_on_every_other_failure(tmp_path: Path, body: str, expected: str) -> None:
    code = """
    from capture import _torchvision
    try:
        _torchvision.import_torchvision()
    except Exception as error:
        print(type(error).__name__, error, _torchvision._libraries)
    """
    output = run(code, stand_in(tmp_path, body))
    assert output.startswith(expected)
    assert output.endswith("[]")


def test_import_torchvision__names_the_extra_when_it_is_not_installed() -> None:
    code = """
    sys.modules["torchvision"] = None
    from capture._torchvision import import_torchvision
    from ndt_store.errors import CaptureError
    try:
        import_torchvision()
    except CaptureError as error:
        print(error)
    """
    assert 'pip install ".[capture]"' in run(code)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_import_torchvision__gives_models_that_run() -> None:
    code = """
    from capture._torchvision import import_torchvision
    import torch
    torch.set_num_threads(1)
    model = import_torchvision().models.resnet18(num_classes=10).eval()
    print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
    """
    assert run(code) == "(1, 10)"
