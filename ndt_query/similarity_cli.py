"""The command `ndt cka`: how alike layers and checkpoints are, all of them or one pair with its interval and null."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rich_click as click

from ndt_query.inputs import require_steps
from ndt_store.cliparts import emit, format_option, require_picture, selection_options, store_argument, tell
from ndt_store.dims import CHECKPOINT
from ndt_store.errors import InvalidInputError, NotFoundError
from ndt_store.reader import Store, open_store
from ndt_store.selection import Selection, pick, unit_layers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["cka"]

MOST_ROWS: Final = 40
COLUMNS: Final = ("layer", "checkpoint", "other_layer", "other_checkpoint", "cka")
PAIR_COLUMNS: Final = (*COLUMNS, "cka_low", "cka_high", "null_95", "p_value", "n_examples")
Place = tuple[int, int, int, int]


@click.command()
@store_argument
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path())
@selection_options("layer", "checkpoint")
@click.option(
    "--pair",
    "pairs",
    nargs=2,
    multiple=True,
    metavar="A B",
    help="LAYER@STEP twice, the second of OTHER where it is given: with interval and null. Without @STEP the last one. "
    "May be given several times.",
)
@click.option(
    "--positions",
    type=click.Choice(["flatten", "mean"]),
    default="flatten",
    show_default=True,
    help="Conv positions and tokens are features of the example, or their mean is taken.",
)
@click.option("--batch-size", default=1024, show_default=True, help="Most examples whose products are made at once.")
@click.option(
    "--all-examples",
    is_flag=True,
    help="Take more than 16 batches; without it 16 are drawn at random of more examples.",
)
@click.option("--seed", default=0, show_default=True, help="Of batches, groups and shuffles.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Draw all pairs: a .png, .svg or .pdf file.")
@format_option
def cka(
    store: str,
    other: str | None,
    selection: Selection,
    pairs: tuple[tuple[str, str], ...],
    positions: str,
    batch_size: int,
    all_examples: bool,
    seed: int,
    figure: str | None,
    output_format: str,
) -> None:
    """Say how alike layers and checkpoints are, of one run or of two: debiased linear CKA of the same examples.

    All pairs, as JSON or CSV. A table of more than 40 has each layer's first checkpoint against its last, and
    neighbouring layers at the last one; of two runs each layer against the one of its name, at the first and the last
    checkpoint that both have.
    """
    if figure is not None:
        require_picture(figure)
    if pairs and (figure is not None or selection != Selection()):
        raise InvalidInputError(
            "--pair names its layers and checkpoints: leave out --layer, --checkpoint and --figure."
        )
    first = open_store(store)
    second = None if other is None else open_store(other)
    asked: dict[str, Any] = {"positions": positions, "batch_size": batch_size, "seed": seed}
    if all_examples:
        asked["max_batches"] = None
    if pairs:
        emit([_of_pair(first, second or first, pair, asked) for pair in pairs], output_format, columns=PAIR_COLUMNS)
        return
    from ndt_query.similarity_matrix import cka_matrix

    data, others = _chosen(first, selection), None if second is None else _chosen(second, selection)
    result = cka_matrix(data, others, **asked)
    _tell_drawn(result)
    every = list(_places(result, one_run=others is None))
    shown = every
    if output_format == "table" and len(every) > MOST_ROWS:
        shown = _telling(result, one_run=others is None)
        tell(f"{len(shown)} of {len(every)} pairs: see --help for which; --format csv or json lists all.")
    emit([_row(result, place) for place in shown], output_format, columns=COLUMNS)
    if figure is not None:
        from ndt_query import plot

        tell(f"wrote {plot.save(plot.cka_matrix(result), figure)}")


def _chosen(store: Store, selection: Selection) -> dict[str, xr.DataArray]:
    from ndt_query.cli import with_activations

    layers = with_activations(store, selection)
    steps = pick(selection.checkpoint, store.checkpoints, CHECKPOINT)
    return {name: store[name].activations.isel({CHECKPOINT: steps}) for name in layers}


def _places(result: xr.Dataset, *, one_run: bool) -> Iterator[Place]:
    """Yield all pairs in order; of one run each once, and none of a thing with itself."""
    n_layers, n_steps, n_others, n_other_steps = result["cka"].shape
    left = list(itertools.product(range(n_layers), range(n_steps)))
    right = list(itertools.product(range(n_others), range(n_other_steps)))
    for one, two in itertools.combinations(left, 2) if one_run else itertools.product(left, right):
        yield (*one, *two)


def _telling(result: xr.Dataset, *, one_run: bool) -> list[Place]:
    """Return the pairs that a short table has, see `cka`."""
    layers, steps = list(result["layer"].values), list(result[CHECKPOINT].values)
    if one_run:
        last = len(steps) - 1
        over_training = [(place, 0, place, last) for place in range(len(layers) if last else 0)]
        return over_training + [(place, last, place + 1, last) for place in range(len(layers) - 1)]
    others, other_steps = list(result["other_layer"].values), list(result["other_checkpoint"].values)
    named = [(layers.index(name), others.index(name)) for name in layers if name in others]
    named = named or [(len(layers) - 1, len(others) - 1)]
    common = [(steps.index(step), other_steps.index(step)) for step in steps if step in other_steps]
    moments = dict.fromkeys([common[0], common[-1]] if common else [(len(steps) - 1, len(other_steps) - 1)])
    return [(one, step, two, other_step) for one, two in named for step, other_step in moments]


def _row(result: xr.Dataset, place: Place) -> dict[str, Any]:
    dims = COLUMNS[:-1]
    labels = {dim: result[dim].values[at].item() for dim, at in zip(dims, place, strict=True)}
    return {**labels, "cka": float(result["cka"].values[place])}


def _of_pair(first: Store, second: Store, pair: tuple[str, str], asked: dict[str, Any]) -> dict[str, Any]:
    from ndt_query.similarity import cka as of_two

    (layer, step, one), (other_layer, other_step, two) = _named(first, pair[0]), _named(second, pair[1])
    found = of_two(one, two, **asked)
    _tell_drawn(found)
    numbers = {name: float(found[name]) for name in PAIR_COLUMNS[4:-1]}
    return {
        "layer": layer, "checkpoint": step, "other_layer": other_layer, "other_checkpoint": other_step, **numbers,
        "n_examples": found.attrs["n_in_batches"],
    }  # fmt: skip


def _tell_drawn(result: xr.Dataset) -> None:
    n, held = result.attrs["n_in_batches"], result.attrs["n_examples"]
    if n < held:
        tell(f"of {n} of {held} examples, drawn at random: --all-examples takes all")


def _named(store: Store, text: str) -> tuple[str, int, xr.DataArray]:
    """Return what ``LAYER@STEP`` names; a layer's own name may hold an @ too."""
    able = unit_layers(store)
    layer, _, step = (text, "", "") if text in able else text.rpartition("@")
    if layer not in able or (step and not step.isdecimal()):
        raise NotFoundError(
            f"{store.path} has no activations {text!r}: expected LAYER@STEP or LAYER, of layers {', '.join(able)}."
        )
    acts = store[layer].activations
    if not acts.sizes[CHECKPOINT]:
        raise NotFoundError(f"{store.path} has no committed checkpoint yet: run its capture again to go on with it.")
    at = int(step) if step else int(np.asarray(store.checkpoints)[-1])
    require_steps(acts, [at])
    return layer, at, acts.sel({CHECKPOINT: at})
