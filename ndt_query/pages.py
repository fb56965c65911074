"""Self-contained HTML pages: one style, a policy that lets nothing in or run, and pictures as part of the page."""

from __future__ import annotations

import base64
import functools
import io
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ndt_query.plot.style import styled
from ndt_store.errors import StorageError

__all__ = ["figure_source", "marker", "picture_source", "render", "write_page"]

CSS_PIXELS: Final = 110
"""Of a figure's inch on a page."""


def marker(template: str) -> str:
    """Return what tells a page that was made of a template from pages of others."""
    return f'<meta name="generator" content="ndt-activations {template.partition(".")[0]}">'


def render(template: str, title: str, **values: Any) -> str:
    """Render a template of ``ndt_query/templates``, which extends ``page.html.j2``; text in `values` is escaped."""
    style = _environment().get_template("page.css").render()
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            marker=marker(template),
            style=style,
            style_digest=base64.b64encode(sha256(style.encode()).digest()).decode(),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            software=f"ndt-activations {version('ndt-activations')}",
            **values,
        )
    )


def write_page(page: str, target: Path, what: str) -> Path:
    """Write a page, and its folder where it is missing.

    Raises
    ------
    StorageError
        The file system refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{what} cannot be written to {target}: {error.strerror}; give another folder.") from error
    return target


@styled
def figure_source(kind: str, figure: Figure) -> dict[str, str]:
    """Return a figure as the source of an image and its width in CSS pixels, with its kind."""
    buffer = io.BytesIO()
    # As an image of its own: identifiers inside one SVG cannot meet those of another on the same page.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    width = round(float(figure.get_size_inches()[0]) * CSS_PIXELS)
    source = base64.b64encode(buffer.getvalue()).decode()
    return {"kind": kind, "width": str(width), "source": f"data:image/svg+xml;base64,{source}"}


def picture_source(pixels: NDArray[np.uint8]) -> str:
    """Return pixels (row, column, 3) as the source of an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ndt_query", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
