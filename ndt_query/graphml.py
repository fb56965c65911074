"""Graphs of units as GraphML, by the standard library alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import xarray as xr

from ndt_query.graphs import EDGE, NAMES, NUMBERS
from ndt_store.errors import DimensionError

__all__ = ["write_graphml"]

NAMESPACE: Final = "http://graphml.graphdrawing.org/xmlns"


def write_graphml(graph: xr.Dataset, path: str | Path) -> Path:
    """Write a graph of units as GraphML, which networkx, igraph, Gephi and Cytoscape read.

    Parameters
    ----------
    graph : Dataset (edge,)
        From `composition_graph`.
    path : str or Path
        Where; a file that is there is replaced.

    Returns
    -------
    Path
        Where it lies.

    Raises
    ------
    DimensionError
        `graph` is something else.

    Notes
    -----
    A directed graph of the units that have an edge, from early to late. Nodes are named ``layer/unit`` and carry
    ``layer`` and ``unit``, edges ``weight``, ``share``, ``leave_out`` and ``r2``. Characters that XML cannot hold
    become U+FFFD.
    """
    missing = [name for name in (*NAMES, *NUMBERS) if name not in graph or graph[name].dims != (EDGE,)]
    if missing:
        raise DimensionError(f"The graph has no {', '.join(missing)} over edge: pass that of composition_graph.")
    root = ElementTree.Element("graphml", {"xmlns": NAMESPACE})
    kinds = {"layer": ("node", "string"), "unit": ("node", "long")} | dict.fromkeys(NUMBERS, ("edge", "double"))
    for name, (what, kind) in kinds.items():
        _add(root, "key", {"id": name, "for": what, "attr.name": name, "attr.type": kind})
    body = _add(root, "graph", {"id": "composition", "edgedefault": "directed"})
    early, late = (
        list(zip(graph[f"{end}_layer"].values.tolist(), graph[f"{end}_unit"].values.tolist(), strict=True))
        for end in ("early", "late")
    )
    for layer, unit in dict.fromkeys([*early, *late]):
        node = _add(body, "node", {"id": _legal(f"{layer}/{unit}")})
        _add(node, "data", {"key": "layer"}, _legal(layer))
        _add(node, "data", {"key": "unit"}, str(unit))
    for place, (source, target) in enumerate(zip(early, late, strict=True)):
        ends = {end: _legal(f"{layer}/{unit}") for end, (layer, unit) in (("source", source), ("target", target))}
        edge = _add(body, "edge", ends)
        for name in NUMBERS:
            _add(edge, "data", {"key": name}, repr(float(graph[name].values[place])))
    target_path = Path(path)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(target_path, encoding="utf-8", xml_declaration=True)
    return target_path


def _add(parent: ElementTree.Element, name: str, attributes: dict[str, str], text: str | None = None) -> Element:
    element = ElementTree.SubElement(parent, name, attributes)
    element.text = text
    return element


def _legal(text: str) -> str:
    """Replace what XML 1.0 has no way to write: control characters and surrogates."""
    return "".join(c if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
                   else "\N{REPLACEMENT CHARACTER}" for c in text)  # fmt: skip
