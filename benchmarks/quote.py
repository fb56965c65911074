"""The figures that the README quotes: one row for each question that people ask first, out of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["BEGIN", "END", "put_between", "quote_in", "quoted"]

BEGIN: Final = "<!-- figures: written by `make bench` from benchmarks/results.json -->"
END: Final = "<!-- end of figures -->"

_RESNET: Final = "capture of ResNet-18, 4 stages and classifier, profile"
_LIGHT: Final = "capture of cnn_deep, every conv and linear layer, profile"
_SCAN: Final = "all per-unit moments of 4 ReLU layers, profile"
_FLOOR: Final = "larger of forward pass and writing the same bytes with fsync"

ROWS: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("capture", f"{_RESNET} none", "bare forward pass", "capture of ResNet-18's stages, summaries in flight"),
    ("capture", f"{_RESNET} fast", "bare forward pass", "the same, compressed"),
    ("capture", f"{_RESNET} none", "hooks + numpy.save, fsync", "the same, uncompressed"),
    ("capture", f"{_LIGHT} fast", _FLOOR, "capture of every layer of cnn_deep, compressed"),
    ("scan", f"{_SCAN} none", "xarray + dask, default zarr store", "moments of every unit by a scan"),
    ("scan", f"{_SCAN} none", "floor: readinto + bare kernel", "the same"),
    ("views", "unit_moments of a store, from views", "numpy.memmap", "moments of every unit from views"),
    ("views", "unit_moments of a store, from views", "running the model again", "the same"),
    ("views", "top 20 of each of 1,000 units, from the view", "a full sort of each unit", "top 20 of 1,000 units"),
    ("store", "open_store of 200 layers and 100 checkpoints", "xarray.open_datatree", "opening a store"),
)  # fmt: skip
"""Section, beginning of ``what``, ``against``, and how the README says it."""


def quoted(results: Mapping[str, Any]) -> str:
    """Return the table, between its marks, of those rows that the results have."""
    lines = ["| what | size | against | ours / theirs | middle half |", "|---|---|---|---|---|"]
    machines = {}
    for section, what, against, said in ROWS:
        row = _find(results, section, what, against)
        if row is None:
            continue
        found = results["sections"][section]["machine"]
        machines[f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, {found['day']}"] = None
        low, high = row["quartiles"] or row["spread"]
        size = f"{row['nbytes'] / 1e9:.2g} GB" if row["nbytes"] >= 1e9 else f"{row['nbytes'] / 1e6:.0f} MB"
        lines.append(
            f"| {said} | {size if row['nbytes'] else ''} | {against} | {row['ratio']:.2g} | {low:.2g} to {high:.2g} |"
        )
    return "\n".join([BEGIN, "", *lines, "", f"Medians within one run on {'; '.join(machines)}.", "", END])


def quote_in(readme: Path, results: Mapping[str, Any]) -> None:
    """Write the table in place of the one that a file has between its marks."""
    put_between(readme, BEGIN, END, quoted(results))


def put_between(page: Path, begin: str, end: str, text: str) -> None:
    """Write `text`, which has both marks, in place of what a file has from one mark to the other."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(before + text + rest.split(end)[1], encoding="utf-8")


def _find(results: Mapping[str, Any], section: str, what: str, against: str) -> Mapping[str, Any] | None:
    rows: list[Mapping[str, Any]] = results["sections"].get(section, {}).get("rows", [])
    fitting = (row for row in rows if row["what"].startswith(what) and row["against"] == against)
    return next((row for row in fitting if row["cache"] != "cold"), None)
