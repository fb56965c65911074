"""Memory is the machine's, or the tightest control group's."""

import os

import pytest

from ndt_store.nbytes import human_nbytes, memory_nbytes

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/user/job\n", {"user/job/memory.max": "1000"}, 1000),
        ("0::/user/job\n", {"user/job/memory.max": "max", "user/memory.max": "2000"}, 2000),
        ("0::/\n", {"memory.max": "3000"}, 3000),
        ("5:cpu:/a\n4:memory:/slurm/1\n", {"memory/slurm/1/memory.limit_in_bytes": "4000"}, 4000),
        ("0::/user/job\n", {"user/job/memory.max": str(1 << 62)}, PHYSICAL),
        ("0::/user/job\n", {}, PHYSICAL),
    ],
)
def test_the_tightest_group_around_the_process_counts(tmp_path, membership, limits, expected):
    _write(tmp_path / "cgroup", membership)
    for name, text in limits.items():
        _write(tmp_path / "mount" / name, text + "\n")
    assert memory_nbytes(tmp_path / "cgroup", tmp_path / "mount") == expected


def test_without_control_groups_it_is_the_machine_s(tmp_path):
    assert memory_nbytes(tmp_path / "none", tmp_path / "none") == PHYSICAL


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (8e6, "8.0 MB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")],
)
def test_human_nbytes_has_decimal_units(nbytes, text):
    assert human_nbytes(nbytes) == text
