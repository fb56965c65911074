"""Many Grad-CAM comparisons at once: pages to look through, and the maps behind them as one labelled Zarr tree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ndt_query.attribution import cam_difference, class_cams, correct_examples, grad_cam, require_scores
from ndt_query.inputs import class_name, require_count, require_steps
from ndt_query.layers import described, node_name, root_dataset
from ndt_query.moments import Pair, as_pair, spread_pairs, training_checkpoints
from ndt_query.output import INDEX, staged
from ndt_query.pages import picture_source, render, write_page
from ndt_query.tiles import Tiles, as_tiles, scale_picture
from ndt_store.dims import ACTIVATIONS, CHECKPOINT, CLASS, EXAMPLE, GRADIENTS, X, Y, Z
from ndt_store.errors import InvalidInputError, NotFoundError, StorageError
from ndt_store.reader import Store
from ndt_store.selection import matching

__all__ = ["ARRAYS", "cam_gallery"]

ARRAYS: Final = "cams.zarr"
INDEX_TEMPLATE: Final = "cams_index.html.j2"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Page:
    """One pair of checkpoints and one layer."""

    pair: Pair
    layer: str
    name: str
    n: int


def cam_gallery(
    store: Store,
    out_dir: str | Path,
    *,
    pairs: Sequence[Pair] | None = None,
    layers: str | Sequence[str] = "*",
    n_per_class: int = 10,
    signed: bool = False,
    progress: Progress | None = None,
    memory: int | str | None = None,
) -> Path:
    """Compare Grad-CAM before and after, for pairs of checkpoints, layers and examples of each class.

    Parameters
    ----------
    store : Store
        With activations and gradients of conv layers, predictions and labels.
    out_dir : str or Path
        Folder of the pages, made where missing; an older gallery in it is replaced, once the new one is whole.
    pairs : sequence of (before, after), optional
        Training steps; by default five pairs that span training.
    layers : str or sequence of str
        Names or globs; those without gradients and positions y and x are passed over.
    n_per_class : int
        Examples of each class, the first that the network has right at ``after``.
    signed : bool
        See `grad_cam`.
    progress : callable, optional
        Called as ``progress(done, total)`` after each page.
    memory : int or str, optional
        Budget of each query, see `ndt_query.budget`.

    Returns
    -------
    Path
        ``index.html``, with a page for each pair and layer in ``pages/``; and ``cams.zarr`` beside it, a tree with a
        group ``BEFORE-AFTER/LAYER`` (`ndt_query.layers.node_name`) for each page: ``before``, ``after``, ``difference``
        and ``limit`` of `cam_difference`, with the labels of the examples. ``xarray.open_datatree`` reads it.

    Raises
    ------
    NotFoundError
        There are no predictions, no such checkpoint, no such layer, or no example that is right at ``after``.
    InvalidInputError
        A pair is none, there is one checkpoint only, gradients are of the loss, or the folder is a store or holds files
        of others.
    StorageError
        The folder cannot be written.

    Notes
    -----
    Reads the chosen examples at two checkpoints for each page. Pages load nothing from anywhere and run nothing.
    """
    steps = training_checkpoints(store)
    require_count("n_per_class", n_per_class, 1)
    require_scores(store)
    names = _layers(store, layers)
    chosen_pairs = _pairs(steps, pairs, store[names[0]][ACTIVATIONS])
    root = root_dataset(store)
    right = {pair: correct_examples(root, [pair[1]], n_per_class=n_per_class) for pair in chosen_pairs}
    nothing = [pair for pair, chosen in right.items() if not chosen.size]
    if nothing and (pairs is not None or len(nothing) == len(right)):
        raise NotFoundError(f"The network has no example right at checkpoint {nothing[0][1]}: choose a later pair.")
    chosen_pairs = tuple(pair for pair in chosen_pairs if pair not in nothing)
    made: list[_Page] = []
    total = len(chosen_pairs) * len(names)
    with staged(out_dir, INDEX_TEMPLATE, (ARRAYS, "pages")) as out:
        for pair in chosen_pairs:
            chosen = right[pair]
            nodes: dict[str, xr.Dataset] = {}
            inputs = as_tiles(root["input"].sel({EXAMPLE: chosen[EXAMPLE].values})) if "input" in root else None
            for layer in names:
                picked = store[layer].sel({CHECKPOINT: list(pair), EXAMPLE: chosen[EXAMPLE].values})
                cam = grad_cam(picked[[ACTIVATIONS, GRADIENTS]], signed=signed, memory=memory)
                found = cam_difference(cam, *pair).compute().assign_coords(label=chosen.variable)
                nodes[layer] = found
                page = _Page(pair, layer, f"{len(made) + 1:03d}.html", found.sizes[EXAMPLE])
                made.append(page)
                write_page(_rendered(page, found, inputs, chosen, signed), out / "pages" / page.name, "The gallery")
                if progress is not None:
                    progress(len(made), total)
            _write_arrays(nodes, out / ARRAYS, pair, {"signed": signed, "n_per_class": n_per_class})
        index = render(
            INDEX_TEMPLATE,
            "Grad-CAM before and after",
            store=str(store.path),
            pairs=chosen_pairs,
            layers=names,
            pages={(page.pair, page.layer): page for page in made},
            n=sum(page.n for page in made),
            arrays=ARRAYS,
            signed=signed,
        )
        write_page(index, out / INDEX, "The gallery")
    return Path(out_dir) / INDEX


def _pairs(steps: Sequence[int], pairs: Sequence[Pair] | None, acts: xr.DataArray) -> tuple[Pair, ...]:
    if pairs is None:
        return spread_pairs(steps)
    found = tuple(as_pair(pair) for pair in pairs)
    if not found:
        raise InvalidInputError("pairs is empty: give at least one (before, after), or leave it out.")
    for pair in found:
        require_steps(acts, pair)
    return found


def _layers(store: Store, patterns: str | Sequence[str]) -> list[str]:
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    both = [name for name in store.layers if {ACTIVATIONS, GRADIENTS} <= set(store.schema.kinds(name))]
    able = [name for name in both if {Y, X} <= set(store[name].dims) and Z not in store[name].dims]
    found = [name for name in able if any(name in matching(able, one) for one in wanted)]
    if not found:
        held = ", ".join(able) or "none"
        raise NotFoundError(
            f"No layer like {', '.join(wanted)} has activations, gradients and positions y and x: those that have are "
            f"{held}."
        )
    return found


def _rendered(page: _Page, found: xr.Dataset, inputs: Tiles | None, chosen: xr.DataArray, signed: bool) -> str:
    means = class_cams(found["difference"]) if len(np.unique(chosen)) > 1 else None
    labels = np.asarray(chosen.values)
    limit = float(found["limit"].max())
    sections = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        sections.append(
            {
                "name": class_name(chosen, label),
                "mean": _mean_picture(means, label),
                "comparisons": [_comparison(found.isel({EXAMPLE: row}), inputs, signed) for row in rows],
            }
        )
    return render(
        "cams_page.html.j2",
        f"{page.layer}, step {page.pair[0]} to {page.pair[1]}",
        sections=sections,
        legend=scale_picture(),
        has_inputs=inputs is not None,
        signed=signed,
        largest=f"{limit:.3g}",
    )


def _comparison(one: xr.Dataset, inputs: Tiles | None, signed: bool) -> dict[str, str]:
    limit = float(one["limit"])
    draw = Tiles.of_difference if signed else Tiles.of_map
    maps = [
        draw(one["before"].values, limit),
        draw(one["after"].values, limit),
        Tiles.of_difference(one["difference"].values, limit),
    ]
    example = int(one[EXAMPLE])
    tiles: list[NDArray[np.uint8]] = [*([inputs.of(example)] if inputs is not None else []), *maps]
    return {"source": picture_source(Tiles.stacked(tiles)), "example": str(example), "limit": f"{limit:.3g}"}


def _mean_picture(means: xr.Dataset | None, label: Any) -> dict[str, str] | None:
    if means is None:
        return None
    values = means["mean"].sel({CLASS: label}).values
    known = np.abs(values[np.isfinite(values)])
    limit = float(known.max(initial=0.0))
    return {"source": picture_source(Tiles.of_difference(values, limit)), "limit": f"{limit:.3g}"}


def _write_arrays(nodes: dict[str, xr.Dataset], target: Path, pair: Pair, parameters: dict[str, bool | int]) -> None:
    """Write the maps of one pair, so that those of all pairs are never held at once."""
    names = {f"{pair[0]}-{pair[1]}/{node_name(layer)}": one for layer, one in nodes.items()}
    tree = xr.DataTree.from_dict({name: one.drop_vars("split", errors="ignore") for name, one in names.items()})
    some = next(iter(nodes.values()))["before"]
    tree.attrs = described({}, some, "Grad-CAM before and after", parameters, squeeze=False).attrs
    try:
        # Values are in memory: no region is written twice, and nothing of dask is in it.
        tree.to_zarr(target, mode="a", zarr_format=3, consolidated=False)
    except OSError as error:
        raise StorageError(f"The maps cannot be written to {target}: {error.strerror}; give another folder.") from error
