"""Folders of results: written whole or not at all, and never over a store or over somebody else's files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import xarray as xr
from matplotlib.figure import Figure

from ndt_query.pages import marker
from ndt_query.plot.style import save
from ndt_store.errors import InvalidInputError, StorageError

__all__ = ["INDEX", "require_free", "staged", "write_results"]

INDEX: Final = "index.html"
FORMATS: Final = (".pdf", ".png")


@contextmanager
def staged(out_dir: str | Path, template: str, names: Sequence[str] = ()) -> Iterator[Path]:
    """Give a folder to write results into; when all is written its contents move to `out_dir`.

    Parameters
    ----------
    out_dir : str or Path
        Made where missing. An earlier result of the same kind in it is replaced.
    template : str
        Of the page ``index.html``, which tells an earlier result of the same kind from other files.
    names : sequence of str
        What else of the result must not stand there unless such a page does.

    Raises
    ------
    InvalidInputError
        `out_dir` is an activation store or lies in one, or holds files of others under these names, or under that of
        anything that was written; nothing in it has changed then.
    StorageError
        The file system refuses.
    """
    target = Path(out_dir)
    ours = require_free(target, template, names)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise StorageError(f"Results cannot be written to {target}: {error.strerror}; give another folder.") from error
    try:
        yield temporary
        if not ours:
            _refuse_others(target, sorted(item.name for item in temporary.iterdir()))
        try:
            target.mkdir(exist_ok=True)
            for name in names if ours else ():
                shutil.rmtree(target / name, ignore_errors=True)
            # The page last: it speaks of the rest.
            for item in sorted(temporary.iterdir(), key=lambda path: path.name == INDEX):
                place = target / item.name
                if place.is_dir() and not place.is_symlink():
                    shutil.rmtree(place)
                item.replace(place)
        except OSError as error:
            raise StorageError(
                f"Results cannot be written to {target}: {error.strerror}; give another folder."
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(out_dir: str | Path, template: str, names: Sequence[str]) -> bool:
    """Return whether an earlier result of the same kind stands there; to be asked before the work, too.

    Raises
    ------
    InvalidInputError, StorageError
        As `staged` does, as far as that can be told before.
    """
    target = Path(out_dir)
    there = next(folder for folder in (target.absolute(), *target.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written to" if there.is_dir() else "is no folder"
        raise StorageError(f"Results cannot be written to {target}: {there} {why}; give another folder.")
    for folder in (target.resolve(), *target.resolve().parents):
        if (folder / "zarr.json").exists() and (folder / "commits").is_dir():
            raise InvalidInputError(f"{target} is an activation store or lies in one ({folder}): give another folder.")
    page = target / INDEX
    ours = page.is_file() and marker(template) in page.read_text(encoding="utf-8", errors="replace")[:2000]
    if ours:
        for name in names:
            if (target / name / "commits").is_dir():
                raise InvalidInputError(f"{target / name} is an activation store: give another folder.")
        return True
    _refuse_others(target, (INDEX, *names))
    return False


def _refuse_others(target: Path, names: Sequence[str]) -> None:
    standing = next((name for name in names if os.path.lexists(target / name)), None)
    if standing is not None:
        raise InvalidInputError(
            f"{target} holds {standing}, which is no earlier result of this kind: give another folder, or move it away."
        )


def write_results(out_dir: Path, figures: Mapping[str, Figure], tree: xr.DataTree, numbers: str) -> None:
    """Write figures as PDF and PNG, and their numbers as one Zarr tree beside them.

    Parameters
    ----------
    out_dir : Path
        Made where missing.
    figures : mapping of str to Figure
        By the name of the file.
    tree : DataTree
    numbers : str
        What the tree is called; one of this name is replaced.

    Raises
    ------
    StorageError
        The file system refuses.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in FORMATS:
                save(figure, out_dir / f"{name}{suffix}")
        _as_stored(tree).to_zarr(out_dir / numbers, mode="w", zarr_format=3, consolidated=False)
    except OSError as error:
        raise StorageError(f"Results cannot be written to {out_dir}: {error.strerror}; give another folder.") from error


def _as_stored(tree: xr.DataTree) -> xr.DataTree:
    """Return a tree with its texts as objects: Zarr knows no texts of one length."""
    nodes = {}
    for node in tree.subtree:
        found = node.to_dataset()
        texts = [name for name, one in found.variables.items() if one.dtype.kind == "U"]
        nodes[node.path] = found.assign({name: found[name].astype(object) for name in texts})
    return xr.DataTree.from_dict(nodes)
