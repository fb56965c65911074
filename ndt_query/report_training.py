"""The part of a report that is about training: trajectories with their jumps, and what interventions cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import xarray as xr
from matplotlib.figure import Figure

from ndt_query.intervention_study import EXPERIMENT
from ndt_query.interventions import effect_rows, intervention_effects
from ndt_query.jump_moments import characterise_jumps, nearest_miss
from ndt_query.jumps import JUMP, detect_jumps
from ndt_query.layers import Whole
from ndt_query.plot.interventions import interventions
from ndt_query.plot.trajectories import MOST_ROWS, jump_nulls, trajectories
from ndt_store.dims import LAYER, POSITION_DIMS, STEP
from ndt_store.errors import DimensionError, InvalidInputError, NotFoundError
from ndt_store.reader import Store

__all__ = ["MEASURE", "Trained", "trained"]

MEASURE: Final = "participation_ratio"
ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Trained:
    """What there is to say about a training.

    Parameters
    ----------
    figures : tuple of (kind, Figure)
        ``trajectories``, ``jump_nulls`` and ``interventions``, as far as there is something to draw.
    jumps : tuple of dict
        A row for each jump: what the table of jumps shows.
    words : str
        What was looked for and how much of it was found, or why it was not looked for; "" where nothing was tracked.
    said_of_interventions : str
        Over how many steps and seeds they are compared, or why they are left out; "" where there are none.
    effects : tuple of dict
        A row for each quantity, layer, arm and role.
    flattened : bool
        Whether the dimension was tracked with every position a feature, so that it is another than that of means.
    """

    figures: tuple[tuple[str, Figure], ...] = ()
    jumps: tuple[dict[str, Any], ...] = ()
    words: str = ""
    said_of_interventions: str = ""
    effects: tuple[dict[str, Any], ...] = ()
    flattened: bool = False


def trained(store: Whole) -> Trained:
    """Look for jumps in what a store tracked while training, and for its interventions.

    Parameters
    ----------
    store : Store, DataTree or mapping of layers
        Only a Store has a training; of the others nothing is said.

    Returns
    -------
    Trained

    Notes
    -----
    About 0.1 s for each layer of 400 measurements and 0.2 s more for each jump, see `ndt_query.detect_jumps`.
    """
    if not isinstance(store, Store):
        return Trained()
    figures, jumps, words = _jumps(store)
    found = Trained(figures, jumps, words, flattened=bool(figures) and _is_flattened(store))
    if EXPERIMENT not in store.experiments:
        return found
    try:
        effects = intervention_effects(store)
    except (DimensionError, InvalidInputError) as error:
        return replace(found, said_of_interventions=f"Interventions are left out. {error}")
    said = f"Compared over {effects.attrs['window']} steps from each moment. {effects.attrs['seeds']}."
    return replace(
        found,
        figures=(*figures, (EXPERIMENT, interventions(effects))),
        said_of_interventions=said,
        effects=tuple(effect_rows(effects)),
    )


def _is_flattened(store: Store) -> bool:
    has_positions = any(set(POSITION_DIMS) & set(store[layer].dims) for layer in store.layers)
    return has_positions and store.training.attrs.get("positions") == "flatten"


def _jumps(store: Store) -> tuple[tuple[tuple[str, Figure], ...], tuple[dict[str, Any], ...], str]:
    try:
        training = store.training
    except NotFoundError:
        return (), (), ""
    try:
        found = detect_jumps(training, alpha=ALPHA, measure=MEASURE)
    except (DimensionError, InvalidInputError, NotFoundError) as error:
        return (), (), f"Jumps were not looked for. {error}"
    figures = [("trajectories", trajectories(found, training if {"loss", "validation_loss"} & set(training) else None))]
    n_layers = training.sizes.get(LAYER, 1)
    if found.sizes[JUMP] + n_layers <= MOST_ROWS:
        figures.append(("jump_nulls", jump_nulls(found)))
    return tuple(figures), tuple(_rows(found)), _words(found, training)


def _words(found: xr.Dataset, training: xr.Dataset) -> str:
    n, n_steps = found.sizes[JUMP], training.sizes[STEP]
    looked = f"{n_steps} measurements of {training.sizes.get(LAYER, 1)} layers, step {int(training[STEP][0])} to "
    looked += f"{int(training[STEP][-1])}"
    if n:
        return f"{n} jump{'s' * (n > 1)} in {looked}."
    miss = nearest_miss(found)
    return f"No jump in {looked}: {miss or 'the measure never changes'}."


def _rows(found: xr.Dataset) -> list[dict[str, Any]]:
    of = characterise_jumps(found)
    rows = []
    for place in range(found.sizes[JUMP]):
        one, more = found.isel({JUMP: place}), of.isel({JUMP: place})
        rows.append(
            {
                "layer": str(one[LAYER].item()) if LAYER in found else "",
                "step": f"{one['step'].item()}",
                "interval": f"{one['low'].item()} to {one['high'].item()}",
                "size": f"{one['size'].item():+.3g}",
                "size_interval": f"{more['size_low'].item():+.3g} to {more['size_high'].item():+.3g}",
                "in_noise": f"{one['size_in_noise'].item():+.1f}",
                "levels": f"{more['before'].item():.3g} to {more['after'].item():.3g}",
                "p": f"{one['p_value'].item():.2g}",
                "q": f"{one['q_value'].item():.2g}",
            }
        )
    return rows
