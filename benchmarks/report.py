"""Results as a page that people read: one table for each section, and what missed its bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown"]

_HEAD = (
    "| what | size | page cache | ours | against | theirs | ours / theirs | quartiles | least to most | rounds | bar |"
)


def markdown(results: Mapping[str, Any]) -> str:
    """Render results as `results.json` holds them; less is better in every row."""
    sections = results["sections"]
    lines = [
        "# Benchmark results",
        "",
        "Medians; ratios are taken round by round, ours over theirs, so that less is better. How to read and repeat "
        "this: [README.md](README.md).",
    ]
    for name, section in sections.items():
        lines += ["", f"## {name}", "", section["title"], "", _machine(section), ""]
        if section["error"]:
            lines += [f"Failed: {section['error']}", ""]
        if section["rows"]:
            lines += [_HEAD, "|" + "---|" * _HEAD.count(" | ") + "---|"]
            lines += [_row(row) for row in section["rows"]]
            notes = dict.fromkeys(row["note"] for row in section["rows"] if row["note"])
            lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines).rstrip("\n") + "\n"


def _machine(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['day']}; Python "
        f"{machine['python']}, {packages}; {section['seconds']:.0f} s in all."
    )


def _row(row: Mapping[str, Any]) -> str:
    low, high = row["quartiles"] or row["spread"]
    unit = row["unit"]
    cells = (
        row["what"],
        _size(row),
        row["cache"],
        f"{row['ours']:.3g} {unit}",
        row["against"],
        f"{row['baseline']:.3g} {unit}",
        f"{row['ratio']:.3g}",
        f"{low:.3g} to {high:.3g}",
        f"{row['spread'][0]:.3g} to {row['spread'][1]:.3g}",
        str(row["n"]),
        "" if row["bar"] is None else f"{row['bar']['text']}: {'met' if row['met'] else '**missed**'}",
    )
    return f"| {' | '.join(cells)} |"


def _size(row: Mapping[str, Any]) -> str:
    parts = []
    if row["nbytes"]:
        parts.append(f"{row['nbytes'] / 1e6:,.0f} MB" if row["nbytes"] < 1e9 else f"{row['nbytes'] / 1e9:.2f} GB")
    if row["n_examples"]:
        parts.append(f"{row['n_examples']:,} examples")
    return ", ".join(parts)
