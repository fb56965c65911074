"""The demo, run once for every test that looks at what it left."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Demo:
    """Folder in which `ndt demo` ran, and what it printed."""

    folder: Path
    stdout: str
    stderr: str


def ndt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "ndt_store", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run `ndt demo` from nothing."""
    pytest.importorskip("torch", reason="needs torch: pip install '.[capture]'")
    folder = tmp_path_factory.mktemp("demo")
    done = ndt(folder, "demo")
    assert done.returncode == 0, done.stderr
    return Demo(folder, done.stdout, done.stderr)
