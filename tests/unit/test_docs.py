"""Links in the documentation lead somewhere, and every page of it can be found from the README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"": "*.md", "docs": "**/*.md", "benchmarks": "**/*.md"}
PAGES = [page for folder, names in FOLDERS.items() for page in (ROOT / folder).glob(names)]


def links(page: Path) -> list[Path]:
    found = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links__lead_to_files_that_are_there(page: Path) -> None:
    assert [str(link) for link in links(page) if not link.exists()] == []


def test_every_page__is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in links(page):
            waiting += [link] if link.suffix == ".md" else list(link.glob("*.md")) if link.is_dir() else []
    assert [str(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in reached] == []
